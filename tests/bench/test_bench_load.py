"""The generator against servers of known service time: in virtual time exactly, over real sockets within bounds.

Bounds from below always hold; those from above leave room for a machine that does other things.
"""

from __future__ import annotations

import asyncio
import json
import os
import socket
import threading
import time

import pytest

from bench import endpoint, generator, latency, lateness, load, offered, record, server
from bench.arrivals import instants
from bench.load import Answer
from bench.open_loop import DRAIN_S, OpenLoop
from bench.traffic import Traffic, framed
from shield import Policy
from shield.server.wire import decode_check

OK = Answer(True, False, 100)


class Server:
    """One worker in virtual time: a request takes `service_s`, one after the other; it stands still once."""

    def __init__(self, service_s: float, stall_at: float = -1.0, stall_s: float = 0.0) -> None:
        self.service_s, self.stall_at, self.stall_s = service_s, stall_at, stall_s
        self.free_at = 0.0
        self.answers: list[tuple[float, Connection]] = []

    def take(self, now: float, connection: Connection) -> None:
        begins = max(now, self.free_at)
        if self.stall_at <= begins < self.stall_at + self.stall_s:
            begins = self.stall_at + self.stall_s
        self.free_at = begins + self.service_s
        self.answers.append((self.free_at, connection))


class Connection:
    def __init__(self, server: Server) -> None:
        self.server, self.now = server, 0.0

    def send(self, request: bytes, since: float) -> None:
        self.server.take(self.now, self)


def simulate(one: OpenLoop, server: Server, connections: int, step: float = 0.0001) -> None:
    """The generator's loop with a clock that goes by steps; it looks at the clock as often as that."""
    many = [Connection(server) for _ in range(connections)]
    one.begin(many, 0.0)
    tick = 0
    while not one.over:
        now = tick * step
        for connection in many:
            connection.now = now
        for at, connection in sorted(server.answers, key=lambda pair: pair[0]):
            if at <= now + 1e-12:
                one.done(connection, at, OK)
                server.answers.remove((at, connection))
        one.send_due(now + 1e-12)
        tick += 1


def test_latency_is_the_service_time_when_the_server_keeps_up():
    one = OpenLoop(lambda: b"x" * 10, instants(500, 2.0))
    simulate(one, Server(0.001), 4)
    assert one.answers == 1000
    assert list(one.latencies_s) == pytest.approx([0.001] * 1000)
    assert one.sent_bytes == 10_000
    assert one.received_bytes == 100_000


def test_a_stall_is_charged_for_every_request_that_it_kept_from_leaving():
    # 200 ms of 2 s at 500/s: the 100 requests that were due meanwhile wait 200 ms, 198 ms, ..., and are then answered
    # at 1 ms each while the next are due every 2 ms: waits of 201 ms, 200 ms, ..., 2 ms, of 200 requests in all.
    for connections in (1, 64, 1000):
        one = OpenLoop(lambda: b"", instants(500, 2.0))
        simulate(one, Server(0.001, stall_at=0.5, stall_s=0.2), connections)
        found = sorted(one.latencies_s)
        assert len(found) == 1000
        assert found[-1] == pytest.approx(0.201, abs=2e-4)
        assert sum(latency > 0.0015 for latency in found) == pytest.approx(200, abs=2)
        assert found[900] == pytest.approx(0.101, abs=2e-3)
        made = latency.histogram(one.latencies_s)
        assert latency.ms(made, 99) == pytest.approx(191, abs=2)
        assert latency.ms(made, 50) == pytest.approx(1.0, rel=0.01)


def test_a_server_that_cannot_keep_up_has_a_growing_queue():
    # Offered 2,000/s, served 1,000/s: request k of 2,000 is due at k/2 ms and answered at k + 1 ms.
    one = OpenLoop(lambda: b"", instants(2000, 1.0))
    simulate(one, Server(0.001), 8)
    assert max(one.latencies_s) == pytest.approx(1.0005, abs=1e-3)
    assert sorted(one.latencies_s)[1000] == pytest.approx(0.501, abs=1e-3)
    assert one.in_time == pytest.approx(1000, abs=2)


