"""shield.testing does what it says, and each checker sees the violation it is there for."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shield import Policy, Request, Shield, TokenBucket
from shield.errors import StoreError, StoreTimeout
from shield.store import Settlement
from shield.testing import (
    Admission,
    DriftingClock,
    FailingStore,
    ManualClock,
    check_trace,
    check_window_trace,
    read_trace,
    replay_trace,
)
from tests.replay import Replay, replay

S = 1_000_000

# ---- clocks


def test_a_manual_clock_moves_only_when_told() -> None:
    clock = ManualClock(5_000_000_000)
    assert clock() == clock() == 5_000_000_000
    clock.advance(s=1, ms=2, us=3, ns=4)
    assert clock() == 6_002_003_004
    clock.step_back(s=2)
    assert clock() == 4_002_003_004
    clock.set(7)
    assert clock() == 7


def test_a_manual_clock_runs_and_stands() -> None:
    clock = ManualClock(100)
    clock.run(tick_ns=10)
    assert [clock(), clock(), clock()] == [100, 110, 120]
    clock.run(tick_ns=-1)
    assert [clock(), clock()] == [130, 129]
    clock.stand()
    assert [clock(), clock()] == [128, 128]


def test_a_manual_clock_takes_no_negative_spans() -> None:
    with pytest.raises(ValueError, match="step_back"):
        ManualClock().advance(s=1, ms=-2000)
    with pytest.raises(ValueError, match="set"):
        ManualClock().step_back(us=-1)


def test_a_drifting_clock_gains_what_it_says_exactly() -> None:
    real = ManualClock(10**18)
    fast = DriftingClock(real, 200)
    slow = DriftingClock(real, -500_000, offset_ns=7)
    standing = DriftingClock(real, -1_000_000)
    assert (fast(), slow(), standing()) == (10**18, 10**18 + 7, 10**18)
    real.advance(s=86_400)
    assert fast() - 10**18 == 86_400_000_000_000 + 17_280_000_000
    assert slow() - 10**18 == 43_200_000_000_000 + 7
    assert standing() == 10**18


def test_the_clocks_are_clocks() -> None:
    clock = ManualClock()
    limiter = TokenBucket("1/s", burst=2, clock=clock)
    assert [limiter.allow("k") for _ in range(3)] == [True, True, False]
    clock.advance(ms=999)
    assert not limiter.allow("k")
    clock.advance(ms=1)
    assert limiter.allow("k")


# ---- a store that fails


class Counting:
    """A store that only counts what reached it."""

    name = "counting"
    local = True
    ready = True
    extra = "its own"

    def __init__(self) -> None:
        self.reached: list[str] = []

    async def open(self) -> None:
        self.reached.append("open")

    async def close(self) -> None:
        self.reached.append("close")

    async def apply(self, charges: Any) -> None:
        self.reached.append("apply")

    async def settle(self, settlement: Any) -> bool:
        self.reached.append("settle")
        return True

    async def release(self, leases: Any) -> int:
        self.reached.append("release")
        return 2

    def stats(self) -> dict[str, Any]:
        return {"reached": len(self.reached)}


CHARGES: Any = object()
SETTLEMENT = Settlement(b"", 0, 0, ())


async def test_a_failing_store_passes_everything_on_by_default() -> None:
    inner = Counting()
    store = FailingStore(inner)
    await store.open()
    await store.apply(CHARGES)
    assert await store.settle(SETTLEMENT) is True
    assert await store.release([]) == 2
    await store.close()
    assert inner.reached == ["open", "apply", "settle", "release", "close"]
    assert (store.name, store.local, store.ready, store.extra) == ("counting", False, True, "its own")
    assert store.stats() == {"reached": 5}
    assert (store.operations, store.failed) == (3, [])


async def test_the_three_ways_to_fail() -> None:
    inner = Counting()
    store = FailingStore(inner)
    store.fail_next("refused")
    with pytest.raises(StoreError) as refused:
        await store.apply(CHARGES)
    assert not isinstance(refused.value, StoreTimeout)
    store.fail_next("timeout")
    with pytest.raises(StoreTimeout):
        await store.apply(CHARGES)
    assert inner.reached == []
    store.fail_next("lost", times=3)
    with pytest.raises(StoreTimeout):
        await store.apply(CHARGES)
    with pytest.raises(StoreTimeout):
        await store.settle(SETTLEMENT)
    with pytest.raises(StoreTimeout):
        await store.release([])
    assert inner.reached == ["apply", "settle", "release"]
    assert [how for _, _, how in store.failed] == ["refused", "timeout", "lost", "lost", "lost"]


async def test_the_nth_operation_fails_and_only_that() -> None:
    store = FailingStore(Counting())
    store.fail_at(3)
    await store.apply(CHARGES)
    await store.settle(SETTLEMENT)
    with pytest.raises(StoreTimeout):
        await store.apply(CHARGES)
    await store.apply(CHARGES)
    assert store.failed == [(3, "apply", "timeout")]
    with pytest.raises(ValueError, match="past"):
        store.fail_at(4)


async def test_every_operation_fails_until_it_is_healed() -> None:
    store = FailingStore(Counting())
    store.fail_always("refused")
    store.fail_at(9)
    assert not store.ready
    for _ in range(3):
        with pytest.raises(StoreError):
            await store.apply(CHARGES)
    store.heal()
    assert store.ready
    for _ in range(9):
        await store.apply(CHARGES)


def test_an_unknown_failure_is_told() -> None:
    with pytest.raises(ValueError, match="refused, timeout, lost"):
        FailingStore(Counting()).fail_always("explode")  # type: ignore[arg-type]


# ---- law 1 of a token bucket


def test_what_is_exactly_allowed_is_no_violation() -> None:
    admissions = [(0, 10), (1 * S, 1), (2 * S, 1), (12 * S, 10)]
    assert check_trace(admissions, "1/s", 10) == []
    assert check_trace([], "1/s", 1) == []


def test_one_unit_or_one_microsecond_too_many_is_seen() -> None:
    [violation] = check_trace([(0, 10), (1 * S - 1, 1)], (1, S), 10)
    assert (violation.first, violation.last, violation.from_us, violation.to_us) == (0, 1, 0, S - 1)
    assert violation.excess * S == 1
    [violation] = check_trace([(5, 11)], (1, S), 10)
    assert (violation.admitted, violation.allowed, violation.from_us, violation.to_us) == (11, 10, 5, 5)
    assert "11 admitted in [5, 5] us, 10 allowed" in str(violation)


def test_the_worst_interval_is_named() -> None:
    """A spell of 4 too many, a long rest, and one of 7 too many that begins after 5 harmless units."""
    admissions = [(0, 14), (100 * S, 5), (200 * S, 9), (201 * S, 9), (300 * S, 1)]
    worst, other = check_trace(admissions, "1/s", 10)
    assert (worst.first, worst.last, worst.admitted, worst.allowed) == (2, 3, 18, 11)
    assert (other.first, other.last, other.excess) == (0, 0, 4)


def test_a_long_excess_that_no_short_interval_shows() -> None:
    """Two a second at one a second: each pair is within the burst, all together are not."""
    admissions = [(i * S // 2, 1) for i in range(30)]
    [violation] = check_trace(admissions, "1/s", 10)
    assert (violation.first, violation.last) == (0, 29)
    assert violation.allowed == 10 + violation.to_us / S
    assert check_trace(admissions[:18], "1/s", 10) == []


def test_refunds_are_taken_off_their_own_admission() -> None:
    assert check_trace([(0, 10, 4), (0, 4)], "1/s", 10) == []
    # The contract's example: what was refunded for an earlier charge excuses nothing later.
    [violation] = check_trace([(0, 10, 9), (100_000, 10), (100_000, 9)], "100/s", 10)
    assert (violation.first, violation.last) == (1, 2)
    with pytest.raises(ValueError, match="admission 0"):
        check_trace([(0, 1, 2)], "1/s", 10)


def test_only_forward_movement_refills() -> None:
    back_and_forth = [Admission(10 * S, 10), Admission(5 * S, 5), Admission(10 * S, 5)]
    [violation] = check_trace(back_and_forth[:2], "1/s", 10)
    assert violation.allowed == 10
    [violation] = check_trace(back_and_forth, "1/s", 10)
    assert violation.allowed == 10  # the worst: before the clock moved on again
    unseen = [(0, 10), (10 * S, 0), (5 * S, 10)]
    assert check_trace(unseen, "1/s", 10) == []


@given(
    st.lists(st.tuples(st.integers(0, 20), st.integers(0, 4)), max_size=14),
    st.integers(1, 3),
    st.integers(1, 4),
    st.integers(1, 6),
)
def test_one_pass_finds_what_all_intervals_show(steps: list[tuple[int, int]], c: int, p: int, burst: int) -> None:
    """The one pass against the definition: every interval, one by one."""
    admissions, now_us = [], 0
    for step_us, cost in steps:
        now_us += step_us
        admissions.append((now_us, cost))
    over = [
        p * sum(cost for _, cost in admissions[i : j + 1]) - p * burst - c * (admissions[j][0] - admissions[i][0])
        for i in range(len(admissions))
        for j in range(i, len(admissions))
    ]
    found = check_trace(admissions, (c, p), burst)
    assert bool(found) == any(excess > 0 for excess in over)
    if found:
        assert found[0].excess * p == max(over)


# ---- law 1 of windows


def test_a_fixed_window_and_its_edge() -> None:
    edge = [(9_999_999, 5), (10 * S, 5)]
    assert check_window_trace(edge, 5, 10 * S) == []
    [violation] = check_window_trace([*edge, (19_999_999, 1)], 5, 10 * S)
    assert (violation.first, violation.last, violation.from_us, violation.to_us) == (1, 2, 10 * S, 19_999_999)
    assert (violation.admitted, violation.allowed) == (6, 5)
    assert check_window_trace([(0, 5, 2), (1, 2)], 5, 10 * S) == []


def test_a_sliding_window_counts_the_one_before() -> None:
    """The table of the books: 40, then 80 fit from 30 s on, and one more from 31.5 s on."""
    fits = [(0, 40), (90 * S, 80), (91_500_000, 1)]
    assert check_window_trace(fits, 100, 60 * S, sliding=True) == []
    [violation] = check_window_trace([(0, 40), (90 * S - 1, 80)], 100, 60 * S, sliding=True)
    assert 0 < violation.excess < 1
    assert check_window_trace([(0, 40), (90 * S - 1, 80)], 100, 60 * S) == []
    assert len(check_window_trace([(0, 40), (90 * S, 80), (91_499_999, 1)], 100, 60 * S, sliding=True)) == 1
    assert check_window_trace([(0, 100), (120 * S, 100)], 100, 60 * S, sliding=True) == []


def test_a_step_back_opens_no_window_again() -> None:
    [violation] = check_window_trace([(15 * S, 5), (5 * S, 5)], 5, 10 * S)
    assert violation.admitted == 10
    assert len(check_window_trace([(95 * S, 5), (5 * S, 5)], 5, 10 * S)) == 1
    assert check_window_trace([(15 * S, 5), (5 * S, 0), (15 * S, 5)], 5, 10 * S) == []


def test_windows_of_a_calendar() -> None:
    def bounds(now_us: int) -> tuple[int, int]:
        return (0, 23 * S) if now_us < 23 * S else (23 * S, 48 * S)

    assert check_window_trace([(0, 5), (23 * S, 5)], 5, bounds) == []
    assert len(check_window_trace([(0, 5), (22 * S, 1)], 5, bounds)) == 1
    with pytest.raises(ValueError, match="one length"):
        check_window_trace([], 5, bounds, sliding=True)


# ---- traces

POLICY = """
version = 1
name = "traced"

