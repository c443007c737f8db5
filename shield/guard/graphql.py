"""The guard on GraphQL: which operations a request carries, wherever its client put them, and what they cost.

A caller may state them (`graphql`); else, on the paths that `[guard.graphql] match` names, they are read from the body
and the query string, as GraphQL over HTTP lays them out:

    JSON body                    {"query", "variables", "operationName", "extensions"}, or an array of such: a batch
    application/graphql          the document; the rest in the query string
    form                         query, variables, operationName, extensions
    query string                 the same names; GET and HEAD

The server behind reads the same bytes with another parser, so what two parsers may read differently is refused: a name
that is there twice, an operation both in the query string and in the body, a type of body that nobody here reads.
"""

from __future__ import annotations

import base64
import binascii
import json
from collections.abc import Mapping
from typing import Any, Final, NamedTuple, NoReturn
from urllib.parse import parse_qsl

from shield.graphql.errors import GraphQLError
from shield.graphql.pricer import Operation, Pricer
from shield.policy.matcher import Matcher
from shield.policy.model import GraphQLGuard
from shield.request import GraphQL, Request

INVALID: Final = "graphql_invalid"

# Past this a form or query string is no GraphQL request, and parsing it is work for nothing.
MAX_PARAMETERS: Final = 64

_NAMES: Final = frozenset(("query", "variables", "operationName", "extensions", "documentId"))
_JSON_SUFFIX: Final = "+json"
_WITHOUT_BODY: Final = frozenset(("GET", "HEAD", "OPTIONS", "TRACE"))


class Priced(NamedTuple):
    """What the operations of one request cost, or why they are refused; then the figures are what is known of them."""

    reason: str | None
    detail: str | None
    operations: int
    cost: int
    type_cost: int


class PriceGuard:
    """Prices requests by one policy's [guard.graphql]. `check` is pure but for the prices it remembers."""

    def __init__(self, guard: GraphQLGuard) -> None:
        self.max_cost = guard.ceilings.max_cost
        self._reads_http = guard.reads_http
        self._matcher = Matcher((guard,))
        self._pricer = Pricer(
            guard.schema,
            dialect=guard.dialect,
            default_list_size=guard.default_list_size,
            ceilings=guard.ceilings,
            unknown=guard.unknown,
        )
        self._pricer.persist(guard.persisted)

    def reads(self, request: Request) -> bool:
        """Whether operations are looked for in the request's body and query string. ValueError for a malformed path."""
        return self._reads_http and request.graphql is None and bool(self._matcher.match(request.method, request.path))

    def check(self, request: Request) -> Priced | None:
        """None where there is nothing to price. ValueError for a method or path that is malformed."""
        stated = request.graphql
        if stated is None:
            if not self.reads(request):
                return None
            try:
                stated = operations(request)
            except Unreadable as error:
                return Priced(INVALID, str(error), 1, 1, 1)
            if stated is None:
                return None
        if isinstance(stated, GraphQL):
            return self._one(stated)
        if isinstance(stated, list) and all(isinstance(one, GraphQL) for one in stated):
            return self._batch(stated)
        raise ValueError("graphql: expected a GraphQL operation or a list of them")

    def _one(self, stated: GraphQL) -> Priced:
        try:
            price = self._pricer.price(stated.query, stated.variables, stated.operation_name, stated.hash)
        except GraphQLError as error:
            return _refused(error, 1)
        return Priced(None, None, 1, price.cost, price.type_charge)

    def _batch(self, stated: list[GraphQL]) -> Priced:
        try:
            prices = self._pricer.price_batch(
                [Operation(one.query, one.variables, one.operation_name, one.hash) for one in stated]
            )
        except GraphQLError as error:
            return _refused(error, max(1, len(stated)))
        return Priced(None, None, len(stated), prices.cost, prices.type_charge)


def _refused(error: GraphQLError, operations: int) -> Priced:
    """A limit that charges refusals is charged the cost where it is known, else one unit for each operation."""
    figure = max(1, int(error.figure or 0))
    cost = figure if error.reason == "graphql_cost" else operations
    type_cost = figure if error.reason == "graphql_type_cost" else operations
    return Priced(error.reason, error.detail, operations, cost, type_cost)


class Unreadable(ValueError):
    """The request cannot be priced, because nobody knows which operation will run. The text names the field."""


def operations(request: Request) -> GraphQL | list[GraphQL] | None:
    """What the request carries: one operation, a batch of them, or None where there is none. Raises Unreadable.

    None is a GET without a query (a page, a preflight): no server runs an operation for it.
    """
    if request.graphql is not None:
        return request.graphql
    stated = _from_query_string(request.path)
    body = _body(request)
    if body is None:
        if stated is None and not _may_lack_body(request):
            raise Unreadable("graphql: the request has no operation that could be priced, and no body to read it from")
        return stated
    read = _from_body(body, _essence(request.content_type), stated)
    if isinstance(read, list) and stated is not None:
        _refuse_two()
    return read


def _may_lack_body(request: Request) -> bool:
    return not request.bytes and (request.method or "").upper() in _WITHOUT_BODY


def _body(request: Request) -> bytes | None:
    if request.body is None or request.body == "":
        return None
    try:
        body = base64.b64decode(request.body, validate=True)
    except (binascii.Error, ValueError):
        raise Unreadable("body: not base64") from None
    return body or None


