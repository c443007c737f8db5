"""Connections that are read and written without their transports: when they are, and that nobody can tell."""

from __future__ import annotations

import asyncio
import contextlib
import re
import select
import socket
import struct
import tempfile
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
import uvloop

from shield.core import http_lane
from shield.server import bounds
from shield.server.connection import Connection
from tests.server.running import Running, serving
from tests.server.test_lane import GET, check, until

pytestmark = pytest.mark.skipif(not hasattr(select, "epoll"), reason="needs epoll")
POLICY = """
name = "one"

[[limit]]
name = "user"
key = ["user"]
rate = "1/h"
burst = 1000
"""


class Peer:
    """A client of a unix socket, and the server's end of it."""

    def __init__(self, server: Running) -> None:
        self.server = server
        self.end = socket.socket(socket.AF_UNIX)
        self.end.setblocking(False)
        self.got = b""

    async def connect(self) -> Peer:
        before = set(self.server.decisions.connections)
        await asyncio.get_running_loop().sock_connect(self.end, str(self.server.path))
        await until(lambda: bool(set(self.server.decisions.connections) - before))
        (self.side,) = set(self.server.decisions.connections) - before
        assert isinstance(self.side, Connection)
        return self

    async def polled(self) -> Peer:
        """After so many requests it is read without its transport."""
        await self.connect()
        for name in ("first", "second"):
            assert not self.is_polled
            assert await self.ask(check(name)) == [name]
        assert self.is_polled
        return self

    @property
    def is_polled(self) -> bool:
        assert isinstance(self.side, Connection)
        return self.side._reader.polled

    async def ask(self, data: bytes, count: int = 1) -> list[str]:
        """The ids of so many answers, in the order in which they came."""
        self.end.send(data)
        return await self.answers(count)

    async def answers(self, count: int) -> list[str]:
        for _ in range(5_000):
            try:
                self.got += self.end.recv(1_000_000)
            except BlockingIOError:
                await asyncio.sleep(0.001)
            if self.got.count(b"HTTP/1.1 ") >= count and self.got.endswith(b"}"):
                break
        ids = re.findall(r'"request_id":"([^"]*)"', self.got.decode())
        self.got = b""
        assert len(ids) == count
        return ids

    @property
    def answered(self) -> bool:
        """Whether there is an answer, which is read then."""
        with contextlib.suppress(BlockingIOError):
            self.got += self.end.recv(65_536)
        return self.got.endswith(b"}")

    async def ended(self) -> bytes:
        """All that still comes."""
        while True:
            try:
                more = self.end.recv(65_536)
            except BlockingIOError:
                await asyncio.sleep(0.001)
                continue
            if not more:
                self.end.close()
                return self.got
            self.got += more


async def test_what_comes_after_the_second_request_is_read_without_the_transport() -> None:
    async with serving(POLICY) as server:
        peer = await (Peer(server)).polled()
        transport: Any = peer.side.transport
        assert not transport.is_reading()
        for number in range(50):
            assert await peer.ask(check(str(number), user="u")) == [str(number)]
            assert peer.is_polled
        assert server.service.metrics.counts().reasons["ok"] == 52
        # Several at once, another route, what has to be explained: answered there, too.
        assert await peer.ask(check("a") + check("b") + check("c"), 3) == ["a", "b", "c"]
        peer.end.send(GET)
        await until(lambda: server.service.metrics.counts().reasons["ok"] == 56)
        assert b"HTTP/1.1 200 OK" in peer.end.recv(65_536)
        assert await peer.ask(check("d", cost=2)) == ["d"]
        assert peer.is_polled
        peer.end.close()
        await until(lambda: not server.decisions.connections)


async def test_a_read_that_fills_the_buffer_is_not_the_last() -> None:
    async with serving(POLICY) as server:
        peer = await (Peer(server)).polled()
        for size in (65_535, 65_536, 65_537):
            large = b'{"request_id":"large"%b}' % (b" " * 65_000)
            head = b"POST /v1/check HTTP/1.1\r\nHost: x\r\nX: %b\r\nContent-Length: %d\r\n\r\n"
            missing = size - len(head % (b"", len(large)) + large)
            request = head % (b"x" * missing, len(large)) + large
            assert len(request) == size
            assert await peer.ask(request + check("next"), 2) == ["large", "next"]
            assert await peer.ask(check("then")) == ["then"]
            assert await peer.ask(check("again")) == ["again"]
            assert peer.is_polled == (size <= bounds.HOLD_BYTES)  # what is larger and not here yet is aiohttp's


