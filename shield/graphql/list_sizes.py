"""@listSize against the rest of its schema, and as rows for the core."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from graphql import (
    GraphQLArgument,
    GraphQLField,
    GraphQLInputField,
    GraphQLInputObjectType,
    GraphQLInterfaceType,
    GraphQLList,
    GraphQLNonNull,
    GraphQLObjectType,
    GraphQLScalarType,
    GraphQLSchema,
    GraphQLUnionType,
    Node,
    get_named_type,
)

from shield.graphql.directives import DirectiveError, ListSize


class SizeTables:
    """Every @listSize of a schema in three tables, -1 where there is none.

    rows    (assumed size, default of slicing arguments, first path, paths, exactly one?, root of the sized fields)
    paths   of slicing arguments, as names
    trie    paths of sized fields: (name, is it a list to be sized?, first child, next)
    """

    def __init__(self) -> None:
        self.rows: list[tuple[int, int, int, int, bool, int]] = []
        self.paths: list[tuple[str, ...]] = []
        self.trie: list[tuple[str, int, int, int]] = []

    def add(self, found: ListSize) -> int:
        """Its number."""
        first = len(self.paths)
        self.paths += found.slicing_arguments
        self.rows.append(
            (
                -1 if found.assumed_size is None else found.assumed_size,
                -1 if found.slicing_default is None else found.slicing_default,
                first,
                len(found.slicing_arguments),
                found.require_one,
                self._tree(found.sized_fields),
            )
        )
        return len(self.rows) - 1

    def _tree(self, paths: Sequence[tuple[str, ...]]) -> int:
        """Paths as a tree of (name, is it a list to be sized, first child, next); the root's number, -1 for none."""
        if not paths:
            return -1
        nested: dict[str, Any] = {}
        for path in paths:
            inside = nested
            for name in path:
                inside = inside.setdefault(name, {})
            inside[""] = True  # the path ends here

        def grow(name: str, inside: dict[str, Any]) -> int:
            at = len(self.trie)
            self.trie.append((name, 0, -1, -1))
            child = last = -1
            for key in inside:
                if key:
                    one = grow(key, inside[key])
                    if last < 0:
                        child = one
                    else:
                        self.trie[last] = (*self.trie[last][:3], one)
                    last = one
            self.trie[at] = (name, int("" in inside), child, self.trie[at][3])
            return at

        return grow("", nested)


def check_list_size(schema: GraphQLSchema, field: GraphQLField, found: ListSize) -> None:
    if not is_list(field.type) and not found.sized_fields:
        raise DirectiveError(found.node, "@listSize: the field is no list, and sizedFields names none within it")
    for path in found.slicing_arguments:
        _check_slicing(field, path, found.node)
    for path in found.sized_fields:
        _check_sized(schema, field, path, found.node)


def _check_slicing(field: GraphQLField, path: tuple[str, ...], node: Node) -> None:
    inputs: dict[str, GraphQLArgument] | dict[str, GraphQLInputField] = field.args
    for i, name in enumerate(path):
        given = inputs.get(name)
        if given is None:
            raise DirectiveError(node, f"@listSize: slicingArguments: there is no {_dotted(path[: i + 1])}")
        named = get_named_type(given.type)
        if i + 1 < len(path):
            if not isinstance(named, GraphQLInputObjectType) or is_list(given.type):
                raise DirectiveError(node, f"@listSize: slicingArguments: {_dotted(path[: i + 1])} is no input object")
            inputs = named.fields
        elif not is_list(given.type) and (
            not isinstance(named, GraphQLScalarType) or named.name in ("Float", "String", "Boolean", "ID")
        ):
            raise DirectiveError(node, f"@listSize: slicingArguments: {_dotted(path)} is neither an Int nor a list")


def _check_sized(schema: GraphQLSchema, field: GraphQLField, path: tuple[str, ...], node: Node) -> None:
    types = [get_named_type(field.type)]
    for i, name in enumerate(path):
        fields = [
            type_.fields[name]
            for outer in types
            for type_ in (schema.get_possible_types(outer) if isinstance(outer, GraphQLUnionType) else [outer])
            if isinstance(type_, GraphQLObjectType | GraphQLInterfaceType) and name in type_.fields
        ]
        if not fields:
            raise DirectiveError(node, f"@listSize: sizedFields: there is no field {_dotted(path[: i + 1])}")
        if i + 1 == len(path) and not any(is_list(inner.type) for inner in fields):
            raise DirectiveError(node, f"@listSize: sizedFields: {_dotted(path)} is no list")
        types = [get_named_type(inner.type) for inner in fields]


def _dotted(path: Sequence[str]) -> str:
    return repr(".".join(path))


def is_list(type_: Any) -> bool:
    return isinstance(type_.of_type if isinstance(type_, GraphQLNonNull) else type_, GraphQLList)
