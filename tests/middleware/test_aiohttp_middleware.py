"""The middleware of aiohttp, in a real aiohttp server."""

from __future__ import annotations

import asyncio
import gzip
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import aiohttp
import httpx
import pytest
from aiohttp import web

from shield import Policy, Shield
from shield.middleware import attributes, cost, current, exempt, limit
from shield.middleware.aiohttp import setup
from shield.testing import ManualClock
from tests.middleware.serving import listening, url_of

POLICY = """
version = 1
[guard.size]
max_body_bytes = 100_000
[[limit]]
name = "address"
key = ["ip"]
rate = "1/h"
burst = 5
[[limit]]
name = "units"
key = ["ip"]
rate = "1/h"
burst = 100
cost = "request"
match = { path = "/costly" }
"""
WIDE = POLICY.replace("burst = 5", "burst = 1000")
PLACES = 'version = 1\n[[limit]]\nname = "flight"\nkey = ["ip"]\nalgorithm = "concurrency"\nlimit = 1\nttl = "60s"\n'


class Site:
    def __init__(self) -> None:
        self.gone, self.go_on = asyncio.Event(), asyncio.Event()
        self.clock = ManualClock()

    def application(self) -> web.Application:
        app = web.Application()
        routes = {
            "/": self.plain, "/echo": self.echo, "/lines": self.lines, "/stream": self.stream, "/fails": self.fails,
            "/gone": self.gone_away, "/waits": self.waits, "/up": self.up, "/costly": self.costly,
            "/limited": self.limited, "/talk": self.talk, "/careless": self.careless, "/begun": self.begun,
        }  # fmt: skip
        for path, handler in routes.items():
            app.router.add_route("*", path, handler)
        app.router.add_view("/view", View)
        return app

    async def plain(self, request):
        return web.Response(text="hello")

    async def echo(self, request):
        return web.Response(text=str(len(await request.read())))

    async def lines(self, request):
        parts = [len(line) async for line in request.content]
        return web.Response(text=str(sum(parts)))

    async def careless(self, request):
        try:
            async for _ in request.content.iter_chunked(1000):
                pass
        except OSError:
            pass
        return web.Response(text="never mind")

    async def begun(self, request):
        response = web.StreamResponse()
        await response.prepare(request)
        async for data, _ in request.content.iter_chunks():
            await response.write(data)
        return response

    async def stream(self, request):
        response = web.StreamResponse()
        await response.prepare(request)
        for _ in range(3):
            await response.write(b"x" * 1000)
        return response

    async def fails(self, request):
        raise RuntimeError("the handler's own")

    async def gone_away(self, request):
        raise web.HTTPGone(text="gone")

    async def waits(self, request):
        self.gone.set()
        await self.go_on.wait()
        return web.Response(text="waited")

    async def talk(self, request):
        socket = web.WebSocketResponse()
        await socket.prepare(request)
        async for message in socket:
            decision = await current().message(len(message.data))
            await socket.send_str("yes" if decision.allowed else "no")
        return socket

    @staticmethod
    @exempt
    async def up(request):
        return web.Response(text="up")

    @staticmethod
    @cost(40)
    async def costly(request):
        current().cost = 10
        return web.Response(text="dear")

    @staticmethod
    @limit("2/h", key="ip")
    async def limited(request):
        return web.Response(text="limited")


@attributes(kind="view")
class View(web.View):
    async def get(self):
        return web.Response(text=str(current().request.attributes))


@asynccontextmanager
async def serving(policy: str = WIDE, **options: Any) -> AsyncIterator[tuple[Site, httpx.AsyncClient]]:
    site = Site()
    app = site.application()
    if "store" in options:
        setup(app, Policy.parse(policy), **options)
    else:
        setup(app, Shield(Policy.parse(policy), clock=site.clock), **options)
    runner = web.AppRunner(app)
    await runner.setup()
    sock = listening()
    await web.SockSite(runner, sock).start()
    try:
        async with httpx.AsyncClient(base_url=url_of(sock)) as client:
            yield site, client
    finally:
        await runner.cleanup()


async def test_quotas_fields_and_refusals():
    async with serving(POLICY) as (site, client):
        for path, status, left in (("/", 200, 4), ("/stream", 200, 3), ("/gone", 410, 2), ("/fails", 500, 1),
                                   ("/none", 404, 0)):  # fmt: skip
            answer = await client.get(path)
            assert answer.status_code == status
            assert answer.headers["ratelimit"] == f'"address";r={left};t=3600'
        refused = await client.get("/")
        assert (refused.status_code, refused.headers["retry-after"]) == (429, "3600")
        assert refused.json()["violated-policies"] == ["address"]
        assert (await client.get("/up")).status_code == 200
        site.clock.advance(s=3600)
        assert (await client.get("/")).status_code == 200


