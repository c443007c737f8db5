"""How near does Shield come to what one Redis can do at all, and how far is it from a client that waits for each reply?

The server has one core to itself and the clients the other (where there are two). Its ceiling is what it answers to
eight connections that keep 64 commands under way each, as `redis-benchmark -c 8 -P 64` does, over the same keys with
the same script: once with a command for each check, once with commands as Shield sends them, sixteen checks in one.
Rates are taken in turns and, on Linux, per second of processor time of the busier side: what it would do with a core
to itself. Wall time would measure the neighbours of a shared machine.
"""

from __future__ import annotations

import asyncio
import os
import selectors
import socket
import statistics
import struct
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from shield import Policy, Request, Shield
from shield.core import Asked, Registry
from shield.shield import compile_policy
from shield.store.batch import MAX_BATCH
from shield.store.lua import CHECK
from shield.store.redis import RedisStore

from .peers import redis_py_pool
from .record import Row
from .servers import Server, binaries, run_server

KEYS = 4096


def policy(keys: Sequence[str]) -> Policy:
    limits = zip(keys, (("100000/s", 200_000), ("1000000/s", 10**8), ("1000000/h", 10**9)), strict=True)
    return Policy.parse(
        'version = 1\nname = "bench"\n'
        + "".join(
            f'[[limit]]\nname = "l{i}"\nkey = {key}\nrate = "{rate}"\nburst = {burst}\n'
            for i, (key, (rate, burst)) in enumerate(limits)
        )
    )


THREE_KEYS = policy(['["tenant", "user"]', '["tenant"]', '["ip"]'])
ONE_KEY = policy(['["tenant", "user"]'] * 3)


def request(i: int) -> Request:
    return Request(tenant=f"t{i % 50}", user=f"user:{i % KEYS}", ip=f"203.0.113.{i % 250}")


def commands(store: RedisStore, of: Policy, checks_each: int) -> list[bytes]:
    """The commands for KEYS checks, encoded."""
    compiled = compile_policy(of, Registry())
    asked = [Asked(store._forms.step(compiled.charges(request(i))), _NOBODY, 0.0, None) for i in range(KEYS)]
    batches = [asked[at : at + checks_each] for at in range(0, KEYS, checks_each)]
    return [store._servers.batcher._encode(batch) for batch in batches]


_NOBODY: Any = None


def saturate(path: str, payloads: list[bytes], seconds: float, connections: int = 8, pipeline: int = 64) -> int:
    """How many commands the server answers in that time when there is always a next one."""
    chunks = [b"".join(payloads[at : at + pipeline]) for at in range(0, len(payloads), pipeline)]
    left: dict[socket.socket, int] = {}
    tails: dict[socket.socket, bytes] = {}
    selector = selectors.DefaultSelector()
    for _ in range(connections):
        one = socket.socket(socket.AF_UNIX)
        one.connect(path)
        left[one], tails[one] = 0, b""
        selector.register(one, selectors.EVENT_READ)
    first = next(iter(left))
    first.sendall(payloads[0])
    mark = first.recv(1 << 20).split(b"\r\n")[0] + b"\r\n"  # every reply begins so: all have as many numbers
    sent = answered = 0
    for one in left:
        one.sendall(chunks[sent % len(chunks)])
        left[one] = chunks[sent % len(chunks)].count(b"EVALSHA")
        sent += 1
    started = time.perf_counter()
    while time.perf_counter() - started < seconds:
        for key, _ in selector.select(0.1):
            one = key.fileobj  # type: ignore[assignment]
            data = tails[one] + one.recv(1 << 20)
            got = data.count(mark)
            tails[one] = data[-(len(mark) - 1) :]
            left[one] -= got
            answered += got
            if left[one] <= 0:
                one.sendall(chunks[sent % len(chunks)])
                left[one] += chunks[sent % len(chunks)].count(b"EVALSHA")
                sent += 1
    for one in left:
        one.close()
    return answered


class Busy:
    """Seconds of processor time that this process and the server have used, the larger of both, since it was made."""

    def __init__(self, server: Server) -> None:
        self._threads = Path(f"/proc/{server.process.pid}/task")
        self._start = self._now()

    def _now(self) -> tuple[float, float]:
        if not self._threads.exists():
            return time.perf_counter(), 0.0
        files = [thread / "schedstat" for thread in self._threads.iterdir()]
        return time.process_time(), sum(int(file.read_text().split()[0]) for file in files) / 1e9

    def server_s(self) -> float:
        return self._now()[1] - self._start[1] or self._now()[0] - self._start[0]

    def busier_s(self) -> float:
        return max(now - start for now, start in zip(self._now(), self._start, strict=True))


async def drive(ask: Callable[[int], Any], at_once: int, seconds: float) -> int:
    """How many checks are decided in that time, with so many at once."""
    done = 0
    ends = time.perf_counter() + seconds

    async def caller(i: int) -> None:
        nonlocal done
        while time.perf_counter() < ends:
            await ask(i)
            i += at_once
            done += 1

    await asyncio.gather(*[caller(i) for i in range(at_once)])
    return done


