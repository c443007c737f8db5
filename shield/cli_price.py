"""`shield price`: what a GraphQL operation costs, path by path."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from shield.graphql import GraphQLError, PathCost, Price
    from shield.graphql.pricer import Dialect

_EXAMPLES: Final = """\
examples:
  shield price --schema schema.graphql query.graphql
  shield price --schema schema.graphql --variables '{"first": 50}' --max-cost 1000 query.graphql
  shield price --dialect shape - < query.graphql

exit status: 0 priced, 1 refused (invalid, or above a ceiling), 2 misuse, 3 fault
"""
# Default of policies too; the specification's own is unbounded.
DEFAULT_LIST_SIZE: Final = 10
MAX_FILE_BYTES: Final = 16 * 1024 * 1024
MAX_ROWS: Final = 1_000
MAX_CEILING: Final = (1 << 53) - 1
_UNBOUNDED: Final = "unbounded"


def add_to(commands: Any, new_parser: Callable[..., argparse.ArgumentParser]) -> None:
    """Adds the command to the parser's."""
    price = new_parser(
        commands.add_parser,
        "price",
        help="what a GraphQL operation costs, path by path",
        description="Prices one operation of a GraphQL document, as the policy's guard would.",
        epilog=_EXAMPLES,
    )
    price.add_argument("query", metavar="FILE", help="the document; - reads standard input")
    price.add_argument("--schema", metavar="FILE", type=Path, help="its schema, with @cost and @listSize")
    price.add_argument("--dialect", choices=("ibm", "router", "shape"), help="default: ibm, and shape without a schema")
    price.add_argument("--variables", metavar="JSON", help="an object, or @FILE that holds one")
    price.add_argument("--operation", metavar="NAME", help="which one, when the document has several")
    price.add_argument(
        "--default-list-size",
        metavar="N",
        type=_list_size,
        default=DEFAULT_LIST_SIZE,
        help=f"of lists that nothing sizes, or {_UNBOUNDED} (default: {DEFAULT_LIST_SIZE})",
    )
    for name in ("--max-cost", "--max-type-cost"):
        price.add_argument(name, metavar="N", type=_ceiling, help="refuse what costs more")
    price.add_argument("--format", choices=("text", "json"), default="text", help="how to say it (default: text)")
    price.set_defaults(command=run)


def run(options: argparse.Namespace) -> int:
    from shield.cli import Exit, Misuse
    from shield.graphql import Ceilings, GraphQLError, Pricer, SchemaError

    dialect: Dialect = options.dialect or ("ibm" if options.schema else "shape")
    if dialect != "shape" and options.schema is None:
        raise Misuse(f"--dialect {dialect} needs --schema")
    query = _text(None if options.query == "-" else Path(options.query))
    variables = _variables(options.variables)
    schema = None
    if dialect != "shape":
        from shield.graphql import Schema

        try:
            schema = Schema.parse(_text(options.schema), source=str(options.schema))
        except SchemaError as error:
            raise Misuse(str(error)) from None
    pricer = Pricer(
        schema,
        dialect=dialect,
        default_list_size=options.default_list_size,
        ceilings=Ceilings(max_cost=options.max_cost, max_type_cost=options.max_type_cost),
    )
    try:
        price = pricer.price(query, variables, options.operation)
    except GraphQLError as error:
        print(_refused_json(error) if options.format == "json" else f"refused: {error}")
        return Exit.NO
    print(_price_json(price) if options.format == "json" else _price_text(price))
    return Exit.YES


# ---- arguments ---------------------------------------------------------------------------------------------


