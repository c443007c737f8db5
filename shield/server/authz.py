"""The gateways' endpoints: the decision is the response.

`ANY /v1/authz` reads the client's request from one family of headers; `ANY /v1/authz/envoy/{path...}` is it.
Whatever they answer, a refusal is never 2xx.
"""

from __future__ import annotations

from base64 import b64encode
from collections.abc import Callable
from functools import lru_cache
from http import HTTPStatus
from typing import Final, NamedTuple
from urllib.parse import parse_qsl

from msgspec.structs import force_setattr

from shield.decision import Decision
from shield.errors import RequestError
from shield.problem import PROBLEM_TYPES, TITLES, parts_of
from shield.request import Request
from shield.server.body import body_here, read_body
from shield.server.bounds import MAX_BODY_BYTES, MAX_HANDLE_CHARS
from shield.server.exchange import Answer, Ask, AtOnce, Handler
from shield.server.facts import FAMILIES, HeaderReader
from shield.server.logs import shown_request_id
from shield.server.problem import Problem, phrase, render
from shield.server.service import Service
from shield.server.wire import detail_of

ENVOY_PREFIX: Final = "/v1/authz/envoy"


class Mode(NamedTuple):
    """What the query of /v1/authz asks for."""

    read: HeaderReader
    deny: int | None
    """The status of every refusal, for gateways that know only one."""


@lru_cache(maxsize=64)
def mode_of(query: str) -> Mode:
    """Problem for a parameter that is unknown or wrong: `dney=403` must not be taken for nothing.

    That also shows a gateway which appends its client's query to a check path without one (Caddy does): the
    client would choose. Give the path in the gateway's configuration a query of its own, `?from=forwarded`.
    """
    family, deny = "forwarded", None
    seen: set[str] = set()
    for name, value in parse_qsl(query, keep_blank_values=True, max_num_fields=64):
        if name in seen:
            raise _wrong_query(f"{name} is there twice")
        seen.add(name)
        if name == "from" and value in FAMILIES:
            family = value
        elif name == "deny" and value == "403":
            deny = 403
        else:
            raise _wrong_query(f"found {name}={value}"[:100])
    return Mode(FAMILIES[family], deny)


def _wrong_query(found: str) -> Problem:
    allowed = "allowed: from=forwarded, from=original and deny=403"
    hint = "if that is the client's query, give the gateway's check path one of its own: ?from=forwarded"
    return Problem(400, f"{found}; {allowed}; {hint}")


class Asked(NamedTuple):
    """What a gateway asks for."""

    request: Request
    deny: int | None


AuthzReader = Callable[[Service, Ask, str], Asked | Answer]


def read_authz(service: Service, http: Ask, query: str) -> Asked | Answer:
    """Forward-auth: the headers of one family are the request, those of the other are ignored."""
    try:
        mode = mode_of(query)
    except ValueError:
        raise _wrong_query("found more parameters than there are") from None
    try:
        method, path, host = mode.read(http.headers)
        request = service.facts.request(http, method=method, path=path, host=host)
    except RequestError as error:
        return _unreadable(service, error, mode.deny)
    return Asked(request, mode.deny)


def read_envoy(service: Service, http: Ask, rest: str) -> Asked | Answer:
    """Envoy's HTTP ext_authz: what follows the prefix is the client's own path and query."""
    if rest and rest[0] not in "/?":
        raise Problem(404, "no endpoint has this path")
    path = rest if rest.startswith("/") else "/" + rest
    try:
        request = service.facts.request(http, method=http.method, path=path, host=http.headers.get("Host"))
    except RequestError as error:
        return _unreadable(service, error, None)
    return Asked(request, None)


def authz_handler(service: Service, read: AuthzReader) -> Handler:
    """The decision is the response."""

    async def authz(http: Ask, query: str) -> Answer:
        asked = read(service, http, query)
        if isinstance(asked, Answer):
            return asked
        if service.shield.wants_body(asked.request):
            _add_body(asked.request, await read_body(http, MAX_BODY_BYTES))
        return _said(service, await service.decide(asked.request, "authz"), asked.deny)

    return authz


def authz_at_once(service: Service, read: AuthzReader) -> AtOnce:
    """The same, without waiting."""

    def authz(http: Ask, query: str) -> Answer:
        asked = read(service, http, query)
        if isinstance(asked, Answer):
            return asked
        if service.shield.wants_body(asked.request):
            _add_body(asked.request, body_here(http, MAX_BODY_BYTES))
        return _said(service, service.decide_nowait(asked.request, "authz"), asked.deny)

    return authz


def _add_body(request: Request, body: bytes) -> None:
    """The client's body, where its gateway sends it along with the check. Nobody else has seen this request yet."""
    if body:
        force_setattr(request, "body", b64encode(body).decode())


def _said(service: Service, decision: Decision, deny: int | None) -> Answer:
    request_id = shown_request_id(decision.request_id) or service.next_request_id()
    return allowed(decision, request_id) if decision.allowed else refused(decision, request_id, deny)


def allowed(decision: Decision, request_id: str) -> Answer:
    """200 without a body: RateLimit fields for the gateway to hand on, and handles it may need later."""
    headers = decision.headers | {
        "Shield-Status": "200",
        "Shield-Reason": decision.reason,
        "Shield-Request-Id": request_id,
    }
    if (receipt := decision.receipt) is not None and len(receipt) <= MAX_HANDLE_CHARS:
        headers["Shield-Receipt"] = receipt
    if leases := decision.leases:
        joined = ", ".join(leases)
        if len(joined) <= MAX_HANDLE_CHARS:
            headers["Shield-Lease"] = joined
    if (owned := decision.idempotency) is not None:
        headers["Shield-Idempotency-Owner"] = owned.owner
    return Answer(200, headers)


def refused(decision: Decision, request_id: str, deny: int | None) -> Answer:
    """The refusal's own status, or `deny`, with the true one in Shield-Status."""
    status, headers, members, detail = parts_of(decision)
    # A stored answer has the status of what was stored, which may be a success: to a gateway it is a
    # conflict.
    if decision.reason == "idempotency_replay":
        status = HTTPStatus.CONFLICT
        if decision.response is not None:
            members["response"] = decision.response.as_dict()
    if not 400 <= status <= 599:
        status = HTTPStatus.FORBIDDEN
    members["request_id"] = request_id
    return _refusal(int(status), decision.reason, detail, members, headers, deny)


def _unreadable(service: Service, error: RequestError, deny: int | None) -> Answer:
    """Headers come from the client, so what cannot be read in them is a refusal and no fault."""
    request_id = service.next_request_id()
    service.metrics.problem("authz", 400)
    service.lines.problem(request_id, "authz", 400, None)
    members: dict[str, object] = {"reason": "invalid", "field": error.field, "request_id": request_id}
    return _refusal(400, "invalid", f"{error.field}: {detail_of(error)}", members, {}, deny)


def _refusal(
    status: int,
    reason: str,
    detail: str,
    members: dict[str, object],
    headers: dict[str, str],
    deny: int | None,
) -> Answer:
    headers |= {
        "Shield-Status": str(status),
        "Shield-Reason": reason,
        "Shield-Request-Id": str(members["request_id"]),
    }
    sent = status if deny is None else deny
    return render(
        sent,
        detail,
        members,
        headers,
        type=PROBLEM_TYPES.get(status, "about:blank"),
        title=TITLES.get(status) or phrase(sent),
    )