async def _measure(server: Server, name: str, of: Policy, wanted: float, seconds: float) -> list[Row]:
    path = server.url.removeprefix("unix://")
    async with Shield(of, f"{server.url}?prefix=b{len(name)}&deadline=5s") as shield:
        store = shield.store
        assert isinstance(store, RedisStore)
        single, several = commands(store, of, 1), commands(store, of, MAX_BATCH)
        compiled = compile_policy(of, Registry())
        steps = [store._forms.step(compiled.charges(request(i))) for i in range(KEYS)]
        plain = []
        for step in steps:
            shape, costs = step.shape.wire(0), struct.pack(f"<{len(step.costs)}d", *step.costs)
            plain.append(([_bare(key) for key in step.cells], [b"\0" * 8, b"", _bare(shape), costs]))
        pool, client = redis_py_pool.make(server.url, 64)

        async def check(i: int) -> None:
            decision = await shield.check(request(i))
            assert decision.allowed
            assert not decision.degraded

        async def peer(i: int) -> None:
            await pool(CHECK.sha, *plain[i % KEYS])

        rates: list[list[float]] = [[], [], [], [], []]
        for _ in range(5):
            each = seconds / 5
            for i, (payloads, checks) in enumerate(((single, 1), (several, MAX_BATCH))):
                busy = Busy(server)
                answered = await asyncio.to_thread(saturate, path, payloads, each)
                rates[i].append(checks * answered / busy.server_s())
            for i, (ask, at_once) in enumerate(((check, 64), (check, 512), (peer, 64)), start=2):
                busy = Busy(server)
                done = await drive(ask, at_once, each)
                rates[i].append(done / busy.busier_s())
        await client.aclose()
    one, eight, at_64, at_512, pooled = [statistics.median(some) for some in rates]
    p64, p512, times = 100 * at_64 / one, 100 * at_512 / one, at_64 / pooled
    return [
        Row(f"{name}: the server's ceiling, a command a check", one, "checks/s"),
        Row(f"{name}: the server's ceiling, a command for {MAX_BATCH}", eight, "checks/s"),
        Row(f"{name}: {redis_py_pool.NAME}, 64 at once", pooled, "checks/s"),
        Row(f"{name}: Shield, 64 at once", at_64, "checks/s"),
        Row(f"{name}: Shield, 512 at once", at_512, "checks/s"),
        Row(f"{name}: 64 at once, of the ceiling", p64, "percent", "at least 75", p64 >= 75),
        Row(f"{name}: 512 at once, of the ceiling", p512, "percent", "at least 90", p512 >= 90),
        Row(f"{name}: 64 at once, against the pool", times, "times", f"at least {wanted}", times >= wanted),
    ]


async def _attack(server: Server) -> list[Row]:
    """A hundred thousand requests, 64 at once, on a bucket of five an hour."""
    few = Policy.parse('version = 1\nname = "few"\n[[limit]]\nname = "few"\nkey = ["user"]\nrate = "5/h"\n')
    total = 100_000
    async with Shield(few, f"{server.url}?prefix=attack&deadline=5s") as shield:
        with server.client() as client:
            left = total
            before = client.info("commandstats")["cmdstat_evalsha"]["calls"]

            async def caller() -> None:
                nonlocal left
                while left > 0:
                    left -= 1
                    decision = await shield.check(Request(user="attacker"))
                    assert not decision.degraded
                    await asyncio.sleep(0)  # a request that comes from a socket lets others be read

            busy, started = Busy(server), time.perf_counter()
            await asyncio.gather(*[caller() for _ in range(64)])
            rate, taken = total / busy.busier_s(), time.perf_counter() - started
            asked = client.info("commandstats")["cmdstat_evalsha"]["calls"] - before
    allowed = 20 if taken < 10 else int(2 * taken)
    return [
        Row("100,000 requests on a bucket of 5/h: commands", asked, "commands", "at most 20", asked <= allowed),
        Row("the same: decisions", rate, "checks/s", "at least 10,000", rate >= 10_000),
    ]


def _bare(argument: bytes) -> bytes:
    return argument.split(b"\r\n", 1)[1][:-2]


def run(seconds: float) -> list[Row]:
    import uvloop

    kind, binary = next(iter(binaries().items()))
    cores = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else []
    with run_server(kind, binary) as server:
        if len(cores) > 1:
            for thread in Path(f"/proc/{server.process.pid}/task").iterdir():
                os.sched_setaffinity(int(thread.name), {cores[0]})
            os.sched_setaffinity(0, {cores[1]})
        try:
            rows = uvloop.run(_measure(server, "three keys", THREE_KEYS, 3.3, seconds))
            rows += uvloop.run(_measure(server, "one key", ONE_KEY, 6.0, seconds))
            return rows + uvloop.run(_attack(server))
        finally:
            if len(cores) > 1:
                os.sched_setaffinity(0, cores)