async def test_what_is_no_whole_request_is_the_transports_again() -> None:
    async with serving(POLICY) as server:
        peer = await (Peer(server)).polled()
        whole = check("cut")
        for at in (1, 40, len(whole) - 1):
            peer.end.send(whole[:at])
            await until(lambda: not peer.is_polled)
            assert await peer.ask(whole[at:]) == ["cut"]
            assert await peer.ask(check("next")) == ["next"]
            assert peer.is_polled
        # To aiohttp and back.
        peer.end.send(b"GET /nowhere HTTP/1.1\r\nHost: x\r\n\r\n")
        await until(lambda: not peer.is_polled)
        assert len(await peer.answers(1)) == 1
        await until(lambda: peer.side.awaits_request)  # type: ignore[attr-defined]
        for name in ("third", "fourth"):
            assert await peer.ask(check(name)) == [name]
        assert peer.is_polled
        peer.end.send(b"\x16\x03\x01")
        assert b" 400 Bad Request" in await peer.ended()
        await until(lambda: not server.decisions.connections)


@pytest.mark.parametrize("how", ["half", "whole", "reset"])
async def test_the_other_end_goes(how: str) -> None:
    """With a last request, of which the answer still comes where somebody is there to get it."""
    async with serving(POLICY) as server:
        peer = await (Peer(server)).polled()
        peer.end.send(check("last"))
        if how == "half":
            peer.end.shutdown(socket.SHUT_WR)
            assert b'"request_id":"last"' in await peer.ended()
        else:
            if how == "reset":
                peer.end.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            peer.end.close()
        await until(lambda: not server.decisions.connections)
        assert not peer.is_polled
        assert server.decisions.in_flight == 0


async def test_the_server_closes_after_an_answer() -> None:
    async with serving(POLICY) as server:
        peer = await (Peer(server)).polled()
        closing = check("last").replace(b"Host: x\r\n", b"Host: x\r\nConnection: close\r\n")
        peer.end.send(closing + check("never"))
        assert (await peer.ended()).count(b"HTTP/1.1 200") == 1
        peer = await (Peer(server)).polled()
        server.service.draining = True
        peer.end.send(check("last"))
        assert b"Connection: close" in await peer.ended()


async def test_many_that_ask_at_once_each_get_their_own() -> None:
    """In one turn: plain requests, and before some of them something else."""
    async with serving(POLICY) as server:
        peers = [await (Peer(server)).polled() for _ in range(100)]
        for turn in range(5):
            for number, peer in enumerate(peers):
                name = f"{turn}-{number}"
                if number % 7 == turn:
                    peer.end.send(check(name) + check(name))
                elif number % 11 == turn:
                    peer.end.send(check(name)[:-1])
                else:
                    peer.end.send(check(name, user="u" * 300, tenant="t"))
            await asyncio.sleep(0.01)
            for number, peer in enumerate(peers):
                name = f"{turn}-{number}"
                if number % 7 == turn:
                    assert await peer.answers(2) == [name, name]
                elif number % 11 == turn:
                    assert await peer.ask(b"}") == [name]
                else:
                    assert await peer.answers(1) == [name]
        for peer in peers:
            peer.end.close()
        await until(lambda: not server.decisions.connections)


async def test_what_comes_too_late_is_shed() -> None:
    """All that is there has its turn at once, so that who comes late in it is seen; once is forgiven."""
    now = 0.0

    def clock() -> float:
        nonlocal now
        now += 0.6 * bounds.MAX_WAIT_S
        return now

    async with serving(POLICY) as server:
        peers = [await (Peer(server)).polled() for _ in range(130)]  # in three parts
        server.service.pressure.clock = clock
        for late in (0, 2):
            for peer in peers:
                peer.end.send(check("r"))
            await until(lambda: all(peer.answered for peer in peers))
            found = [bytes(peer.got[:12]) for peer in peers]
            assert found.count(b"HTTP/1.1 503") == late
            assert found.count(b"HTTP/1.1 200") == 130 - late
            for peer in peers:
                peer.got = b""
        for peer in peers:
            peer.end.close()


