"""How many workers, cores, Redis shards, bytes and bits a launch needs, from what this machine measured.

    busy     the share of a worker's time up to which the wanted p99 holds: off the measured curve, at most MAX_BUSY
    workers  the fewest whose throughput, by the fitted law, times busy reaches the rate
    shards   Redis' processor time for the rate, evenly divided but for the hot key, which lives on one shard
    memory   buckets times what one costs in each store
    network  what was counted on the sockets, with a frame around every request and answer

Then every bound is turned into the rate at which it would bind, and the lowest is the one that binds first. Everything
here is arithmetic over facts that `workers` measured; uncertainty comes from fits to resampled measurements.
"""

from __future__ import annotations

import itertools
import math
import statistics
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from . import scaling
from .scaling import Law

MAX_BUSY: Final = 0.85
"""Whatever p99 says: a worker that is busier has nothing left for a burst or a neighbour."""
REDIS_BUSY: Final = 0.8
"""Of one shard: Redis does its housekeeping on the thread that answers."""
FRAME_BYTES: Final = 66
"""Ethernet, IP and TCP with timestamps, around each request and each answer."""
DEFAULT_NIC_GBITS: Final = 10.0


@dataclass(frozen=True, slots=True)
class Wanted:
    """What a launch needs."""

    rate: float
    """Checks a second."""
    p99_ms: float = 5.0
    keys: int = 1_000_000
    """Live partition keys: users, tenants, addresses together."""
    limits_a_key: int = 2
    hot: float = 0.0
    """The share of all checks that one key gets."""
    nic_gbits: float = DEFAULT_NIC_GBITS


@dataclass(frozen=True, slots=True)
class Bound:
    """What ends a rate, and what would move it."""

    name: str
    rate: float
    relief: str


@dataclass(frozen=True, slots=True)
class Plan:
    """What it takes with one kind of store."""

    store: str
    workers: scaling.Estimate | None
    """None: no count of workers on one host reaches it."""
    hosts: int
    """Of this machine's kind."""
    cores: int
    memory_bytes: float
    """Of the buckets: on each host for the shared table, on each shard for Redis."""
    shards: int | None
    """None: the hot key alone is more than one shard does. 0: no Redis."""
    network_gbits: float
    redis_gbits: float
    busy: float
    bounds: tuple[Bound, ...]
    """Of one host of this machine's kind and one shard, the lowest rate first."""
    notes: tuple[str, ...]

    @property
    def served(self) -> bool:
        """True when this machine and as many shards as it takes serve it."""
        return self.workers is not None and self.hosts == 1 and self.shards is not None and self.bounds[0].rate > 0


def busy_for(curve: list[list[float]], p99_ms: float, service_s: float) -> tuple[float, str]:
    """(How busy a worker may be for this p99, where that is from). 0 when not even an idle one is that fast.

    Between the measured points on a straight line. Without points: M/M/1, whose p99 is ln(100) service times over the
    idle share.
    """
    points = sorted((busy, p99) for busy, p99 in curve if busy > 0)
    if not points:
        return min(MAX_BUSY, max(0.0, 1 - math.log(100) * service_s * 1000 / p99_ms)), (
            "no latency could be measured without doubt: p99 is that of an M/M/1 queue"
        )
    if points[0][1] > p99_ms:
        return 0.0, f"p99 was {points[0][1]:.1f} ms already at {points[0][0]:.0%} busy"
    busy = points[-1][0]
    for (low, fast), (high, slow) in itertools.pairwise(points):
        if slow > p99_ms:
            busy = low + (high - low) * (p99_ms - fast) / (slow - fast)
            break
    else:
        busy = MAX_BUSY if busy >= 0.6 else busy  # what was not tried is not promised
    return min(MAX_BUSY, busy), f"p99 measured up to {points[-1][0]:.0%} busy"


def plans(facts: Mapping[str, Any], wanted: Wanted) -> list[Plan]:
    """With a shared table on a host, and with Redis."""
    samples = {int(n): xs for n, xs in facts["workers"].items()}
    law = scaling.fit([(n, statistics.median(xs)) for n, xs in samples.items()])
    laws = scaling.resampled(samples)
    busy, why = busy_for(facts["curve"], wanted.p99_ms, 1 / law.rate)
    notes = [why, f"scaling: {scaling.name_of(len(samples))} over {', '.join(map(str, samples))} workers"]
    if len(samples) < scaling.POINTS_FOR_COHERENCE:
        notes.append(
            "fewer than four counts of workers: what pairs of workers cost each other is not in it, so figures far "
            f"beyond {max(samples)} workers are a guess that errs on the good side"
        )
    return [
        _plan("shared table", facts, wanted, law, laws, busy, notes),
        _plan("redis", facts, wanted, *_slower(facts, law, laws), busy, notes),
    ]


def _slower(facts: Mapping[str, Any], law: Law, laws: list[Law]) -> tuple[Law, list[Law]]:
    """The law of workers that ask Redis: as they scale on a table, at the rate that one has there."""
    part = facts["redis_worker_per_s"] / law.rate
    return law._replace(rate=law.rate * part), [one._replace(rate=one.rate * part) for one in laws]


