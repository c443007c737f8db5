"""The admin listener: is it alive, is it ready, what has it counted, which policy is in force."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from aiohttp import web

from shield.errors import PolicyError
from shield.server.blocks import blocks_handler
from shield.server.bounds import MAX_POLICY_BODY_BYTES
from shield.server.listener import Handler, Route, read_body
from shield.server.problem import Problem, encode
from shield.server.service import Service
from shield.server.source import PolicySource

_JSON = "application/json"
_READ = frozenset({"GET", "HEAD"})
_MEDIA_TYPES = {
    "application/json": "json",
    "application/toml": "toml",
    "application/yaml": "yaml",
    "application/x-yaml": "yaml",
    "text/yaml": "yaml",
    "text/x-yaml": "yaml",
}


def admin_routes(service: Service, before_scrape: Callable[[], None]) -> dict[str, Route]:
    """The routes. Probes are open, for orchestrators have no token. `before_scrape` updates gauges."""

    async def policy(http: web.BaseRequest, query: str) -> web.Response:
        if http.method in _READ:
            return _policy_in_force(service, query)
        return await _replace(service, http, query)

    async def metrics(http: web.BaseRequest, query: str) -> web.Response:
        before_scrape()
        body, content_type = service.metrics.render(http.headers.get("Accept", ""))
        return web.Response(body=body, headers={"Content-Type": content_type})

    return {
        "/healthz": Route("healthz", _alive, _READ, open=True),
        "/readyz": Route("readyz", _ready_handler(service), _READ, open=True),
        "/metrics": Route("metrics", metrics, _READ),
        "/v1/blocks": Route("blocks", blocks_handler(service), _READ | {"POST", "DELETE"}),
        "/v1/policy": Route("policy", policy, _READ | {"PUT", "POST"}),
    }


async def _alive(http: web.BaseRequest, query: str) -> web.Response:
    """200 as long as the loop turns."""
    return web.Response(body=b'{"alive":true}', content_type=_JSON)


def _ready_handler(service: Service) -> Handler:
    """200 while it takes requests, 503 while it drains.

    A store that is away does not make it unready, for it still decides as each limit's `when_store_fails`
    says: if all nodes went unready at once with their store, nobody would decide at all. The body says
    `degraded`, and `?store=required` asks for 503 then.
    """

    async def ready(http: web.BaseRequest, query: str) -> web.Response:
        if query not in ("", "store=required"):
            raise Problem(400, f"found ?{query[:100]}; allowed: store=required")
        degraded = not service.shield.ready
        is_ready = not service.draining and not (degraded and query)
        state = {
            "ready": is_ready,
            "draining": service.draining,
            "degraded": degraded,
            "store": service.shield.store.name,
            "policy": service.shield.policy.fingerprint,
        }
        return web.Response(status=200 if is_ready else 503, body=encode(state), content_type=_JSON)

    return ready


def _policy_in_force(service: Service, query: str) -> web.Response:
    """The policy as JSON that can be sent back; with `?format=source` as it was written."""
    source = service.source
    if query not in ("", "format=source"):
        raise Problem(400, f"found ?{query[:100]}; allowed: format=source")
    headers = {"ETag": f'"{service.shield.policy.fingerprint}"'}
    if query:
        headers["Content-Type"] = f"application/{source.format}; charset=utf-8"
        return web.Response(body=source.text.encode(), headers=headers)
    return web.Response(body=encode(source.document()), headers=headers, content_type=_JSON)


async def _replace(service: Service, http: web.BaseRequest, query: str) -> web.Response:
    """All of it or nothing. It lasts until the next reload or restart reads the file again."""
    if "Origin" in http.headers:
        # A page in the operator's browser can reach loopback too.
        raise Problem(403, "policies are not taken from web pages (the request has an Origin)", close=True)
    previous = service.shield.policy.fingerprint
    expected = http.headers.get("If-Match")
    if expected is not None and expected.strip() not in (f'"{previous}"', "*"):
        raise Problem(412, f"the policy in force is {previous}, not the one in If-Match")
    body = await read_body(http, MAX_POLICY_BODY_BYTES)
    source = PolicySource(_text(body), _format(http, query, body))
    try:
        policy = source.parse()
    except PolicyError as error:
        service.policy_refused(error, "admin")
        raise _refused(error) from None
    try:
        await service.replace_policy(source, policy, "admin")
    except PolicyError as error:  # something outside the file that it names: a list, a sink
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
    headers = {"ETag": f'"{policy.fingerprint}"'}
    return web.Response(body=encode(answer), headers=headers, content_type=_JSON)


def _text(body: bytes) -> str:
    try:
        return body.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise Problem(400, f"the policy is not UTF-8 at byte {error.start}") from None


def _format(http: web.BaseRequest, query: str, body: bytes) -> str:
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


def _refused(error: PolicyError) -> Problem:
    issues: list[dict[str, Any]] = [{"path": issue.path, "message": issue.message} for issue in error.issues]
    found = "1 error" if len(issues) == 1 else f"{len(issues)} errors"
    return Problem(400, f"{found}; the running policy stays in force", members={"issues": issues})