[[limit]]
name = "burst"
key = ["user"]
rate = "7/3s"
burst = 4
cost = "request"

[[limit]]
name = "window"
key = ["tenant"]
algorithm = "sliding-window"
rate = "20/10s"
count_denied = true

[[limit]]
name = "day"
key = ["tenant"]
algorithm = "fixed-window"
rate = "900/day"
align = "day"
timezone = "Europe/Berlin"
mode = "shadow"

[[limit]]
name = "places"
key = ["ip"]
algorithm = "concurrency"
limit = 3
ttl = "2s"

[guard.size]
max_body_bytes = 1000
"""


def recorded(requests: int = 400) -> list[dict[str, Any]]:
    """What a Shield in memory traces, over a clock that runs, stands and now and then steps back."""
    clock = ManualClock()
    records: list[dict[str, Any]] = []
    shield = Shield(Policy.parse(POLICY), clock=clock, trace=records.append)
    for i in range(requests):
        request = Request(
            user=f"u{i * i % 5}",
            tenant=f"t{i % 2}" if i % 3 else None,
            ip=f"203.0.113.{i % 2}" if i % 4 == 0 else None,
            cost=i % 3,
            bytes=2000 if i % 17 == 0 else 10,
        )
        shield.check_nowait(request)
        clock.advance(us=[0, 1, 90_001, 300_000][i % 4])
        if i % 50 == 49:
            clock.step_back(ms=400)
    return json.loads(json.dumps(records))  # type: ignore[no-any-return]


@pytest.fixture(scope="module")
def records() -> list[dict[str, Any]]:
    return recorded()


def written(path: Path, records: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return path


def test_a_trace_is_read_without_its_header_and_its_torn_end(tmp_path: Path) -> None:
    path = written(tmp_path / "trace", [{"shield_trace": 1, "store": "memory"}, {"a": 1}, {"a": 2}])
    path.write_text(path.read_text() + '{"a": 3')
    assert list(read_trace(path)) == [{"a": 1}, {"a": 2}]
    assert list(read_trace(written(path, [{"a": 1}]))) == [{"a": 1}]


@pytest.mark.parametrize("line", ['{"shield_trace": 2}', "[1]", "{torn", ""])
def test_what_is_no_trace_is_refused_with_its_line(tmp_path: Path, line: str) -> None:
    path = tmp_path / "trace"
    path.write_text('{"a": 1}\n' + line + "\n")
    with pytest.raises(ValueError, match="line 2"):
        list(read_trace(path))


def test_a_run_in_memory_agrees_with_the_oracle(records: list[dict[str, Any]], tmp_path: Path) -> None:
    assert replay(records) == []
    run = Replay()
    for record in records:
        run.play(record)
    assert run.left_out == 0
    assert run.decided > len(records)
    verdicts = {(charge["limit"], charge["verdict"]) for record in records for charge in record["charges"]}
    assert verdicts >= {
        ("burst", 0),
        ("burst", 1),
        ("window", 0),
        ("window", 1),
        ("places", 0),
        ("places", 1),
    }
    assert any(record["reason"] == "too_large" for record in records)
    path = written(tmp_path / "trace", [{"shield_trace": 1}, *records])
    assert replay(path) == []
    assert replay_trace(path) == []


@pytest.mark.parametrize("what", ["verdict", "remaining", "retry_after_us", "reset_after_us", "state", "allowed"])
def test_a_wrong_answer_is_found_where_it_stands(records: list[dict[str, Any]], what: str) -> None:
    wrong = json.loads(json.dumps(records))
    index = next(i for i, record in enumerate(wrong) if i > 100 and record["allowed"] and record["charges"])
    charge = wrong[index]["charges"][0]
    if what == "allowed":
        wrong[index]["allowed"] = False
    elif what == "verdict":
        charge["verdict"] = 1
    elif what == "state":
        charge["state"][-1] += 1
    else:
        charge[what] += 1
    first = replay(wrong)[0]
    assert first.record == index
    assert (first.where == "decision") == (what == "allowed")


def test_a_request_that_was_let_through_is_found(records: list[dict[str, Any]], tmp_path: Path) -> None:
    """The same run, with every denial of the token bucket admitted after all."""
    wrong = json.loads(json.dumps(records))
    for record in wrong:
        if record["reason"] == "limit" and record["violated"] == ["burst"]:
            record["allowed"] = True
            for charge in record["charges"]:
                charge["verdict"] = 0
    assert replay(wrong)
    violations = replay_trace(written(tmp_path / "trace", wrong))
    assert violations
    assert all(violation.bucket.startswith("burst ") for violation in violations)


def test_a_window_that_let_too_many_through_is_found(records: list[dict[str, Any]], tmp_path: Path) -> None:
    wrong = json.loads(json.dumps(records))
    for record in wrong:
        for charge in record["charges"]:
            if charge["limit"] in ("window", "day"):
                charge["cost"] *= 60
    found = {violation.bucket.split()[0] for violation in replay_trace(written(tmp_path / "trace", wrong))}
    assert found == {"window", "day"}


def charge_line(now_us: int, cost: int, **more: Any) -> dict[str, Any]:
    """A decision about one bucket of 10 at 100/s, as if by a store that admitted it."""
    charge = {
        "limit": "b",
        "algorithm": "token-bucket",
        "numbers": [10, 1, 10_000],
        "window_us": None,
        "align": None,
        "timezone": None,
        "ttl_us": None,
        "mode": "enforce",
        "count_denied": False,
        "key": "00",
        "cost": cost,
        "verdict": 0,
        "state": [cost, 0, now_us],
        "remaining": 10 - cost,
        "retry_after_us": 0,
        "reset_after_us": cost * 10_000,
        "unknown": False,
        **more,
    }
    return {"now_us": now_us, "allowed": True, "reason": "ok", "degraded": False, "charges": [charge]}


def settle_line(now_us: int, charged_us: int, charged: int, actual: int, settled: bool) -> dict[str, Any]:
    charge = {**charge_line(0, 0)["charges"][0], "charged": charged, "actual": actual, "start_us": None}
    return {
        "event": "settle",
        "now_us": now_us,
        "receipt": "r",
        "charged_us": charged_us,
        "settled": settled,
        "charges": [charge],
    }


def test_settlements_are_followed(tmp_path: Path) -> None:
    honest = [
        charge_line(0, 10),
        settle_line(50_000, 0, 10, 1, True),
        settle_line(50_000, 0, 10, 1, False),
        charge_line(50_000, 9, state=[10, 0, 50_000], remaining=0, reset_after_us=100_000),
    ]
    assert replay(honest) == []
    assert replay_trace(written(tmp_path / "trace", honest)) == []
    unsettled = replay_trace(written(tmp_path / "trace", [honest[0], honest[3]]))
    assert [violation.excess for violation in unsettled] == [4]
    assert replay([*honest, settle_line(60_000, 0, 10, 1, True)])[0].what == "settled"


def test_a_refund_that_mints_is_found(tmp_path: Path) -> None:
    """The contract's example, by a store that gives back all 9."""
    minted = [
        charge_line(0, 10),
        charge_line(100_000, 10),
        settle_line(100_000, 0, 10, 1, True),
        charge_line(100_000, 9, state=[10, 0, 100_000], remaining=0, reset_after_us=100_000),
    ]
    [violation] = replay_trace(written(tmp_path / "trace", minted))
    assert violation.excess == 9
    assert replay(minted)[0].what == "allowed"


