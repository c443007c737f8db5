"""The keys of [guard.graphql]: what a GraphQL operation may cost and how that is reckoned.

The ceilings, their defaults and their bounds are those of `shield.graphql.Ceilings`; here they only get words.
"""

from __future__ import annotations

from dataclasses import fields
from typing import Any, Final

from shield.graphql.ceilings import BOUNDS, Ceilings
from shield.graphql.pricer import DIALECTS
from shield.policy import scalars
from shield.policy.kinds import Key, Table
from shield.policy.scalars import Scalar, Wrong

UNBOUNDED: Final = "unbounded"
MAX_LIST_SIZE: Final = 10**9

_DOCS: Final = {
    "max_document_bytes": "Bytes of one document.",
    "max_tokens": "Tokens of one document; comments and commas are none.",
    "max_depth": "Fields within each other, fragments followed.",
    "max_aliases": "Aliases, fragments followed: each runs its field once more.",
    "max_root_fields": "Fields at the top of the operation, fragments followed.",
    "max_directives": "Directives in the whole document.",
    "max_duplicate_fields": "Fields repeated within their own selections.",
    "max_value_depth": "Lists and input objects within each other, in literals and in variables.",
    "max_fragments": "Fragment definitions.",
    "max_operations": "Operation definitions. Only the named one runs and is priced.",
    "max_introspection_depth": "fields, interfaces, possibleTypes and inputFields within each other below __schema or "
    "__type.",
    "introspection": "Whether __schema and __type may be asked for at all.",
    "max_work": "Selections that are visited while fragments are merged.",
    "max_batch": "Operations in one request's array. Each counts as a request of its own for limits with a fixed cost.",
    "max_cost": "The cost of one request.",
    "max_type_cost": 'The type cost of one request. Only for dialect = "ibm".',
}


def _ceilings() -> tuple[Key, ...]:
    keys = []
    for one in fields(Ceilings):
        default: Any = one.default
        if one.name == "introspection":
            keys.append(Key(one.name, scalars.boolean(), _DOCS[one.name], default=default))
            continue
        default_doc = "no ceiling" if default is None else ""
        keys.append(
            Key(one.name, scalars.integer(*BOUNDS[one.name]), _DOCS[one.name], default=default, default_doc=default_doc)
        )
    return tuple(keys)


def _list_size() -> Scalar:
    def parse(value: Any) -> int | str:
        if value == UNBOUNDED:
            return UNBOUNDED
        if type(value) is not int or not 0 <= value <= MAX_LIST_SIZE:
            raise Wrong
        return value

    return Scalar("whole number or text", f'a whole number from 0 to {MAX_LIST_SIZE:,}, or "{UNBOUNDED}"', parse)


def _file() -> Scalar:
    return scalars.text("file", "the name of a file, relative to the policy file", r".+", 1_024)


def graphql_table(match: Table, mode: Key) -> Table:
    """`match` is the table that limits have too, `mode` the key of all guards."""
    return Table(
        "guard.graphql",
        "What a GraphQL operation may cost, before anything parses it. A document that cannot be priced is refused "
        "(graphql_invalid, 400), and so is one beyond a ceiling (422). Operations are taken from the request's graphql "
        "field and, where match says so, from its body and query string.",
        (
            Key(
                "match",
                match,
                "Requests whose body and query string are read for operations: JSON, application/graphql and forms. "
                "One that has none there is refused, but for a GET without a query.",
                default_doc="none: only the graphql field is",
            ),
            Key(
                "schema",
                _file(),
                "The schema in SDL, with @cost and @listSize. Needs the extra `graphql`.",
                default_doc="none",
            ),
            Key(
                "dialect",
                scalars.choice(*DIALECTS),
                '"ibm": the IBM cost directives, field and type cost; "router": the single figure of Apollo\'s and The '
                'Guild\'s routers; "shape": from depth and page sizes alone, without a schema.',
                default_doc='"ibm" with a schema, "shape" without',
            ),
            Key(
                "default_list_size",
                _list_size(),
                "How long a list is that nothing sizes. Unbounded lists cost more than any ceiling.",
                default=10,
            ),
            Key(
                "unknown",
                scalars.choice("refuse", "shape"),
                "What becomes of a document that does not fit the schema: it is refused, or priced by shape.",
                default="refuse",
            ),
            Key(
                "persisted",
                _file(),
                "A JSON object of documents by their hash, which clients then may send alone.",
                default_doc="only those that were sent before together with their SHA-256",
            ),
            mode,
            *_ceilings(),
        ),
    )
