"""Documents that are refused: above a ceiling, not GraphQL, not of the schema, or with variables of another type."""

from __future__ import annotations

import threading

import graphql
import pytest

from shield.graphql import Ceilings, GraphQLError, Pricer, Schema, price

SDL = """
type Query {
  a: Query
  b: Query
  x: Int
  login(name: String!, password: String!): Boolean
  list(first: Int): [Query] @listSize(slicingArguments: ["first"])
  big(first: Long): [Query] @listSize(slicingArguments: ["first"])
  byIds(ids: [ID!]): [Query] @listSize(slicingArguments: ["ids"])
  f(in: In, mood: Mood, id: ID, s: String, r: Float, yes: Boolean, need: Int!): Int
  free(j: Json): Int
  node: Node
  mood: Mood
}
type Mutation { pay(sum: Int!): Int }
interface Node { id: ID }
type Post implements Node { id: ID x: Int }
input In { n: Int in: In list: [In!] need: Int! = 1 }
input Strict { need: Int! }
extend type Query { strict(in: Strict): Int }
enum Mood { GOOD BAD }
scalar Json
scalar Long
"""
schema = Schema.parse(SDL)


def refused(query, variables=None, operation=None, **options) -> GraphQLError:
    pricer = Pricer(schema, default_list_size=10, **options)
    with pytest.raises(GraphQLError) as caught:
        pricer.price(query, variables, operation)
    return caught.value


def fan_out(levels: int, merged: bool) -> str:
    """2^levels fields out of a few lines: every fragment names the next one twice."""
    text = "{ ...F0 }"
    for i in range(levels):
        inside = f"...F{i + 1}"
        inside = f"{inside} {inside}" if merged else f"a {{ {inside} }} b {{ {inside} }}"
        text += f" fragment F{i} on Query {{ {inside} }}"
    return text + f" fragment F{levels} on Query {{ x }}"


CEILINGS = {
    "graphql_tokens": [
        "{ free(j: [" + "1 " * 4_000 + "]) }",
        "# " + "a" * 300_000 + "\n{ x }",
        "query Q(" + "$v: Int " * 1_000 + ") { x }",
    ],
    "graphql_depth": [
        "{" + "a {" * 15 + "x" + "}" * 16,
        fan_out(40, merged=False),
        "{ f(in: " + "{in: " * 17,
        "{ f(in: " + "[" * 17,
        "{" + "... {" * 600 + "x" + "}" * 601,
    ],
    "graphql_aliases": [
        "{" + " ".join(f"a{i}: __typename" for i in range(101)) + "}",
        "{ a { ...F } b { ...F } } fragment F on Query {" + " ".join(f"a{i}: x" for i in range(20)) + "}",
    ],
    "graphql_fields": [
        "{" + " x" * 500 + "}",
        "{" + "... { x } " * 500 + "}",
        "{" + " ".join(f"f{i}" for i in range(31)) + "}",
        "{ ...F ...F } fragment F on Query {" + " ".join(f"f{i}" for i in range(16)) + "}",
    ],
    "graphql_directives": ["{ x " + "@a " * 51 + "}", "query @a " + "@b " * 50 + "{ x }"],
    "graphql_fragments": [
        "{ x }" + "".join(f" fragment F{i} on Query {{ x }}" for i in range(101)),
        "{ ...A } fragment A on Query { ...B } fragment B on Query { ...A }",
        "{ x } fragment A on Query { a { ...A } }",
    ],
    "graphql_batch": ["".join(f"query Q{i} {{ x }} " for i in range(21))],
    "graphql_introspection": [
        "{ __schema { types { fields { type { fields { type { fields { type { fields { type { name } } } } } } } } } }",
        '{ __type(name: "Q") { ...A } } fragment A on __Type { fields { type { ...B } } }'
        " fragment B on __Type { interfaces { possibleTypes { inputFields { name } } } }",
    ],
}


