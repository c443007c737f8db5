"""Prices operations: `price` for one, `Pricer` for a server that sees the same documents again and again.

A document is compiled once for each operation in it; after that only its variables are looked at. The cache is keyed by
the text itself, so that no two documents can be taken for one another, and bounded in entries and in bytes. Documents
that are refused are not kept: refusing one again costs no more than looking at it did.
"""

from __future__ import annotations

import hashlib
import threading
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final, Literal, NamedTuple, TypeAlias

from shield.core.graphql import Price, Program, Refusal, Screen
from shield.graphql.ceilings import MAX_COST, Ceilings
from shield.graphql.errors import GraphQLError

if TYPE_CHECKING:
    from shield.graphql.schema import Schema

Dialect: TypeAlias = Literal["ibm", "router", "shape"]
DIALECTS: Final = ("ibm", "router", "shape")
# An operation's program is some ten times its text: 1,000 of 4 KB are 40 MB.
CACHE_ENTRIES: Final = 4_096
CACHE_BYTES: Final = 64 * 1024 * 1024
MAX_PERSISTED: Final = 100_000
SHOWN_PATHS: Final = 5


class Operation(NamedTuple):
    """One operation of a request. A hash alone asks for a document that is known by it."""

    query: str | bytes | None = None
    variables: Mapping[str, Any] | None = None
    operation_name: str | None = None
    hash: str | None = None


class BatchPrice(NamedTuple):
    """The prices of a batch and their sums, which saturate at 2^53 - 1."""

    prices: tuple[Price, ...]
    cost: int
    type_charge: int


