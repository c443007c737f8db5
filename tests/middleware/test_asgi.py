"""The ASGI middleware on uvicorn and hypercorn, around Starlette, FastAPI and no framework."""

from __future__ import annotations

import asyncio
import gzip
import json
import re
import zlib
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import aiohttp
import httpx
import pytest
from starlette.applications import Starlette
from starlette.routing import WebSocketRoute

from shield import Policy, Shield
from shield.middleware import limit
from shield.middleware.asgi import ShieldMiddleware
from shield.request import Nonce
from shield.testing import FailingStore, ManualClock
from tests.middleware.asgi_apps import APPS, POLICY, Seen, bare_app, starlette_app, talk
from tests.middleware.serving import ASGI_SERVERS, uvicorn_serving


class Site:
    """An application that is being served, and a client."""

    def __init__(self, url: str, client: httpx.AsyncClient, shield: Shield, seen: Seen, clock: ManualClock) -> None:
        self.url = url
        self.client = client
        self.shield = shield
        self.seen = seen
        self.clock = clock


@asynccontextmanager
async def serving(
    make: Any, *, server: str = "uvicorn", policy: str = POLICY, inside: bool = False, **options: Any
) -> AsyncIterator[Site]:
    """`inside`: the middleware is added to the framework's own, in place of standing around it all."""
    seen, clock = Seen(), ManualClock()
    shield = Shield(Policy.parse(policy), clock=clock)
    app = make(seen) if make is not bare_app else bare_app
    if inside:
        app.add_middleware(ShieldMiddleware, shield=shield, **options)
    else:
        app = ShieldMiddleware(app, shield, **options)
    async with ASGI_SERVERS[server](app) as url, httpx.AsyncClient(base_url=url) as client:
        clock.advance(s=3600 * 5)  # what a server that is being waited for was asked is forgotten
        yield Site(url, client, shield, seen, clock)


@pytest.mark.parametrize("server", ASGI_SERVERS)
@pytest.mark.parametrize("framework", APPS)
@pytest.mark.parametrize("inside", [False, True], ids=["around", "inside"])
async def test_quotas_fields_and_refusals(framework, server, inside):
    async with serving(APPS[framework], server=server, inside=inside) as site:
        for left in (4, 3, 2, 1, 0):
            answer = await site.client.get("/")
            assert answer.status_code == 200
            assert answer.text == "hello"
            assert answer.headers["ratelimit-policy"] == '"address";q=5;w=18000'
            assert answer.headers["ratelimit"] == f'"address";r={left};t=3600'
        refused = await site.client.get("/")
        assert refused.status_code == 429
        assert refused.headers["retry-after"] == "3600"
        assert refused.headers["content-type"] == "application/problem+json"
        assert refused.headers["ratelimit"] == '"address";r=0;t=3600'
        problem = refused.json()
        assert problem["type"] == "https://iana.org/assignments/http-problem-types#quota-exceeded"
        assert problem["status"] == 429
        assert problem["violated-policies"] == ["address"]
        assert (await site.client.head("/")).status_code == 429
        assert (await site.client.get("/health")).status_code == 200  # exempt, and nothing said of quotas
        assert "ratelimit" not in (await site.client.get("/health")).headers
        site.clock.advance(s=3600)
        assert (await site.client.get("/")).status_code == 200
        assert site.seen.turns[-1].decision.allowed


@pytest.mark.parametrize("framework", APPS)
async def test_what_a_handler_says_of_itself(framework):
    async with serving(APPS[framework]) as site:
        assert [(await site.client.get("/costly")).status_code for _ in range(3)] == [200, 200, 429]
        site.clock.advance(s=3600 * 5)
        assert [(await site.client.get("/export")).status_code for _ in range(2)] == [200, 429]
        site.clock.advance(s=3600 * 5)
        answers = [await site.client.get("/limited") for _ in range(3)]
        assert [answer.status_code for answer in answers] == [200, 200, 429]
        own = re.search(r'"([^"]+limited)";r=(\d+)', answers[0].headers["ratelimit"])
        assert own is not None
        assert own[2] == "1"
        assert '"address"' in answers[0].headers["ratelimit"]
        assert answers[2].json()["violated-policies"] == [own[1]]
        assert "address" not in answers[2].headers["ratelimit"]