def test_its_own_lateness_is_kept_apart():
    one = OpenLoop(lambda: b"", [0.0, 0.001, 0.002, 0.003])
    connection = Connection(Server(0.001))
    one.begin([connection], 0.0)
    one.send_due(0.0)
    assert list(one.lags_s) == [0.0]
    one.send_due(0.005)  # no connection is free: not its fault
    assert one.next_due() is None
    one.done(connection, 0.006, OK)
    one.send_due(0.010)  # free since 6 ms, and it slept for 4 more
    assert list(one.lags_s) == pytest.approx([0.0, 0.006, 0.004])
    assert list(one.latencies_s) == pytest.approx([0.006])


def test_what_never_came_is_as_late_as_the_waiting():
    one = OpenLoop(lambda: b"", [0.0, 0.1, 0.2])
    connection = Connection(Server(10.0))
    one.begin([connection], 0.0)
    one.send_due(0.3)
    one.give_up(2.2)
    assert sorted(one.latencies_s) == pytest.approx([2.0, 2.1, 2.2])
    assert (one.unanswered, one.over) == (3, True)
    one.done(connection, 3.0, OK)  # too late to count
    assert one.answers == 0


def test_histograms_keep_three_digits_and_add_up():
    one, other = latency.histogram([0.001] * 99), latency.histogram([0.2])
    whole = latency.decoded(latency.encoded(one))
    whole.add(latency.decoded(latency.encoded(other)))
    assert whole.get_total_count() == 100
    assert latency.ms(whole, 50) == pytest.approx(1.0, rel=1e-3)
    assert latency.ms(whole, 99) == pytest.approx(1.0, rel=1e-3)
    assert latency.percentiles(whole)["max"] == pytest.approx(200, rel=1e-3)
    assert [point["percentile"] for point in latency.curve(whole)][-1] == 99.0  # one of a hundred tells no more
    assert latency.percentiles(latency.histogram())["p99"] == 0.0
    assert latency.ms(latency.histogram([10_000.0]), 100) == pytest.approx(3_600_000, rel=1e-3)


# ---- over real sockets -------------------------------------------------------------------------------------


class Known(asyncio.Protocol):
    """Answers every request after a deliberate millisecond; at the 300th the whole server stands still for 200 ms."""

    asked = 0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = transport

    def data_received(self, data: bytes) -> None:
        Known.asked += 1
        if Known.asked == 300:
            time.sleep(0.2)
        body = b'{"allowed":true}' if b"user" in data else b'{"allowed":false}'
        answer = b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(body) + body
        asyncio.get_running_loop().call_later(0.001, self.transport.write, answer)


@pytest.fixture
def known():
    """The port of a server in a thread."""
    Known.asked = 0
    loop = asyncio.new_event_loop()
    server = loop.run_until_complete(loop.create_server(Known, "127.0.0.1", 0))
    thread = threading.Thread(target=loop.run_forever)
    thread.start()
    yield server.sockets[0].getsockname()[1]
    loop.call_soon_threadsafe(loop.stop)
    thread.join()
    server.close()
    loop.run_until_complete(server.wait_closed())
    loop.close()


def test_percentiles_of_a_known_server_stall_included(known):
    found = generator.generate(known, Traffic(), 400, 2.0, arrivals="constant", processes=2, connections=64)
    assert (found.intended, found.answers, found.failed, found.unanswered) == (800, 800, 0, 0)
    told = latency.percentiles(found.latency)
    assert latency.ms(found.latency, 0) >= 1.0
    assert told["p50"] >= 1.0
    # The 80 requests that were due in the stall waited 200 ms, 197.5 ms, ...: of 800 the worst 1 percent 180 and more.
    assert told["p99"] >= 178
    assert latency.ms(found.latency, 95) >= 98
    assert told["max"] >= 195
    if not found.doubt and max(found.cpu_s) > 0:  # a machine that kept up: the bounds from above
        assert told["max"] < 260
        assert told["p50"] < 60
    assert found.offered == 400
    assert found.achieved == pytest.approx(400, rel=0.15)


