"""A retried write gets its first answer, whatever framework gave it and however it was sent."""

from __future__ import annotations

import asyncio
import io
import itertools
import re
import threading
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import httpx
import msgspec
import pytest
from aiohttp import web
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse, StreamingResponse
from starlette.routing import Route

from shield import Policy, Shield
from shield.errors import StoreError
from shield.middleware import limit
from shield.middleware.aiohttp import setup
from shield.middleware.asgi import ShieldMiddleware
from shield.middleware.wsgi import ShieldMiddleware as ForWSGI
from shield.testing import ManualClock
from tests.middleware.serving import ASGI_SERVERS, listening, url_of

POLICY = """
version = 1
[guard.size]
max_body_bytes = 100_000
[guard.idempotency]
methods = ["POST"]
max_body_bytes = 10_000
lease = "60s"
[[limit]]
name = "user"
key = ["user"]
rate = "1/h"
burst = 100
[[limit]]
name = "flight"
key = ["user"]
algorithm = "concurrency"
limit = 50
ttl = "60s"
"""


def as_user(_: Any, request: Any) -> Any:
    return msgspec.structs.replace(request, user="u-17")


class Ran:
    """How often handlers ran, and what they wait for."""

    def __init__(self) -> None:
        self.count = itertools.count(1)
        self.times = 0
        self.began = asyncio.Event()
        self.go_on = asyncio.Event()
        self.finished = asyncio.Event()

    def once(self) -> str:
        self.times = next(self.count)
        return f"run {self.times}"


def starlette_site(ran: Ran) -> Starlette:
    async def write(request: Request) -> PlainTextResponse:
        return PlainTextResponse(ran.once(), 201, {"Location": "/orders/9", "Set-Cookie": "a=1"})

    async def stream(request: Request) -> StreamingResponse:
        async def parts() -> Any:
            yield ran.once().encode()
            for _ in range(int(request.query_params.get("parts", "3"))):
                yield b"x" * 1000

        return StreamingResponse(parts())

    async def cut(request: Request) -> StreamingResponse:
        async def parts() -> Any:
            yield ran.once().encode()
            raise RuntimeError("in the middle")

        return StreamingResponse(parts())

    async def fails(request: Request) -> PlainTextResponse:
        ran.once()
        raise RuntimeError("the handler's own")

    async def error(request: Request) -> PlainTextResponse:
        return PlainTextResponse(ran.once(), 500)

    async def waits(request: Request) -> PlainTextResponse:
        ran.began.set()
        await ran.go_on.wait()
        ran.finished.set()
        return PlainTextResponse(ran.once())

    @limit("1/h", key=lambda request: "everybody")
    async def limited(request: Request) -> PlainTextResponse:
        return PlainTextResponse(ran.once())

    handlers = (write, stream, cut, fails, error, waits, limited)
    return Starlette(routes=[Route(f"/{one.__name__}", one, methods=["POST"]) for one in handlers])


class AioHandlers:
    def __init__(self, ran: Ran) -> None:
        self.ran = ran

    async def write(self, request):
        return web.Response(text=self.ran.once(), status=201, headers={"Location": "/orders/9", "Set-Cookie": "a=1"})

    async def stream(self, request):
        response = web.StreamResponse()
        await response.prepare(request)
        await response.write(self.ran.once().encode())
        for _ in range(int(request.query.get("parts", "3"))):
            await response.write(b"x" * 1000)
        return response

    async def cut(self, request):
        response = web.StreamResponse()
        await response.prepare(request)
        await response.write(self.ran.once().encode())
        raise RuntimeError("in the middle")

    async def fails(self, request):
        self.ran.once()
        raise RuntimeError("the handler's own")

    async def error(self, request):
        raise web.HTTPInternalServerError(text=self.ran.once())

    async def waits(self, request):
        self.ran.began.set()
        await self.ran.go_on.wait()
        self.ran.finished.set()
        return web.Response(text=self.ran.once())

    @limit("1/h", key=lambda *_: "everybody")
    async def limited(self, request):
        return web.Response(text=self.ran.once())


