"""The clients against the real endpoint, and against servers that are none, slow or gone."""

from __future__ import annotations

import asyncio
import json
import os
import threading
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import msgspec
import pytest

from shield import ReceiptError, Request, RequestError
from shield.client import BlockingClient, Client, EndpointError, Unreachable
from shield.client.protocol import Endpoint
from shield.request import IdempotencyKey
from tests.server.running import serving

POLICY = """
name = "test"
[[limit]]
name = "address"
key = ["ip"]
rate = "1/h"
burst = 3
[[limit]]
name = "units"
key = ["tenant"]
rate = "1/h"
burst = 100
cost = "request"
[[limit]]
name = "flight"
key = ["user"]
algorithm = "concurrency"
limit = 1
ttl = "60s"
"""


class Threaded:
    """The blocking client as if it could be awaited: every call in a thread."""

    def __init__(self, *args: Any, **options: Any) -> None:
        self.client = BlockingClient(*args, **options)

    async def __aenter__(self) -> Threaded:
        return self

    async def __aexit__(self, *exc: object) -> None:
        self.client.close()

    def __getattr__(self, name: str) -> Callable[..., Any]:
        method = getattr(self.client, name)

        async def call(*args: Any, **options: Any) -> Any:
            return await asyncio.to_thread(method, *args, **options)

        return call


KINDS: dict[str, Any] = {"async": Client, "blocking": Threaded}


@pytest.fixture(params=KINDS)
def kind(request):
    return KINDS[request.param]


async def test_decisions_have_the_wires_fields(kind):
    async with serving(POLICY) as server, kind(f"unix:{server.path}") as client:
        decision = await client.check(Request(ip="192.0.2.1", tenant="acme", cost=10, request_id="c0ffee"))
        assert decision
        assert (decision.status, decision.reason, decision.request_id) == (200, "ok", "c0ffee")
        assert [(one.name, one.remaining) for one in decision.limits] == [("address", 2), ("units", 90)]
        assert decision.headers["RateLimit"] == '"address";r=2;t=3600, "units";r=90;t=3600'
        assert await client.report(decision.receipt, cost=4) is True
        assert await client.report(decision.receipt, cost=4) is False
        three = [Request(ip="192.0.2.1") for _ in range(3)]
        assert [one.allowed for one in await client.check_many(three)] == [True, True, False]
        assert await client.check_many([]) == []
        refused = await client.check(three[0])
        assert (refused.allowed, refused.violated, refused.retry_after) == (False, ["address"], 3600.0)


async def test_places_are_held_and_given_back(kind):
    async with serving(POLICY) as server, kind(f"unix:{server.path}") as client:
        held = await client.check(Request(user="u"))
        assert (await client.check(Request(user="u"))).reason == "concurrency"
        assert await client.release(held.leases) == 1
        assert await client.release(held.leases) == 0
        assert await client.release([]) == 0
        assert (await client.check(Request(user="u"))).allowed
        assert await client.report(facts=Request(user="u"), status=401, event="login_failed") is False


async def test_idempotency_keys(kind):
    policy = POLICY + "[guard.idempotency]\n"
    asked = Request(user="u", method="POST", path="/orders", idempotency=IdempotencyKey(key="k"))
    async with serving(policy) as server, kind(f"unix:{server.path}") as client:
        owned = await client.check(asked)
        assert owned.idempotency["lease_s"] == 60
        assert (await client.check(asked)).reason == "idempotency_in_flight"
        assert await client.extend(owned) is True
        assert await client.complete(owned, 201, {"Location": "/orders/9"}, b"made") is True
        assert await client.complete(owned.idempotency["owner"], 201) is False
        again = await client.check(asked)
        assert (again.reason, again.status) == ("idempotency_replay", 201)
        assert again.response["headers"] == {"Location": "/orders/9"}
        with pytest.raises(ReceiptError):
            await client.abandon("nobody's")
        with pytest.raises(ReceiptError):
            await client.abandon(again)
        with pytest.raises(RequestError):
            await client.complete(owned, 99)
        await client.release(owned.leases)
        other = await client.check(msgspec.structs.replace(asked, path="/other"))
        assert await client.complete(other, 200, (), bytes(3_000_000)) is True
        await client.release(other.leases)
        third = await client.check(msgspec.structs.replace(asked, path="/third"))
        assert await client.abandon(third) is True