@pytest.mark.parametrize(
    ("reason", "query"), [(reason, query) for reason, all_of in CEILINGS.items() for query in all_of]
)
def test_a_ceiling_names_the_figure(reason, query):
    error = refused(query)
    assert error.reason == reason
    if "leads back" not in error.detail:
        assert error.figure > error.ceiling
        assert str(error.ceiling) in error.detail
        assert str(error.figure) in error.detail


def test_ceilings_hold_exactly():
    def at(count: int, **ceilings: int) -> Pricer:
        return Pricer(schema, default_list_size=1, ceilings=Ceilings(**ceilings))

    for name, make in {
        "max_tokens": lambda n: "{" + "x " * (n - 2) + "}",
        "max_depth": lambda n: "{a " * (n - 1) + "{x}" + "}" * (n - 1),
        "max_aliases": lambda n: "{a {" + " ".join(f"a{i}: x" for i in range(n)) + "}}",
        "max_root_fields": lambda n: "{" + " ".join(f"q{i}: x" for i in range(n)) + "}",
        "max_directives": lambda n: "{ x " + "@a " * n + "}",
        "max_duplicate_fields": lambda n: "{ x" + " x" * n + "}",
        "max_value_depth": lambda n: "{ free(j: " + "[" * n + "]" * n + ") }",
        "max_fragments": lambda n: "{ x }" + "".join(f" fragment F{i} on Query {{ x }}" for i in range(n)),
        "max_operations": lambda n: " ".join(f"query Q{i} {{ x }}" for i in range(n)),
        "max_document_bytes": lambda n: "{ x }".ljust(n),
    }.items():
        pricer = at(20, **{name: 20})
        pricer.price(make(20), None, "Q1" if name == "max_operations" else None)
        with pytest.raises(GraphQLError):
            pricer.price(make(21), None, "Q1" if name == "max_operations" else None)


def test_the_usual_introspection_query_passes_and_can_be_forbidden():
    usual = graphql.get_introspection_query()
    found = Pricer(schema, default_list_size=10).price(usual)
    assert found.introspection_depth == 1
    assert found.cost == 1
    error = refused(usual, ceilings=Ceilings(introspection=False))
    assert error.reason == "graphql_introspection"
    Pricer(schema, ceilings=Ceilings(introspection=False)).price("{ __typename }")


def test_fan_out_is_linear():
    """2^40 fields: merged into one, or counted to the last without being visited."""
    deep = Ceilings(max_depth=250)
    inner = fan_out(40, merged=True).replace("{ ...F0 }", "{ a { ...F0 } }")
    assert Pricer(schema, ceilings=deep).price(inner).cost == 1
    for dialect in ("ibm", "router"):
        found = Pricer(schema, dialect=dialect, ceilings=deep).price(fan_out(40, merged=False))
        assert found.cost == 2**41 - 2
    assert Pricer(dialect="shape", ceilings=deep).price(fan_out(60, merged=False)).saturated


@pytest.mark.parametrize("levels", [*range(10, 36), 64, 99])
def test_figures_of_fragments_saturate(levels):
    """2^levels aliases, on both sides of where 32 bits end."""
    text = "{ ...F0 }" + "".join(f" fragment F{i} on Query {{ ...F{i + 1} ...F{i + 1} }}" for i in range(levels))
    error = refused(text + f" fragment F{levels} on Query {{ y: x }}")
    assert error.reason == "graphql_aliases"
    assert error.figure == min(2**levels, 2**30 - 1)


def test_merging_that_explodes_is_cut_off():
    """Which fragments meet in a field depends on every turn on the way to it: 2^n sets of selections, all different."""
    levels = 15
    parts = ["{ ...A0 }"]
    for i in range(levels):
        parts.append(f"fragment A{i} on Query {{ a {{ ...A{i + 1} ...P{i}_{i} }} b {{ ...A{i + 1} }} }}")
        for k in range(i, levels):
            parts.append(f"fragment P{i}_{k} on Query {{ a {{ ...P{i}_{k + 1} }} b {{ ...P{i}_{k + 1} }} }}")
        parts.append(f"fragment P{i}_{levels} on Query {{ x }}")
    parts.append(f"fragment A{levels} on Query {{ x }}")
    error = refused(" ".join(parts), ceilings=Ceilings(max_depth=100, max_fragments=1_000))
    assert error.reason == "graphql_fragments"
    assert "selections" in error.detail


