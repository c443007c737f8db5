"""The table itself: probing, removal and sweeping against a dict, driven through the public classes."""

from __future__ import annotations

import random

from hypothesis import given, settings
from hypothesis import strategies as st

from shield import TokenBucket

S = 1_000_000_000

STEPS = st.lists(st.tuples(st.integers(0, 40), st.integers(0, 4), st.integers(0, 3 * S)), min_size=1, max_size=300)


@settings(max_examples=200, deadline=None)
@given(steps=STEPS, max_keys=st.integers(42, 60))
def test_a_crowded_table_answers_like_a_dict_of_exact_buckets(steps, max_keys):
    """41 keys in a table with hardly more room, time jumping about: every verdict is that of a bucket of one's own."""
    now = [1_763_900_000 * S]
    limiter = TokenBucket("3/s", burst=4, max_keys=max_keys, clock=lambda: now[0])
    buckets: dict[int, tuple[int, int]] = {}
    for key, cost, forward in steps:
        now[0] += forward
        now_us = now[0] // 1000
        level, at = buckets.get(key, (0, now_us))  # thirds of a microsecond: 1,000,000 ticks a unit, 3 a microsecond
        level = max(0, level - 3 * (now_us - at))
        fits = cost == 0 or level + cost * 1_000_000 <= 4_000_000
        if fits:
            level += cost * 1_000_000
        buckets[key] = (level, now_us)
        status = limiter.take(f"key{key}", cost)
        assert status.allowed == fits
        assert status.remaining == (4_000_000 - level) // 1_000_000
        assert round(status.reset_after * 1e6) == -(-level // 3)
    assert len(limiter) <= 41


@settings(max_examples=50, deadline=None)
@given(seed=st.integers(0, 2**32), burst=st.integers(1, 3))
def test_forgotten_keys_are_those_that_would_answer_fresh(seed, burst):
    """Waves of keys that come and go at different speeds: none is ever admitted more than its bucket holds."""
    now = [0]
    limiter = TokenBucket("1/s", burst=burst, max_keys=64, clock=lambda: now[0])
    admitted: dict[tuple[int, int], list[int]] = {}
    for step in range(400):
        seed = (seed * 6364136223846793005 + 1442695040888963407) % 2**64
        now[0] += (seed >> 33) % (S // 8)
        key = (step // 40, (seed >> 40) % 24)
        if limiter.allow(f"{key}"):
            admitted.setdefault(key, []).append(now[0] // 1000)
    for times in admitted.values():
        for i in range(len(times)):
            for j in range(i, len(times)):
                assert (j - i + 1 - burst) * 1_000_000 <= times[j] - times[i]


def test_a_table_of_two_parts_answers_like_a_dict_of_exact_buckets():
    """More keys than its near part holds, coming, draining and coming back: none is in both parts, none is lost."""
    now, source = [1_763_900_000 * S], random.Random(7)
    limiter = TokenBucket("1/s", burst=3, max_keys=100_000, clock=lambda: now[0])
    buckets: dict[int, tuple[int, int]] = {}
    most = 0
    for wave in range(60):
        now[0] += source.choice([0, 1_000, S // 3, 5 * S])
        now_us = now[0] // 1000
        first = source.randrange(60_000)
        keys = [first + source.randrange(9_000) for _ in range(4_000)]
        answers = []
        for key in keys:
            level, at = buckets.get(key, (0, now_us))  # microseconds until it is full again
            level = max(0, level - (now_us - at))
            answers.append(level <= 2_000_000)
            buckets[key] = (level + 1_000_000 * answers[-1], now_us)
        assert limiter.allow_many([f"key{key}" for key in keys]) == answers, f"wave {wave}"
        most = max(most, len(limiter))
    assert 20_000 < most <= 69_000, "the far part was in use"


def test_what_is_forgotten_in_one_part_makes_room_there():
    now = [1_763_900_000 * S]
    limiter = TokenBucket("1/h", burst=1, max_keys=100_000, clock=lambda: now[0])
    old, new = [f"old{i}" for i in range(90_000)], [f"new{i}" for i in range(90_000)]
    assert all(limiter.allow_many(old))
    assert not any(limiter.allow_many(old))
    assert len(limiter) == 90_000
    now[0] += 3_600 * S
    assert all(limiter.allow_many(new))
    assert not any(limiter.allow_many(new))
    assert len(limiter) <= 100_000
