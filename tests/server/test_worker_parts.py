"""What several workers are built of, each part by itself: messages, pauses, sums, sockets, CPUs."""

from __future__ import annotations

import asyncio
import json
import os
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import msgspec
import pytest

from shield.server import bounds, control
from shield.server.backoff import Backoff
from shield.server.control import Accept, Channel, ControlError, Counted, Done, Prepare, ToSupervisor, ToWorker
from shield.server.counts import LATENCY_BUCKETS, Counts
from shield.server.cpus import usable_cpus
from shield.server.exposition import GAUGES
from shield.server.sockets import Address, Bound, StartError, listen, listen_for
from shield.server.supervisor import default_store
from shield.server.trace import TraceWriter

# ---- messages ----------------------------------------------------------------------------------------------


@asynccontextmanager
async def channels() -> AsyncIterator[tuple[Channel, Channel]]:
    """A supervisor's end and a worker's."""
    ours, theirs = socket.socketpair()
    supervisor, worker = Channel(ours, ToSupervisor), Channel(theirs, ToWorker)
    try:
        yield supervisor, worker
    finally:
        supervisor.close()
        worker.close()


async def received(channel: Channel) -> object:
    return await asyncio.wait_for(channel.receive(), 10)


async def test_messages_of_any_size_arrive_whole_and_in_order() -> None:
    async with channels() as (supervisor, worker):
        texts = ["", "x" * 3_000_000, "y", "z" * 700_000]
        for number, text in enumerate(texts):
            supervisor.send(Prepare(number, (text, "toml", None, None)))
        for number, text in enumerate(texts):
            assert await received(worker) == Prepare(number, (text, "toml", None, None))
        counted = Counted(7, Counts(reasons={"ok": 3}, problems={("check", 400): 2}, store={"keys": 1.5}), True)
        worker.send(counted)
        assert await received(supervisor) == counted
        worker.send(Done(1, "last"))
        worker.close()
        assert await received(supervisor) == Done(1, "last")
        assert await received(supervisor) is None
        supervisor.send(Prepare(1, ("", "toml", None, None)))  # to nobody: no error, the reader has seen the end


async def test_each_socket_comes_with_its_message() -> None:
    async with channels() as (supervisor, worker):
        sockets = [socket.socket() for _ in range(20)]
        for key, sent in enumerate(sockets):
            sent.bind(("127.0.0.1", 0))
            supervisor.send(Prepare(key, ("x" * 50_000, "toml", None, None)))
            supervisor.send(Accept(key), sent)
        ports = [sent.getsockname()[1] for sent in sockets]
        for sent in sockets:
            sent.close()  # a duplicate was sent
        for key, port in enumerate(ports):
            assert isinstance(await received(worker), Prepare)
            assert await received(worker) == Accept(key)
            with worker.socket_beside() as beside:
                assert beside.getsockname()[1] == port
        with pytest.raises(ControlError):
            worker.socket_beside()


async def test_who_does_not_read_is_found_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(control, "MAX_UNSENT_BYTES", 1_000_000)
    async with channels() as (supervisor, _):
        with pytest.raises(ControlError, match="does not read"):  # noqa: PT012
            for number in range(100):
                supervisor.send(Prepare(number, ("x" * 100_000, "toml", None, None)))


@pytest.mark.parametrize(
    "data",
    [
        b"\xff\xff\xff\xff",
        (bounds.MAX_MESSAGE_BYTES + 1).to_bytes(4, "big"),
        b"\0\0\0\1\xc1",
        b"\0\0\0\2{}",
        len(body := msgspec.msgpack.encode({"m": "Commit", "id": 1})).to_bytes(4, "big") + body,  # of the other side
        len(body := msgspec.msgpack.encode({"m": "Done", "id": "1"})).to_bytes(4, "big") + body,
    ],
)
async def test_what_is_no_message_is_an_error(data: bytes) -> None:
    ours, theirs = socket.socketpair()
    channel = Channel(ours, ToSupervisor)
    with theirs:
        theirs.sendall(data)
        with pytest.raises(ControlError):
            await received(channel)
    channel.close()


