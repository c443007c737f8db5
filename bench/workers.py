"""What a worker does, what two do, what Redis and memory do for them: the facts that a capacity plan is made from.

Servers of 1, 2, 4 ... workers, up to the cores at hand, stand ready on one table each and are asked in turns as much as
they answer. Each worker is pinned to a core, and what counts is answers for each second of its processor time, times
the workers: what they would do with a core each. So the generator may share their cores, and what workers cost
each other in cache lines and in the kernel still shows.

What two workers will do is predicted from one before it is measured: by what two processes cost each other on the
table alone, for the part of a check that is spent there.
"""

from __future__ import annotations

import asyncio
import contextlib
import statistics
import sys
from collections.abc import Iterator
from typing import Any

from shield import Policy, Request, Shield
from shield.store.shared import PrivateTable

from . import generator, memory, offered, scaling, shared
from .decision import SIX_LIMITS
from .endpoint import Endpoint, cpu_s, serving
from .machine import cores, facts
from .record import Found, Measured, Row, Series, Skipped, interleaved
from .servers import Server, binaries, run_server
from .traffic import Traffic

ROUNDS = 5
TRAFFIC = Traffic()
TABLE_CELLS = 100_000
REDIS_KEYS = 20_000
LIMITS_A_KEY = 2
_TWO_LIMITS = "version = 1\n" + "".join(
    f'[[limit]]\nname = "l{i}"\nkey = ["user"]\nrate = "{9 - i}/h"\nburst = 1000\n' for i in range(LIMITS_A_KEY)
)


def run(seconds: float, seed: int) -> list[Found]:
    if sys.platform != "linux":
        return [Skipped("workers and their scaling", offered.NEEDS)]
    samples = of_workers(seconds, seed)
    one = Measured(samples[1])
    law = scaling.fit([(n, statistics.median(xs)) for n, xs in samples.items()])
    told: dict[str, Any] = {
        "cores": len(cores()),
        "memory_bytes": facts()["memory_bytes"],
        "workers": {str(n): [round(x, 1) for x in xs] for n, xs in samples.items()},
        **of_curve(seconds, seed),
        **of_redis(seconds, seed),
        **of_memory(),
    }
    rows: list[Found] = [Row("one worker, shared table: checks a second of a core", one, "checks/s")]
    for n, xs in list(samples.items())[1:]:
        rows.append(Row(f"{n} workers: checks a second with a core each", Measured(xs), "checks/s"))
    if 2 in samples:
        predicted = predict_two(one, seconds)
        told["predicted_two"] = [round(figure, 1) for figure in predicted]
        rows.append(Row("2 workers, predicted from one", predicted.value, "checks/s"))
        measured = Measured(samples[2])
        rows.append(Row("2 workers, measured against predicted", float(measured) / predicted.value, "times"))
    else:
        rows.append(Skipped("2 workers against what one predicts", "one core is at hand"))
    rows += [
        Row("Redis: processor time of the server for a check", told["redis_check_us"], "us"),
        Row("Redis: processor time of the server for a command", told["redis_command_us"], "us"),
        Row("Redis: checks a second of a worker's core", told["redis_worker_per_s"], "checks/s"),
        Row("Redis: a partition key with two limits", told["redis_key_bytes"], "bytes"),
        Series("throughput by workers", "scaling", [{"law": list(law), "samples": told["workers"]}]),
        Series("what a capacity plan is made from", "facts", [told]),
    ]
    return rows


def counts() -> list[int]:
    """Of workers: 1, 2, 4 ... and all the cores."""
    found, n = [], 1
    while n < len(cores()):
        found.append(n)
        n *= 2
    return [*found, len(cores())]


@contextlib.contextmanager
def _crew(n: int) -> Iterator[Endpoint]:
    with (
        TRAFFIC.folder() as policy,
        PrivateTable(max_keys=TABLE_CELLS) as table,
        serving(policy, "--store", table.url, workers=n, cores=cores()) as server,
    ):
        yield server


def of_workers(seconds: float, seed: int) -> dict[int, list[float]]:
    """Answers a second that so many workers give with a core each; by count, several times, in turns."""
    found: dict[int, list[float]] = {n: [] for n in counts()}
    with contextlib.ExitStack() as stack:
        crews = {n: stack.enter_context(_crew(n)) for n in found}
        for turn in range(ROUNDS + 1):  # the first warms up
            for n, crew in crews.items():
                before = sum(crew.cpu_s())
                rate = generator.saturate(
                    crew.port, TRAFFIC, seconds, connections=generator.CONNECTIONS * n, seed=seed, core=cores()[-1]
                )
                used = (sum(crew.cpu_s()) - before) / seconds
                if turn:
                    found[n].append(n * rate / max(1e-6, used))
    return found


