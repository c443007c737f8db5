"""How long does anybody wait for a decision while Redis stands still, and how soon is all as it was?

A server is stopped (SIGSTOP) under load and goes on after two seconds. Each of 16 callers asks every millisecond or so;
what is told is how long a decision took, apart from what this process' own loop was late by: beside every decision
a timer of the same loop measures that.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable

from shield import Policy, Request, Shield

from . import latency
from .record import Row
from .servers import binaries, run_server

DEADLINE_S = 0.02
CALLERS = 16
POLICY = Policy.parse('version = 1\nname = "faults"\n[[limit]]\nname = "b"\nkey = ["user"]\nrate = "1000000/s"\n')


async def _run(url: str, pause: Callable[[], None], resume: Callable[[], None]) -> list[Row]:
    async with Shield(POLICY, f"{url}?deadline={DEADLINE_S * 1000:g}ms") as shield:
        store = shield.store
        took: list[tuple[float, float, bool, bool]] = []  # asked at, seconds, degraded, breaker open when asked
        lag: list[float] = []
        ends = time.perf_counter() + 6.0

        async def caller(n: int) -> None:
            i = 0
            while time.perf_counter() < ends:
                i += 1
                is_open = bool(store.stats()["breaker_open"])
                started = time.perf_counter()
                decision = await shield.check(Request(user=f"u{n}-{i % 100}"))
                took.append((started, time.perf_counter() - started, decision.degraded, is_open))
                slept = time.perf_counter()
                await asyncio.sleep(0.002)
                lag.append(time.perf_counter() - slept - 0.002)

        tasks = [asyncio.create_task(caller(n)) for n in range(CALLERS)]
        await asyncio.sleep(1.0)
        pause()
        stopped = time.perf_counter()
        await asyncio.sleep(2.0)
        resume()
        resumed = time.perf_counter()
        await asyncio.gather(*tasks)
    away = [one for one in took if stopped <= one[0] < resumed]
    while_open = [seconds for _, seconds, degraded, is_open in away if is_open and degraded and seconds < DEADLINE_S]
    probes = sum(is_open and seconds >= DEADLINE_S for _, seconds, _, is_open in away)
    back = max((at for at, _, degraded, _ in took if degraded), default=resumed) - resumed
    late = latency.ms(latency.histogram(lag), 99.9)
    worst, opened = (
        latency.ms(latency.histogram([one[1] for one in away]), 99.9),
        latency.ms(latency.histogram(while_open), 99.9),
    )
    return [
        Row("stopped: decisions", len(away), "decisions"),
        Row("the loop of this process was late, p99.9", late, "ms"),
        Row(
            "stopped: a decision took, p99.9",
            worst,
            "ms",
            f"at most {1000 * DEADLINE_S + 5:g}, beside the loop",
            worst - late <= 1000 * DEADLINE_S + 5,
        ),
        Row("breaker open: a decision took, p99.9", opened, "ms", "at most 1, beside the loop", opened - late <= 1),
        Row("breaker open: probes that waited", probes, "decisions"),
        Row("back to normal after SIGCONT", back, "s", "at most 2", back <= 2),
    ]


def run(seconds: float) -> list[Row]:
    import uvloop

    kind, binary = next(iter(binaries().items()))
    with run_server(kind, binary, tcp=True) as server:
        return uvloop.run(_run(server.url, server.pause, server.resume))
