"""Prices written to be read: over graphql-core's tree and schema, in exact fractions, one rule a function.

It shares nothing with the compiled estimator but the specification. It handles documents that are valid, and takes the
time it takes: every runtime type of every selection is looked at anew.
"""

from __future__ import annotations

from fractions import Fraction
from typing import Any

import graphql as g

INFINITE = Fraction(10) ** 30
ABSENT = object()


class Estimator:
    """`costs(document, variables)` is (type cost, field cost) in IBM's dialect."""

    def __init__(self, schema: g.GraphQLSchema, default_size: int | None) -> None:
        self.schema = schema
        self.default_size = INFINITE if default_size is None else Fraction(default_size)

    def costs(self, document: g.DocumentNode, variables: dict[str, Any]) -> tuple[Fraction, Fraction]:
        operation = next(d for d in document.definitions if isinstance(d, g.OperationDefinitionNode))
        self.fragments = {d.name.value: d for d in document.definitions if isinstance(d, g.FragmentDefinitionNode)}
        self.defaults = {
            d.variable.name.value: d.default_value for d in operation.variable_definitions or () if d.default_value
        }
        self.variables = variables
        root = self.schema.get_root_type(operation.operation)
        types, fields = self.selections(root, [operation.selection_set], {})
        return max(Fraction(0), self.type_weight(root) + types), fields

    # ---- selections ------------------------------------------------------------------------------------------

    def selections(self, type_, sets, sizes) -> tuple[Fraction, Fraction]:
        """The larger of what each object type that `type_` can be at run time costs, figure by figure."""
        options = [self.of_object(t, sets, sizes) for t in self.objects(type_)]
        return max((o[0] for o in options), default=Fraction(0)), max((o[1] for o in options), default=Fraction(0))

    def objects(self, type_):
        return [type_] if isinstance(type_, g.GraphQLObjectType) else self.schema.get_possible_types(type_)

    def of_object(self, type_, sets, sizes) -> tuple[Fraction, Fraction]:
        total = [Fraction(0), Fraction(0)]
        for nodes in self.collect(type_, sets).values():
            cost = self.field(type_, nodes, sizes)
            total[0] += cost[0]
            total[1] += cost[1]
        return total[0], total[1]

    def collect(self, type_, sets) -> dict[str, list[g.FieldNode]]:
        found: dict[str, list[g.FieldNode]] = {}
        visited: set[str] = set()

        def walk(selection_set):
            for node in selection_set.selections:
                if not self.included(node):
                    continue
                if isinstance(node, g.FieldNode):
                    if node.name.value != "__typename":
                        found.setdefault((node.alias or node.name).value, []).append(node)
                elif isinstance(node, g.InlineFragmentNode):
                    if node.type_condition is None or self.applies(type_, node.type_condition.name.value):
                        walk(node.selection_set)
                elif node.name.value not in visited:
                    visited.add(node.name.value)
                    fragment = self.fragments[node.name.value]
                    if self.applies(type_, fragment.type_condition.name.value):
                        walk(fragment.selection_set)

        for selection_set in sets:
            walk(selection_set)
        return found

    def applies(self, type_, name: str) -> bool:
        return type_ in self.objects(self.schema.type_map[name])

    def included(self, node) -> bool:
        for directive in node.directives or ():
            if directive.name.value in ("skip", "include"):
                value = self.value(directive.arguments[0].value)
                if value is (directive.name.value == "skip"):
                    return False
        return True

    # ---- fields ----------------------------------------------------------------------------------------------

    def field(self, parent, nodes, sizes) -> tuple[Fraction, Fraction]:
        field = parent.fields[nodes[0].name.value]
        named = g.get_named_type(field.type)
        options = []
        for node in nodes:
            sized = directive(field, "listSize")
            asked = self.asked(field, node, sized) if sized else None
            handed = dict.fromkeys(sized.get("sizedFields") or (), asked) if sized and asked is not None else {}
            inside = (Fraction(0), Fraction(0))
            if node.selection_set:
                inside = self.selections(named, [n.selection_set for n in nodes], handed)
            size = Fraction(1)
            if isinstance(g.get_nullable_type(field.type), g.GraphQLList):
                if nodes[0].name.value in sizes:
                    size = sizes[nodes[0].name.value]
                elif asked is not None and not (sized and sized.get("sizedFields")):
                    size = asked
                else:
                    size = self.default_size
            options.append(
                (
                    max(Fraction(0), size * (self.type_weight(named) + inside[0])),
                    max(Fraction(0), self.call(field, node) + size * inside[1]),
                )
            )
        return max(o[0] for o in options), max(o[1] for o in options)

    def asked(self, field, node, sized) -> Fraction | None:
        given = []
        for name in sized.get("slicingArguments") or ():
            value = self.argument(field.args[name], node, name)
            if isinstance(value, int):
                given.append(Fraction(max(0, value)))
        if given:
            return max(given)
        return None if sized.get("assumedSize") is None else Fraction(sized["assumedSize"])

    def call(self, field, node) -> Fraction:
        cost = weight(field)
        if cost is None:
            cost = Fraction(int(g.is_composite_type(g.get_named_type(field.type))))
        for name, definition in field.args.items():
            value = self.argument(definition, node, name)
            if value is not ABSENT:
                cost += self.input(definition, value)
        return max(Fraction(0), cost)

    def argument(self, definition, node, name) -> Any:
        for argument in node.arguments or ():
            if argument.name.value == name:
                value = self.value(argument.value)
                if value is not ABSENT:
                    return value
        return self.default(definition)

    def default(self, definition) -> Any:
        literal = definition.ast_node.default_value
        return ABSENT if literal is None else self.value(literal)

    def input(self, definition, value) -> Fraction:
        """An argument or input field that is there: its weight, and what is inside."""
        named = g.get_named_type(definition.type)
        cost = weight(definition)
        if cost is None:
            cost = Fraction(int(isinstance(named, g.GraphQLInputObjectType)))
        return cost + self.inside(named, value)

    def inside(self, named, value) -> Fraction:
        if isinstance(value, list):
            return sum((self.inside(named, item) for item in value), Fraction(0))
        if not isinstance(named, g.GraphQLInputObjectType) or not isinstance(value, dict):
            return Fraction(0)
        cost = Fraction(0)
        for name, definition in named.fields.items():
            given = value.get(name, ABSENT)
            if given is ABSENT:
                given = self.default(definition)
            if given is not ABSENT:
                cost += self.input(definition, given)
        return cost

    def value(self, node) -> Any:
        """A literal with its variables put in; ABSENT for one that was not given."""
        if isinstance(node, g.VariableNode):
            name = node.name.value
            if name in self.variables:
                return self.variables[name]
            return self.value(self.defaults[name]) if name in self.defaults else ABSENT
        if isinstance(node, g.ListValueNode):
            return [None if (v := self.value(item)) is ABSENT else v for item in node.values]
        if isinstance(node, g.ObjectValueNode):
            return {field.name.value: self.value(field.value) for field in node.fields}
        if isinstance(node, g.NullValueNode):
            return None
        if isinstance(node, g.IntValueNode):
            return int(node.value)
        if isinstance(node, g.FloatValueNode):
            return float(node.value)
        return node.value

    def type_weight(self, named) -> Fraction:
        if g.is_abstract_type(named):
            return max((self.type_weight(t) for t in self.objects(named)), default=Fraction(1))
        found = weight(named)
        return Fraction(int(g.is_composite_type(named))) if found is None else found


def directive(definition, name: str) -> dict[str, Any] | None:
    for node in (definition.ast_node and definition.ast_node.directives) or ():
        if node.name.value == name:
            return {argument.name.value: _plain(argument.value) for argument in node.arguments}
    return None


def weight(definition) -> Fraction | None:
    found = directive(definition, "cost")
    return None if found is None else Fraction(found["weight"])


def _plain(node) -> Any:
    if isinstance(node, g.ListValueNode):
        return [_plain(item) for item in node.values]
    return int(node.value) if isinstance(node, g.IntValueNode) else node.value