def test_places_and_their_release_are_followed() -> None:
    places = {
        "algorithm": "concurrency",
        "numbers": [1, 0, 0],
        "ttl_us": S,
        "remaining": 0,
        "reset_after_us": 0,
    }
    held = charge_line(0, 1, **places, state=[1, 0], lease="a")
    denied = charge_line(10, 1, **places, state=[1, S], verdict=1, retry_after_us=S - 10)
    denied.update(allowed=False, reason="concurrency")
    freed = {"event": "release", "now_us": 20, "charges": [{**held["charges"][0], "lease": "a", "freed": 1}]}
    again = charge_line(20, 1, **places, state=[1, 0], lease="b")
    assert replay([held, denied, freed, again]) == []
    assert replay([held, denied, again])[0].what == "allowed"
    freed["charges"][0]["freed"] = 0  # type: ignore[index]
    assert [found.what for found in replay([held, denied, freed])] == ["freed"]


def test_what_no_oracle_can_know_is_left_out() -> None:
    degraded = {**charge_line(0, 10), "degraded": True}
    full = charge_line(0, 1, verdict=2, key="01", retry_after_us=S)
    full.update(allowed=False, reason="store_full")
    run = Replay()
    for record in [degraded, charge_line(0, 10), full, charge_line(0, 3, key="02")]:
        run.play(record)
    assert run.found == []
    assert (run.decided, run.left_out) == (1, 3)


def test_a_trace_out_of_order_is_sorted_when_asked(tmp_path: Path) -> None:
    path = written(
        tmp_path / "trace",
        [
            charge_line(10_000, 1, state=[10, 0, 10_000], remaining=0, reset_after_us=100_000),
            charge_line(0, 10),
        ],
    )
    assert replay(path, by_time=True) == []
    assert replay_trace(path, by_time=True) == []
    assert replay(path) != []
    assert replay_trace(path) != []


@settings(max_examples=20)
@given(st.integers(0, 2**32))
def test_any_altered_number_is_noticed(seed: int) -> None:
    """One integer of a trace, changed by one, is never taken for agreement."""
    records = [charge_line(i * 1000, 1, state=[0, 0, 0]) for i in range(4)]
    level = 0
    for record in records:
        level = max(0, level - 1000) + 10_000
        record["charges"][0].update(
            state=[level // 10_000, level % 10_000, record["now_us"]],
            remaining=(100_000 - level) // 10_000,
            reset_after_us=level,
        )
    assert replay(records) == []
    charge = records[seed % 4]["charges"][0]
    name = ["remaining", "reset_after_us", "retry_after_us", "cost"][seed // 4 % 4]
    charge[name] += 1
    assert replay(records) != []