async def test_routes_that_are_mounted_are_found():
    async with serving(starlette_app) as site:
        for _ in range(7):
            assert (await site.client.get("/sub/health")).status_code == 200
        assert (await site.client.get("/sub/nothing")).status_code == 404


@pytest.mark.parametrize("server", ASGI_SERVERS)
@pytest.mark.parametrize("framework", APPS)
async def test_a_chunked_body_cannot_lie(framework, server):
    async with serving(APPS[framework], server=server, policy=SIZES) as site:

        async def parts(count: int) -> AsyncIterator[bytes]:
            for _ in range(count):
                yield b"x" * 10_000

        assert (await site.client.post("/echo", content=parts(10))).text == "100000"
        refused = await site.client.post("/echo", content=parts(11))
        assert refused.status_code == 413
        assert refused.json()["reason"] == "too_large"
        assert "ratelimit" in refused.headers
        assert len(site.seen.bodies) == 1
        # Announced, it is refused before the first byte.
        assert (await site.client.post("/echo", content=b"x" * 100_001)).status_code == 413


SIZES = """
version = 1
[guard.size]
max_body_bytes = 100_000
[[limit]]
name = "address"
key = ["ip"]
rate = "1000/h"
[[limit]]
name = "content"
key = ["ip"]
rate = "1/h"
burst = 1_000_000
cost = "bytes"
"""


async def test_413_comes_while_the_rest_is_still_to_be_sent():
    async with serving(bare_app, policy=SIZES) as site:
        host, port = site.url.removeprefix("http://").split(":")
        reader, writer = await asyncio.open_connection(host, int(port))
        writer.write(b"POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n")
        for _ in range(11):
            writer.write(b"2710\r\n" + b"x" * 10_000 + b"\r\n")
        head = await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), 5)  # and the last chunk never came
        assert b" 413 " in head
        assert b"connection: close" in head.lower()
        writer.close()


async def test_bytes_that_were_not_stated_are_settled():
    async with serving(starlette_app, policy=SIZES) as site:

        async def parts() -> AsyncIterator[bytes]:
            yield b"x" * 70_000

        await site.client.post("/echo", content=parts())
        answer = await site.client.get("/")
        assert '"content";r=930000' in answer.headers["ratelimit"]


def bomb(megabytes: int) -> bytes:
    stream = zlib.compressobj(9, wbits=31)
    return b"".join(stream.compress(bytes(1 << 20)) for _ in range(megabytes)) + stream.flush()


@pytest.mark.parametrize(
    ("encoding", "body", "status", "reason"),
    [
        ("gzip", gzip.compress(b"a real document, as they are"), 200, None),
        ("deflate", zlib.compress(b"a real document"), 200, None),
        ("deflate", zlib.compress(b"a real document")[2:-4], 200, None),  # without RFC 1950's header
        ("identity", b"plain", 200, None),
        ("gzip", bomb(50), 413, "too_large"),
        ("gzip", gzip.compress(b"") * 3 + bomb(1), 413, "too_large"),  # behind members that look harmless
        ("deflate", zlib.compress(bytes(1 << 20)), 413, "too_large"),
        ("gzip", b"this is no gzip", 400, "invalid"),
        ("br", b"whatever", 415, "content_type"),
        ("gzip, gzip", gzip.compress(gzip.compress(b"x")), 415, "content_type"),
    ],
)
async def test_compressed_bodies_are_inflated_to_know_what_they_cost(encoding, body, status, reason):
    async with serving(bare_app, policy=SIZES) as site:
        answer = await site.client.post("/", content=body, headers={"Content-Encoding": encoding})
        assert answer.status_code == status
        assert reason is None or answer.json()["reason"] == reason


