"""The express lane over real sockets: order, splits, back-pressure, deadlines, drain, to aiohttp and back."""

from __future__ import annotations

import asyncio
import io
import json
import random
import re
import socket
from collections.abc import Callable
from typing import Any

import pytest
import uvloop

from shield.server import bounds, connection, guarded
from shield.server.auth import CallerTokens
from shield.server.connection import BENEATH, EXPRESS, Connection
from tests.server import lane_fuzz
from tests.server.lane_corpus import CORPUS
from tests.server.running import Running, serving

GET = b"GET /v1/authz HTTP/1.1\r\nHost: x\r\n\r\n"
_CHANGING = re.compile(rb"\r\nDate: [^\r]*|[0-9a-f]{8}-[0-9a-f]+")


def check(request_id: str, **facts: Any) -> bytes:
    body = json.dumps({"request_id": request_id, **facts}).encode()
    return b"POST /v1/check HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n%b" % (len(body), body)


async def server_side(server: Running) -> Connection:
    """The server's end of the connection that was opened last."""
    for _ in range(200):
        if made := server.decisions.connections:
            found = made[-1]
            assert isinstance(found, Connection)
            return found
        await asyncio.sleep(0.001)
    raise AssertionError("no connection arrived")


async def until(true: Callable[[], bool]) -> None:
    """Lets the loop turn until something is so."""
    for _ in range(5_000):
        if true():
            return
        await asyncio.sleep(0.001)
    raise AssertionError("it did not come to that")


async def answers(reader: asyncio.StreamReader, count: int) -> list[tuple[int, bytes]]:
    """So many answers: status and body."""
    found = []
    for _ in range(count):
        head = await reader.readuntil(b"\r\n\r\n")
        length = re.search(rb"Content-Length: (\d+)", head)
        found.append((int(head.split()[1]), await reader.readexactly(int(length[1]) if length else 0)))
    return found


# ---- against aiohttp ---------------------------------------------------------------------------------------


async def test_the_lanes_answer_alike() -> None:
    fuzz = lane_fuzz.Fuzz(20_261_125)
    await fuzz.run(6_000)
    assert fuzz.seen["take"] > 2_000
    assert fuzz.seen["without transport"] > 20
    assert len(fuzz.seen) >= 16, fuzz.coverage()
    assert len(fuzz.statuses) >= 7, fuzz.coverage()


async def test_the_lanes_answer_alike_over_sockets() -> None:
    """Good requests in one, cut anywhere; then a shape of the corpus, which answers as it does on its own."""
    rng = random.Random(7)
    # Those left out wait for more, which is for the deadlines, or are for the bounds' own tests.
    waiting = {"body-none", "body-short", "body-too-large", "te-cl", "chunk-size-huge"}
    odd = {name: data for name, data in CORPUS.items() if len(data) < 100_000 and name not in waiting}
    stream = GET + check("id", user="u") + GET
    async with serving('name = "empty"') as express, serving('name = "empty"', express=False) as plain:
        for server in (express, plain):
            server.service.ids.number = 0x1000  # ids of one length
        before = await ask(plain, stream, [len(GET)], asyncio.Semaphore(1))
        cut = [sorted(rng.randrange(len(stream)) for _ in range(3)) for _ in odd]
        some = asyncio.Semaphore(40)  # the kernel keeps so many waiting
        found = await asyncio.gather(*(ask(express, stream + odd[name], cut[i], some) for i, name in enumerate(odd)))
        alone = await asyncio.gather(*(ask(plain, data, [], some) for data in odd.values()))
        assert len(before) == 3
        for name, both, last in zip(odd, found, alone, strict=True):
            # aiohttp forgets what it parsed of a read whose later bytes it refuses; the lane hands it less at once.
            assert both[:3] == before, name
            assert both[len(both) - len(last) :] == last, name


async def ask(server: Running, data: bytes, cuts: list[int], some: asyncio.Semaphore) -> list[bytes]:
    """What a client gets that goes after a while: answers without what always changes. One of `some` at a time."""
    async with some:
        return await ask_now(server, data, cuts)


