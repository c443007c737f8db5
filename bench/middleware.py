"""What does a middleware add to a request?

The same Starlette application bare, with Shield and with slowapi in front, driven through its ASGI interface in this
process: no socket and no server, so what is left is the processor time of the application and of what stands in front
of it. Two limits by address; every request comes from one of 1,000 addresses and is allowed.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Iterator
from itertools import cycle
from typing import Any

from shield import Policy, Request, Shield
from shield.middleware import exempt
from shield.middleware.asgi import ShieldMiddleware
from shield.middleware.bridge import Bridge
from shield.store.memory import MemoryStore
from shield.testing import FailingStore

from .record import Measured, Row, interleaved

WANTED_US = 25.0
CALLS = 200
POLICY = """
version = 1
[guard.size]
max_body_bytes = 1_048_576
[[limit]]
name = "burst"
key = ["ip"]
rate = "900000/s"
[[limit]]
name = "sustained"
key = ["ip"]
rate = "1_000_000/s"
burst = 100_000_000
"""
HEADERS = [
    (b"host", b"api.example"),
    (b"user-agent", b"python-httpx/0.28"),
    (b"accept", b"application/json"),
    (b"accept-encoding", b"gzip"),
    (b"authorization", b"Bearer abcdef"),
    (b"content-type", b"application/json"),
    (b"content-length", b"2"),
    (b"x-forwarded-for", b"203.0.113.9"),
    (b"x-request-id", b"c0ffee"),
]
App = Callable[..., Awaitable[None]]


def run(seconds: float) -> list[Row]:
    apps: list[App] = [_plain(), ShieldMiddleware(_plain(), Policy.parse(POLICY)), _marked()]
    names = ["Shield", "Shield, where a route is exempt"]
    notes = []
    try:
        apps.append(_slowapi())
        names.append("slowapi, fixed windows in memory")
    except ImportError as error:
        notes.append(Row(f"middleware, slowapi: skipped, {error.name} is not installed", 0.0, "us"))
    loop = asyncio.new_event_loop()
    try:
        figures = interleaved([_driver(loop, app) for app in apps], [CALLS] * len(apps), seconds)
    finally:
        loop.close()
    bare = figures[0]
    rows = [Row("middleware, no limiter: a whole request", bare / 1e3, "us")]
    for name, figure in zip(names, figures[1:], strict=True):
        added_us = (figure - bare) / 1e3
        wanted = f"at most {WANTED_US:.0f} us" if name.startswith("Shield") else ""
        rows.append(Row(f"middleware, {name}: added", added_us, "us", wanted, added_us <= WANTED_US or not wanted))
    return rows + notes + _threads()


def _threads() -> list[Row]:
    """What a decision takes from a thread of a WSGI server, hop to the loop included. The second store is this one's
    too, but says that it has to be awaited: what is left of the difference is the way there and back.
    """
    policy = Policy.parse(POLICY)
    request = Request(ip="198.51.100.7", method="POST", path="/orders/9")
    rows = []
    for name, store in (
        ("in the calling thread", MemoryStore()),
        ("through the loop's thread", FailingStore(MemoryStore())),
    ):
        bridge = Bridge(Shield(policy, store))
        taken = []
        try:
            for _ in range(15):
                start = time.process_time_ns()
                for _ in range(CALLS):
                    bridge.check(request)
                taken.append((time.process_time_ns() - start) / CALLS)
        finally:
            bridge.close()
        rows.append(Row(f"middleware, WSGI: a decision {name}", Measured(taken) / 1e3, "us"))
    return rows


def _driver(loop: asyncio.AbstractEventLoop, app: App) -> Callable[[int], None]:
    clients: Iterator[str] = cycle([f"198.51.{number // 250}.{number % 250}" for number in range(1_000)])

    async def receive() -> dict[str, Any]:
        return {"type": "http.request", "body": b"{}", "more_body": False}

    async def send(message: Any) -> None:
        if message["type"] == "http.response.start" and message["status"] != 200:
            raise AssertionError(message)

    async def calls(count: int) -> None:
        for _ in range(count):
            scope = {
                "type": "http",
                "asgi": {"version": "3.0"},
                "http_version": "1.1",
                "method": "POST",
                "scheme": "http",
                "path": "/orders/9",
                "raw_path": b"/orders/9",
                "query_string": b"",
                "root_path": "",
                "headers": HEADERS,
                "client": (next(clients), 50_000),
                "server": ("127.0.0.1", 80),
                "state": {},
            }
            await app(scope, receive, send)

    return lambda count: loop.run_until_complete(calls(count))


def _application(*more: Any) -> Any:
    from starlette.applications import Starlette
    from starlette.responses import PlainTextResponse
    from starlette.routing import Route

    async def order(request: Any) -> PlainTextResponse:
        return PlainTextResponse("ok")

    return Starlette(routes=[*more, Route("/orders/{id}", order, methods=["POST"])])


def _plain() -> Any:
    return _application()


def _marked() -> App:
    from starlette.responses import PlainTextResponse
    from starlette.routing import Route

    @exempt
    async def health(request: Any) -> PlainTextResponse:
        return PlainTextResponse("ok")

    return ShieldMiddleware(_application(Route("/health", health)), Policy.parse(POLICY))


def _slowapi() -> App:
    """As its documentation says, with the same two limits as windows."""
    from slowapi import Limiter
    from slowapi.middleware import SlowAPIASGIMiddleware
    from slowapi.util import get_remote_address

    app = _application()
    app.state.limiter = Limiter(
        key_func=get_remote_address,
        default_limits=["900000/second", "100000000/minute"],
        headers_enabled=True,
    )
    app.add_middleware(SlowAPIASGIMiddleware)
    return app  # type: ignore[no-any-return]
