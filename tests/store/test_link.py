"""The link: many callers on few connections, whatever the server does."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from typing import Any

import pytest

from shield.errors import StoreError, StoreProtocolError, StoreTimeout
from shield.store.lane import OutOfMemory, ScriptMissing
from shield.store.link import Link
from shield.store.resp import encode
from shield.store.target import parse_redis_url
from tests.servers import Server
from tests.store.wire import Command, FakeServer, fake_server, saying, until

LONG_S = 5.0
SHORT_S = 0.03


@pytest.fixture
async def fake() -> AsyncIterator[FakeServer]:
    async with fake_server() as server:
        yield server


@contextlib.asynccontextmanager
async def linked(url: str, **options: Any) -> AsyncIterator[Link]:
    defaults = {"connections": 1, "deadline_s": LONG_S, "connect_timeout_s": LONG_S, "max_in_flight": 1024}
    link = Link(parse_redis_url(url).make, **{**defaults, **options})
    await link.open()
    try:
        yield link
    finally:
        await link.close()


def echo(text: bytes) -> bytes:
    return encode((b"ECHO", text))


async def test_replies_find_their_callers(fake: FakeServer) -> None:
    async with linked(fake.url, connections=3) as link:
        wanted = [b"%d" % number for number in range(500)]
        assert await asyncio.gather(*[link.request(echo(text)) for text in wanted]) == wanted
        assert fake.connections == 3


async def test_requests_of_one_turn_share_a_write(fake: FakeServer) -> None:
    """P12: twenty at once are one round trip, not twenty."""
    async with linked(fake.url) as link:
        before = fake.reads
        await asyncio.gather(*[link.request(echo(b"%d" % number)) for number in range(20)])
        assert fake.reads == before + 1


async def test_the_connection_with_the_fewest_in_flight_is_asked(fake: FakeServer) -> None:
    fake.behaviour = saying(b"")  # never answers
    async with linked(fake.url, connections=2, deadline_s=SHORT_S) as link:
        await until(lambda: link.up == 2)
        futures = [link.request(echo(b"x")) for _ in range(10)]
        assert [lane.in_flight for lane in link._lanes] == [5, 5]
        await asyncio.wait(futures)
        assert all(isinstance(future.exception(), StoreTimeout) for future in futures)


async def test_nobody_waits_longer_than_the_deadline(fake: FakeServer) -> None:
    fake.behaviour = saying(b"")
    async with linked(fake.url, deadline_s=SHORT_S) as link:
        loop = asyncio.get_running_loop()
        started = loop.time()
        with pytest.raises(StoreTimeout, match="within 30 ms"):
            await link.request(echo(b"x"))
        assert SHORT_S <= loop.time() - started < 1
        assert link.timeouts == 1


async def test_a_late_reply_is_handed_over_and_disturbs_nobody(fake: FakeServer) -> None:
    gate = asyncio.Event()

    async def behave(command: Command, writer: asyncio.StreamWriter) -> bool:
        if command == [b"ECHO", b"slow"]:
            await gate.wait()
        return False

    fake.behaviour = behave
    late: list[tuple[Any, Any]] = []
    async with linked(fake.url, deadline_s=SHORT_S) as link:
        with pytest.raises(StoreTimeout):
            await link.request(echo(b"slow"), lambda reply, context: late.append((reply, context)), "mine")
        next_one = link.request(echo(b"next"))
        gate.set()
        assert await next_one == b"next"
        assert late == [(b"slow", "mine")]
        assert fake.connections == 1


async def test_a_cancelled_caller_disturbs_nobody(fake: FakeServer) -> None:
    late: list[Any] = []
    async with linked(fake.url) as link:
        first = link.request(echo(b"first"), lambda reply, _: late.append(reply))
        second = link.request(echo(b"second"))
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        first.cancel()
        assert await second == b"second"
        assert late == [b"first"]


async def test_what_was_not_written_is_not_written_for_nobody(fake: FakeServer) -> None:
    async with linked(fake.url) as link:
        link.request(echo(b"unwanted")).cancel()
        assert await link.request(echo(b"wanted")) == b"wanted"
        assert [b"ECHO", b"unwanted"] not in fake.commands


async def test_in_flight_is_bounded(fake: FakeServer) -> None:
    fake.behaviour = saying(b"")
    async with linked(fake.url, deadline_s=SHORT_S, max_in_flight=3) as link:
        futures = [link.request(echo(b"x")) for _ in range(3)]
        with pytest.raises(StoreError, match="3 requests are waiting"):
            link.request(echo(b"one too many"))
        await asyncio.wait(futures)
        assert link.in_flight == 3, "the server still owes their replies"
        with pytest.raises(StoreError, match="3 requests are waiting"):
            link.request(echo(b"still too many"))


async def test_a_server_that_owes_for_too_long_is_given_up(fake: FakeServer) -> None:
    fake.behaviour = saying(b"", times=1)
    async with linked(fake.url, deadline_s=SHORT_S, stall_s=3 * SHORT_S) as link:
        with pytest.raises(StoreTimeout):
            await link.request(echo(b"swallowed"))
        await until(lambda: link.connects == 2)
        assert await link.request(echo(b"back")) == b"back"
        assert "no answer for" in (link.last_error or "")


@pytest.mark.parametrize(
    "garbage",
    [
        b"HTTP/1.1 400 Bad Request\r\n\r\n",
        b"\x00\xff\xfe\r\n",
        b"*abc\r\n",
        b"$-7\r\n",
        b"-\xff\xfe\r\n:x\r\n",
        b"*1\r\n$5\r\nab",
    ],
)
async def test_garbage_fails_everybody_and_ends_the_connection(fake: FakeServer, garbage: bytes) -> None:
    fake.behaviour = saying(garbage, times=1, hang_up=garbage.endswith(b"ab"))
    async with linked(fake.url, deadline_s=1.0) as link:
        futures = [link.request(echo(b"%d" % number)) for number in range(5)]
        done, pending = await asyncio.wait(futures, timeout=LONG_S)
        assert not pending
        assert all(isinstance(future.exception(), StoreError) for future in done)
        await until(lambda: link.connects == 2)
        assert await link.request(echo(b"fine")) == b"fine"


async def test_a_reply_to_nothing_ends_the_connection(fake: FakeServer) -> None:
    fake.behaviour = saying(b"$1\r\na\r\n$1\r\nb\r\n", times=1)
    async with linked(fake.url) as link:
        assert await link.request(echo(b"a")) == b"a"
        await until(lambda: link.losses == 1)
        assert "nobody had asked" in (link.last_error or "")
        await until(lambda: link.up == 1)
        assert await link.request(echo(b"c")) == b"c"


async def test_a_dropped_connection_fails_those_who_wait_and_heals(fake: FakeServer) -> None:
    fake.behaviour = saying(b"$100\r\nhalf a re", times=1, hang_up=True)
    async with linked(fake.url) as link:
        with pytest.raises(StoreError, match="was lost before it answered"):
            await link.request(echo(b"x"))
        with pytest.raises(StoreError, match="not connected"):
            link.request(echo(b"too early"))
        await until(lambda: link.up == 1)
        assert await link.request(echo(b"y")) == b"y"
        assert [command[1] for command in fake.commands if command[0] == b"ECHO"] == [b"x", b"y"], "nothing twice"


async def test_a_lost_connection_leaves_the_other_alone(fake: FakeServer) -> None:
    async with linked(fake.url, connections=2) as link:
        await until(lambda: link.up == 2)
        fake.behaviour = saying(b"", times=1, hang_up=True)
        lost, kept = link.request(echo(b"a")), link.request(echo(b"b"))
        results = await asyncio.gather(lost, kept, return_exceptions=True)
        assert sum(isinstance(result, StoreError) for result in results) == 1
        assert any(isinstance(result, bytes) for result in results)


@pytest.mark.parametrize(
    ("reply", "kind"),
    [
        (b"-NOSCRIPT No matching script\r\n", ScriptMissing),
        (b"-OOM command not allowed when used memory > 'maxmemory'.\r\n", OutOfMemory),
        (b"-ERR Error running script: @user_script: 281: -OOM command not allowed\r\n", OutOfMemory),
        (b"-BUSY Redis is busy running a script\r\n", StoreError),
        (b"-CLUSTERDOWN The cluster is down\r\n", StoreError),
        (b"-MISCONF Errors writing to the AOF file\r\n", StoreError),
        (b"-WRONGTYPE Operation against a key\r\n", StoreProtocolError),
        (b"-ERR unknown command\r\n", StoreProtocolError),
    ],
)
async def test_error_replies_concern_their_caller_alone(fake: FakeServer, reply: bytes, kind: type[StoreError]) -> None:
    fake.behaviour = saying(reply, times=1)
    async with linked(fake.url) as link:
        wrong, right = link.request(echo(b"wrong")), link.request(echo(b"right"))
        with pytest.raises(StoreError) as caught:
            await wrong
        assert type(caught.value) is kind
        assert await right == b"right"
        assert link.losses == 0


async def test_a_server_turned_replica_is_left(fake: FakeServer) -> None:
    """After a failover the name may lead to the new primary: connect again."""
    fake.behaviour = saying(b"-READONLY You can't write against a read only replica.\r\n", times=1)
    async with linked(fake.url) as link:
        with pytest.raises(StoreError, match="cannot answer now"):
            await link.request(echo(b"x"))
        await until(lambda: link.connects == 2)


@pytest.mark.parametrize(
    "reply", [b"-LOADING Redis is loading the dataset in memory\r\n", b"-NOAUTH Authentication required.\r\n"]
)
async def test_replies_that_end_a_connection(fake: FakeServer, reply: bytes) -> None:
    fake.behaviour = saying(reply, times=1)
    async with linked(fake.url) as link:
        with pytest.raises(StoreError):
            await link.request(echo(b"x"))
        await until(lambda: link.connects == 2)
        assert await link.request(echo(b"y")) == b"y"


async def test_an_absent_server_is_no_error_and_is_found_later(fake: FakeServer) -> None:
    await fake.stop()
    async with linked(fake.url) as link:
        assert link.up == 0
        with pytest.raises(StoreError, match="not connected"):
            link.request(echo(b"x"))
        await fake.start()
        await until(lambda: link.up == 1)
        assert await link.request(echo(b"x")) == b"x"


async def test_a_greeting_that_is_refused_for_good_is_an_error(fake: FakeServer) -> None:
    fake.behaviour = saying(b"-NOPERM this user has no permissions\r\n", to=b"HI")

    def accept(reply: Any) -> None:
        if isinstance(reply, Exception):
            raise reply

    with pytest.raises(StoreError, match="refused the connection"):
        async with linked(fake.url, greeting=[(encode((b"HI",)), accept)]):
            pass


async def test_a_server_that_accepts_and_says_nothing_does_not_hang_the_start(fake: FakeServer) -> None:
    fake.behaviour = saying(b"", to=b"HI")
    async with linked(fake.url, connect_timeout_s=SHORT_S, greeting=[(encode((b"HI",)), lambda _: None)]) as link:
        assert link.up == 0
        assert link.last_error == "no connection in time"


async def test_closing_tells_those_who_wait(fake: FakeServer) -> None:
    fake.behaviour = saying(b"")
    async with linked(fake.url) as link:
        future = link.request(echo(b"x"))
        await asyncio.sleep(0)
        await link.close()
        with pytest.raises(StoreError):
            await future
        with pytest.raises(StoreError, match="not open"):
            link.request(echo(b"y"))
        await link.close()


async def test_a_busy_process_reads_before_it_gives_up(any_server: Server) -> None:
    """A reply that is there when the loop comes back late is an answer, not a missed deadline."""
    async with linked(any_server.url, deadline_s=SHORT_S) as link:
        future = link.request(echo(b"x"))
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        ends = asyncio.get_running_loop().time() + 2 * SHORT_S
        while asyncio.get_running_loop().time() < ends:
            pass
        assert await future == b"x"


async def test_idle_connections_stay(any_server: Server) -> None:
    """redis-py's own five-second timeout for reads would tear down an idle connection: there is none."""
    transport = parse_redis_url(any_server.url).make()
    assert transport.socket_timeout is None  # type: ignore[attr-defined]
