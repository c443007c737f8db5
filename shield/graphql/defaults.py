"""Defaults of arguments and input fields: as plain values, and whether they end."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from graphql import (
    BooleanValueNode,
    DocumentNode,
    EnumValueNode,
    FloatValueNode,
    GraphQLInputObjectType,
    GraphQLList,
    GraphQLNonNull,
    InputObjectTypeDefinitionNode,
    InputObjectTypeExtensionNode,
    InputValueDefinitionNode,
    IntValueNode,
    ListValueNode,
    NamedTypeNode,
    Node,
    ObjectValueNode,
    StringValueNode,
)


def value_of(node: Node, type_: Any) -> Any:
    """A literal as what a variable of the same value would be: a lone item of a list type becomes a list."""
    if isinstance(type_, GraphQLNonNull):
        type_ = type_.of_type
    if isinstance(type_, GraphQLList):
        items = node.values if isinstance(node, ListValueNode) else (node,)
        value = [value_of(item, type_.of_type) for item in items]
        return value if isinstance(node, ListValueNode) or value != [None] else None
    if isinstance(node, ObjectValueNode):
        fields = type_.fields if isinstance(type_, GraphQLInputObjectType) else {}
        known = {name: field.type for name, field in fields.items()}
        return {field.name.value: value_of(field.value, known.get(field.name.value)) for field in node.fields}
    if isinstance(node, ListValueNode):
        return [value_of(item, None) for item in node.values]
    if isinstance(node, IntValueNode):
        return int(node.value) if len(node.value) <= 20 else 1 << 62
    if isinstance(node, FloatValueNode):
        return float(node.value)
    if isinstance(node, StringValueNode | EnumValueNode | BooleanValueNode):
        return node.value
    return None


def default_cycles(document: DocumentNode) -> Iterator[tuple[Node, str]]:
    """Defaults of input objects that contain themselves, like `input A { a: A = {} }`: their value would never end.

    The rule is the one of the September 2025 specification (3.10, "Circular References"); each cycle is told once.
    """
    types: dict[str, dict[str, InputValueDefinitionNode]] = {}
    for node in document.definitions:
        if isinstance(node, InputObjectTypeDefinitionNode | InputObjectTypeExtensionNode):
            fields = types.setdefault(node.name.value, {})
            for field in node.fields or ():
                fields.setdefault(field.name.value, field)
    state: dict[tuple[str, str], int] = {}
    cycles: list[tuple[Node, str]] = []

    def look(type_name: str, value: Node) -> None:
        """Follows what a value of an input object type makes of the defaults of that type."""
        if isinstance(value, ListValueNode):
            for item in value.values:
                look(type_name, item)
        if not isinstance(value, ObjectValueNode):
            return
        given = {field.name.value: field.value for field in value.fields}
        for name, field in types.get(type_name, {}).items():
            if name in given:
                look(_named(field), given[name])
            elif field.default_value is not None:
                enter(type_name, name, field)

    def enter(type_name: str, name: str, field: InputValueDefinitionNode) -> None:
        key = (type_name, name)
        if state.get(key) == 1:
            cycles.append((field, f"{type_name}.{name}: the default contains itself"))
        elif key not in state and field.default_value is not None:
            state[key] = 1
            look(_named(field), field.default_value)
            state[key] = 2

    for type_name, fields in types.items():
        for name, field in fields.items():
            enter(type_name, name, field)
    yield from cycles


def _named(field: InputValueDefinitionNode) -> str:
    node: Any = field.type
    while not isinstance(node, NamedTypeNode):
        node = node.type
    return node.name.value
