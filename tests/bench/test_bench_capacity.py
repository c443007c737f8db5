"""The capacity plan: arithmetic over synthetic facts, with every expectation worked out by hand."""

from __future__ import annotations

import math

import pytest

from bench import capacity
from bench.capacity import Wanted

FACTS = {
    "cores": 8,
    "memory_bytes": 16e9,
    # 40,000/s a worker and Amdahl's sigma of 0.05: 2 * 40,000 / 1.05.
    "workers": {"1": [40_000.0] * 5, "2": [80_000 / 1.05] * 5},
    "curve": [[0.2, 1.0], [0.5, 2.0], [0.7, 4.0], [0.85, 10.0]],
    "bytes_a_check": 1_118.0,
    "redis_check_us": 20.0,
    "redis_command_us": 100.0,
    "redis_checks_a_command": 5.0,
    "redis_worker_per_s": 20_000.0,
    "redis_bytes_a_check": 500.0,
    "redis_key_bytes": 200.0,
    "memory_bucket_bytes": 58.0,
    "table_bucket_bytes": 66.0,
}


def both(wanted: Wanted, **facts):
    return capacity.plans({**FACTS, **facts}, wanted)


def test_workers_are_the_fewest_that_reach_the_rate_at_the_busy_share():
    shared, redis = both(Wanted(100_000, p99_ms=4.0))
    assert shared.busy == pytest.approx(0.7)
    # X(n) * 0.7 >= 100,000 asks for 142,857: X(4) = 160,000 / 1.15 = 139,130; X(5) = 200,000 / 1.2 = 166,667.
    assert shared.workers == (5, 5, 5)
    assert (shared.cores, shared.hosts, shared.shards) == (5, 1, 0)
    # With Redis half of that: X(n) >= 285,714 of the same law: X(11) = 440,000 / 1.5 = 293,333, X(10) = 275,862.
    assert redis.workers == (11, 11, 11)
    assert redis.hosts == math.ceil(100_000 / (0.7 * 8 * 20_000 / 1.35))
    # 100,000 * 20 us = 2 seconds of processor a second, at 0.8 each.
    assert redis.shards == 3
    assert redis.cores == 14
    assert shared.served
    assert not redis.served  # two hosts


def test_memory_and_network():
    shared, redis = both(Wanted(100_000, p99_ms=4.0, keys=20_000_000))
    assert shared.memory_bytes == 20_000_000 * 2 * 66
    assert redis.memory_bytes == pytest.approx(20_000_000 * 200 / 3)
    assert shared.network_gbits == pytest.approx(100_000 * (1118 + 132) * 8 / 1e9) == pytest.approx(1.0)
    assert redis.redis_gbits == pytest.approx(0.4)
    [bound] = [one for one in shared.bounds if one.name == "the network of a host"]
    assert bound.rate == pytest.approx(1_000_000)


def test_the_hot_key_lives_on_one_shard():
    # 250,000/s, a tenth on one key: that alone is 0.5 of a shard, the rest 4.5 seconds a second; the hot shard has room
    # for 0.3 more, so 4.5 / 0.3 = 15 shards.
    _, redis = both(Wanted(250_000, p99_ms=4.0, hot=0.1))
    assert redis.shards == 15
    _, redis = both(Wanted(250_000, p99_ms=4.0, hot=0.2))  # 1.0 of a shard: none does that
    assert redis.shards is None
    assert not redis.served
    [hot] = [one for one in redis.bounds if "hot key" in one.name]
    assert hot.rate == pytest.approx(0.8 / (20e-6 * 0.2))
    assert "lease" in hot.relief
    assert "no count is enough" in capacity.text(redis, Wanted(250_000))


def test_what_binds_first_comes_first():
    shared, redis = both(Wanted(10_000, p99_ms=4.0, hot=0.9))
    assert any("cache line travels" in note for note in shared.notes)
    assert [bound.rate for bound in redis.bounds] == sorted(bound.rate for bound in redis.bounds)
    assert redis.bounds[0].name == "one Redis shard, keys even"
    assert redis.bounds[0].rate == pytest.approx(40_000)
    assert shared.bounds[0].name == "p99: workers must idle to be fast enough"
    loose, _ = both(Wanted(10_000, p99_ms=40.0))
    assert loose.bounds[0].name == "workers on this machine's cores"
    assert loose.bounds[0].rate == pytest.approx(0.85 * 320_000 / 1.35)
    small, _ = both(Wanted(10_000, keys=1_000_000_000))
    assert small.bounds[0].name == "memory of this machine"
    assert not small.served


def test_a_rate_beyond_the_machine_says_so():
    shared, _ = both(Wanted(10_000_000, p99_ms=4.0))
    assert shared.workers is None  # Amdahl's ceiling is 800,000 * 0.7
    assert shared.hosts == math.ceil(10_000_000 / (0.7 * 8 * 40_000 / 1.35))
    assert not shared.served
    told = capacity.text(shared, Wanted(10_000_000, p99_ms=4.0))
    assert "none are enough on one host" in told
    assert f"{shared.hosts:,} like this one" in told
    assert any("Redis only" in note for note in shared.notes)


def test_busy_is_read_off_the_curve():
    curve = FACTS["curve"]
    assert capacity.busy_for(curve, 3.0, 25e-6)[0] == pytest.approx(0.6)
    assert capacity.busy_for(curve, 100.0, 25e-6)[0] == capacity.MAX_BUSY
    assert capacity.busy_for(curve, 0.5, 25e-6)[0] == 0.0
    assert capacity.busy_for([[0.2, 1.0]], 5.0, 25e-6)[0] == 0.2  # what was not tried is not promised
    # M/M/1 without points: 1 - ln(100) * 0.025 / 1 = 0.885, so the bound; at 0.2 ms 0.424.
    assert capacity.busy_for([], 1.0, 25e-6)[0] == capacity.MAX_BUSY
    busy, why = capacity.busy_for([], 0.2, 25e-6)
    assert busy == pytest.approx(1 - math.log(100) * 0.125)
    assert "M/M/1" in why


def test_a_p99_that_an_idle_worker_misses_is_told():
    shared, _ = both(Wanted(1000, p99_ms=0.5))
    assert (shared.workers, shared.hosts, shared.served) == (None, 0, False)
    assert shared.bounds[0].rate == 0
    told = capacity.text(shared, Wanted(1000, p99_ms=0.5))
    assert "p99: workers must idle" in told
    assert "none: see what binds" in told


def test_uncertainty_is_that_of_the_samples():
    spread = {"1": [38_000.0, 40_000.0, 42_000.0], "2": [70_000.0, 76_000.0, 82_000.0]}
    shared, _ = both(Wanted(100_000, p99_ms=4.0), workers=spread)
    assert shared.workers is not None
    assert shared.workers.low < shared.workers.value <= shared.workers.high
    assert "in nine of ten fits" in capacity.text(shared, Wanted(100_000))
    assert any("fewer than four" in note for note in shared.notes)
    four = {str(n): [n * 40_000.0] * 3 for n in (1, 2, 4, 8)}
    shared, _ = both(Wanted(100_000, p99_ms=4.0), workers=four)
    assert any("universal scalability law over 1, 2, 4, 8" in note for note in shared.notes)
    assert not any("fewer than four" in note for note in shared.notes)