async def ask_now(server: Running, data: bytes, cuts: list[int]) -> list[bytes]:
    reader, writer = await asyncio.open_unix_connection(str(server.path))
    at = 0
    for cut in [*cuts, len(data)]:
        writer.write(data[at:cut])
        await asyncio.sleep(0.001)
        at = cut
    got = b""
    try:
        while more := await asyncio.wait_for(reader.read(65_536), 1.0):
            got += more
    except (TimeoutError, ConnectionError):
        pass
    writer.close()
    return [one for one in _CHANGING.sub(b"", got).split(b"HTTP/1.") if one]


async def test_the_lanes_count_and_log_alike() -> None:
    """Allowed, refused, by a shadow limit, invalid, a batch, a peek, a malformed body, a body past its bound."""
    policy = """
        [[limit]]
        name = "few"
        key = ["user"]
        rate = "1/m"
        burst = 2

        [[limit]]
        name = "quiet"
        key = ["tenant"]
        rate = "1/m"
        burst = 1
        mode = "shadow"
    """
    bodies = [b'{"user":"u","tenant":"t"}'] * 4 + [
        *(b'{"user":"v","cost":0}', b'[{"user":"w"},{"user":"w"}]', b'{"user":"x","ip":"no"}', b'{"user":1}'),
        *(b'{"user":"y","user":"z"}', b'{"user":"y","request_id":"mine"}', b"x" * (bounds.MAX_BODY_BYTES + 1)),
    ]
    told = []
    for express in (True, False):
        async with serving(policy, express=express) as server:
            answers = []
            for body in bodies:
                async with server.client.post("/v1/check", data=io.BytesIO(body)) as answer:
                    answers.append(answer.status)
            counts = server.service.metrics.counts()
            lines = [json.loads(line) for line in server.log().splitlines()]
            for line in lines:
                for name in list(line):
                    if name not in ("event", "message", "endpoint", "status", "reason", "violated", "field", "level"):
                        del line[name]
            told.append((answers, counts.reasons, counts.refusals, counts.shadow, counts.problems, lines))
            assert sum(counts.latency) == sum(counts.reasons.values()) == 9
    assert told[0] == told[1]
    assert told[0][1]["limit"] == 2
    assert told[0][3]["quiet"] >= 1


# ---- order, splits, turns ----------------------------------------------------------------------------------


@pytest.mark.parametrize("step", [1, 7, 64])
async def test_requests_cut_anywhere_are_answered_in_order(step: int) -> None:
    async with serving() as server:
        reader, writer = await asyncio.open_unix_connection(str(server.path))
        data = b"".join(check(f"r{i}") + GET for i in range(3))
        for at in range(0, len(data), step):
            writer.write(data[at : at + step])
            await writer.drain()
            await asyncio.sleep(0)
        found = await answers(reader, 6)
        assert [json.loads(body)["request_id"] for _, body in found if body] == ["r0", "r1", "r2"]
        assert (await server_side(server)).requests_read == 0
        assert server.decisions.in_flight == 0
        writer.close()


async def test_a_hundred_thousand_pipelined_requests_starve_nobody() -> None:
    async with serving('name = "empty"') as server:
        reader, writer = await asyncio.open_unix_connection(str(server.path))
        flood = 100_000
        got = 0

        async def read() -> None:
            nonlocal got
            left = b""
            while got < flood:
                data = left + await reader.read(1_000_000)
                got += data.count(b"HTTP/1.1 200 OK\r\n")
                left = data[-16:] if not data.endswith(b"HTTP/1.1 200 OK\r\n") else b""
                got -= left.count(b"HTTP/1.1 200 OK\r\n")

        writer.write(GET * flood)
        reading = asyncio.create_task(read())
        await until(lambda: got > 100)
        # Another caller is served meanwhile.
        assert (await server.check({"user": "u"}))["allowed"]
        assert got < flood
        await asyncio.wait_for(reading, 60)
        assert got == flood
        writer.close()