class Site:
    def __init__(self, client: httpx.AsyncClient, shield: Shield, ran: Ran, clock: ManualClock) -> None:
        self.client, self.shield, self.ran, self.clock = client, shield, ran, clock

    async def post(self, path: str, key: str | None = "k-1", content: Any = b"{}", **more: Any) -> httpx.Response:
        headers = {} if key is None else {"Idempotency-Key": key}
        return await self.client.post(path, content=content, headers=headers, **more)


@asynccontextmanager
async def serving(kind: str, policy: str = POLICY, store: str = "memory://") -> AsyncIterator[Site]:
    ran, clock = Ran(), ManualClock()
    shield = Shield(Policy.parse(policy), store, clock=clock if store == "memory://" else None)
    if kind == "aiohttp":
        handlers = AioHandlers(ran)
        app = web.Application()
        for name in ("write", "stream", "cut", "fails", "error", "waits", "limited"):
            app.router.add_post(f"/{name}", getattr(handlers, name))
        setup(app, shield, facts=as_user)
        runner = web.AppRunner(app)
        await runner.setup()
        sock = listening()
        await web.SockSite(runner, sock).start()
        async with httpx.AsyncClient(base_url=url_of(sock)) as client:
            yield Site(client, shield, ran, clock)
        await runner.cleanup()
        return
    site = starlette_site(ran)
    app = ShieldMiddleware(site, shield, facts=as_user)
    async with ASGI_SERVERS[kind](app) as url, httpx.AsyncClient(base_url=url) as client:
        yield Site(client, shield, ran, clock)


@pytest.fixture(params=[*ASGI_SERVERS, "aiohttp"])
def kind(request):
    return request.param


async def test_the_first_answer_again(kind):
    async with serving(kind) as site:
        first = await site.post("/write")
        again = await site.post("/write")
        assert (first.status_code, first.text) == (201, "run 1")
        assert (again.status_code, again.text) == (201, "run 1")
        assert again.headers["idempotent-replayed"] == "true"
        assert "idempotent-replayed" not in first.headers
        for name in ("location", "set-cookie", "content-type", "content-length"):
            assert again.headers[name] == first.headers[name]
        assert "ratelimit" in first.headers
        # Not charged, and another key is another request.
        other = await site.post("/write", "k-2")
        left = [int(re.search(r'"user";r=(\d+)', answer.headers["ratelimit"])[1]) for answer in (first, other)]
        assert (other.text, left[0] - left[1]) == ("run 2", 1)
        assert (await site.post("/write", '"k-1"')).text == "run 1"  # as the draft writes keys
        assert (await site.post("/write", None)).text == "run 3"


async def test_another_payload_is_another_request(kind):
    async with serving(kind) as site:
        await site.post("/write")
        assert (await site.post("/write", content=b"{ }")).json()["reason"] == "idempotency_mismatch"
        assert (await site.post("/write?a=1")).status_code == 422
        assert (await site.post("/write", "a, b")).status_code == 400
        assert site.ran.times == 1
        # The body is the handler's, though it was read before.
        assert (await site.post("/write", content=b"x" * 100_001)).status_code == 413


async def test_streams_are_kept_when_they_have_ended_and_not_too_long(kind):
    async with serving(kind) as site:
        first = await site.post("/stream", "s-1")
        assert (await site.post("/stream", "s-1")).text == first.text == "run 1" + "x" * 3000
        long = await site.post("/stream?parts=20", "s-2")
        assert len(long.text) == 20_005
        again = await site.post("/stream?parts=20", "s-2")
        assert (again.status_code, again.json()["reason"]) == (409, "idempotency_replay")
        for _ in range(2):
            with pytest.raises(httpx.TransportError):
                await site.post("/cut", "s-3")
        assert site.ran.times == 4  # what was cut off is nobody's answer


async def test_handlers_that_raise_did_nothing_and_errors_are_answers(kind):
    async with serving(kind) as site:
        assert [(await site.post("/fails", "f-1")).status_code for _ in range(2)] == [500, 500]
        assert site.ran.times == 2
        assert [(await site.post("/error", "f-2")).text for _ in range(2)] == ["run 3", "run 3"]
        answers = [await site.post("/limited", key) for key in ("l-1", "l-2", "l-1", "l-2")]
        assert [answer.status_code for answer in answers] == [200, 429, 200, 429]
        assert site.ran.times == 4