async def test_what_a_handler_says_of_itself():
    async with serving() as (_, client):
        assert [(await client.get("/costly")).status_code for _ in range(4)] == [200] * 4
        answers = [await client.get("/limited") for _ in range(3)]
        assert [answer.status_code for answer in answers] == [200, 200, 429]
        assert (await client.get("/view")).text == "{'kind': 'view'}"


@pytest.mark.parametrize("path", ["/echo", "/lines", "/careless"])
async def test_a_chunked_body_cannot_lie(path):
    async with serving() as (_, client):

        async def parts(count: int) -> AsyncIterator[bytes]:
            for _ in range(count):
                yield b"x\n" * 5_000

        assert (await client.post(path, content=parts(10))).status_code == 200
        refused = await client.post(path, content=parts(20))
        assert (refused.status_code, refused.json()["reason"]) == (413, "too_large")
        assert "ratelimit" in refused.headers
        bomb = gzip.compress(b"0\n" * (1 << 22))
        refused = await client.post(path, content=bomb, headers={"Content-Encoding": "gzip"})
        assert (refused.status_code, refused.json()["reason"]) == (413, "too_large")
        small = gzip.compress(b"a real document\n")
        assert (await client.post(path, content=small, headers={"Content-Encoding": "gzip"})).status_code == 200


async def test_a_response_that_has_begun_is_cut():
    async with serving() as (_, client):

        async def parts() -> AsyncIterator[bytes]:
            for _ in range(30):
                yield b"x" * 10_000
                await asyncio.sleep(0)

        with pytest.raises(httpx.TransportError):
            await client.post("/begun", content=parts())


async def test_places_are_free_again_when_the_response_has_ended():
    async with serving(PLACES) as (site, client):
        for path in ("/", "/stream", "/fails", "/gone", "/"):
            assert (await client.get(path)).status_code != 429
        held = asyncio.create_task(client.get("/waits"))
        await site.gone.wait()
        assert (await client.get("/")).json()["reason"] == "concurrency"
        site.go_on.set()
        assert (await held).text == "waited"
        site.gone.clear()
        site.go_on.clear()
        leaving = asyncio.create_task(client.get("/waits"))
        await site.gone.wait()
        leaving.cancel()
        site.go_on.set()
        for _ in range(100):
            if (await client.get("/")).status_code == 200:
                return
            await asyncio.sleep(0.01)
        pytest.fail("the place was never given back")


async def test_a_websocket_is_one_request_and_its_messages_can_be_charged():
    policy = POLICY + '[[limit]]\nname = "m"\nkey = ["ip"]\nrate = "2/h"\nmatch = { method = ["MESSAGE"] }\n'
    async with (
        serving(policy) as (_, client),
        aiohttp.ClientSession() as session,
        session.ws_connect(str(client.base_url.join("/talk"))) as socket,
    ):
        assert socket._response.headers["RateLimit"] == '"address";r=4;t=3600'
        answers = []
        for _ in range(3):
            await socket.send_str("x")
            answers.append(await socket.receive_str())
        assert answers == ["yes", "yes", "no"]


async def test_graphql_operations_are_read_from_the_body():
    policy = WIDE + '[guard.graphql]\nmax_aliases = 2\n[guard.graphql.match]\npath = "/echo"\n'
    async with serving(policy) as (_, client):
        assert (await client.post("/echo", json={"query": "{ a: x b: x }"})).status_code == 200
        refused = await client.post("/echo", json={"query": "{ a: x b: x c: x }"})
        assert refused.json()["reason"] == "graphql_aliases"


async def test_every_store_serves(valkey):
    async with serving(POLICY + PLACES.split("1", 1)[1], store=valkey.url + "?prefix=aio&deadline=5s") as (_, client):
        answers = [await client.get("/") for _ in range(6)]
        assert [answer.status_code for answer in answers] == [200] * 5 + [429]
    async with serving(POLICY, store="redis://127.0.0.1:9/0") as (_, client):
        assert (await client.get("/")).status_code in (200, 429)


async def test_facts_of_the_application():
    async def session(request: web.Request, stated: Any) -> Any:
        return None if request.path == "/stream" else stated

    async with serving(POLICY.replace("burst = 5", "burst = 1"), facts=session) as (_, client):
        assert [(await client.get("/stream")).status_code for _ in range(3)] == [200] * 3
        assert [(await client.get("/")).status_code for _ in range(2)] == [200, 429]
        twice = [("Authorization", "Bearer a"), ("Authorization", "Bearer b")]
        assert (await client.get("/", headers=twice)).status_code == 400