def test_a_small_stack_is_enough():
    """The compiler's recursion has a bound of its own, whatever ceilings were raised."""
    wide = Ceilings(max_depth=250, max_fragments=1_000, max_tokens=10_000)
    chain = "{ ...F0 }" + "".join(f" fragment F{i} on Query {{ ... {{ ...F{i + 1} }} }}" for i in range(480))
    nested = ["{" + "... {" * 490 + "x" + "}" * 491, "{" + "a {" * 249 + "x" + "}" * 250]
    done: list[str] = []

    def work() -> None:
        for dialect in ("ibm", "router"):
            for query in [*nested, chain + " fragment F480 on Query { x }"]:
                try:
                    Pricer(schema, dialect=dialect, ceilings=wide).price(query)
                    done.append("priced")
                except GraphQLError as error:
                    done.append(error.reason)

    before = threading.stack_size(512 * 1024)
    try:
        thread = threading.Thread(target=work)
        thread.start()
        thread.join()
    finally:
        threading.stack_size(before)
    assert done == ["priced"] * 5 + ["graphql_depth"]


NOT_GRAPHQL = [
    "",
    "   # nothing\n",
    "{",
    "{ x",
    "{ }",
    "{ x() }",
    "{ x }}",
    "{ x(a:) }",
    "{ x(a: $) }",
    "query ($a: Int = $b) { x }",
    "query () { x }",
    "{ ... on }",
    "{ ...on Query }",
    "fragment on on Query { x }",
    "{ x } type T { x: Int }",
    "{ x \x00 }",
    '{ f(s: "never ends) }',
    '{ f(s: "line\nbreak") }',
    '{ f(s: """never ends"") }',
    '{ f(s: "\\uD83D") }',
    "{ x é }",
    "{ f(r: 01) }",
    "{ f(r: 1.) }",
    "{ f(r: 1a) }",
    "extend type Query { y: Int }",
    "subscription",
    "\ud800{ x }",
    b"{ x \xff }",
    b"\xc3\x28{ x }",
    "{ ...A }",
    "{ x } { x }",
    "query A { x } query A { x }",
    "query A { x } { x }",
    "{ ...A } fragment A on Query { x } fragment A on Query { x }",
    "fragment A on Query { x }",
]


@pytest.mark.parametrize("query", NOT_GRAPHQL)
def test_what_is_not_graphql(query):
    assert refused(query).reason == "graphql_invalid"
    with pytest.raises(GraphQLError) as caught:
        Pricer(dialect="shape").price(query)
    assert caught.value.reason == "graphql_invalid"


def test_what_is_graphql_after_all():
    for query in (
        "\ufeff{ x }",
        "{ x, }",
        b"{ x }",
        '{ f(need: 1, s: """a "quoted" \\""" block\n""") }',
        '"""what it does""" query Q { x }',
        "{ query: x, fragment: x, on: x, true: x }",
        '{ f(need: 1, s: "\\u{1F600}\\uD83D\\uDE00") }',
    ):
        assert Pricer(schema).price(query).cost == 0


def test_where_the_trouble_is():
    error = refused("{\n  x\n  é }")
    assert (error.line, error.column) == (3, 3)
    assert "line 3, column 3" in error.detail
    error = refused('query Q {\r\n  f(need: 1, s: "é", mood: SAD)\r}')
    assert (error.line, error.column) == (2, 28)