def _essence(content_type: str | None) -> str:
    return (content_type or "").partition(";")[0].strip().lower()


def _from_body(body: bytes, essence: str, stated: GraphQL | None) -> GraphQL | list[GraphQL]:
    if essence == "application/graphql":
        if stated is not None and (stated.query is not None or stated.hash is not None):
            _refuse_two()
        return GraphQL(
            query=_text(body, "body"),
            variables=None if stated is None else stated.variables,
            operation_name=None if stated is None else stated.operation_name,
        )
    if stated is not None:
        _refuse_two()
    if essence == "application/x-www-form-urlencoded":
        found = _from_pairs(_text(body, "body"), "body")
        if found is None:
            raise Unreadable("body: a form without a query")
        return found
    if essence == "application/json" or essence.endswith(_JSON_SUFFIX):
        return _from_json(body)
    shown = essence[:64] or "none"
    allowed = "application/json, application/graphql or a form"
    raise Unreadable(f"content_type: found {shown}; allowed for GraphQL: {allowed}")


def _refuse_two() -> NoReturn:
    raise Unreadable("graphql: stated both in the query string and in the body; allowed: one place")


def _text(raw: bytes, field: str) -> str:
    try:
        return raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise Unreadable(f"{field}: not UTF-8 at byte {error.start}") from None


# ---- JSON ------------------------------------------------------------------------------------------------------------


def _from_json(body: bytes) -> GraphQL | list[GraphQL]:
    text = _text(body, "body")
    try:
        document = json.loads(text, object_pairs_hook=_unique, parse_constant=_no_constant)
    except RecursionError:
        raise Unreadable("body: the JSON is nested too deeply") from None
    except Unreadable:
        raise
    except ValueError:
        raise Unreadable("body: not JSON") from None
    if isinstance(document, list):
        return [_from_members(one, f"body[{at}]") for at, one in enumerate(document)]
    return _from_members(document, "body")


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    members = dict(pairs)
    if len(members) != len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise Unreadable(f"body: the name {twice[:64]!r} is there twice in one object; allowed: once")
    return members


def _no_constant(name: str) -> NoReturn:
    raise Unreadable(f"body: found {name}, which JSON does not have")


def _from_members(members: object, path: str) -> GraphQL:
    if not isinstance(members, dict):
        raise Unreadable(f"{path}: a GraphQL request is an object")
    return _operation(members, path)


def _operation(members: Mapping[str, Any], path: str) -> GraphQL:
    query = _optional(members, "query", str, "text", path)
    variables = _optional(members, "variables", dict, "an object", path)
    name = _optional(members, "operationName", str, "text", path)
    hash_ = _optional(members, "documentId", str, "text", path)
    extensions = _optional(members, "extensions", dict, "an object", path) or {}
    persisted = _optional(extensions, "persistedQuery", dict, "an object", f"{path}.extensions") or {}
    digest = _optional(persisted, "sha256Hash", str, "text", f"{path}.extensions.persistedQuery")
    if hash_ is not None and digest is not None and hash_ != digest:
        raise Unreadable(f"{path}: documentId and persistedQuery name two documents")
    hash_ = hash_ or digest
    if not query and not hash_:
        raise Unreadable(f"{path}.query: missing")
    return GraphQL(query=query or None, variables=variables, operation_name=name or None, hash=hash_)


def _optional(members: Mapping[str, Any], name: str, kind: type, what: str, path: str) -> Any:
    value = members.get(name)
    if value is not None and not isinstance(value, kind):
        raise Unreadable(f"{path}.{name}: allowed: {what}")
    return value


# ---- query string and form -------------------------------------------------------------------------------------------


def _from_query_string(target: str | None) -> GraphQL | None:
    """Parameters that name an operation; those that only describe one go with application/graphql."""
    if not target or "?" not in target:
        return None
    return _from_pairs(target.partition("?")[2].partition("#")[0], "path")


def _from_pairs(text: str, field: str) -> GraphQL | None:
    try:
        pairs = parse_qsl(text, keep_blank_values=True, max_num_fields=MAX_PARAMETERS, errors="strict")
    except UnicodeDecodeError:
        raise Unreadable(f"{field}: its parameters are not UTF-8") from None
    except ValueError:
        raise Unreadable(f"{field}: more than {MAX_PARAMETERS} parameters") from None
    members: dict[str, Any] = {}
    for name, value in pairs:
        if name not in _NAMES:
            continue
        if name in members:
            raise Unreadable(f"{field}: the parameter {name} is there twice; allowed: once")
        members[name] = value
    if not members:
        return None
    for name in ("variables", "extensions"):
        members[name] = _json_parameter(members.get(name), f"{field}: the parameter {name}")
    if not members.get("query") and not members.get("documentId") and not members["extensions"]:
        if members["variables"] is None and not members.get("operationName"):
            return None
        # For application/graphql, whose document is the body.
        return GraphQL(variables=members["variables"], operation_name=members.get("operationName") or None)
    return _operation(members, field)


def _json_parameter(text: str | None, what: str) -> dict[str, Any] | None:
    if not text:
        return None
    try:
        value = json.loads(text, object_pairs_hook=_unique, parse_constant=_no_constant)
    except (ValueError, RecursionError):
        raise Unreadable(f"{what} is not JSON") from None
    if value is not None and not isinstance(value, dict):
        raise Unreadable(f"{what} is no JSON object")
    return value