def predict_two(one: Measured, seconds: float) -> scaling.Estimate:
    """What two workers do, with a core each, from what one does: Amdahl's law with the table's contention alone."""

    def checks(calls: int) -> None:
        for i in range(calls):
            shield.check_nowait(Request(tenant="acme", user=f"user:{i % 5000}", ip=f"203.0.113.{i % 250}"))

    shield = Shield(SIX_LIMITS)
    (check_ns,) = interleaved([checks], [5_000], min(seconds, 0.5))
    with PrivateTable() as table:
        _, times = shared.two_against_one(table.url, shared.KEYS, min(seconds, 1.0))
    part = min(1.0, check_ns / (1e9 / one))
    sigma = max(0.0, 2 / times - 1) * part
    return scaling.estimate(
        scaling.Law(float(one), sigma).throughput(2), [scaling.Law(x, sigma).throughput(2) for x in one.samples]
    )


def of_curve(seconds: float, seed: int) -> dict[str, Any]:
    """How late answers are by how busy the worker is, and the bytes of a check on the wire."""
    with _crew(1) as server:
        rate = statistics.median(wall for wall, _ in offered.saturations(server, TRAFFIC, seconds, seed))
        points = [offered.point(server, TRAFFIC, part * rate, seconds, seed) for part in (0.2, 0.5, 0.7, 0.85)]
    return {
        "curve": [[one["busy"], one["p99"]] for one in points if not one["doubt"]],
        "bytes_a_check": statistics.median(one["bytes_a_check"] for one in points),
    }


def of_redis(seconds: float, seed: int) -> dict[str, Any]:
    """What a check costs Redis and a worker that asks it."""
    kind, binary = next(iter(binaries().items()))
    with run_server(kind, binary) as redis, TRAFFIC.folder() as policy:
        per_key = asyncio.run(_key_bytes(redis))
        with serving(policy, "--store", f"{redis.url}?deadline=2s", cores=cores()[:1]) as server:
            generator.saturate(server.port, TRAFFIC, min(1.0, seconds), core=cores()[-1], seed=seed)
            rounds = [_redis_round(server, redis, seconds, seed) for _ in range(3)]
    return {
        "redis": kind,
        **{name: statistics.median(one[name] for one in rounds) for name in rounds[0]},
        "redis_key_bytes": per_key,
    }


def _redis_round(server: Endpoint, redis: Server, seconds: float, seed: int) -> dict[str, float]:
    with redis.client() as client:
        before = _counts(client)
        worker, store = sum(server.cpu_s()), cpu_s(redis.process.pid)
        rate = generator.saturate(
            server.port, TRAFFIC, seconds, connections=4 * generator.CONNECTIONS, core=cores()[-1], seed=seed
        )
        worker, store = sum(server.cpu_s()) - worker, cpu_s(redis.process.pid) - store
        calls, received, sent = (now - was for now, was in zip(_counts(client), before, strict=True))
    checks = rate * seconds
    return {
        "redis_check_us": store / checks * 1e6,
        "redis_command_us": store / max(1, calls) * 1e6,
        "redis_checks_a_command": checks / max(1, calls),
        "redis_worker_per_s": checks / max(1e-6, worker),
        "redis_bytes_a_check": (received + sent) / checks,
    }


def _counts(client: Any) -> tuple[int, int, int]:
    stats = client.info("stats")
    calls = client.info("commandstats").get("cmdstat_evalsha", {"calls": 0})["calls"]
    return calls, stats["total_net_input_bytes"], stats["total_net_output_bytes"]


async def _key_bytes(redis: Server) -> float:
    """Bytes of Redis' memory for a live partition key with LIMITS_A_KEY limits."""
    with redis.client() as client:
        before = client.info("memory")["used_memory"]
        async with Shield(Policy.parse(_TWO_LIMITS), f"{redis.url}?deadline=5s") as shield:
            for start in range(0, REDIS_KEYS, 200):
                await asyncio.gather(*[shield.check(Request(user=f"user:{start + i}")) for i in range(200)])
            return float(client.info("memory")["used_memory"] - before) / REDIS_KEYS


def of_memory() -> dict[str, float]:
    """Bytes of a bucket in the memory store and in a shared table."""
    cells = 1_000_000
    with PrivateTable(max_keys=cells) as table:
        of_table = table.path.stat().st_size / cells
    return {"memory_bucket_bytes": memory.live_key_bytes(), "table_bucket_bytes": of_table}
