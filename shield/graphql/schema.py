"""A schema, read once by graphql-core and flattened into the tables that prices are computed from.

What is wrong with it is a `SchemaError` that lists everything found, with lines and columns: errors of the language, a
broken @cost or @listSize, defaults that contain themselves.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import chain
from typing import TYPE_CHECKING, Any, Final

from shield.core.graphql import SchemaTable
from shield.graphql.errors import SchemaError, SchemaIssue

try:
    from graphql import (
        DirectiveDefinitionNode,
        DocumentNode,
        ExecutableDefinitionNode,
        GraphQLEnumType,
        GraphQLField,
        GraphQLInputObjectType,
        GraphQLInterfaceType,
        GraphQLList,
        GraphQLNamedType,
        GraphQLNonNull,
        GraphQLObjectType,
        GraphQLScalarType,
        GraphQLSchema,
        GraphQLSyntaxError,
        GraphQLUnionType,
        Node,
        build_ast_schema,
        get_named_type,
        parse,
        specified_scalar_types,
        validate_schema,
    )
    from graphql import (
        GraphQLError as CoreError,
    )
    from graphql.validation.validate import validate_sdl
except ImportError as _error:  # pragma: no cover - only without the extra
    raise ImportError(
        "reading a GraphQL schema needs graphql-core: pip install 'shield-limiter[graphql]'", name=_error.name
    ) from _error

from shield.graphql.defaults import default_cycles, value_of
from shield.graphql.directives import BILLIONTH, DEFINITIONS, DirectiveError, list_size_of, weight_of
from shield.graphql.list_sizes import SizeTables, check_list_size, is_list

if TYPE_CHECKING:
    from shield.graphql.tables import InputRow

SCALAR, ENUM, OBJECT, INTERFACE, UNION, INPUT_OBJECT = range(6)
_SCALARS: Final = {"Int": 1, "Float": 2, "String": 3, "Boolean": 4, "ID": 5}
# Reading is quadratic nowhere, but what graphql-core builds is some hundred times the text.
MAX_SCHEMA_BYTES: Final = 16 * 1024 * 1024


class Schema:
    """The schema of one API, ready to price operations: `Schema.parse(sdl)`."""

    __slots__ = ("table", "type_count")

    def __init__(self, table: SchemaTable, type_count: int) -> None:
        self.table = table
        self.type_count = type_count

    @classmethod
    def parse(cls, sdl: str, *, source: str | None = None) -> Schema:
        """Reads a schema definition; raises SchemaError. `source` names the file in messages."""
        return _Reader(sdl, source).read()

    def __repr__(self) -> str:
        return f"Schema({self.type_count} types)"


class _Reader:
    """One reading of one schema: collects issues until they are told together."""

    def __init__(self, sdl: str, source: str | None) -> None:
        self.sdl = sdl
        self.source = source
        self.issues: list[SchemaIssue] = []
        self.index: dict[str, int] = {}
        self.names: dict[str, None] = {}
        self.inputs: list[InputRow] = []
        self.sizes = SizeTables()
        self.costs: dict[str, int | None] = {}

    def read(self) -> Schema:
        schema = self._built()
        types = [type_ for name, type_ in schema.type_map.items() if not name.startswith("__")]
        types += [type_ for name, type_ in specified_scalar_types.items() if name not in schema.type_map]
        self.index = {type_.name: i for i, type_ in enumerate(types)}
        for type_ in types:
            self.costs[type_.name] = self._weight(_type_directives(type_))
        fields = [row for type_ in types if _is_output(type_) for row in self._fields(schema, type_)]
        rows = [self._type(schema, type_) for type_ in types]
        directives = []
        for directive in schema.directives:
            first = len(self.inputs)
            self._inputs(-1, directive.args)
            directives.append((self._name(directive.name), first, len(self.inputs) - first))
        roots = tuple(
            self.index[root.name] if root else -1
            for root in (schema.query_type, schema.mutation_type, schema.subscription_type)
        )
        self._stop_at_issues()
        table = SchemaTable(
            names=list(self.names),
            types=rows,
            fields=fields,
            inputs=self.inputs,
            list_sizes=self.sizes.rows,
            paths=self.sizes.paths,
            trie=self.sizes.trie,
            directives=directives,
            roots=roots,
        )
        return Schema(table, len(types))

    # ---- the language ----------------------------------------------------------------------------------------

    def _built(self) -> GraphQLSchema:
        if not isinstance(self.sdl, str):
            raise TypeError(f"sdl must be str, not {type(self.sdl).__name__}")
        if len(self.sdl) > MAX_SCHEMA_BYTES:
            self._issue(None, f"{len(self.sdl)} characters; allowed: at most {MAX_SCHEMA_BYTES}")
            self._stop_at_issues()
        try:
            document = parse(self.sdl)
        except GraphQLSyntaxError as error:
            self._core(error)
            self._stop_at_issues()
        except RecursionError:
            self._issue(None, "too deeply nested to be read")
            self._stop_at_issues()
        for definition in document.definitions:
            if isinstance(definition, ExecutableDefinitionNode):
                self._issue(definition, "an operation or fragment, which is no part of a schema")
        for node, message in default_cycles(document):
            self._issue(node, message)
        self._stop_at_issues()
        document = _with_directives(document)
        for found in validate_sdl(document):
            self._core(found)
        self._stop_at_issues()
        try:
            schema = build_ast_schema(document, assume_valid_sdl=True)
            errors = validate_schema(schema)
        except RecursionError:
            self._issue(None, "too deeply nested to be read")
            self._stop_at_issues()
        except (TypeError, ValueError, CoreError) as error:
            self._issue(None, str(error))
            self._stop_at_issues()
        for found in errors:
            self._core(found)
        self._stop_at_issues()
        return schema

    def _core(self, error: CoreError) -> None:
        line, column = error.locations[0] if error.locations else (0, 0)
        self.issues.append(SchemaIssue(error.message, line, column))

    def _issue(self, node: Node | None, message: str) -> None:
        if node is None or node.loc is None:
            self.issues.append(SchemaIssue(message, 0, 0))
        else:
            token = node.loc.start_token  # graphql-core 3.2 counts line starts to the line before
            self.issues.append(SchemaIssue(message, token.line, token.column))

    def _stop_at_issues(self) -> None:
        if self.issues:
            raise SchemaError(self.issues, self.source)

    # ---- the tables ------------------------------------------------------------------------------------------

    def _name(self, name: str) -> str:
        self.names[name] = None
        return name

    def _weight(self, directives: Iterable[Any]) -> int | None:
        try:
            return weight_of(tuple(directives))
        except DirectiveError as error:
            self._issue(error.node, str(error))
            return None

    def _type(self, schema: GraphQLSchema, type_: GraphQLNamedType) -> tuple[Any, ...]:
        """(name, kind, scalar, weight, possible types, first input, inputs, values of an enum)"""
        kind = _kind(type_)
        possible: tuple[int, ...] = ()
        values: frozenset[str] | None = None
        first = len(self.inputs)
        weight = self.costs[type_.name]
        if isinstance(type_, GraphQLObjectType):
            possible = (self.index[type_.name],)
        elif isinstance(type_, GraphQLInterfaceType | GraphQLUnionType):
            members = [member.name for member in schema.get_possible_types(type_)]
            possible = tuple(self.index[name] for name in members)
            weight = max((self._output_weight(name) for name in members), default=BILLIONTH)
        elif isinstance(type_, GraphQLInputObjectType):
            self._inputs(self.index[type_.name], type_.fields)
        elif isinstance(type_, GraphQLEnumType):
            values = frozenset(self._name(name) for name in type_.values)
        if weight is None:
            weight = 0 if kind in (SCALAR, ENUM) else BILLIONTH
        scalar = _SCALARS.get(type_.name, 0) if kind == SCALAR else 0
        return self._name(type_.name), kind, scalar, weight, possible, first, len(self.inputs) - first, values

    def _output_weight(self, name: str) -> int:
        """Of an object type."""
        weight = self.costs[name]
        return BILLIONTH if weight is None else weight

    def _fields(self, schema: GraphQLSchema, type_: Any) -> Iterator[tuple[Any, ...]]:
        """(parent, name, type, is it a list, weight, router's weight, first argument, arguments, @listSize)"""
        for name, field in type_.fields.items():
            named = get_named_type(field.type)
            composite = _is_composite(named)
            own = self._weight(_directives(field.ast_node))
            of_type = self.costs[named.name]
            weight = own if own is not None else BILLIONTH if composite else 0
            router = own if own is not None else of_type if of_type is not None else BILLIONTH if composite else 0
            first = len(self.inputs)
            self._inputs(-1, field.args)
            yield (
                self.index[type_.name],
                self._name(name),
                self.index[named.name],
                is_list(field.type),
                weight,
                router,
                first,
                len(self.inputs) - first,
                self._list_size(schema, field),
            )

    def _inputs(self, parent: int, inputs: dict[str, Any]) -> None:
        """Appends the rows of arguments or of the fields of an input object."""
        for name, given in inputs.items():
            named = get_named_type(given.type)
            own = self._weight(_directives(given.ast_node))
            of_type = self.costs[named.name]
            weight = own if own is not None else BILLIONTH if isinstance(named, GraphQLInputObjectType) else 0
            literal = given.ast_node.default_value if given.ast_node is not None else None
            self.inputs.append(
                (
                    parent,
                    self._name(name),
                    self._ref(given.type),
                    weight,
                    own if own is not None else of_type,
                    literal is not None,
                    None if literal is None else value_of(literal, given.type),
                )
            )

    def _ref(self, type_: Any) -> tuple[int, int, int, int]:
        """(type, scalar, pairs of brackets, a bit for each "!" from the outside in)"""
        lists = non_null = 0
        while True:
            if isinstance(type_, GraphQLNonNull):
                non_null |= 1 << lists
                type_ = type_.of_type
            elif isinstance(type_, GraphQLList):
                lists += 1
                type_ = type_.of_type
            else:
                break
        scalar = _SCALARS.get(type_.name, 0) if isinstance(type_, GraphQLScalarType) else 0
        return self.index[type_.name], scalar, lists, non_null

    def _list_size(self, schema: GraphQLSchema, field: GraphQLField) -> int:
        """The number of the field's @listSize, or -1."""
        try:
            found = list_size_of(_directives(field.ast_node))
            if found is None:
                return -1
            check_list_size(schema, field, found)
        except DirectiveError as error:
            self._issue(error.node, str(error))
            return -1
        for path in chain(found.slicing_arguments, found.sized_fields):
            for name in path:
                self._name(name)
        return self.sizes.add(found)


def _with_directives(document: DocumentNode) -> DocumentNode:
    """The document with the definitions of @cost and @listSize that it lacks."""
    defined = {node.name.value for node in document.definitions if isinstance(node, DirectiveDefinitionNode)}
    lacking = [text for name, text in DEFINITIONS.items() if name not in defined]
    if not lacking:
        return document
    return DocumentNode(definitions=(*document.definitions, *parse("\n".join(lacking), no_location=True).definitions))


_KINDS: Final = (
    GraphQLScalarType,
    GraphQLEnumType,
    GraphQLObjectType,
    GraphQLInterfaceType,
    GraphQLUnionType,
    GraphQLInputObjectType,
)


def _kind(type_: GraphQLNamedType) -> int:
    return next(i for i, kind in enumerate(_KINDS) if isinstance(type_, kind))


def _is_output(type_: GraphQLNamedType) -> bool:
    return isinstance(type_, GraphQLObjectType | GraphQLInterfaceType)


def _is_composite(type_: GraphQLNamedType) -> bool:
    return isinstance(type_, GraphQLObjectType | GraphQLInterfaceType | GraphQLUnionType)


def _directives(node: Any) -> tuple[Any, ...]:
    return tuple(node.directives or ()) if node is not None else ()


def _type_directives(type_: GraphQLNamedType) -> tuple[Any, ...]:
    return tuple(
        chain.from_iterable(_directives(node) for node in (type_.ast_node, *(type_.extension_ast_nodes or ())))
    )
