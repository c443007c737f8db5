"""A primary of a cluster is killed under load: is every request decided in time, and how soon is all as it was?

Each of 16 callers asks every two milliseconds, over keys in all slots. Told are how long a decision took, beside what
this process' own loop was late by, and how long the lost slots were degraded once the replica was a primary.
"""

from __future__ import annotations

import asyncio
import time

import redis

from shield import Policy, Request, Shield

from . import latency
from .clusters import PRIMARIES, ClusterOf, run_cluster
from .faults import CALLERS, DEADLINE_S, POLICY
from .record import Row

PATIENCE_S = 30.0


async def _promoted(cluster: ClusterOf) -> float:
    """When the replica of the first primary has become one."""
    heir = redis.Redis(port=cluster.servers[PRIMARIES].port or 0)
    while heir.info("replication")["role"] != "master":  # noqa: ASYNC110
        await asyncio.sleep(0.01)
    heir.close()
    return time.perf_counter()


async def _run(cluster: ClusterOf, policy: Policy = POLICY) -> list[Row]:
    async with Shield(policy, f"{cluster.url}?deadline={DEADLINE_S * 1000:g}ms") as shield:
        took: list[tuple[float, float, bool]] = []  # asked at, seconds, degraded
        lag: list[float] = []
        stop = False

        async def caller(n: int) -> None:
            i = 0
            while not stop:
                i += 1
                started = time.perf_counter()
                decision = await shield.check(Request(user=f"u{n}-{i % 100}"))
                took.append((started, time.perf_counter() - started, decision.degraded))
                slept = time.perf_counter()
                await asyncio.sleep(0.002)
                lag.append(time.perf_counter() - slept - 0.002)

        tasks = [asyncio.create_task(caller(n)) for n in range(CALLERS)]
        await asyncio.sleep(1.0)
        cluster.servers[0].kill()
        killed = time.perf_counter()
        promoted = await asyncio.wait_for(_promoted(cluster), PATIENCE_S)
        await asyncio.sleep(3.0)
        stop = True
        await asyncio.gather(*tasks)
    meanwhile = [one for one in took if one[0] >= killed]
    back = max((at for at, _, degraded in took if degraded), default=promoted) - promoted
    degraded = sum(one[2] for one in meanwhile if one[0] < promoted)
    late = latency.ms(latency.histogram(lag), 99.9)
    worst = latency.ms(latency.histogram([seconds for _, seconds, _ in meanwhile]), 99.9)
    return [
        Row("cluster, a primary killed: decisions", len(meanwhile), "decisions"),
        Row("of them degraded until the promotion", degraded, "decisions"),
        Row("the loop of this process was late, p99.9", late, "ms"),
        Row(
            "a decision took, p99.9",
            worst,
            "ms",
            f"at most {1000 * DEADLINE_S + 5:g}, beside the loop",
            worst - late <= 1000 * DEADLINE_S + 5,
        ),
        Row("promoted after the kill", promoted - killed, "s"),
        Row("back to normal after the promotion", back, "s", "at most 2", back <= 2),
    ]


def run(seconds: float) -> list[Row]:
    import uvloop

    with run_cluster(replicas=True) as cluster:
        return uvloop.run(_run(cluster))