# ---- pauses ------------------------------------------------------------------------------------------------


def test_pauses_double_up_to_their_bound_and_are_forgotten_after_a_long_life() -> None:
    longest = Backoff(lambda: 1.0)
    pauses = [longest.pause_s(0.0) for _ in range(12)]
    assert pauses[:4] == [0.1, 0.2, 0.4, 0.8]
    assert pauses == sorted(pauses)
    assert pauses[-1] == bounds.RESTART_MAX_S
    assert longest.pause_s(bounds.RESTART_STEADY_S - 1) == bounds.RESTART_MAX_S
    assert longest.pause_s(bounds.RESTART_STEADY_S) == bounds.RESTART_FIRST_S
    shortest = Backoff(lambda: 0.0)
    assert [shortest.pause_s(0.0) for _ in range(3)] == [0.05, 0.1, 0.2]


# ---- sums --------------------------------------------------------------------------------------------------


def test_counts_add_up_and_what_is_the_hosts_is_taken_once() -> None:
    latency = [0] * (len(LATENCY_BUCKETS) + 1)
    latency[3] = 2
    one = Counts(
        reasons={"ok": 2},
        refusals={"a": 1},
        latency=latency,
        latency_sum_s=0.5,
        problems={("check", 400): 1},
        in_flight=2,
        trace_lost=1,
        store={"checks": 3, "connections": 2},
        host={"keys": 10},
    )
    two = Counts(
        reasons={"ok": 1, "limit": 4},
        refusals={"a": 4},
        latency=latency,
        latency_sum_s=0.25,
        problems={("check", 400): 1, ("unknown", 404): 1},
        in_flight=1,
        suppressed=7,
        degraded=1,
        nonces_many=2,
        store={"checks": 4, "connections": 2},
        host={"keys": 11},
    )
    total = Counts()
    for each in (one, two):
        total.add(each)
    assert total.reasons == {"ok": 3, "limit": 4}
    assert total.decisions == 7
    assert total.refusals == {"a": 5}
    assert total.latency[3] == sum(total.latency) == 4
    assert total.latency_sum_s == 0.75
    assert total.problems == {("check", 400): 2, ("unknown", 404): 1}
    assert (total.in_flight, total.trace_lost, total.suppressed, total.degraded) == (3, 1, 7, 1)
    assert total.nonces_many == 2
    assert total.store == {"checks": 7, "connections": 4}
    assert total.host == {"keys": 11}
    assert one.reasons == {"ok": 2}  # what was added is as it was
    dead = one.of_the_dead(GAUGES)
    assert (dead.reasons, dead.in_flight, dead.store, dead.host) == ({"ok": 2}, 0, {"checks": 3}, {})


# ---- sockets -----------------------------------------------------------------------------------------------


def closed(found: list[tuple[Bound, int | None]]) -> None:
    for bound, _ in found:
        bound.close()


def test_connections_are_spread_over_the_sockets_of_one_address() -> None:
    found = listen_for(Address.parse("127.0.0.1:0"), 3)
    try:
        assert [worker for _, worker in found] == [0, 1, 2]
        [port] = {bound.address.port for bound, _ in found}
        clients = [socket.create_connection(("127.0.0.1", port)) for _ in range(120)]
        taken = []
        for bound, _ in found:
            count = 0
            while True:
                try:
                    bound.socket.accept()[0].close()
                except BlockingIOError:
                    break
                count += 1
            taken.append(count)
        assert sum(taken) == 120
        assert min(taken) > 0  # by chance once in 10 ** 21
        for client in clients:
            client.close()
    finally:
        closed(found)