class Pricer:
    """The prices of one API. Safe to share between threads.

    `schema` None makes the dialect "shape" the only one. `default_list_size` None leaves a list that nobody sizes
    unbounded: whatever costs something in it saturates. `unknown` says what becomes of a document that does not fit
    the schema: "refuse" (`graphql_invalid`), or "shape": it is priced by shape.
    """

    def __init__(
        self,
        schema: Schema | None = None,
        *,
        dialect: Dialect = "ibm",
        default_list_size: float | None = None,
        ceilings: Ceilings | None = None,
        cache_entries: int = CACHE_ENTRIES,
        cache_bytes: int = CACHE_BYTES,
        unknown: Literal["refuse", "shape"] = "refuse",
    ) -> None:
        if dialect not in DIALECTS:
            raise ValueError(f"dialect must be one of {', '.join(DIALECTS)}, not {dialect!r}")
        if schema is None and dialect != "shape":
            raise ValueError(f"dialect {dialect!r} needs a schema; without one there is 'shape'")
        if unknown not in ("refuse", "shape"):
            raise ValueError(f"unknown must be 'refuse' or 'shape', not {unknown!r}")
        for name, value in (("cache_entries", cache_entries), ("cache_bytes", cache_bytes)):
            if not isinstance(value, int) or isinstance(value, bool) or value < 0:
                raise ValueError(f"{name} must be an int of at least 0, not {value!r}")
        self.schema = schema
        self.dialect: Dialect = dialect
        self.default_list_size = list_size(default_list_size)
        self.ceilings = ceilings or Ceilings()
        self.unknown = unknown
        self._table = schema.table if schema is not None else None
        self._dialect = DIALECTS.index(dialect)
        self._screen = Screen(**self.ceilings.limits())
        self._lock = threading.RLock()
        self._cache_entries = cache_entries
        self._cache_bytes = cache_bytes
        self._programs: OrderedDict[tuple[str | bytes, str | None], Program] = OrderedDict()
        self._bytes = 0
        self._persisted: dict[str, str] = {}
        self._seen_hashes: OrderedDict[str, str | bytes] = OrderedDict()
        self._seen_bytes = 0

    @property
    def cached_entries(self) -> int:
        return len(self._programs)

    @property
    def cached_bytes(self) -> int:
        """Memory of what is cached: programs, and documents known by a hash."""
        return self._bytes + self._seen_bytes

    # ---- prices ----------------------------------------------------------------------------------------------

    def price(
        self,
        query: str | bytes | None = None,
        variables: Mapping[str, Any] | None = None,
        operation_name: str | None = None,
        hash: str | None = None,
    ) -> Price:
        """The price of one operation; raises GraphQLError when it cannot be priced or crosses a ceiling.

        With `hash` alone (the SHA-256 of the document in hexadecimal) the document must be known: persisted, or sent
        before together with its hash.
        """
        if hash:
            query = self._document(query, hash)
        elif not query:
            raise GraphQLError("graphql_invalid", "query: neither a document nor the hash of one")
        if variables is not None and type(variables) is not dict:
            if not isinstance(variables, Mapping):
                raise GraphQLError("graphql_invalid", "variables: must be an object")
            variables = dict(variables)
        try:
            with self._lock:
                price = self._program(query, operation_name or None).price(variables)
        except Refusal as refusal:
            raise _error(refusal) from None
        ceilings = self.ceilings
        if ceilings.max_cost is not None and price.cost > ceilings.max_cost:
            raise self._too_costly("graphql_cost", price, price.cost, ceilings.max_cost)
        if ceilings.max_type_cost is not None and price.type_charge > ceilings.max_type_cost:
            raise self._too_costly("graphql_type_cost", price, price.type_charge, ceilings.max_type_cost)
        return price

    def price_batch(self, operations: Sequence[Operation | Mapping[str, Any]]) -> BatchPrice:
        """The prices of all operations of one request, in order, and their sums.

        The ceilings on cost hold for the sum too: ten operations in one request are no cheaper than ten requests.
        """
        if not operations:
            raise GraphQLError("graphql_invalid", "a batch without operations")
        if len(operations) > self.ceilings.max_batch:
            raise GraphQLError(
                "graphql_batch",
                f"operations in one request: found {len(operations)}; allowed: at most {self.ceilings.max_batch}",
                figure=len(operations),
                ceiling=self.ceilings.max_batch,
            )
        prices = []
        for i, one in enumerate(operations):
            operation = one if isinstance(one, Operation) else _operation(one, i)
            try:
                prices.append(self.price(*operation))
            except GraphQLError as error:
                if len(operations) > 1:
                    error.detail = f"operation {i}: {error.detail}"
                    error.args = (f"{error.reason}: {error.detail}",)
                raise
        cost = min(MAX_COST, sum(price.cost for price in prices))
        type_charge = min(MAX_COST, sum(price.type_charge for price in prices))
        for reason, figure, ceiling in (
            ("graphql_cost", cost, self.ceilings.max_cost),
            ("graphql_type_cost", type_charge, self.ceilings.max_type_cost),
        ):
            if ceiling is not None and figure > ceiling:
                dearest = max(prices, key=lambda price: price.cost if reason == "graphql_cost" else price.type_charge)
                raise self._too_costly(reason, dearest, figure, ceiling)
        return BatchPrice(tuple(prices), cost, type_charge)

    # ---- documents known by their hash -----------------------------------------------------------------------

    def persist(self, documents: Mapping[str, str]) -> None:
        """Registers documents under names of the operator's own, usually their SHA-256: they are never forgotten."""
        with self._lock:
            if len(self._persisted.keys() | documents.keys()) > MAX_PERSISTED:
                raise ValueError(f"persisted documents: allowed: at most {MAX_PERSISTED}")
            self._persisted.update(documents)

    def _document(self, query: str | bytes | None, given: str) -> str | bytes:
        given_lower = given.lower()
        with self._lock:
            known = self._persisted.get(given) or self._persisted.get(given_lower) or self._seen_hashes.get(given_lower)
            if not query:
                if known is None:
                    raise GraphQLError(
                        "graphql_unknown_hash", "hash: no document is known by it; send it together with its hash"
                    )
                if given_lower in self._seen_hashes:
                    self._seen_hashes.move_to_end(given_lower)
                return known
            if known == query:
                return query
            data = _bytes(query)
            if hashlib.sha256(data).hexdigest() != given_lower:
                raise GraphQLError("graphql_invalid", "hash: it is not the SHA-256 of the document beside it")
            if len(data) <= min(self.ceilings.max_document_bytes, self._cache_bytes):
                self._seen_hashes[given_lower] = query
                self._seen_bytes += len(data) + 256
                while self._seen_bytes > self._cache_bytes or len(self._seen_hashes) > self._cache_entries:
                    _, old = self._seen_hashes.popitem(last=False)
                    self._seen_bytes -= len(_bytes(old)) + 256
        return query

    # ---- programs --------------------------------------------------------------------------------------------

    def _program(self, query: str | bytes, operation_name: str | None) -> Program:
        key = (query, operation_name)
        program = self._programs.get(key)
        if program is not None:
            self._programs.move_to_end(key)
            return program
        program = self._compiled(query, operation_name)
        size = program.size_bytes + len(query)
        if size <= self._cache_bytes and self._cache_entries:
            self._programs[key] = program
            self._bytes += size
            while self._bytes > self._cache_bytes or len(self._programs) > self._cache_entries:
                (old_query, _), old = self._programs.popitem(last=False)
                self._bytes -= old.size_bytes + len(old_query)
        return program

    def _compiled(self, query: str | bytes, operation_name: str | None) -> Program:
        try:
            return self._screen.compile(query, operation_name, self._table, self._dialect, self.default_list_size)
        except Refusal as refusal:
            if self.unknown != "shape" or refusal.reason != "graphql_invalid" or self._table is None:
                raise
            try:
                return self._screen.compile(query, operation_name, None, DIALECTS.index("shape"), None)
            except Refusal:
                raise refusal from None

    def _too_costly(self, reason: str, price: Price, figure: int, ceiling: int) -> GraphQLError:
        by_type = reason == "graphql_type_cost"
        with self._lock:  # looking again uses the program's own memory
            rows = price.costliest(SHOWN_PATHS, by_type=by_type)
        paths = tuple(f"{row[0]} ({_shown(row.type_cost if by_type else row.field_cost)})" for row in rows)
        what = "type cost" if by_type else "cost"
        found = "unbounded" if figure >= MAX_COST else str(figure)
        detail = f"{what}: found {found}; allowed: at most {ceiling}"
        if paths:
            detail += f"; costliest: {', '.join(paths)}"
        return GraphQLError(reason, detail, figure=figure, ceiling=ceiling, paths=paths)