DOES_NOT_FIT = [
    "{ y }",
    "{ x { y } }",
    "{ a }",
    "{ __typename { x } }",
    "{ node { __schema { types { name } } } }",
    "{ ... on Nobody { x } }",
    "{ ... on Mood { x } }",
    "{ ...F } fragment F on Nobody { x }",
    "{ f }",
    "{ f(need: null) }",
    "{ f(need: 1, other: 2) }",
    '{ f(need: "1") }',
    "{ f(need: 1.0) }",
    "{ f(need: 2147483648) }",
    "{ f(need: 99999999999999999999999) }",
    "{ f(need: true) }",
    "{ f(need: 1, yes: 1) }",
    "{ f(need: 1, s: 1) }",
    '{ f(need: 1, r: "1") }',
    "{ f(need: 1, id: 1.5) }",
    "{ f(need: 1, mood: SAD) }",
    '{ f(need: 1, mood: "GOOD") }',
    "{ f(need: 1, in: 3) }",
    "{ f(need: 1, in: {no: 1}) }",
    "{ f(need: 1, in: {need: null}) }",
    "{ f(need: 1, in: {list: [null]}) }",
    "{ strict(in: {}) }",
    "{ list(first: 1e9) { x } }",
    '{ list(first: "1000000") { x } }',
    "{ list(first: [1]) { x } }",
    '{ big(first: "1000000") { x } }',
    "{ big(first: 1e9) { x } }",
    "{ list(first: $n) { x } }",
    "query ($n: String) { list(first: $n) { x } }",
    "query ($n: [Int]) { list(first: $n) { x } }",
    "query ($n: Nobody) { x }",
    "query ($n: Node) { x }",
    'query ($n: Int = "a") { x }',
    "query ($n: Int, $n: Int) { x }",
    "query ($n: Int) { f(need: $n) }",
    "query ($n: Int) { x @skip(if: $n) }",
    "{ x @skip }",
    "{ x @skip(if: 1) }",
    "{ x @include(unless: true) }",
    "{ a: x a: mood }",
    "subscription { x }",
    "query ($j: Int) { free(j: {deep: [$k]}) }",
]


@pytest.mark.parametrize("query", DOES_NOT_FIT)
def test_what_does_not_fit_the_schema(query):
    error = refused(query)
    assert error.reason == "graphql_invalid"
    assert len(error.detail) < 300


def test_what_does_not_fit_can_be_priced_by_shape():
    pricer = Pricer(schema, default_list_size=10, unknown="shape")
    found = pricer.price("{ users(first: 50) { name } }")
    assert (found.dialect, found.cost) == ("shape", 51)
    assert pricer.price("{ x }").dialect == "ibm"
    with pytest.raises(GraphQLError):
        pricer.price("{ users(first: 50) { name }")


WRONG_VARIABLES = [
    ("$n: Int", 1e9),
    ("$n: Int", 3.0),
    ("$n: Int", True),
    ("$n: Int", "1000000"),
    ("$n: Int", [3]),
    ("$n: Int", {}),
    ("$n: Int", 2**31),
    ("$n: Int", -(2**31) - 1),
    ("$n: Int", 10**30),
    ("$n: Int!", None),
]


@pytest.mark.parametrize(("declared", "value"), WRONG_VARIABLES)
@pytest.mark.parametrize("dialect", ["ibm", "router", "shape"])
def test_variables_of_the_wrong_type_are_never_absent(declared, value, dialect):
    query = f"query Q({declared}) {{ list(first: $n) {{ x }} }}"
    with pytest.raises(GraphQLError) as caught:
        price(schema, query, {"n": value}, dialect=dialect, default_list_size=1)
    assert caught.value.reason == "graphql_invalid"
    assert "n:" in caught.value.detail


@pytest.mark.parametrize(
    ("declared", "value"),
    [
        ("$v: In", {"no": 1}),
        ("$v: In", {"n": "1"}),
        ("$v: In", {"in": {"n": 1.5}}),
        ("$v: In", {"list": [None]}),
        ("$v: In", {"need": None}),
        ("$v: In", {1: 2}),
        ("$v: Strict", {}),
        ("$v: Mood", "SAD"),
        ("$v: Mood", 1),
        ("$v: ID", 1.5),
        ("$v: String", 1),
        ("$v: Float", "1"),
        ("$v: Float", float("nan")),
        ("$v: Boolean", 1),
        ("$v: [Int!]!", [1, None]),
    ],
)
def test_values_of_every_type_are_looked_at(declared, value):
    """Though nothing uses them: the server behind would refuse them too."""
    error = refused(f"query Q({declared}) {{ x }}", {"v": value})
    assert error.reason == "graphql_invalid"
    assert "v" in error.detail