def test_nobody_else_can_listen_where_sockets_are_spread_nor_they_where_somebody_listens() -> None:
    found = listen_for(Address.parse("127.0.0.1:0"), 2)
    address = found[0][0].address
    try:
        for workers in (None, 1, 2):
            with pytest.raises(StartError, match="another program listens there already"):
                closed(listen_for(address, workers)) if workers else listen(address)
    finally:
        closed(found)
    [alone] = listen(address)
    with pytest.raises(StartError, match="another program listens there already"):
        listen_for(address, 2)
    alone.close()
    closed(listen_for(address, 2))


def test_a_unix_socket_is_one_for_all(tmp_path: Path) -> None:
    [(bound, worker)] = listen_for(Address(path=str(tmp_path / "s")), 4)
    assert worker is None
    bound.close()
    assert not (tmp_path / "s").exists()


@pytest.mark.parametrize(
    ("where", "store"),
    [
        ("http://127.0.0.1:8080", "shared://127.0.0.1-8080"),
        ("https://[::1]:8443", "shared://1-8443"),
        ("unix:/run/shield/decide.sock", "shared://run-shield-decide.sock"),
        ("unix:/" + "x" * 200, "shared://" + "x" * 64),
    ],
)
def test_a_servers_own_table_is_named_by_where_it_listens(where: str, store: str) -> None:
    assert default_store(where) == store


# ---- traces ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("left", [b"", b'{"a": 1}\n', b'{"a": 1}\n{"b', b'{"b', b'{"a": 1}\n{"b": "' + b"x" * 200_000])
def test_a_trace_goes_on_after_the_last_whole_line_of_a_killed_process(tmp_path: Path, left: bytes) -> None:
    path = tmp_path / "trace"
    path.write_bytes(left)
    writer = TraceWriter(path, print, anew=False)
    writer({"c": 2})
    writer.close()
    whole = left[: left.rfind(b"\n") + 1]
    assert path.read_bytes() == whole + b'{"c":2}\n'
    ended: list[str] = []
    bounded = TraceWriter(path, ended.append, anew=False, max_bytes=len(whole) + 10)
    bounded({"d": 3})
    bounded.close()
    assert ended == ["it has reached its size"]
    TraceWriter(path, print).close()
    assert path.read_bytes() == b""


# ---- CPUs --------------------------------------------------------------------------------------------------


def group(root: Path, cgroup: str, **files: str) -> int:
    for name, text in files.items():
        file = root / name.replace("__", "/").replace("cpu_", "cpu.")
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)
    (root / "proc/self").mkdir(parents=True, exist_ok=True)
    (root / "proc/self/cgroup").write_text(cgroup)
    return usable_cpus(root)


def test_a_containers_quota_bounds_the_workers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(8)), raising=False)
    assert usable_cpus(tmp_path / "nothing") == 8
    one = {"sys__fs__cgroup__cpu_max": "max 100000\n"}
    assert group(tmp_path / "a", "0::/\n", **one) == 8
    assert group(tmp_path / "b", "0::/\n", sys__fs__cgroup__cpu_max="250000 100000\n") == 3
    assert group(tmp_path / "c", "0::/\n", sys__fs__cgroup__cpu_max="10000 100000\n") == 1
    # A group's parents bound it too.
    deeper = {**one, "sys__fs__cgroup__app__cpu_max": "200000 100000", "sys__fs__cgroup__app__web__cpu_max": "max 1"}
    assert group(tmp_path / "d", "0::/app/web\n", **deeper) == 2
    v1 = {
        "sys__fs__cgroup__cpu__x__cpu_cfs_quota_us": "150000\n",
        "sys__fs__cgroup__cpu__x__cpu_cfs_period_us": "100000",
    }
    assert group(tmp_path / "e", "4:memory:/x\n1:cpu,cpuacct:/x\n", **v1) == 2
    v1["sys__fs__cgroup__cpu__x__cpu_cfs_quota_us"] = "-1\n"
    assert group(tmp_path / "f", "1:cpu,cpuacct:/x\n", **v1) == 8
    assert group(tmp_path / "g", "nonsense\n0::/\n", sys__fs__cgroup__cpu_max="nonsense") == 8
    assert json.dumps(usable_cpus()) != "0"  # this machine's own files can be read