PLACES = """
version = 1
[[limit]]
name = "flight"
key = ["ip"]
algorithm = "concurrency"
limit = 1
ttl = "60s"
"""


@pytest.mark.parametrize("server", ASGI_SERVERS)
async def test_places_are_free_again_when_the_response_has_ended(server):
    async with serving(starlette_app, server=server, policy=PLACES) as site:
        for _ in range(3):
            assert (await site.client.get("/stream")).text == "x" * 3000
        assert (await site.client.get("/fails")).status_code == 500
        assert (await site.client.get("/")).status_code == 200
        held = asyncio.create_task(site.client.get("/waits"))
        await site.seen.gone.wait()
        refused = await site.client.get("/")
        assert (refused.status_code, refused.json()["reason"]) == (429, "concurrency")
        site.seen.go_on.set()
        assert (await held).text == "waited"
        assert (await site.client.get("/")).status_code == 200


@pytest.mark.parametrize("server", ASGI_SERVERS)
async def test_places_of_clients_that_went_away_are_free_again(server):
    async with serving(starlette_app, server=server, policy=PLACES) as site:
        async with httpx.AsyncClient(base_url=site.url) as leaving:
            gone = asyncio.create_task(leaving.get("/waits"))
            await site.seen.gone.wait()
            gone.cancel()
        assert (await site.client.get("/")).status_code == 429 or server == "hypercorn"  # which cancels at once
        site.seen.go_on.set()
        for _ in range(100):
            if (await site.client.get("/")).status_code == 200:
                break
            await asyncio.sleep(0.01)
        else:
            pytest.fail("the place was never given back")


async def test_many_at_once_are_counted_exactly():
    policy = 'version = 1\n[[limit]]\nname = "address"\nkey = ["ip"]\nrate = "1/h"\nburst = 60\n'
    async with serving(starlette_app, policy=policy) as site:
        answers = await asyncio.gather(*(site.client.get("/") for _ in range(150)))
        assert sorted(answer.status_code for answer in answers) == [200] * 60 + [429] * 90
        assert all("ratelimit" in answer.headers for answer in answers)


TALK = """
version = 1
[[limit]]
name = "connections"
key = ["ip"]
rate = "1/h"
burst = 2
match = { method = ["GET"] }
[[limit]]
name = "messages"
key = ["ip"]
rate = "1/h"
burst = 3
match = { method = ["MESSAGE"], path = "/talk" }
"""


@pytest.mark.parametrize("server", ASGI_SERVERS)
async def test_a_websocket_is_one_request_and_its_messages_are_charged(server):
    async with (
        serving(starlette_app, server=server, policy=TALK, messages=True) as site,
        aiohttp.ClientSession() as session,
    ):
        site.clock.advance(s=3600 * 5)
        socket = await session.ws_connect(site.url + "/talk")
        assert socket._response.headers["RateLimit"] == '"connections";r=1;t=3600'
        for number in range(3):
            await socket.send_str(str(number))
            assert await socket.receive_str() == f"heard {number}"
        await socket.send_str("one too many")
        closing = await socket.receive()
        assert (closing.type, closing.data) == (aiohttp.WSMsgType.CLOSE, 1008)
        assert closing.extra == "limit; retry after 3600.000 s"
        await (await session.ws_connect(site.url + "/talk")).close()
        with pytest.raises(aiohttp.WSServerHandshakeError) as refused:
            await session.ws_connect(site.url + "/talk")
        # Both servers have the extension, so the refusal is a whole one.
        assert refused.value.status == 429
        assert refused.value.headers["Retry-After"] == "3600"


