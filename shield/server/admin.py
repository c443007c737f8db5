"""The admin listener: is it alive, is it ready, what has it counted, which policy is in force."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from shield.errors import PolicyError
from shield.server.blocks import METHODS as BLOCK_METHODS
from shield.server.blocks import blocks_handler
from shield.server.body import read_body
from shield.server.bounds import MAX_POLICY_BODY_BYTES
from shield.server.exchange import JSON_TYPE, Answer, Ask, Handler
from shield.server.keys import METHODS, keys_handler
from shield.server.listener import Route
from shield.server.overrides import METHODS as OVERRIDE_METHODS
from shield.server.overrides import overrides_handler
from shield.server.problem import Problem, encode
from shield.server.service import Front, PolicyChanged
from shield.server.source import PolicySource

_READ = frozenset({"GET", "HEAD"})
_MEDIA_TYPES = {
    "application/json": "json",
    "application/toml": "toml",
    "application/yaml": "yaml",
    "application/x-yaml": "yaml",
    "text/yaml": "yaml",
    "text/x-yaml": "yaml",
}


def admin_routes(service: Front, before_scrape: Callable[[], None]) -> dict[str, Route]:
    """The routes. Probes are open, for orchestrators have no token. `before_scrape` updates gauges."""

    async def policy(http: Ask, query: str) -> Answer:
        if http.method in _READ:
            return _policy_in_force(service, query)
        return await _replace(service, http, query)

    async def metrics(http: Ask, query: str) -> Answer:
        before_scrape()
        body, content_type = await service.exposition(http.headers.get("Accept", ""))
        return Answer(200, {"Content-Type": content_type}, body)

    return {
        "/healthz": Route("healthz", _alive, _READ, open=True),
        "/readyz": Route("readyz", _ready_handler(service), _READ, open=True),
        "/metrics": Route("metrics", metrics, _READ),
        "/v1/blocks": Route("blocks", blocks_handler(service), BLOCK_METHODS),
        "/v1/overrides": Route("overrides", overrides_handler(service), OVERRIDE_METHODS),
        "/v1/policy": Route("policy", policy, _READ | {"PUT", "POST"}),
        "/v1/keys": Route("keys", keys_handler(service), METHODS),
    }


async def _alive(http: Ask, query: str) -> Answer:
    """200 as long as the loop turns."""
    return Answer(200, JSON_TYPE, b'{"alive":true}')


def _ready_handler(service: Front) -> Handler:
    """200 while it takes requests, 503 while it drains.

    A store that is away does not make it unready, for it still decides as each limit's `when_store_fails`
    says: if all nodes went unready at once with their store, nobody would decide at all. The body says
    `degraded`, and `?store=required` asks for 503 then.
    """

    async def ready(http: Ask, query: str) -> Answer:
        if query not in ("", "store=required"):
            raise Problem(400, f"found ?{query[:100]}; allowed: store=required")
        state = service.readiness()
        is_ready = state["ready"] = state["ready"] and not (state["degraded"] and query)
        state["policy"] = service.policy.fingerprint
        return Answer(200 if is_ready else 503, JSON_TYPE, encode(state))

    return ready


def _policy_in_force(service: Front, query: str) -> Answer:
    """The policy as JSON that can be sent back; with `?format=source` as it was written."""
    source = service.source
    if query not in ("", "format=source"):
        raise Problem(400, f"found ?{query[:100]}; allowed: format=source")
    headers = {"ETag": f'"{service.policy.fingerprint}"'}
    if query:
        headers["Content-Type"] = f"application/{source.format}; charset=utf-8"
        return Answer(200, headers, source.text.encode())
    return Answer(200, {**headers, **JSON_TYPE}, encode(source.document()))


async def _replace(service: Front, http: Ask, query: str) -> Answer:
    """All of it or nothing. It lasts until the next reload or restart reads the file again."""
    if "Origin" in http.headers:
        # A page in the operator's browser can reach loopback too.
        raise Problem(403, "policies are not taken from web pages (the request has an Origin)", close=True)
    expected = _if_match(http)
    if expected not in (None, service.policy.fingerprint):
        raise _changed(service.policy.fingerprint)  # before the body is read
    body = await read_body(http, MAX_POLICY_BODY_BYTES)
    source = PolicySource(_text(body), _format(http, query, body), directory=service.source.directory)
    try:
        policy = source.parse()
        previous = await service.replace_policy(source, policy, "admin", expected=expected)
    except PolicyChanged as error:
        raise _changed(error.in_force) from None
    except PolicyError as error:
        service.policy_refused(error, "admin")
        raise _refused(error) from None
    answer = {
        "name": policy.name,
        "owner": policy.owner,
        "fingerprint": policy.fingerprint,
        "previous": previous,
        "limits": len(policy.limits),
        "warnings": list(policy.warnings()),
    }
    return Answer(200, {"ETag": f'"{policy.fingerprint}"', **JSON_TYPE}, encode(answer))


def _text(body: bytes) -> str:
    try:
        return body.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise Problem(400, f"the policy is not UTF-8 at byte {error.start}") from None


def _format(http: Ask, query: str, body: bytes) -> str:
    """By `?format=`, else by a Content-Type that says so, else JSON when it begins so, else TOML."""
    if query:
        name, _, value = query.partition("=")
        if name != "format" or value not in ("toml", "json", "yaml"):
            raise Problem(400, f"found ?{query[:100]}; allowed: format=toml, format=json or format=yaml")
        return value
    media_type = http.headers.get("Content-Type", "").partition(";")[0].strip().lower()
    if media_type in _MEDIA_TYPES:
        return _MEDIA_TYPES[media_type]
    return "json" if body.lstrip()[:1] == b"{" else "toml"


def _if_match(http: Ask) -> str | None:
    """The fingerprint that the caller wants to replace; what is no fingerprint matches none. None: any."""
    text = http.headers.get("If-Match", "*").strip()
    if text == "*":
        return None
    return text[1:-1] if len(text) > 1 and text[0] == text[-1] == '"' else ""


def _changed(in_force: str) -> Problem:
    return Problem(412, f"the policy in force is {in_force}, not the one in If-Match")


def _refused(error: PolicyError) -> Problem:
    issues: list[dict[str, Any]] = [{"path": issue.path, "message": issue.message} for issue in error.issues]
    found = "1 error" if len(issues) == 1 else f"{len(issues)} errors"
    return Problem(400, f"{found}; the running policy stays in force", members={"issues": issues})
