"""What does a check cost on each store, one at a time and sixty-four at once?

`await shield.check(...)` with three limits of three keys, the Request made for each call. One at a time nothing can be
pipelined; sixty-four at once share round trips to Redis. Stores take turns. Processor time is that of this process, so
for Redis the server's own comes on top: `store` and `capacity` tell that.
"""

from __future__ import annotations

import asyncio
import contextlib
import time

from shield import Shield
from shield.store.shared import PrivateTable

from . import latency
from .record import Found, Measured, Row
from .servers import binaries, run_server
from .store import THREE_KEYS, request

AT_ONCE = 64
ROUNDS = 5


def run(seconds: float) -> list[Found]:
    import uvloop

    kind, binary = next(iter(binaries().items()))
    with run_server(kind, binary) as server, PrivateTable() as table:
        urls = {"memory": "memory://", "shared": table.url, "redis": f"{server.url}?deadline=5s&prefix=stores"}
        return uvloop.run(_measure(urls, seconds))


async def _measure(urls: dict[str, str], seconds: float) -> list[Found]:
    cpu: dict[tuple[str, int], list[float]] = {}
    alone = {name: latency.histogram() for name in urls}
    async with contextlib.AsyncExitStack() as stack:
        shields = {name: await stack.enter_async_context(Shield(THREE_KEYS, url)) for name, url in urls.items()}
        for _ in range(ROUNDS):
            for name, shield in shields.items():
                for at_once in (1, AT_ONCE):
                    ns, took = await _drive(shield, at_once, seconds / ROUNDS)
                    cpu.setdefault((name, at_once), []).append(ns)
                    if at_once == 1:
                        alone[name].add(latency.histogram(took))
    found: list[Found] = []
    for (name, at_once), ns in cpu.items():
        how = "one at a time" if at_once == 1 else f"{at_once} at once"
        found.append(Row(f"{name}: a check, {how}, processor time", Measured(ns), "ns"))
    for name, histogram in alone.items():
        found.append(Row(f"{name}: a check, one at a time, p99", latency.ms(histogram, 99) * 1000, "us"))
    return found


async def _drive(shield: Shield, at_once: int, seconds: float) -> tuple[float, list[float]]:
    """(Nanoseconds of processor time for a check, seconds that each took)."""
    took: list[float] = []
    ends = time.perf_counter() + seconds

    async def caller(i: int) -> None:
        while (started := time.perf_counter()) < ends:
            decision = await shield.check(request(i))
            if not decision.allowed or decision.degraded:
                raise RuntimeError(f"not decided as it should be: {decision.reason}, degraded {decision.degraded}")
            took.append(time.perf_counter() - started)
            i += at_once

    cpu = time.process_time_ns()
    await asyncio.gather(*[caller(i) for i in range(at_once)])
    return (time.process_time_ns() - cpu) / max(1, len(took)), took