async def test_a_websocket_is_closed_where_the_server_has_no_words_for_a_refusal():
    middleware = ShieldMiddleware(bare_app, Policy.parse(TALK))
    for _ in range(2):
        middleware.shield.check_nowait(_request())
    sent = []

    async def receive() -> dict[str, Any]:
        return {"type": "websocket.connect"}

    async def send(message: Any) -> None:
        sent.append(message)

    scope = {"type": "websocket", "path": "/talk", "raw_path": b"/talk", "headers": [], "client": ("192.0.2.1", 1)}
    await middleware(scope, receive, send)
    assert [(message["type"], message["code"]) for message in sent] == [("websocket.close", 1008)]


def _request() -> Any:
    from shield import Request

    return Request(ip="192.0.2.1", method="GET", path="/talk")


async def test_facts_of_the_application_and_of_headers():
    policy = """
version = 1
[identity]
headers = { tenant = "X-Tenant", api_key = "X-Key" }
[[limit]]
name = "tenant"
key = ["tenant"]
rate = "1/h"
burst = 1
"""

    async def from_session(scope: Any, request: Any) -> Any:
        import msgspec

        if scope["path"] == "/free":
            return None
        cookie = dict(scope["headers"]).get(b"cookie", b"").decode()
        return msgspec.structs.replace(request, tenant=cookie.removeprefix("tenant=") or None)

    async with serving(starlette_app, policy=policy, facts=from_session) as site:
        for name in ("a", "b"):
            answers = [await site.client.get("/", headers={"Cookie": f"tenant={name}"}) for _ in range(2)]
            assert [answer.status_code for answer in answers] == [200, 429]
        # What a client says of its tenant counts for nothing.
        assert "ratelimit" not in (await site.client.get("/", headers={"X-Tenant": "a"})).headers
        assert (await site.client.get("/free")).status_code == 404
    async with serving(starlette_app, policy=policy, gateway=True) as site:
        answers = [await site.client.get("/", headers={"X-Tenant": "a"}) for _ in range(2)]
        assert [answer.status_code for answer in answers] == [200, 429]


@pytest.mark.parametrize(
    "headers",
    [
        [("Authorization", "Bearer a"), ("Authorization", "Bearer b")],
        [("Idempotency-Key", "a"), ("Idempotency-Key", "b")],
    ],
)
async def test_headers_that_nobody_knows_how_to_read_are_refused(headers):
    async with serving(starlette_app) as site:
        answer = await site.client.get("/", headers=headers)
        assert (answer.status_code, answer.json()["reason"]) == (400, "invalid")
        assert answer.json()["field"] == headers[0][0].lower()


async def test_addresses_come_from_those_who_vouch_for_them():
    policy = POLICY.replace("[guard.size]", '[identity]\ntrusted_proxies = ["10.0.0.0/8"]\n[guard.size]')
    # uvicorn would believe the header itself, and tell the application another peer.
    app = ShieldMiddleware(starlette_app(Seen()), Policy.parse(policy))
    async with (
        uvicorn_serving(app, proxy_headers=False) as url,
        httpx.AsyncClient(base_url=url) as client,
    ):
        for number in range(5):
            await client.get("/", headers={"X-Forwarded-For": f"192.0.2.{number}"})
        # The peer is no trusted proxy here: all of it was one client's.
        assert (await client.get("/", headers={"X-Forwarded-For": "192.0.2.9"})).status_code == 429


async def test_graphql_operations_are_read_from_the_body():
    policy = """
version = 1
[guard.graphql]
max_aliases = 2
[guard.graphql.match]
path = "/echo"
"""
    async with serving(starlette_app, policy=policy) as site:
        asked = {"query": "{ a: x b: x }"}
        assert (await site.client.post("/echo", json=asked)).status_code == 200
        assert json.loads(site.seen.bodies[-1]) == asked
        refused = await site.client.post("/echo", json={"query": "{ a: x b: x c: x }"})
        assert (refused.status_code, refused.json()["reason"]) == (422, "graphql_aliases")