async def test_requests_that_wait_for_a_store_keep_their_order(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each waits less than the one before; nothing is decided before the one in front is answered."""
    async with serving() as server:
        shield = server.service.shield
        monkeypatch.setattr(server.decisions.express, "at_once", False)
        decide, deciding = shield.check, []

        async def slowly(request: Any) -> Any:
            deciding.append(request.request_id)
            assert len(deciding) == 1
            for _ in range(10 - 3 * int(request.request_id[1:])):
                await asyncio.sleep(0)
            deciding.pop()
            return await decide(request)

        monkeypatch.setattr(shield, "check", slowly)
        reader, writer = await asyncio.open_unix_connection(str(server.path))
        writer.write(
            b"".join(check(f"r{i}") for i in range(3)) + b"GET /other HTTP/1.1\r\nHost: x\r\n\r\n" + check("r3")
        )
        found = await answers(reader, 5)
        assert [json.loads(body)["request_id"] for status, body in found if status == 200] == ["r0", "r1", "r2", "r3"]
        assert [status for status, _ in found] == [200, 200, 200, 404, 200]
        writer.close()


async def test_what_comes_while_a_decision_waits_is_not_decided_before_it(monkeypatch: pytest.MonkeyPatch) -> None:
    async with serving() as server:
        gate = asyncio.Event()
        decide = server.service.shield.check
        monkeypatch.setattr(server.decisions.express, "at_once", False)
        begun = []

        async def stuck(request: Any) -> Any:
            begun.append(request.request_id)
            await gate.wait()
            return await decide(request)

        monkeypatch.setattr(server.service.shield, "check", stuck)
        reader, writer = await asyncio.open_unix_connection(str(server.path))
        writer.write(check("r0"))
        await until(lambda: begun == ["r0"])
        writer.write(check("r1"))
        side = await server_side(server)
        await until(lambda: len(side._held) > 0 or len(begun) > 1)
        assert begun == ["r0"]
        gate.set()
        found = await answers(reader, 2)
        assert [json.loads(body)["request_id"] for _, body in found] == ["r0", "r1"]
        writer.close()


async def test_what_waits_behind_a_slow_decision_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    async with serving() as server:
        gate = asyncio.Event()
        decide = server.service.shield.check
        monkeypatch.setattr(server.decisions.express, "at_once", False)

        async def stuck(request: Any) -> Any:
            await gate.wait()
            return await decide(request)

        monkeypatch.setattr(server.service.shield, "check", stuck)
        reader, writer = await asyncio.open_unix_connection(str(server.path))
        writer.write(check("r") * 50_000)
        side = await server_side(server)
        await until(lambda: side._stopped)
        for _ in range(20):
            await asyncio.sleep(0)
        assert len(side._held) <= bounds.HOLD_BYTES + 262_144  # and one read of the loop's
        assert server.decisions.in_flight == 1
        gate.set()
        assert len(await answers(reader, 200)) == 200
        writer.close()


async def test_to_aiohttp_and_back() -> None:
    async with serving() as server:
        reader, writer = await asyncio.open_unix_connection(str(server.path))
        side = await server_side(server)
        large = check("large", user="u" * 80_000)
        for data, status, read_by_aiohttp in (
            (GET, 200, 0),
            (b"GET /other HTTP/1.1\r\nHost: x\r\n\r\n", 404, 1),
            (check("a"), 200, 1),
            (large, 200, 2),
            (check("b"), 200, 2),
        ):
            writer.write(data[:100])
            more = len(data) > 100
            await until(lambda more=more: server.decisions.in_flight == more)  # type: ignore[misc]
            writer.write(data[100:])
            assert (await answers(reader, 1))[0][0] == status
            await asyncio.sleep(0.001)
            assert side.requests_read == read_by_aiohttp
        chunked = b"POST /v1/check HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n2\r\n{}\r\n0\r\n\r\n"
        for data in (chunked, check("c"), GET):
            writer.write(data)
            assert (await answers(reader, 1))[0][0] == 200
        assert side.requests_read == 5
        assert side._mode == BENEATH  # where its requests begin only aiohttp knows
        writer.close()


async def test_an_unknown_caller_is_refused_before_its_body_is_here() -> None:
    async with serving(tokens=CallerTokens(["alpha"])) as server:
        head = b"POST /v1/check HTTP/1.1\r\nHost: x\r\n%bContent-Length: 20\r\n\r\n{"
        raw = await server.raw(head % b"")
        assert raw.startswith(b"HTTP/1.1 401")
        assert b"Connection: close" in raw
        reader, writer = await asyncio.open_unix_connection(str(server.path))
        writer.write(head % b"Shield-Authorization: Bearer alpha\r\n")
        side = await server_side(server)
        await until(lambda: server.decisions.in_flight == 1)
        assert side._mode == EXPRESS
        writer.write(b'"ip":"203.0.113.7"}')
        assert (await answers(reader, 1))[0][0] == 200
        writer.close()


# ---- the other end -----------------------------------------------------------------------------------------


async def test_a_client_that_ends_its_side_still_gets_its_answers() -> None:
    async with serving() as server:
        reader, writer = await asyncio.open_unix_connection(str(server.path))
        writer.write(check("r") * 200)
        writer.write_eof()
        found = await asyncio.wait_for(reader.read(), 10)
        assert found.count(b"HTTP/1.1 200 OK") == 200
        writer.close()


async def test_a_client_that_never_reads_makes_nothing_grow() -> None:
    async with serving('name = "empty"') as server:
        client = socket.socket(socket.AF_UNIX)
        client.setblocking(False)
        loop = asyncio.get_running_loop()
        await loop.sock_connect(client, str(server.path))
        side = await server_side(server)
        data = check("r") * 1_000
        sent = 0
        for _ in range(2_000):
            try:
                sent += client.send(data)
            except BlockingIOError:
                if side.writing_is_paused and side._stopped:
                    break
            await asyncio.sleep(0)
        assert side.writing_is_paused
        assert side._stopped
        transport = side.transport
        assert transport is not None
        assert transport.get_write_buffer_size() <= 3 * bounds.WRITE_BYTES
        assert len(side._held) <= bounds.HOLD_BYTES + 262_144
        # Once it reads, all that it sent whole is answered.
        got = b""
        count = 0
        whole = sent // len(check("r"))
        while count < whole:
            try:
                got = got[-20:] + client.recv(1_000_000)
            except BlockingIOError:
                await asyncio.sleep(0)
                continue
            count += got.count(b'"response":null}')
            got = got[got.rfind(b'"response":null}') + 16 :] if b'"response":null}' in got else got
        assert count == whole
        client.close()


@pytest.mark.parametrize("express", [True, False])
@pytest.mark.parametrize("end", [b"", b"nonsense\r\n\r\n"], ids=["kept", "closing"])
async def test_a_client_that_never_reads_is_cut_in_the_end(
    monkeypatch: pytest.MonkeyPatch, express: bool, end: bytes
) -> None:
    monkeypatch.setattr(guarded, "STALL_S", 0.05)
    monkeypatch.setattr(guarded, "STRANGER_IDLE_S", 0.3)
    async with serving('name = "empty"', express=express) as server:
        client = socket.socket(socket.AF_UNIX)
        client.setblocking(False)
        await asyncio.get_running_loop().sock_connect(client, str(server.path))
        data = left = check("r", user="u" * 200) * (600 if end else 1_000)
        await until(lambda: bool(server.decisions.connections))
        for _ in range(5_000):
            if not server.decisions.connections:
                break
            try:
                left = left[client.send(left) :] or end or data
            except (BlockingIOError, ConnectionError):
                await asyncio.sleep(0.001)
        assert not server.decisions.connections
        client.close()


async def test_draining_answers_what_is_here_and_closes() -> None:
    async with serving() as server:
        reader, writer = await asyncio.open_unix_connection(str(server.path))
        writer.write(check("a"))
        await answers(reader, 1)
        server.service.draining = True
        writer.write(check("b") + check("c"))
        raw = await asyncio.wait_for(reader.read(), 10)
        assert raw.count(b"HTTP/1.1 200 OK") == 1
        assert b"Connection: close" in raw
        writer.close()


async def test_a_request_that_has_begun_is_in_flight_until_it_is_answered_or_lost() -> None:
    async with serving() as server:
        begun = check("r")[:-1]
        for end in (True, False):
            reader, writer = await asyncio.open_unix_connection(str(server.path))
            writer.write(begun)
            await until(lambda: server.decisions.in_flight == 1)
            if end:
                writer.write(b"}")
                await answers(reader, 1)
            writer.close()
            await until(lambda: server.decisions.in_flight == 0)
        await server.decisions.idle()


# ---- deadlines ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("express", [True, False])
@pytest.mark.parametrize("before", [b"", GET], ids=["first", "later"])
async def test_a_head_that_never_ends_is_408(monkeypatch: pytest.MonkeyPatch, express: bool, before: bytes) -> None:
    monkeypatch.setattr(guarded, "HEAD_TIMEOUT_S", 0.1)
    monkeypatch.setattr(connection, "HEAD_TIMEOUT_S", 0.1)
    async with serving(express=express) as server:
        reader, writer = await asyncio.open_unix_connection(str(server.path))
        if before:
            writer.write(before)
            await answers(reader, 1)
            await asyncio.sleep(0.001)
        for piece in (b"POST /v1/check HTTP/1.1\r\n", b"Host: x\r\nX-A:", b" a"):
            writer.write(piece)
            await asyncio.sleep(0.001)
        raw = await asyncio.wait_for(reader.read(), 10)
        assert raw.startswith(b"HTTP/1.1 408"), raw
        assert b"the head did not arrive" in raw
        assert b"Connection: close" in raw
        writer.close()


async def test_crumbs_do_not_move_the_deadline_of_a_head(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connection, "HEAD_TIMEOUT_S", 0.05)
    async with serving() as server:
        reader, writer = await asyncio.open_unix_connection(str(server.path))

        async def crumbs() -> None:
            writer.write(b"POST /v1/check HTTP/1.1\r\nX-A: ")
            while not writer.is_closing():
                writer.write(b"a")
                await asyncio.sleep(0.005)

        feeding = asyncio.create_task(crumbs())
        try:
            raw = await asyncio.wait_for(reader.read(), 10)
        except ConnectionError:  # a crumb came after the end, and so the kernel dropped the answer
            pass
        else:
            assert raw.startswith(b"HTTP/1.1 408")
        feeding.cancel()
        [event] = [event for event in server.events() if event["event"] == "problem"]
        assert event["status"] == 408
        writer.close()


@pytest.mark.parametrize("express", [True, False])
async def test_a_body_that_never_arrives_is_408_in_both_lanes(monkeypatch: pytest.MonkeyPatch, express: bool) -> None:
    from shield.server import aiohttp_lane

    monkeypatch.setattr(connection, "BODY_TIMEOUT_S", 0.02)
    monkeypatch.setattr(aiohttp_lane, "BODY_TIMEOUT_S", 0.02)
    async with serving(express=express) as server:
        raw = await server.raw(check("r")[:-1])
        assert raw.startswith(b"HTTP/1.1 408")
        assert b"the body did not arrive" in raw
        assert server.decisions.in_flight == 0


@pytest.mark.parametrize("express", [True, False])
async def test_a_silent_stranger_is_cut_and_a_caller_is_not(monkeypatch: pytest.MonkeyPatch, express: bool) -> None:
    monkeypatch.setattr(guarded, "STRANGER_IDLE_S", 0.05)
    async with serving(express=express) as server:
        reader, writer = await asyncio.open_unix_connection(str(server.path))
        assert await asyncio.wait_for(reader.read(), 10) == b""
        writer.close()
        if express:
            reader, writer = await asyncio.open_unix_connection(str(server.path))
            writer.write(GET)
            await answers(reader, 1)
            await asyncio.sleep(0.15)
            writer.write(GET)
            assert (await answers(reader, 1))[0][0] == 200
            writer.close()


# ---- overload ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("express", [True, False])
async def test_what_comes_too_late_is_shed(express: bool) -> None:
    now = 0.0

    def clock() -> float:
        """A look at it takes so long that the third of a turn is late."""
        nonlocal now
        now += 0.6 * bounds.MAX_WAIT_S
        return now

    async with serving(express=express) as server:
        assert (await server.check({"user": "u"}))["allowed"]
        server.service.pressure.clock = clock
        loop = asyncio.get_running_loop()
        made = []
        for _ in range(3):
            side = server.decisions()
            transport = lane_fuzz.Transport(side, loop)
            side.connection_made(transport)
            made.append((side, transport))
        await asyncio.sleep(0.01)
        for last in (b"200", b"503"):  # once is forgiven
            for side, transport in made:  # all in one turn
                transport.written.clear()
                side.data_received(check("r"))
            await asyncio.sleep(0.001)  # the turn ends
            await until(lambda: all(transport.written for _, transport in made))
            found = [b"".join(transport.written) for _, transport in made]
            assert [answer.split()[1] for answer in found] == [b"200", b"200", last]
        assert b"\r\nRetry-After: 1\r\n" in found[2]
        assert b"application/problem+json" in found[2]
        assert b"Connection: close" not in found[2]
        for _, transport in made:
            transport.close()
        await asyncio.sleep(0.01)
        async with server.admin.get("/metrics") as answer:
            text = await answer.text()
        assert 'shield_shed_requests_total{why="late"} 1.0' in text
        assert 'shield_http_problems_total{endpoint="check",status="503"} 1.0' in text
        await asyncio.sleep(0)
        assert (await server.check({"user": "u"}))["allowed"]


@pytest.mark.parametrize("express", [True, False])
async def test_too_many_that_wait_for_the_store_are_shed(monkeypatch: pytest.MonkeyPatch, express: bool) -> None:
    from shield.server import pressure

    monkeypatch.setattr(pressure, "MAX_WAITING", 3)
    async with serving(express=express) as server:
        gate = asyncio.Event()
        decide = server.service.shield.check
        if express:
            monkeypatch.setattr(server.decisions.express, "at_once", False)

        async def stuck(request: Any) -> Any:
            await gate.wait()
            return await decide(request)

        monkeypatch.setattr(server.service.shield, "check", stuck)
        waiting = [asyncio.create_task(server.check({"user": f"u{i}"})) for i in range(3)]
        await until(lambda: server.service.pressure.waiting == 3)
        async with server.client.post("/v1/check", json={"user": "more"}) as answer:
            assert (answer.status, answer.headers["Retry-After"]) == (503, "1")
        async with server.admin.get("/healthz") as answer:
            assert answer.status == 200
        gate.set()
        assert all(decision["allowed"] for decision in await asyncio.gather(*waiting))
        assert server.service.pressure.waiting == 0
        async with server.client.post("/v1/check", json={"user": "more"}) as answer:
            assert answer.status == 200
        async with server.admin.get("/metrics") as answer:
            assert 'shield_shed_requests_total{why="waiting"} 1.0' in await answer.text()


# ---- uvloop ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "test",
    [
        test_a_hundred_thousand_pipelined_requests_starve_nobody,
        test_to_aiohttp_and_back,
        test_a_client_that_ends_its_side_still_gets_its_answers,
        test_a_client_that_never_reads_makes_nothing_grow,
        test_draining_answers_what_is_here_and_closes,
        test_a_request_that_has_begun_is_in_flight_until_it_is_answered_or_lost,
        test_the_lanes_answer_alike_over_sockets,
    ],
)
def test_the_same_on_uvloop(test: Callable[[], Any]) -> None:
    """Its transports pause, write and close in ways of their own, and `shield serve` runs on it."""
    uvloop.run(test())
