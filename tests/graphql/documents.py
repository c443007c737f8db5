"""Generated documents: valid operations on one schema that has everything a price can hang on, and damaged text."""

from __future__ import annotations

from typing import Any

import graphql as g
from hypothesis import strategies as st

SDL = """
scalar Text @cost(weight: "0.25")
enum Mood @cost(weight: "1") { GOOD BAD }

input Page { first: Int = 2 after: String @cost(weight: "-3") inner: Page deep: [Page!] }
input Filter { page: Page = { first: 4 } @cost(weight: "2") mood: Mood @cost(weight: "1.5") not: Filter }

interface Node { id: ID kids(first: Int = 2): [Node] mate: Node text: Text }
interface Named { name: String text: Text }

type User implements Node & Named @cost(weight: "-2") {
  id: ID
  name: String @cost(weight: "0.5")
  text: Text @cost(weight: "3")
  kids(first: Int = 2): [Node] @listSize(slicingArguments: ["first"])
  mate: Node
  posts(first: Int, last: Int): Posts
    @listSize(slicingArguments: ["first", "last"], sizedFields: ["nodes"], requireOneSlicingArgument: false)
}

type Robot implements Node & Named @cost(weight: "5") {
  id: ID @cost(weight: "1")
  name: String
  text: Text
  kids(first: Int = 2): [Node] @listSize(assumedSize: 3)
  mate: Node @cost(weight: "-1")
}

type Post implements Node {
  id: ID
  text: Text
  kids(first: Int = 2): [Node] @cost(weight: "2")
  mate: Node
  author: Actor
}

type Posts { nodes: [Post] more: [Post] @listSize(assumedSize: 7) total: Int @cost(weight: "1") }

union Actor = User | Robot

type Query @cost(weight: "2") {
  node(id: ID @cost(weight: "1")): Node
  actor: Actor
  actors(n: Int = 3): [Actor!]! @listSize(slicingArguments: ["n"]) @cost(weight: "4")
  search(filter: Filter = {} @cost(weight: "1"), pages: [Page!]): [Node] @listSize(assumedSize: 2)
  named: [Named]
  moods: [Mood]
}
"""

SCHEMA = g.build_schema(
    "directive @cost(weight: String!) on ARGUMENT_DEFINITION | ENUM | FIELD_DEFINITION | INPUT_FIELD_DEFINITION"
    " | OBJECT | SCALAR\n"
    "directive @listSize(assumedSize: Int, slicingArguments: [String!], sizedFields: [String!],"
    " requireOneSlicingArgument: Boolean = true) on FIELD_DEFINITION\n" + SDL
)

# Ways to call a field. A response name belongs to one way, so that fields of one name are always the same field.
CALLS: dict[str, list[str]] = {
    "kids": ["", "(first: 3)", "(first: $n)", "(first: -4)", "(first: null)", "(first: $m)"],
    "posts": ["", "(first: 2)", "(first: $n, last: 1)", "(last: $m)"],
    "node": ["", '(id: "a")', "(id: 7)"],
    "actors": ["", "(n: 5)", "(n: $m)", "(n: 0)"],
    "search": [
        "",
        "(filter: null)",
        "(filter: $f)",
        "(filter: {not: {mood: GOOD, page: {after: null}}})",
        "(filter: {page: $p, not: $f})",
        '(pages: [{first: 1, inner: {after: "x"}}, $q])',
        "(pages: [])",
    ],
}
VARIABLES = "$a: Boolean!, $b: Boolean! = true, $n: Int, $m: Int = 3, $f: Filter, $p: Page, $q: Page! = {first: 9}"
CONDITIONS = [
    "",
    "",
    "",
    "",
    "@include(if: $a)",
    "@skip(if: $a)",
    "@include(if: $b)",
    "@skip(if: $b) @include(if: $a)",
    "@include(if: false)",
    "@skip(if: false)",
]
COMPOSITES = ["Node", "Named", "User", "Robot", "Post", "Posts", "Actor", "Query"]