async def test_in_flight_until_it_is_answered_though_its_client_has_gone(kind):
    async with serving(kind) as site:
        async with httpx.AsyncClient(base_url=site.client.base_url) as leaving:
            gone = asyncio.create_task(leaving.post("/waits", content=b"{}", headers={"Idempotency-Key": "w-1"}))
            await site.ran.began.wait()
            busy = await site.post("/waits", "w-1")
            assert (busy.status_code, busy.json()["reason"]) == (409, "idempotency_in_flight")
            assert "retry-after" in busy.headers
            gone.cancel()
        await asyncio.sleep(0.05)
        site.ran.go_on.set()
        await asyncio.wait_for(site.ran.finished.wait(), 5)
        for _ in range(200):
            again = await site.post("/waits", "w-1")
            if again.status_code != 409:
                break
            await asyncio.sleep(0.01)
        assert (again.text, site.ran.times) == ("run 1", 1)


async def test_a_lease_is_extended_while_the_handler_runs(kind):
    policy = POLICY.replace('lease = "60s"', 'lease = "1s"')
    async with serving(kind, policy) as site:
        first = asyncio.create_task(site.post("/waits", "e-1"))
        await site.ran.began.wait()
        extended = site.shield.extend
        called = asyncio.Event()

        async def extend(owner: Any) -> bool:
            done = await extended(owner)
            called.set()
            return done

        site.shield.extend = extend
        for _ in range(3):
            site.clock.advance(ms=900)
            called.clear()
            await asyncio.wait_for(called.wait(), 5)
            assert (await site.post("/waits", "e-1")).status_code == 409
        site.ran.go_on.set()
        assert (await first).text == "run 1"


async def test_an_answer_goes_out_when_it_cannot_be_kept(kind):
    async with serving(kind) as site:

        async def away(*_: Any) -> bool:
            raise StoreError("away")

        complete, site.shield.complete = site.shield.complete, away
        assert (await site.post("/write", "c-1")).text == "run 1"
        assert (await site.post("/write", "c-1")).json()["reason"] == "idempotency_in_flight"
        site.shield.complete = complete
        site.clock.advance(s=61)
        assert (await site.post("/write", "c-1")).text == "run 2"


async def test_many_at_once_run_once(kind):
    async with serving(kind) as site:
        answers = await asyncio.gather(*(site.post("/write", "m-1") for _ in range(40)))
        assert site.ran.times == 1
        assert {answer.status_code for answer in answers} <= {201, 409}
        assert {answer.text for answer in answers if answer.status_code == 201} == {"run 1"}


@pytest.mark.parametrize("kind", ["uvicorn", "aiohttp"])
async def test_two_applications_with_one_store(kind, common_store):
    """What one has answered the other gives again, and what one is at is in flight for the other."""
    async with serving(kind, store=common_store) as site, serving(kind, store=common_store) as other:
        first = await site.post("/write", "r-1")
        again = await other.post("/write", "r-1")
        assert (again.text, again.headers["idempotent-replayed"]) == (first.text, "true")
        running = asyncio.create_task(site.post("/waits", "r-2"))
        await site.ran.began.wait()
        assert (await other.post("/waits", "r-2")).json()["reason"] == "idempotency_in_flight"
        site.ran.go_on.set()
        assert (await running).text == (await other.post("/waits", "r-2")).text
        answers = await asyncio.gather(*(one.post("/write", "r-3") for one in (site, other) for _ in range(20)))
        assert {answer.status_code for answer in answers} <= {201, 409}
        assert len({answer.text for answer in answers if answer.status_code == 201}) == 1
        assert site.ran.times + other.ran.times == 3


# ---- WSGI --------------------------------------------------------------------------------------------------------