def test_a_saturated_generator_says_so():
    slow = generator.Load(1.0, latency.histogram([0.002] * 100), latency.histogram([0.0015] * 100), 100)
    assert "the generator is saturated: at p99 it was 1.5 ms late itself, of 2.0 ms" in slow.doubt
    fine = generator.Load(1.0, latency.histogram([0.010] * 100), latency.histogram([0.0015] * 100), 100)
    assert fine.doubt == ""
    fine.busy = 0.96
    assert fine.doubt == "the generator is saturated: it had something to do for 96% of the time"
    fine.failed = 3
    assert fine.doubt == "3 of 100 requests failed"


def test_no_latency_is_told_where_others_had_the_workers_core():
    fine = generator.Load(1.0, latency.histogram([0.010] * 100), latency.histogram([0.0015] * 100), 100)
    assert lateness.Window(fine, 0.5, 0.02).doubt == ""
    assert lateness.Window(fine, 0.0, 0.0).doubt == ""
    shared = lateness.Window(fine, 0.4, 0.1)
    assert shared.doubt == "others had the worker's core for 20% of the time that it wanted it"
    fine.failed = 1
    assert shared.doubt == "1 of 100 requests failed"


@pytest.mark.parametrize(
    ("doubts", "kept", "figure", "wrong"),
    [
        (["late", "late", ""], [0, 0, 0], 3, ""),
        (["", ""], [2, 1], 2, ""),
        (["late"] * 9, [0] * 9, load.MAX_TRIES, "late"),
        ([""] * 9, [30] * 9, load.MAX_TRIES, "the hypervisor kept 30% of the machine for itself"),
    ],
)
def test_a_window_in_doubt_or_stolen_from_is_measured_again(monkeypatch, doubts, kept, figure, wrong):
    windows = iter(range(1, 10))
    ticks = iter([jiffies for part in kept for jiffies in ((0, 0), (part, 100))])
    monkeypatch.setattr(load, "stolen", lambda: next(ticks))
    assert load.undisturbed(lambda: next(windows), lambda found: doubts[found - 1]) == (figure, wrong)


def test_both_rows_of_the_endpoint_are_left_out_by_one_rule(monkeypatch):
    monkeypatch.setattr(load, "stolen", lambda: (0, 1))
    saturated = generator.Load(1.0, latency.histogram([0.002]), latency.histogram([0.001]), 1)
    monkeypatch.setattr(generator, "here", lambda *_: saturated)
    monkeypatch.setattr(generator, "generate", lambda *_, **__: saturated)
    ms, doubt = server.lateness(server.Server(1, os.getpid()), [b""], 1.0, 1.0)
    assert doubt == saturated.doubt
    assert ms["p99"] == pytest.approx(2.0, rel=1e-3)
    told = offered.point(endpoint.Endpoint(None, 1, [os.getpid()]), Traffic(), 1.0, 1.0, 1)
    assert told["doubt"] == saturated.doubt
    cpu = record.Measured([1.0])
    rows = server._late(server.Figures(cpu, cpu, cpu, cpu, [], doubt))
    assert [type(row) for row in rows] == [record.Skipped] * 2
    rows = server._late(server.Figures(cpu, cpu, cpu, cpu, [{"p50": 0.1, "p99": 0.4}, {"p50": 0.1, "p99": 0.6}], doubt))
    assert [(row.value, row.met) for row in rows] == [(0.1, True), (0.5, True)]