async def test_an_application_without_lifespan_is_opened_and_closed():
    events = []

    class Watched(Shield):
        async def open(self) -> None:
            events.append("open")
            await super().open()

        async def close(self) -> None:
            events.append("close")
            await super().close()

    for options in ({}, {"lifespan": "off"}):
        app = ShieldMiddleware(bare_app, Watched(Policy.parse(POLICY)))
        async with uvicorn_serving(app, **options) as url, httpx.AsyncClient(base_url=url) as client:
            answers = await asyncio.gather(*(client.post("/", content=b"abc") for _ in range(3)))
            assert [answer.json() for answer in answers] == [{"bytes": 3}] * 3
    assert events == ["open", "close", "open"]


async def test_a_store_that_is_away_is_no_error_of_the_application():
    app = ShieldMiddleware(starlette_app(Seen()), Policy.parse(POLICY), store="redis://127.0.0.1:9/0?deadline=50ms")
    async with uvicorn_serving(app) as url, httpx.AsyncClient(base_url=url) as client:
        answers = [await client.get("/") for _ in range(8)]
        statuses = [answer.status_code for answer in answers]
        assert statuses.count(200) >= 1
        assert set(statuses) <= {200, 429}


async def test_every_store_serves(valkey):
    seen = Seen()
    app = ShieldMiddleware(
        starlette_app(seen), Policy.parse(POLICY + PLACES.split("1", 1)[1]), store=valkey.url + "?deadline=5s"
    )
    async with uvicorn_serving(app) as url, httpx.AsyncClient(base_url=url) as client:
        answers = [await client.get("/") for _ in range(6)]
        assert [answer.status_code for answer in answers] == [200] * 5 + [429]
        assert '"flight";r=0' in answers[0].headers["ratelimit"]


async def test_what_became_of_a_request_is_told_to_detectors():
    policy = POLICY + '\n[[detector]]\nuse = "credential-cracking-address"\n'
    found = []
    async with serving(starlette_app, policy=policy) as site:
        told = []
        site.shield.abuse.outcome = lambda facts, status, event: told.append((facts.path, status, event)) or ()
        site.shield.abuse.listeners.append(found.append)
        await site.client.get("/")
        await site.client.get("/fails")
        await site.client.get("/health")
        assert told == [("/", 200, None), ("/fails", 500, None)]


async def test_django_under_an_asgi_server():
    from django.core.asgi import get_asgi_application

    from tests.middleware import django_site

    assert django_site.urlpatterns
    app = ShieldMiddleware(get_asgi_application(), Policy.parse(POLICY))
    async with uvicorn_serving(app) as url, httpx.AsyncClient(base_url=url) as client:
        for _ in range(7):
            assert (await client.get("/up")).text == "up"
        assert [(await client.get("/costly")).status_code for _ in range(3)] == [200] * 3  # 40 taken, 30 given back
        answers = [await client.get("/limited") for _ in range(3)]
        assert [answer.status_code for answer in answers][-1] == 429


async def test_http2_lengths_are_counted_too():
    sent: list[Any] = []
    parts = iter([(b"x" * 60_000, True), (b"x" * 60_000, True), (b"", False)])

    async def receive() -> dict[str, Any]:
        body, more = next(parts)
        return {"type": "http.request", "body": body, "more_body": more}

    async def send(message: Any) -> None:
        sent.append(message)

    scope = {
        "type": "http", "http_version": "2", "method": "POST", "path": "/", "client": ("192.0.2.1", 1),
        "headers": [(b"content-length", b"10")],
    }  # fmt: skip
    await ShieldMiddleware(bare_app, Policy.parse(SIZES))(scope, receive, send)
    assert sent[0]["status"] == 413
    assert b"connection" not in dict(sent[0]["headers"])