def _plan(
    store: str,
    facts: Mapping[str, Any],
    wanted: Wanted,
    law: Law,
    laws: list[Law],
    busy: float,
    notes: list[str],
) -> Plan:
    cores = int(facts["cores"])
    one_host = law.throughput(min(cores, law.peak)) * busy
    workers = _workers(law, laws, wanted.rate, busy)
    hosts = 1 if one_host >= wanted.rate else math.ceil(wanted.rate / one_host) if one_host else 0
    wire = wanted.rate * (facts["bytes_a_check"] + 2 * FRAME_BYTES) * 8 / 1e9
    buckets = wanted.keys * wanted.limits_a_key
    bounds = [
        Bound(
            "workers on this machine's cores" if busy >= MAX_BUSY else "p99: workers must idle to be fast enough",
            one_host,
            f"more cores ({cores} are at hand)" if busy >= MAX_BUSY else "a looser p99, or more cores",
        ),
        Bound(
            "the network of a host",
            wanted.nic_gbits * wanted.rate / wire,
            "batches of up to 256 checks in one POST, unix sockets, or a faster card",
        ),
    ]
    if math.isfinite(law.ceiling):
        bounds.append(
            Bound("what workers cost each other", law.ceiling * busy, "several hosts: past its peak a host only slows")
        )
    shards: int | None = 0
    redis_gbits = 0.0
    memory = buckets * facts["table_bucket_bytes"]
    if store == "redis":
        check_s = facts["redis_check_us"] / 1e6
        hot_rate = REDIS_BUSY / (check_s * wanted.hot) if wanted.hot else math.inf
        even = wanted.rate * check_s * (1 - wanted.hot)
        left = REDIS_BUSY - wanted.rate * check_s * wanted.hot  # of the shard that has the hot key
        shards = max(1, math.ceil(wanted.rate * check_s / REDIS_BUSY), math.ceil(even / left)) if left > 0 else None
        redis_gbits = wanted.rate * facts["redis_bytes_a_check"] * 8 / 1e9
        memory = wanted.keys * facts["redis_key_bytes"] * max(1.0, wanted.limits_a_key / 2) / (shards or 1)
        bounds.append(
            Bound("the hot key's Redis shard", hot_rate, "lease that limit: a node then spends units without asking")
        )
        bounds.append(Bound("one Redis shard, keys even", REDIS_BUSY / check_s, "more shards, or leases"))
    if memory > 0.8 * facts.get("memory_bytes", math.inf):
        bounds.append(Bound("memory of this machine", 0.0, "more of it, shorter windows, or fewer limits a key"))
    if wanted.hot and store != "redis":
        notes = [
            *notes,
            "a hot key's cache line travels between workers on a table: see `bench shared`",
        ]
    if hosts > 1 and store != "redis":
        notes = [*notes, "limits hold across hosts on Redis only: a shared table is one host's"]
    return Plan(
        store,
        workers,
        hosts,
        (cores * hosts if workers is None else math.ceil(workers.value)) + (shards or 0),
        memory,
        shards,
        wire,
        redis_gbits,
        busy,
        tuple(sorted((one for one in bounds if one.rate < math.inf), key=lambda one: one.rate)),
        tuple(notes),
    )


def _workers(law: Law, laws: list[Law], rate: float, busy: float) -> scaling.Estimate | None:
    if not busy:
        return None
    found = law.workers(rate / busy)
    if found is None:
        return None
    others = [one.workers(rate / busy) for one in laws]
    return scaling.estimate(found, [math.inf if one is None else one for one in others])


def text(plan: Plan, wanted: Wanted) -> str:
    """A plan in words."""
    lines = [f"with {'Redis' if plan.store == 'redis' else 'a shared table'}"]

    def line(name: str, value: str) -> None:
        lines.append(f"  {name:<12} {value}")

    if plan.workers is None:
        line("workers", "none are enough on one host")
    else:
        low, high = (f"{one:,.0f}" if math.isfinite(one) else "more than any" for one in plan.workers[1:])
        many = f"{plan.workers.value:,.0f}"
        line("workers", many if low == high else f"{many} ({low} to {high} in nine of ten fits)")
    line("busy", f"{plan.busy:.0%} of a worker's time at p99 {wanted.p99_ms:g} ms")
    line("cores", f"{plan.cores:,}" + (f", {plan.shards} of them for Redis" if plan.shards else ""))
    if plan.hosts != 1:
        line("hosts", f"{plan.hosts:,} like this one" if plan.hosts else "none: see what binds")
    where = "a shard" if plan.store == "redis" else "a host"
    line("memory", f"{plan.memory_bytes / 1e9:,.2f} GB of buckets on {where}")
    if plan.store == "redis":
        line("shards", "no count is enough: see the hot key" if plan.shards is None else f"{plan.shards:,}")
        line("network", f"{plan.network_gbits:,.2f} Gbit/s of callers, {plan.redis_gbits:,.2f} to Redis")
    else:
        line("network", f"{plan.network_gbits:,.2f} Gbit/s of callers")
    for at, bound in enumerate(plan.bounds):
        line("binds first" if not at else "then", f"{bound.name}, at {bound.rate:,.0f}/s; relief: {bound.relief}")
    return "\n".join(lines)