def test_how_busy_it_was_and_how_long_an_answer_may_have_lain_there():
    one = OpenLoop(lambda: b"", [0.0, 1.0])
    connection = Connection(Server(0.001))
    one.begin([connection], 0.0)
    one.send_due(0.0)
    one.looked = 0.001
    one.done(connection, 0.004, OK)
    assert list(one.lags_s) == pytest.approx([0.0, 0.003])
    one.idle_s = 0.9
    assert one.busy == pytest.approx(0.1)


def test_a_server_that_is_not_there_is_an_error():
    with pytest.raises(RuntimeError, match="a process of the generator ended: Conn"):
        generator.generate(1, Traffic(), 10, 0.1)


# ---- traffic -----------------------------------------------------------------------------------------------


def body(request: bytes) -> dict:
    return json.loads(request.partition(b"\r\n\r\n")[2])


def test_traffic_is_seeded_and_has_the_shares_it_was_given():
    mix = Traffic(limits=3, hot=0.2, denied=0.3, graphql=0.1, skew=1.0)
    made = mix.requests(1)
    assert made == mix.requests(1)
    assert made != mix.requests(2)
    bodies = [body(one) for one in made]
    parts = {
        "hot": sum(one["user"] == "user:0" for one in bodies),
        "denied": sum(one.get("path") == "/used-up" for one in bodies),
        "graphql": sum("graphql" in one for one in bodies),
    }
    assert parts["denied"] / len(made) == pytest.approx(0.27, abs=0.02)  # a GraphQL one has the path of its own
    assert parts["graphql"] / len(made) == pytest.approx(0.1, abs=0.02)
    assert parts["hot"] / len(made) > 0.28  # the hot share, and what Zipf gives the first key besides
    for one in made[:50]:
        decode_check(one.partition(b"\r\n\r\n")[2])
    with mix.folder() as file:
        policy = Policy.load(file)
    assert [limit.name for limit in policy.limits] == ["l0", "l1", "l2", "used-up"]


def test_fresh_users_never_come_twice_and_are_requests():
    source = Traffic(fresh=True).source(5)
    users = [body(source())["user"] for _ in range(1000)]
    assert len(set(users)) == 1000
    other = Traffic(fresh=True).source(6)
    assert body(other())["user"] not in users


def test_both_framings_carry_the_same_body():
    assert framed(b"{}").endswith(b"Content-Length: 2\r\n\r\n{}")
    assert framed(b"{}", "aiohttp").endswith(b"Transfer-Encoding: chunked\r\n\r\n2\r\n{}\r\n0\r\n\r\n")


def test_answers_are_read_in_pieces():
    seen = []

    class Seen(load.Load):
        def answered(self, client, answer):
            seen.append(answer)

    left, right = socket.socketpair()
    client = load.Client(Seen(), left)
    whole = b'HTTP/1.1 200 OK\r\nContent-Length: 17\r\n\r\n{"allowed":false}'
    for at in range(len(whole)):
        right.send(whole[at : at + 1])
        client.readable()
    client.received(b"HTTP/1.1 503 X\r\nContent-Length: 0\r\n\r\n")
    assert seen == [Answer(True, True, len(whole)), Answer(False, False, 37)]
    with pytest.raises(RuntimeError, match="more than the answer"):
        client.received(whole + b"x")
    assert DRAIN_S > 0
    left.close()
    right.close()


def test_a_connection_that_ends_takes_its_request_with_it():
    left, right = socket.socketpair()
    one = OpenLoop(lambda: b"x", [0.0])
    answering = threading.Thread(target=lambda: right.recv(1) and right.close())
    answering.start()
    one.run([load.Client(one, left)], time.perf_counter())
    answering.join()
    assert (one.failed, one.answers, one.unanswered, one.over) == (1, 0, 0, True)
    other = OpenLoop(lambda: b"x", [0.0])
    other.begin([load.Client(other, left)], 0.0)  # nobody is at its other end
    other.send_due(0.0)
    assert (other.failed, other.over, other.next_due()) == (1, True, None)
    left.close()
