"""What does it cost to price a GraphQL operation, first seen and seen before, and what can a hostile one make it cost?

The operation is documents/query.graphql: 393 bytes, two fragments deep, five lists. graphql-core's parser is the
measure, because a server behind Shield parses what Shield lets through. The hostile documents are those that took other
products seconds, and 1 MB of whatever the lexer can be kept busy with, told by the slowest.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from pathlib import Path

import graphql

from shield.core.graphql import Screen
from shield.graphql import Ceilings, GraphQLError, Pricer, Schema

from .record import Row, interleaved

DOCUMENTS = Path(__file__).parent / "documents"
MEGABYTE = 1 << 20


def run(seconds: float) -> list[Row]:
    query = (DOCUMENTS / "query.graphql").read_text()
    schema = Schema.parse((DOCUMENTS / "schema.graphql").read_text())
    variables = {"org": "acme"}
    screen = Screen(**Ceilings().limits())
    known = Pricer(schema, default_list_size=10)
    unknown = Pricer(schema, default_list_size=10, cache_entries=0)

    def repeated(work: Callable[[], object]) -> Callable[[int], None]:
        def run(calls: int) -> None:
            for _ in range(calls):
                work()

        return run

    screened, cached, cold, parsed = interleaved(
        [
            repeated(lambda: screen.screen(query)),
            repeated(lambda: known.price(query, variables)),
            repeated(lambda: unknown.price(query, variables)),
            repeated(lambda: graphql.parse(query, no_location=True)),
        ],
        [2_000, 2_000, 500, 20],
        seconds,
    )
    rows = [
        _row("GraphQL, 393 bytes: screened", screened / 1e3, "us", 2),
        _row("GraphQL, 393 bytes: priced, first seen", cold / 1e3, "us", 60),
        _row("GraphQL, 393 bytes: priced, seen before", cached / 1e3, "us", 3),
        Row("graphql-core's parse of it", parsed / 1e3, "us"),
        _ratio("graphql-core's parse against a price, seen before", parsed / cached, 50),
        _ratio("graphql-core's parse against a price, first seen", parsed / cold, 15),
    ]
    wide = Schema.parse(_wide())
    named = {name: _slowest(wide, [text], seconds) for name, text in _named().items()}
    rows += [_row(f"GraphQL, {name}", taken, "ms", 1) for name, taken in named.items()]
    rows.append(_row("GraphQL, 1 MB of anything, the slowest", _slowest(wide, _megabytes(), seconds), "ms", 5))
    return rows


def _row(what: str, value: float, unit: str, most: float) -> Row:
    return Row(what, value, unit, f"at most {most:g}", value <= most)


def _ratio(what: str, value: float, least: float) -> Row:
    return Row(what, value, "times", f"at least {least:g}", value >= least)


def _slowest(schema: Schema, texts: list[str], seconds: float) -> float:
    """Milliseconds that the slowest of some documents takes in any dialect.

    With the default ceilings, and without the one on bytes, which would end the matter at once.
    """
    pricers = [
        Pricer(
            schema if dialect != "shape" else None,
            dialect=dialect,
            default_list_size=10,
            ceilings=ceilings,
            cache_entries=0,
        )
        for dialect in ("ibm", "router", "shape")
        for ceilings in (Ceilings(), Ceilings(max_document_bytes=16 * MEGABYTE, max_depth=50))
    ]

    def asks(pricer: Pricer, text: str) -> Callable[[int], None]:
        def run(calls: int) -> None:
            for _ in range(calls):
                with contextlib.suppress(GraphQLError):
                    pricer.price(text)

        return run

    works = [asks(pricer, text) for text in texts for pricer in pricers]
    return max(interleaved(works, [5] * len(works), seconds / 50 / len(works))) / 1e6


def _wide() -> str:
    """150 types behind one interface."""
    types = (
        f"type T{i} implements Node {{ id: ID self: Node kids: [Node] next: T{(i + 1) % 150} }}" for i in range(150)
    )
    return "\n".join(
        [
            "type Query { a: Query b: Query x: Int n: Node f(i: I, s: String): Int }",
            "interface Node { id: ID self: Node kids: [Node] }",
            "input I { i: I l: [I] }",
            *types,
        ]
    )


def _named() -> dict[str, str]:
    fan_out = "{ ...F0 }" + "".join(
        f" fragment F{i} on Query {{ a {{ ...F{i + 1} }} b {{ ...F{i + 1} }} }}" for i in range(40)
    )
    return {
        "fan-out of 2^40 fields": fan_out + " fragment F40 on Query { x }",
        "10,000 directives": "{ x " + "@a " * 10_000 + "}",
        "364 KB of inline fragments": "{" + ("... on Query {" + "... on Query { x } " * 100 + "} ") * 190 + "}",
        "10,000 aliases": "{" + " ".join(f"a{i}: x" for i in range(10_000)) + "}",
        "an interface of 150 types, 10 deep": "{ n {" + "kids {" * 10 + "id" + "}" * 10 + "} }",
    }


def _megabytes() -> list[str]:
    def much(piece: str) -> str:
        return piece * (MEGABYTE // len(piece.encode()))

    return [
        *(
            much(piece)
            for piece in ("\0", " ", ",", "\ufeff", "#\n", "{", "}", "{a", "a ", "1", "...", '"', "$a", "@", "\\")
        ),
        *("{ f(s: " + much(piece) for piece in ("1", "[", "{i:", '""', "9.9e9 ", '"a" ')),
        *('{ f(s: "' + much(piece) for piece in ("a", "\\u0041", "\\n", "é")),
        *('{ f(s: """' + much(piece) for piece in ("a", '\\"""', '""\\', "\n")),
        *("{" + much(piece) for piece in ("x ", "...A ", "...{", "a:x ", "x@a ", "a{x}")),
        "#" + much("x"),
        "{" + much("x") + "}",
        "{" + " ".join(f"q{i}" for i in range(130_000)) + "}",
        "query (" + " ".join(f"$v{i}: Int" for i in range(70_000)) + ") { x }",
        "".join(f"fragment F{i} on Query {{x}}" for i in range(35_000)),
        "".join(f"query F{i} {{x}}" for i in range(60_000)),
    ]