def _text(path: Path | None) -> str:
    """A file's text; None is standard input."""
    from shield.cli import Misuse

    name = "standard input" if path is None else str(path)
    try:
        if path is None:
            data = sys.stdin.buffer.read(MAX_FILE_BYTES + 1)
        else:
            with path.open("rb") as file:
                data = file.read(MAX_FILE_BYTES + 1)
        if len(data) > MAX_FILE_BYTES:
            raise Misuse(f"{name}: more than {MAX_FILE_BYTES:,} bytes")
        return data.decode()
    except OSError as error:
        raise Misuse(f"{name}: {error.strerror}") from None
    except UnicodeDecodeError as error:
        raise Misuse(f"{name}: not UTF-8 at byte {error.start}") from None


def _variables(given: str | None) -> dict[str, Any] | None:
    from shield.cli import Misuse

    if given is None:
        return None
    text = _text(Path(given[1:])) if given.startswith("@") else given
    try:
        found = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise Misuse(f"--variables: not JSON: {error}") from None
    if not isinstance(found, dict):
        raise Misuse(f"--variables: found {type(found).__name__}; allowed: an object")
    return found


def _list_size(text: str) -> int | None:
    if text == _UNBOUNDED:
        return None
    if not text.isascii() or not text.isdigit() or int(text[:20]) > MAX_CEILING:
        raise argparse.ArgumentTypeError(f"{text!r}: allowed: a whole number, or {_UNBOUNDED}")
    return int(text)


def _ceiling(text: str) -> int:
    if not text.isascii() or not text.isdigit() or int(text[:20]) > MAX_CEILING:
        raise argparse.ArgumentTypeError(f"{text!r}: allowed: a whole number from 0 to {MAX_CEILING}")
    return int(text)


# ---- output ------------------------------------------------------------------------------------------------


def _price_text(price: Price) -> str:
    rows = price.paths(MAX_ROWS)
    both = price.dialect == "ibm"
    head = ["path", "size", "calls", *(["type cost", "field cost"] if both else ["cost"])]
    table = [head, *(_row(row, both) for row in rows)]
    widths = [max(len(line[i]) for line in table) for i in range(len(head))]
    lines = [
        "  ".join(
            cell.ljust(width) if i == 0 else cell.rjust(width)
            for i, (cell, width) in enumerate(zip(line, widths, strict=True))
        )
        for line in table
    ]
    if len(rows) == MAX_ROWS:
        lines.append(f"... the first {MAX_ROWS} paths")
    figures = f"cost {_figure(price.cost)}"
    if both:
        figures += f" (type cost {_figure(price.type_cost)}, field cost {_figure(price.field_cost)})"
    lines += [
        "",
        f"{figures}, dialect {price.dialect}",
        f"depth {price.depth}, {price.tokens} tokens, {price.fields} fields, {price.aliases} aliases, "
        f"{price.directives} directives, {price.fragments} fragments",
    ]
    return "\n".join(lines)


def _row(row: PathCost, both: bool) -> list[str]:
    costs = [row.type_cost, row.field_cost] if both else [row.field_cost]
    return [
        row.path,
        _UNBOUNDED if row.size is None else str(row.size),
        _UNBOUNDED if row.calls is None else str(row.calls),
        *(_figure(cost) for cost in costs),
    ]


def _figure(cost: float) -> str:
    return _UNBOUNDED if cost >= MAX_CEILING else f"{cost:g}" if isinstance(cost, float) else str(cost)


def _price_json(price: Price) -> str:
    names = (
        "cost",
        "type_cost",
        "field_cost",
        "saturated",
        "dialect",
        "operation",
        "operation_name",
        "depth",
        "tokens",
    )
    counts = ("fields", "root_fields", "aliases", "directives", "duplicate_fields", "fragments", "introspection_depth")
    answer = {name: getattr(price, name) for name in names + counts}
    answer["paths"] = [row._asdict() for row in price.paths(MAX_ROWS)]
    return json.dumps(answer, indent=2)


def _refused_json(error: GraphQLError) -> str:
    names = ("reason", "detail", "figure", "ceiling", "line", "column", "paths")
    return json.dumps({"refused": True, **{name: getattr(error, name) for name in names}}, indent=2)