def price(
    schema: Schema | None,
    query: str | bytes,
    variables: Mapping[str, Any] | None = None,
    operation_name: str | None = None,
    *,
    dialect: Dialect = "ibm",
    default_list_size: float | None = None,
    ceilings: Ceilings | None = None,
) -> Price:
    """The price of one operation, or a GraphQLError; see `Pricer` for what the options mean.

    Without a schema the dialect must be "shape".
    """
    pricer = Pricer(
        schema if dialect != "shape" else None,
        dialect=dialect,
        default_list_size=default_list_size,
        ceilings=ceilings,
        cache_entries=0,
    )
    return pricer.price(query, variables, operation_name)


def list_size(value: float | None) -> int | None:
    """A default list size as a whole number; None and infinity are unbounded."""
    if value is None or value == float("inf"):
        return None
    if (
        isinstance(value, bool)
        or not isinstance(value, int | float)
        or value != value
        or value < 0
        or value != int(value)
    ):
        raise ValueError(
            f"default_list_size must be a whole number of at least 0, or None for unbounded, not {value!r}"
        )
    return min(int(value), MAX_COST)


def _operation(given: Mapping[str, Any], i: int) -> Operation:
    if not isinstance(given, Mapping):
        raise GraphQLError("graphql_invalid", f"operation {i}: must be an object")
    query, name, known = given.get("query"), given.get("operation_name"), given.get("hash")
    for key, value in (("query", query), ("operation_name", name), ("hash", known)):
        if value is not None and not isinstance(value, str):
            raise GraphQLError("graphql_invalid", f"operation {i}: {key}: must be a string")
    return Operation(query, given.get("variables"), name, known)


def _bytes(query: str | bytes) -> bytes:
    return query.encode("utf-8", "surrogatepass") if isinstance(query, str) else query


def _error(refusal: Any) -> GraphQLError:
    place = f" (line {refusal.line}, column {refusal.column})" if refusal.line is not None else ""
    return GraphQLError(
        refusal.reason,
        refusal.message + place,
        figure=refusal.figure,
        ceiling=refusal.ceiling,
        line=refusal.line,
        column=refusal.column,
    )


def _shown(figure: float) -> str:
    return "unbounded" if figure >= MAX_COST else f"{figure:g}" if isinstance(figure, float) else str(figure)