async def test_answers_that_nobody_fetches_keep_their_order_and_are_bounded() -> None:
    async with serving(POLICY) as server:
        peer = await (Peer(server)).polled()
        transport: Any = peer.side.transport
        sent = 0
        for _ in range(20_000):
            if not peer.is_polled:
                break
            peer.end.send(check(str(sent), user="u" * 200))
            sent += 1
            await asyncio.sleep(0)
            if sent > 50 and sent % 2:  # there is room again, for what the transport holds first of all
                peer.got += peer.end.recv(700)
        await asyncio.sleep(0.01)
        assert not peer.is_polled
        assert peer.side.writing_is_paused  # type: ignore[attr-defined]
        assert transport.get_write_buffer_size() < 200_000
        assert await peer.answers(sent) == [str(number) for number in range(sent)]
        for name in ("then", "again"):
            assert await peer.ask(check(name)) == [name]
        await until(lambda: peer.is_polled)
        peer.end.close()


async def test_a_decision_that_fails_is_answered_and_closes() -> None:
    async with serving(POLICY) as server:
        peer = await (Peer(server)).polled()
        other = await (Peer(server)).polled()

        def broken(request: Any) -> Any:
            raise RuntimeError("broken")

        server.service.shield.check_nowait = broken  # type: ignore[method-assign]
        other.end.send(GET)
        peer.end.send(check("r"))
        assert (await peer.ended()).startswith(b"HTTP/1.1 500")
        assert (await other.ended()).startswith(b"HTTP/1.1 500")
        assert [event["event"] for event in server.events() if event["level"] == "error"] == ["fault", "fault"]


async def test_a_fault_of_our_own_ends_its_connection_and_no_other(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(connection: Connection, data: bytes, left: Any, due: float | None = None) -> None:
        raise RuntimeError("broken")

    monkeypatch.setattr(Connection, "_left_over", broken)
    told: list[dict[str, Any]] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: told.append(context))
    async with serving(POLICY) as server:
        peers = [await (Peer(server)).polled() for _ in range(3)]
        peers[0].end.send(check("a"))
        peers[1].end.send(check("b")[:-1])
        peers[2].end.send(check("c"))
        assert await peers[0].answers(1) == ["a"]
        assert await peers[1].ended() == b""
        assert await peers[2].answers(1) == ["c"]
        assert [str(context["exception"]) for context in told] == ["broken"]
        for peer in peers:
            peer.end.close()


@pytest.mark.parametrize("tls", [True, False])
async def test_tls_and_what_cannot_be_polled_stay_with_their_transports(tls: bool) -> None:
    with tempfile.TemporaryFile() as file, socket.socket() as unconnected:
        info = {"socket": unconnected, "ssl_object": object()} if tls else {"socket": file}
        written: list[bytes] = []

        class Other(asyncio.Transport):
            def get_extra_info(self, name: str, default: Any = None) -> Any:
                return info.get(name, default)

            def write(self, data: Any) -> None:
                written.append(bytes(data))

            def is_closing(self) -> bool:
                return False

        async with serving(POLICY) as server:
            express = server.decisions.express
            assert express is not None
            reader = http_lane.Reader(express, asyncio.get_running_loop(), lambda _: None, lambda _, left: None)
            reader.begin(Other())
            reader.ready = True
            for _ in range(3):
                reader.data_received(check("r"))
            assert len(written) == 3
            assert not reader.polled


@pytest.mark.parametrize(
    "test",
    [
        test_what_comes_after_the_second_request_is_read_without_the_transport,
        test_a_read_that_fills_the_buffer_is_not_the_last,
        test_what_is_no_whole_request_is_the_transports_again,
        test_the_server_closes_after_an_answer,
        test_what_comes_too_late_is_shed,
        test_many_that_ask_at_once_each_get_their_own,
        test_answers_that_nobody_fetches_keep_their_order_and_are_bounded,
        test_a_decision_that_fails_is_answered_and_closes,
        lambda: test_the_other_end_goes("half"),
        lambda: test_the_other_end_goes("whole"),
        lambda: test_the_other_end_goes("reset"),
    ],
)
def test_the_same_on_uvloop(test: Callable[[], Awaitable[None]]) -> None:
    """`shield serve` runs on it, and its transports pause, write and close in ways of their own."""
    uvloop.run(test())  # type: ignore[arg-type]