@st.composite
def selections(draw: st.DrawFn, type_name: str, depth: int, fragments: list[str]) -> str:
    """A braced set on one type. `fragments` are those that may be spread: they come later, so there is no way back."""
    type_ = SCHEMA.type_map[type_name]
    parts = []
    for _ in range(draw(st.integers(1, 4))):
        kind = draw(st.integers(0, 9))
        when = draw(st.sampled_from(CONDITIONS))
        fields = getattr(type_, "fields", {})
        if kind <= 5 and fields:
            name = draw(st.sampled_from(sorted(fields)))
            ways = CALLS.get(name, [""])
            way = draw(st.integers(0, len(ways) - 1))
            named = g.get_named_type(fields[name].type)
            inside = ""
            if g.is_composite_type(named):
                if depth == 0:
                    continue
                inside = draw(selections(named.name, depth - 1, fragments))
            parts.append(f"{f'{name}{way}: ' if way else ''}{name}{ways[way]} {when} {inside}")
        elif kind == 6:
            parts.append(draw(st.sampled_from(["__typename", "kind: __typename"])))
        elif kind == 7 and fragments:
            parts.append(f"...{draw(st.sampled_from(fragments))} {when}")
        elif depth:
            condition = draw(st.sampled_from([None, *COMPOSITES]))
            parts.append(
                f"...{f' on {condition}' if condition else ''} {when} "
                + draw(selections(condition or type_name, depth - 1, fragments))
            )
    return "{" + " ".join(parts or ["__typename"]) + "}"


@st.composite
def operations(draw: st.DrawFn) -> str:
    names = [f"F{i}" for i in range(draw(st.integers(0, 3)))]
    text = f"query Q({VARIABLES}) " + draw(selections("Query", 4, names))
    for i, name in enumerate(names):
        on = draw(st.sampled_from(COMPOSITES))
        text += f"\nfragment {name} on {on} " + draw(selections(on, 2, names[i + 1 :]))
    return text


pages: st.SearchStrategy[Any] = st.recursive(
    st.fixed_dictionaries({}, optional={"first": st.none() | st.integers(-2, 9), "after": st.none() | st.just("x")}),
    lambda inner: st.fixed_dictionaries(
        {}, optional={"first": st.integers(0, 9), "inner": st.none() | inner, "deep": st.lists(inner, max_size=3)}
    ),
    max_leaves=4,
)
filters: st.SearchStrategy[Any] = st.recursive(
    st.fixed_dictionaries({}, optional={"page": st.none() | pages, "mood": st.sampled_from([None, "GOOD", "BAD"])}),
    lambda inner: st.fixed_dictionaries({}, optional={"not": st.none() | inner, "page": pages}),
    max_leaves=3,
)
variables = st.fixed_dictionaries(
    {"a": st.booleans()},
    optional={
        "b": st.booleans(),
        "n": st.none() | st.integers(-3, 40),
        "m": st.none() | st.integers(0, 40),
        "f": st.none() | filters,
        "p": st.none() | pages,
        "q": pages,
        "other": st.just(1),
    },
)

# Pieces of the language, right and wrong, for text that is mostly neither.
PIECES = [
    *'{}()[]:=!|&$@.,-+#"\\',
    *["...", "query", "mutation", "fragment", "on", "true", "null", "a", "Ab_9", "_"],
    *["0", "-0", "01", "1.5", "1.", ".5", "1e9", "1E+", "-1.5e-3", "0x1", "9a"],
    *['""', '"x"', '"\\n"', '"\\u00e9"', '"\\u{1F600}"', '"\\uD83D\\uDE00"', '"\\uD83D"', '"\\uDE00"'],
    *['"\\u{110000}"', '"\\u{}"', '"\\q"', '"', '"""', '"""a"b\\"""c"""'],
    *["\n", "\r", "\t", " ", "\ufeff", "\x00", "\x07", "é", "\u2028", "😀", "# c\n"],
    *["query($v: [Int!]! = [1] @d) ", "{a}", "f(x: 1)", "@d(y: $v)", "... on T"],
]
TEMPLATES = [
    *["{a}", "{a(x: %s)}", "query %s {a}", "{a %s b}", "{... %s {a}}", "fragment F on T %s {a}", "{a: b%s}", "%s"],
    *["query($v: Int = %s) {a}", "{a(x: [%s, {y: %s}])}", "mutation M @d(z: %s) {a {b}}"],
    *['{f(s: "%s")}', '{f(s: """%s""")}'],
]
soup = st.builds(
    lambda template, parts: template.replace("%s", "".join(parts)),
    st.sampled_from(TEMPLATES),
    st.lists(st.sampled_from(PIECES), max_size=8),
)


@st.composite
def damaged(draw: st.DrawFn) -> str:
    """A valid operation with a few characters taken out, put in or exchanged."""
    text = draw(operations())
    for _ in range(draw(st.integers(1, 3))):
        at = draw(st.integers(0, len(text)))
        cut = draw(st.integers(0, 3))
        text = text[:at] + "".join(draw(st.lists(st.sampled_from(PIECES), max_size=2))) + text[at + cut :]
    return text