def test_variables_that_are_missing_or_no_object():
    assert refused("query Q($n: Int!) { list(first: $n) { x } }").reason == "graphql_invalid"
    assert refused("query Q($n: Boolean) { x @skip(if: $n) }").reason == "graphql_invalid"
    assert refused("{ x }", [1]).reason == "graphql_invalid"
    assert price(schema, "{ x }", {"unused": object()}).cost == 0


def test_variables_that_nest_too_deep():
    value: object = {}
    for _ in range(20):
        value = {"in": value}
    assert refused("query Q($v: In) { f(need: 1, in: $v) }", {"v": value}).reason == "graphql_depth"
    loop: dict[str, object] = {}
    loop["in"] = loop
    assert refused("query Q($v: In) { f(need: 1, in: $v) }", {"v": loop}).reason == "graphql_depth"


def test_sizes_that_others_get_wrong():
    """Each was a way past a released product."""
    pricer = Pricer(schema, default_list_size=10)

    def type_cost(query, variables=None):
        return pricer.price(query, variables).type_cost

    assert type_cost("{ a: list(first: 999999) { x } b: list(first: -999999) { x } }") == 1_000_000
    assert type_cost("query ($n: Int) { list(first: $n) { x } }", {"n": 1_000_000}) == 1_000_001
    assert type_cost("{ big(first: 99999999999999999999999999) { x } }") == 2**53 - 1
    assert type_cost("query ($n: Long) { big(first: $n) { x } }", {"n": 2**62}) == 2**53 - 1
    assert type_cost("query ($n: Long) { big(first: $n) { x } }", {"n": 2**100}) == 2**53 - 1
    assert (
        type_cost("{ list(first: 2147483647) { list(first: 2147483647) { list(first: 2147483647) { x } } } }")
        == 2**53 - 1
    )
    assert type_cost('{ byIds(ids: ["a", "b"]) { x } }') == 3
    assert type_cost('query ($i: [ID!] = "a") { byIds(ids: $i) { x } }') == 2
    assert type_cost("query ($i: [ID!]) { byIds(ids: $i) { x } }", {"i": "a"}) == 2


def test_skip_and_include_stand_everywhere():
    pricer = Pricer(schema, default_list_size=10)
    for query in (
        "{ a @skip(if: true) { x } }",
        "{ ... @include(if: false) { a { x } } }",
        "{ ...F @skip(if: true) } fragment F on Query { a { x } }",
        "query ($t: Boolean = true) { ...F @skip(if: $t) } fragment F on Query { a { x } }",
        "query ($t: Boolean = true) { a @include(if: true) @skip(if: $t) { x } }",
    ):
        assert pricer.price(query).cost == 0


def test_many_conditions():
    names = [f"v{i}" for i in range(65)]
    declared = " ".join(f"${name}: Boolean = true" for name in names)
    query = f"query Q({declared}) {{" + " ".join(f"{name}: x @skip(if: ${name})" for name in names) + "}"
    error = refused(query, ceilings=Ceilings(max_directives=100, max_aliases=100, max_root_fields=100))
    assert error.reason == "graphql_directives"


def test_costs_name_their_paths():
    error = refused(
        "{ list(first: 100) { cheap: list(first: 2) { x } dear: list(first: 50) { a { x } } } }",
        ceilings=Ceilings(max_cost=1000),
    )
    assert error.reason == "graphql_cost"
    assert (error.figure, error.ceiling) == (5_201, 1_000)
    assert error.paths[0] == "list[100].dear[50].a (5000)"
    assert "found 5201; allowed: at most 1000" in error.detail
    assert "list[100].dear[50].a" in error.detail
    error = refused("{ list(first: 100) { x } }", ceilings=Ceilings(max_type_cost=100))
    assert (error.reason, error.figure) == ("graphql_type_cost", 101)
    assert error.paths == ("list[100] (100)",)
    error = refused("{ node { id } list { a { x } } }", ceilings=Ceilings(max_cost=5))
    assert error.paths[0] == "list[10].a (10)"
