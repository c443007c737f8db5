"""@cost and @listSize as written in a schema, read and checked as far as that needs nothing else of it (IBM GraphQL
Cost Directives specification, sections "The Cost Directive" and "The List Size Directive").

Weights are strings in the specification and integers in some routers; both are read, as exact decimals. A schema need
not define the two directives; if it does, with other arguments or places, that is between it and graphql-core.
"""

from __future__ import annotations

from decimal import Decimal, InvalidOperation
from typing import Final, NamedTuple

from graphql import (
    BooleanValueNode,
    ConstDirectiveNode,
    FloatValueNode,
    IntValueNode,
    ListValueNode,
    Node,
    NullValueNode,
    StringValueNode,
)

BILLIONTH: Final = 1_000_000_000
MAX_WEIGHT: Final = 1_000_000_000
MAX_SIZE: Final = 2**31 - 1

DEFINITIONS: Final = {
    "cost": "directive @cost(weight: String!) on ARGUMENT_DEFINITION | ENUM | FIELD_DEFINITION | INPUT_FIELD_DEFINITION"
    " | OBJECT | SCALAR",
    "listSize": "directive @listSize(assumedSize: Int, slicingArguments: [String!], sizedFields: [String!],"
    " requireOneSlicingArgument: Boolean = true) on FIELD_DEFINITION",
}


class DirectiveError(Exception):
    """Something in a directive is wrong; `node` is where."""

    def __init__(self, node: Node, message: str) -> None:
        self.node = node
        super().__init__(message)


class ListSize(NamedTuple):
    """@listSize as written. `sized_fields` are paths: one name, or several for a field within a field."""

    node: Node
    assumed_size: int | None
    slicing_arguments: tuple[tuple[str, ...], ...]
    sized_fields: tuple[tuple[str, ...], ...]
    require_one: bool
    slicing_default: int | None


def weight_of(directives: tuple[ConstDirectiveNode, ...]) -> int | None:
    """The weight of @cost in billionths of a unit, rounded up; None without @cost."""
    found = [directive for directive in directives if directive.name.value == "cost"]
    if not found:
        return None
    if len(found) > 1:
        raise DirectiveError(found[1], "@cost: given more than once")
    node = found[0]
    given = {argument.name.value: argument.value for argument in node.arguments or ()}
    value = given.get("weight")
    if value is None:
        raise DirectiveError(node, "@cost: weight is missing")
    if not isinstance(value, StringValueNode | IntValueNode | FloatValueNode):
        raise DirectiveError(value, "@cost: weight must be a number in a string")
    try:
        weight = Decimal(value.value.strip())
    except InvalidOperation:
        raise DirectiveError(value, f"@cost: weight {value.value[:64]!r} is not a number") from None
    # The exponent first: comparing what has a billion digits would be an error of decimal's own.
    if not weight.is_finite() or weight.adjusted() > 10 or abs(weight) > MAX_WEIGHT:
        raise DirectiveError(value, f"@cost: weight {value.value[:64]!r} is not from -{MAX_WEIGHT} to {MAX_WEIGHT}")
    if weight and weight.adjusted() < -30:
        return 1 if weight > 0 else 0
    numerator, denominator = weight.as_integer_ratio()
    return -(-numerator * BILLIONTH // denominator)


def list_size_of(directives: tuple[ConstDirectiveNode, ...]) -> ListSize | None:
    """@listSize of a field, or None."""
    found = [directive for directive in directives if directive.name.value == "listSize"]
    if not found:
        return None
    if len(found) > 1:
        raise DirectiveError(found[1], "@listSize: given more than once")
    node = found[0]
    given = {argument.name.value: argument.value for argument in node.arguments or ()}
    require = given.get("requireOneSlicingArgument")
    if require is not None and not isinstance(require, BooleanValueNode | NullValueNode):
        raise DirectiveError(require, "@listSize: requireOneSlicingArgument must be a Boolean")
    return ListSize(
        node,
        _size(given.get("assumedSize"), "assumedSize"),
        tuple(_dotted(text, value) for text, value in _strings(given.get("slicingArguments"), "slicingArguments")),
        tuple(_nested(text, value) for text, value in _strings(given.get("sizedFields"), "sizedFields")),
        require.value if isinstance(require, BooleanValueNode) else True,
        _size(given.get("slicingArgumentDefaultValue"), "slicingArgumentDefaultValue"),
    )


def _size(value: Node | None, name: str) -> int | None:
    if value is None or isinstance(value, NullValueNode):
        return None
    if not isinstance(value, IntValueNode) or not 0 <= int(value.value[:20]) <= MAX_SIZE:
        raise DirectiveError(value, f"@listSize: {name} must be an Int from 0 to {MAX_SIZE}")
    return int(value.value)


def _strings(value: Node | None, name: str) -> list[tuple[str, Node]]:
    """A list of strings; one string stands for a list of it, as everywhere in GraphQL."""
    if value is None or isinstance(value, NullValueNode):
        return []
    items = value.values if isinstance(value, ListValueNode) else (value,)
    strings: list[tuple[str, Node]] = []
    for item in items:
        if not isinstance(item, StringValueNode):
            raise DirectiveError(item, f"@listSize: {name} must be a list of strings")
        strings.append((item.value, item))
    return strings


def _name(text: str, value: Node) -> str:
    if not (text.isascii() and text.replace("_", "a").isalnum() and not text[0].isdigit()):
        raise DirectiveError(value, f"@listSize: {text[:64]!r} is not a name")
    return text


def _dotted(text: str, value: Node) -> tuple[str, ...]:
    """`input.page.first` is the field of a field of an argument."""
    return tuple(_name(part, value) for part in text.strip().split("."))


def _nested(text: str, value: Node) -> tuple[str, ...]:
    """`results { page }` or `results.page` is a list within a field that is no list itself; one list a path."""
    stack: list[str] = []
    paths: list[tuple[str, ...]] = []
    last: str | None = None
    leaves = [0]
    for part in [*text.replace("{", " { ").replace("}", " } ").split(), ""]:
        if part == "{":
            if last is None:
                raise DirectiveError(value, f"@listSize: {text[:64]!r} is not a path of fields")
            stack.extend(last.split("."))
            leaves.append(len(last.split(".")))
            last = None
            continue
        if last is not None:
            paths.append(tuple(_name(name, value) for name in [*stack, *last.split(".")]))
            last = None
        if part == "}":
            if len(leaves) == 1:
                raise DirectiveError(value, f"@listSize: {text[:64]!r} is not a path of fields")
            del stack[len(stack) - leaves.pop() :]
        elif part:
            last = part
    if len(leaves) > 1 or not paths:
        raise DirectiveError(value, f"@listSize: {text[:64]!r} is not a path of fields")
    if len(paths) > 1:
        raise DirectiveError(value, f"@listSize: {text[:64]!r} names more than one list; give each a path of its own")
    return paths[0]