async def test_text_that_is_no_utf8_gets_there(kind):
    async with serving(POLICY) as server, kind(f"unix:{server.path}") as client:
        assert (await client.check(Request(ip="192.0.2.1", path="/caf\udce9"))).allowed


async def test_what_the_caller_got_wrong_is_an_error_whatever_was_agreed(kind):
    async with serving(POLICY) as server, kind(f"unix:{server.path}", when_unreachable="allow") as client:
        with pytest.raises(RequestError) as wrong:
            await client.check(Request(cost="many"))  # type: ignore[arg-type]
        assert wrong.value.field == "cost"
        with pytest.raises(RequestError):
            await client.check_many([Request()] * 257)


async def whole_request(reader: asyncio.StreamReader) -> bytes:
    head = await reader.readuntil(b"\r\n\r\n")
    length = int(head.lower().split(b"content-length: ")[1].split(b"\r\n")[0])
    return head + await reader.readexactly(length)


@asynccontextmanager
async def answering(answer: Callable[[bytes], bytes | None], directory: Any) -> AsyncIterator[str]:
    """Somebody who says this to every request; None hangs."""
    open_ones = []

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        open_ones.append(writer)
        while request := await whole_request(reader):
            said = answer(request)
            if said is None:
                return
            writer.write(said)
            if said == b"":
                writer.close()
                return

    async def quiet(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            await serve(reader, writer)
        except (asyncio.IncompleteReadError, ConnectionError):
            writer.close()

    path = str(directory / "s")
    server = await asyncio.start_unix_server(quiet, path)
    try:
        yield path
    finally:
        server.close()
        for writer in open_ones:
            writer.close()


def http(status: int, body: bytes, more: bytes = b"") -> bytes:
    return b"HTTP/1.1 %d X\r\nContent-Length: %d\r\n%s\r\n%s" % (status, len(body), more, body)


FAULTS = {
    "hangs": None,
    "hangs up": b"",
    "500": http(500, b"<html>"),
    "503": http(503, b'{"detail": "busy"}'),
    "no JSON": http(200, b"<html>welcome</html>"),
    "other JSON": http(200, b'{"allowed": "perhaps"}'),
    "no HTTP": b"SSH-2.0-OpenSSH_9.6\r\n\r\n",
    "cut": b"HTTP/1.1 200 X\r\nContent-Length: 100\r\n\r\n{",
}


@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.parametrize("policy", ["raise", "allow", "deny"])
async def test_when_nobody_answers_the_caller_has_said_what_then(kind, fault, policy, tmp_path):
    async with (
        answering(lambda _: FAULTS[fault], tmp_path) as path,
        kind(f"unix:{path}", when_unreachable=policy, deadline_s=0.04) as client,
    ):
        for _ in range(2):
            if policy == "raise":
                with pytest.raises(Unreachable):
                    await client.check(Request())
                continue
            decision = await client.check(Request())
            assert (decision.allowed, decision.degraded) == (policy == "allow", True)
            assert decision.status == (200 if policy == "allow" else 503)
        several = client.check_many([Request()] * 3)
        if policy != "raise":
            assert [one.allowed for one in await several] == [policy == "allow"] * 3
        else:
            with pytest.raises(Unreachable):
                await several
        with pytest.raises(Unreachable):  # what has no stand-in is an error
            await client.release(["x"])


async def test_nobody_there(kind, tmp_path):
    async with kind(f"unix:{tmp_path}/none", when_unreachable="deny") as client:
        assert (await client.check(Request())).reason == "store_unavailable"
    async with kind("http://127.0.0.1:9", when_unreachable="deny") as client:
        assert (await client.check(Request())).reason == "store_unavailable"


@pytest.mark.parametrize("status", [401, 403, 404])
async def test_a_caller_that_may_not_ask_is_told(kind, status, tmp_path):
    async with (
        answering(lambda _: http(status, b'{"detail": "who are you"}'), tmp_path) as path,
        kind(f"unix:{path}", when_unreachable="allow") as client,
    ):
        with pytest.raises(EndpointError, match="who are you") as refused:
            await client.check(Request())
        assert refused.value.status == status


async def test_token_and_one_connection_for_many_calls(kind, tmp_path):
    heads, body = [], json.dumps({"allowed": True, "status": 200, "reason": "ok", "new": "field"}).encode()

    def answer(request: bytes) -> bytes:
        heads.append(request)
        return http(200, body)

    async with answering(answer, tmp_path) as path, kind(f"unix:{path}", token="s3cret") as client:
        for _ in range(5):
            assert await client.check(Request())
    assert len(heads) == 5
    assert all(b"Shield-Authorization: Bearer s3cret\r\n" in head for head in heads)


async def test_a_connection_that_was_closed_meanwhile_is_not_used(kind, tmp_path):
    body = json.dumps({"allowed": True, "status": 200, "reason": "ok"}).encode()
    connections = []

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        connections.append(writer)
        await whole_request(reader)
        writer.write(http(200, body))
        await writer.drain()
        writer.close()  # without having said so

    server = await asyncio.start_unix_server(serve, str(tmp_path / "s"))
    async with kind(f"unix:{tmp_path}/s") as client:
        for _ in range(3):
            assert await client.check(Request())
            await asyncio.sleep(0.01)
    assert len(connections) == 3
    server.close()


async def test_the_pool_is_bounded_and_waiting_for_it_counts(kind, tmp_path):
    started = time.monotonic()
    async with (
        answering(lambda _: None, tmp_path) as path,
        kind(f"unix:{path}", pool_size=2, deadline_s=0.2, when_unreachable="deny") as client,
    ):
        decisions = await asyncio.gather(*(client.check(Request()) for _ in range(6)))
        assert not any(decisions)
    assert time.monotonic() - started < 2


async def test_many_threads_share_one():
    async with serving(POLICY.replace("burst = 3", "burst = 150")) as server:
        client = BlockingClient(f"unix:{server.path}", pool_size=4, deadline_s=20)
        allowed: list[bool] = []

        def ask() -> None:
            for _ in range(25):
                allowed.append(client.check(Request(ip="192.0.2.1")).allowed)

        threads = [threading.Thread(target=ask) for _ in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            await asyncio.to_thread(thread.join)
        assert (len(allowed), sum(allowed)) == (200, 150)
        assert 1 <= len(client._idle) <= 4
        client.close()


@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
async def test_a_child_of_a_fork_has_connections_of_its_own():
    async with serving(POLICY) as server:
        client = BlockingClient(f"unix:{server.path}")
        assert await asyncio.to_thread(client.check, Request(ip="192.0.2.1"))

        def in_child() -> int:
            child = os.fork()
            if child == 0:
                os._exit(0 if client.check(Request(ip="192.0.2.1")).allowed else 1)
            return os.waitpid(child, 0)[1]

        assert await asyncio.to_thread(in_child) == 0
        assert await asyncio.to_thread(client.check, Request(ip="192.0.2.1"))
        client.close()


@pytest.mark.parametrize("url", ["", "localhost", "ftp://x", "http://", "unix:", "http://x/?y=1"])
def test_urls_that_are_none(url):
    with pytest.raises(ValueError, match="allowed"):
        Client(url)


def test_urls():
    assert Endpoint.parse("https://[::1]/shield/") == ("https", "::1", 443, "/shield")
    assert Endpoint.parse("unix:///run/s.sock") == ("unix", "localhost", 0, "/run/s.sock")


@pytest.mark.parametrize("options", [{"when_unreachable": "hope"}, {"deadline_s": 0}, {"pool_size": 0}])
def test_options_that_are_none(options):
    with pytest.raises(ValueError, match="allowed"):
        BlockingClient(**options)