@pytest.mark.parametrize("server", ASGI_SERVERS)
async def test_a_websockets_own_limit_its_place_and_messages_that_are_too_large(server):
    @limit("1/h", key="ip")
    async def guarded(websocket: Any) -> None:
        await talk(websocket)

    def make(_: Seen) -> Starlette:
        return Starlette(routes=[WebSocketRoute("/guarded", guarded), WebSocketRoute("/talk", talk)])

    policy = PLACES + "[guard.size]\nmax_body_bytes = 100\n" + TALK.split("\n", 2)[2].replace("/talk", "/{any}")
    async with (
        serving(make, server=server, policy=policy, messages=True) as site,
        aiohttp.ClientSession() as session,
    ):
        first = await session.ws_connect(site.url + "/guarded")
        await first.send_str("x" * 101)
        closing = await first.receive()
        assert (closing.data, closing.extra) == (1009, "too_large")
        # Its place comes back when the connection has ended, and the second one meets the handler's own limit.
        for _ in range(100):
            with pytest.raises(aiohttp.WSServerHandshakeError) as refused:
                await session.ws_connect(site.url + "/guarded")
            assert refused.value.status == 429
            if "guarded" in refused.value.headers["RateLimit"]:
                return
            await asyncio.sleep(0.01)
        pytest.fail("its place was never given back")


async def test_what_cannot_be_told_the_store_is_counted():
    policy = Policy.parse(PLACES + SIZES.split("1", 1)[1])
    store = FailingStore(Shield(policy).store)
    shield = Shield(policy, store)
    async with (
        uvicorn_serving(ShieldMiddleware(starlette_app(Seen()), shield)) as url,
        httpx.AsyncClient(base_url=url) as client,
    ):

        async def parts() -> AsyncIterator[bytes]:
            store.fail_at(store.operations + 2, "refused")
            store.fail_at(store.operations + 3, "timeout")
            yield b"x"

        assert (await client.post("/echo", content=parts())).status_code == 200
    counted = shield.stats()
    assert (counted["middleware_not_settled"], counted["middleware_not_released"]) == (1, 1)


async def test_nonces_from_header_fields():
    seen: list[Any] = []

    def look(scope: Any, request: Any) -> Any:
        seen.append(request.nonce)
        return request

    async with serving(starlette_app, nonce=("Nonce", "Timestamp"), facts=look) as site:
        await site.client.get("/health")  # exempt, so nobody looks
        await site.client.get("/", headers={"Nonce": "n-1", "Timestamp": "1763900000.250"})
        await site.client.get("/", headers={"Nonce": "n-2"})
        await site.client.get("/")
        assert seen == [Nonce("n-1", 1763900000.25), Nonce("n-2", None), None]
        for strange in ("1e9", "now", "-1", "inf", "\u0661"):
            answer = await site.client.get("/", headers={"Nonce": "n-4", "Timestamp": strange.encode()})
            assert (answer.status_code, answer.json()["field"]) == (400, "timestamp")


async def test_a_nonce_is_let_through_once():
    policy = POLICY + '\n[guard.replay]\nrequired = true\nwindow = "60s"\nmatch = { path = "/echo" }\n'
    async with serving(starlette_app, policy=policy, nonce=("Nonce", "Timestamp")) as site:
        site.clock.advance(s=3600)
        now_s = site.clock.now_ns // 10**9

        async def ask(**fields: str) -> tuple[int, str | None]:
            answer = await site.client.post("/echo", headers=fields)
            return answer.status_code, None if answer.status_code == 200 else answer.json()["reason"]

        assert await ask(Nonce="n-1", Timestamp=str(now_s)) == (200, None)
        assert await ask(Nonce="n-1", Timestamp=str(now_s)) == (409, "replay")
        assert await ask(Nonce="n-2", Timestamp=f"{now_s - 3}.250") == (200, None)
        assert await ask(Nonce="n-3", Timestamp=str(now_s - 61)) == (401, "stale")
        assert await ask() == (401, "nonce_missing")