class Wsgi:
    """A WSGI application and a server for one request at a time, which may go away before the end."""

    def __init__(self, app: Any, policy: str = POLICY) -> None:
        self.clock = ManualClock()
        self.shield = Shield(Policy.parse(policy), clock=self.clock)
        self.app = ForWSGI(app, self.shield, facts=as_user)

    def post(
        self, key: str = "k-1", parts: int | None = None, body: bytes = b"{}"
    ) -> tuple[str, dict[str, str], bytes]:
        said: dict[str, Any] = {}

        def start(status: str, headers: Any, exc_info: Any = None) -> Any:
            said.update(status=status, headers=dict(headers))
            return lambda data: None

        environ = {
            "REQUEST_METHOD": "POST", "PATH_INFO": "/write", "SCRIPT_NAME": "", "REMOTE_ADDR": "192.0.2.1",
            "wsgi.input": io.BytesIO(body), "CONTENT_LENGTH": str(len(body)), "HTTP_IDEMPOTENCY_KEY": key,
        }  # fmt: skip
        response = self.app(environ, start)
        try:
            came = b"".join(itertools.islice(response, parts))
        finally:
            if hasattr(response, "close"):
                response.close()
        return said["status"], said["headers"], came


def generated(ran: Ran, length: bool = False) -> Any:
    def app(environ: Any, start_response: Any) -> Any:
        headers = [("Content-Type", "text/plain")]
        start_response("201 Created", [*headers, ("Content-Length", "3005")] if length else headers)
        yield ran.once().encode()
        for _ in range(3):
            yield b"x" * 1000

    return app


@pytest.mark.parametrize("length", [True, False])
def test_wsgi_responses_are_kept_to_their_end(length):
    ran = Ran()
    site = Wsgi(generated(ran, length))
    whole = b"run 1" + b"x" * 3000
    assert site.post()[2] == whole
    status, headers, body = site.post()
    assert (status, body, headers["Idempotent-Replayed"]) == ("201 Created", whole, "true")
    assert headers["Content-Length"] == "3005"
    # A client that left after the first part: the rest is made, and kept.
    assert site.post("k-2", parts=1)[2] == b"run 2"
    assert site.post("k-2")[2] == b"run 2" + b"x" * 3000
    assert site.post(body=b"[]")[0].startswith("422")
    assert site.app._leases._due == {}


def test_wsgi_applications_that_raise_did_nothing():
    ran = Ran()

    def app(environ: Any, start_response: Any) -> Any:
        if ran.once() != "run 3":
            raise RuntimeError("the handler's own")
        start_response("200 OK", [("Content-Type", "text/plain")])
        return [b"third"]

    site = Wsgi(app)
    for _ in range(2):
        with pytest.raises(RuntimeError):
            site.post()
    assert [site.post()[2] for _ in range(2)] == [b"third", b"third"]


def test_wsgi_responses_that_break_are_nobodys_answer():
    ran = Ran()

    def app(environ: Any, start_response: Any) -> Any:
        start_response("200 OK", [("Content-Type", "text/plain")])
        yield ran.once().encode()
        raise RuntimeError("in the middle")

    site = Wsgi(app)
    for _ in range(2):
        with pytest.raises(RuntimeError):
            site.post()
    with pytest.raises(RuntimeError):
        site.post(parts=1)
    assert ran.times == 3


def test_a_wsgi_process_that_is_ending_leaves_its_key_to_the_lease():
    def app(environ: Any, start_response: Any) -> Any:
        raise SystemExit

    site = Wsgi(app)
    with pytest.raises(SystemExit):
        site.post()
    assert site.post()[0].startswith("409")
    site.clock.advance(s=61)
    with pytest.raises(SystemExit):
        site.post()


def test_wsgi_leases_are_extended_by_one_thread():
    extended = threading.Event()

    def app(environ: Any, start_response: Any) -> Any:
        assert extended.wait(10)
        start_response("200 OK", [("Content-Type", "text/plain")])
        return [b"slow"]

    site = Wsgi(app, POLICY.replace('lease = "60s"', 'lease = "1s"'))
    extend = site.shield.extend

    async def watched(owner: Any) -> bool:
        site.clock.advance(ms=900)
        done = await extend(owner)
        if site.clock.now_ns - started_ns > 2_000_000_000:
            extended.set()
        return done

    started_ns = site.clock.now_ns
    site.shield.extend = watched
    assert site.post()[2] == b"slow"
    assert site.post()[2] == b"slow"
