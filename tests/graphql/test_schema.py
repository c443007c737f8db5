"""Schemas that are refused, each error with its place; and what a schema may look like."""

from __future__ import annotations

import pytest

from shield.graphql import Schema, SchemaError, price

WRONG = [
    # (schema, line, column, part of the message)
    ("", 0, 0, "Syntax Error"),
    ("type Query {", 1, 13, "Syntax Error"),
    ("type Query { a: Int }\n{ a }", 2, 1, "operation"),
    ("type Mutation { a: Int }", 0, 0, "Query root type"),
    ("type Query { a: Nobody }", 1, 17, "Unknown type"),
    ("type Query { a: Int }\ntype Query { b: Int }", 1, 6, "only one type"),
    ("interface I { x: Int }\ntype Query implements I { a: Int }", 1, 15, "expected but Query does not provide it"),
    ("input A { a: A! }\ntype Query { f(a: A): Int }", 1, 11, ""),
    ("input A { a: A = {} }\ntype Query { f(a: A): Int }", 1, 11, "contains itself"),
    ("input A { b: B = {} }\ninput B {\n a: [A] = [{}] }\ntype Query { f(a: A): Int }", 1, 11, "contains itself"),
    ('type Query { a: Int @cost(weight: "x") }', 1, 35, "not a number"),
    ('type Query { a: Int @cost(weight: "NaN") }', 1, 35, "is not from"),
    ('type Query { a: Int @cost(weight: "Infinity") }', 1, 35, "is not from"),
    ('type Query { a: Int @cost(weight: "1e10") }', 1, 35, "is not from"),
    ('type Query { a: Int @cost(weight: "1e999999999999") }', 1, 35, "is not"),
    ("type Query { a: Int\n @cost(weight: true) }", 2, 16, "must be a number"),
    ("type Query { a: Int @cost }", 1, 21, "weight"),
    ('type Query { a: Int @cost(weight: "1") @cost(weight: "1") }', 1, 0, "cost"),
    ('type Query { a: Int }\ninterface I @cost(weight: "1") { a: Int }', 2, 13, "may not be used on"),
    ('type Query { a: Int }\nunion U @cost(weight: "1") = Query', 2, 9, "may not be used on"),
    ('type Query { a(i: I): Int }\ninput I @cost(weight: "1") { a: Int }', 2, 9, "may not be used on"),
    ("type Query { a: Int @listSize(assumedSize: 3) }", 1, 21, "the field is no list"),
    ("type Query { a: [Int] @listSize(assumedSize: -3) }", 1, 46, "assumedSize must be"),
    ('type Query { a: [Int] @listSize(assumedSize: "3") }', 1, 46, "assumedSize must be"),
    ("type Query { a: [Int] @listSize(assumedSize: 3000000000) }", 1, 46, "assumedSize must be"),
    ('type Query { a: [Int] @listSize(slicingArguments: ["n"]) }', 1, 23, "there is no 'n'"),
    ('type Query { a(n: String): [Int] @listSize(slicingArguments: ["n"]) }', 1, 34, "neither an Int nor a list"),
    ('type Query { a(n: Int): [Int] @listSize(slicingArguments: ["n.m"]) }', 1, 31, "'n' is no input object"),
    ('type Query { a(n: Int): [Int] @listSize(slicingArguments: ["n m"]) }', 1, 60, "is not a name"),
    ("type Query { a(n: Int): [Int] @listSize(slicingArguments: [3]) }", 1, 60, "list of strings"),
    ('type Query { a: [Int] @listSize(sizedFields: ["x"]) }', 1, 23, "there is no field 'x'"),
    ('type Query { a: Query @listSize(sizedFields: ["b"]) b: Int }', 1, 23, "'b' is no list"),
    ('type Query { a: Query @listSize(sizedFields: ["a { b"]) b: [Int] }', 1, 47, "not a path"),
    ('type Query { a: Query @listSize(sizedFields: ["a { b c }"]) b: [Int] c: [Int] }', 1, 47, "more than one list"),
    ("type Query { a: [Int] @listSize(requireOneSlicingArgument: 1, assumedSize: 1) }", 1, 60, "must be a Boolean"),
    ("type Query { a: [Int] @listsize(assumedSize: 1) }", 1, 23, "Unknown directive"),
    ("type Query { a: [Int] @listSize(size: 1) }", 1, 33, "Unknown argument"),
]


@pytest.mark.parametrize(("sdl", "line", "column", "message"), WRONG)
def test_a_wrong_schema_says_where(sdl, line, column, message):
    with pytest.raises(SchemaError) as caught:
        Schema.parse(sdl, source="api.graphql")
    issue = caught.value.issues[0]
    assert message in issue.message
    if line:
        assert issue.line == line
        assert column in (0, issue.column)
        assert f"api.graphql:{issue.line}:{issue.column}: " in str(caught.value)


def test_all_that_is_wrong_is_said_at_once():
    with pytest.raises(SchemaError) as caught:
        Schema.parse(
            'type Query { a: Int @cost(weight: "x")\n b: Int @listSize(assumedSize: 1)\n c: Int @cost(weight: "y") }'
        )
    assert [issue.line for issue in caught.value.issues] == [1, 2, 3]


def test_too_deep_is_an_error_and_no_crash():
    with pytest.raises(SchemaError):
        Schema.parse("type Query { a: " + "[" * 100_000)
    with pytest.raises(TypeError):
        Schema.parse(b"type Query { a: Int }")


def test_cycles_between_types_are_fine():
    schema = Schema.parse("type Query { a: A } type A { b: B } type B { a: A q: Query } input I { i: I l: [I!] }")
    assert price(schema, "{ a { b { a { b { q { a { b { q { a { __typename } } } } } } } } } }").type_cost == 10


def test_extensions_roots_and_own_definitions_count():
    schema = Schema.parse(
        """
        schema { query: Q mutation: M }
        directive @cost(weight: Int!) repeatable on FIELD_DEFINITION | OBJECT
        directive @listSize(assumedSize: Int, slicingArguments: [String!], sizedFields: [String!],
          requireOneSlicingArgument: Boolean = true, slicingArgumentDefaultValue: Int) on FIELD_DEFINITION
        type Q { a: T }
        type T { x: Int }
        extend type T @cost(weight: 7)
        extend type Q {
          list(first: Int): [T] @listSize(slicingArguments: ["first"], assumedSize: 50, slicingArgumentDefaultValue: 4)
        }
        type M { set: Int @cost(weight: 3) }
        """
    )
    assert price(schema, "{ a { x } }").type_cost == 8
    assert price(schema, "{ list { x } }").type_cost == 29
    assert price(schema, "mutation { set }").field_cost == 3
    assert price(schema, "mutation { set }", dialect="router").cost == 13


@pytest.mark.parametrize(
    ("weight", "cost"),
    [
        ("0.1", 0.1),
        ("1e-9", 1e-9),
        ("1e-10", 1e-9),
        ("1e-99", 1e-9),
        ("-1e-99", 0),
        (" 2 ", 2),
        ("1e9", 10**9),
        ("-3", 0),
    ],
)
def test_weights_are_exact_and_rounded_up_behind_a_billionth(weight, cost):
    schema = Schema.parse(f'type Query {{ a: Int @cost(weight: "{weight}") }}')
    assert price(schema, "{ a }").field_cost == cost


def test_many_small_weights_do_not_drift():
    schema = Schema.parse(
        'type Query { list: [T] @listSize(assumedSize: 1000000) } type T { a: Int @cost(weight: "0.1") }'
    )
    assert price(schema, "{ list { a } }").field_cost == 100_001
