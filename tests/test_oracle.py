"""The oracle against the golden tables, and the tables against carelessness."""

from __future__ import annotations

from fractions import Fraction
from math import ceil, floor
from typing import Any

import pytest

from tests import golden
from tests.oracle import Charge, Oracle, Outcome, Settled, Spec
from tests.oracle_buckets import BUCKETS, Concurrency, FixedWindow, Numbers, SlidingWindow, TokenBucket
from tests.oracle_calendar import calendar_window

GROUPS = golden.groups()


def play(group: golden.Group) -> list[str]:
    """Everything in which the oracle disagrees with a table."""
    oracle = Oracle()
    labelled: dict[str, tuple[golden.Step, Outcome]] = {}
    wrong: list[str] = []
    for step in group.steps:
        names = [charge[0].name for charge in group.charges(step)]
        if step.do in ("check", "refused"):
            outcomes = [
                oracle.apply(now_us, group.charges(step), refused=step.do == "refused") for now_us in step.instants()
            ]
            last = outcomes[-1]
            if step.label is not None:
                labelled[step.label] = (step, last)
            statuses = dict(zip(names, last.statuses, strict=True))
            admitted = sum(outcome.admitted for outcome in outcomes)
            wrong += step.disagreements(last.admitted, statuses, last.retry_after_us, admitted)
        else:
            assert step.of is not None
            wrong += step.disagreements(follow_up(oracle, group, step, *labelled[step.of]), {})
    return wrong


def follow_up(oracle: Oracle, group: golden.Group, step: golden.Step, taken: golden.Step, outcome: Outcome) -> bool:
    """Settles or releases what an earlier step took."""
    charges = group.charges(taken)
    if step.do == "settle":
        entries = []
        for (limit, numbers, key, charged), state in zip(charges, outcome.states, strict=True):
            start_us = state[2] if limit.algorithm.endswith("window") else None
            entries.append(Settled(limit, numbers, key, charged, step.cost, taken.now_us, start_us))
        return oracle.settle(step.now_us, taken.label, entries)
    freed = [
        oracle.release(step.now_us, limit, key, lease)
        for (limit, _, key, _), lease in zip(charges, outcome.leases, strict=True)
        if lease is not None
    ]
    return sum(freed) > 0


@pytest.mark.parametrize("group", GROUPS, ids=lambda group: group.id)
def test_table(group: golden.Group) -> None:
    assert play(group) == []


def test_every_table_says_where_it_comes_from_and_what_for() -> None:
    for group in GROUPS:
        assert len(group.source) > 10, group.id
        assert len(group.pins) > 10, group.id


def test_every_table_looks_at_something_in_every_step() -> None:
    for group in GROUPS:
        for step in group.steps:
            assert step.decision or any(step.limits.values()), (group.id, step.row)


# ---- defects that the tables must not let pass: each was somebody's ----------------------------------------


class RefillsBackwards(TokenBucket):
    """abs() of the elapsed time, as in a limiter whose clock may go either way."""

    def touch(self) -> None:
        self.level = max(Fraction(0), self.level - abs(self.now_us - self.at_us) * self.numbers.rate)
        self.at_us = self.now_us


class LosesTheRemainder(TokenBucket):
    """Whole units come back, and the instant moves on as if parts of them had too."""

    def touch(self) -> None:
        super().touch()
        self.level = Fraction(ceil(self.level))


class ForgetsAfterASecond(TokenBucket):
    """State that expires before the bucket is full again."""

    def touch(self) -> None:
        if self.now_us - self.at_us >= 2_000_000:
            self.level = Fraction(0)
        super().touch()


class FreeUnit(TokenBucket):
    """An idle bucket holds one unit more than its burst."""

    def touch(self) -> None:
        idle = self.at_us > 0 and self.level <= (self.now_us - self.at_us - 1) * self.numbers.rate
        super().touch()
        self.level -= 1 if idle and self.level == 0 else 0


class NeverRebases(TokenBucket):
    """However far ahead: it stands still."""

    def touch(self) -> None:
        level, at_us = self.level, self.at_us
        super().touch()
        if self.rebased:
            self.level, self.at_us, self.rebased = level, at_us, False


class RoundsDown(TokenBucket):
    """Changed numbers round in the caller's favour."""

    def touch(self) -> None:
        self.level = Fraction(floor(self.level * self.numbers.p), self.numbers.p)
        super().touch()


class RefundsAll(TokenBucket):
    """Gives back what refill has given back already."""

    def refund(self, units: int, charged_us: int, start_us: int | None) -> bool:
        return super().refund(units, self.now_us, start_us)


class EndlessDebt(TokenBucket):
    """An extra charge as large as it likes."""

    def owe(self, units: int) -> bool:
        self.level += units
        return True


class PenaltyBelowEmpty(TokenBucket):
    """A refusal digs a hole."""

    def penalise(self, cost: int) -> bool:
        self.level += cost
        return True


class IgnoresCost(SlidingWindow):
    """One more fits, so this cost does."""

    def fits(self, cost: int) -> bool:
        return super().fits(min(cost, 1))


class NoFading(SlidingWindow):
    """The previous window counts in full."""

    @property
    def fading(self) -> Fraction:
        return Fraction(self.prev)


class ForgetsThePrevious(SlidingWindow):
    """A fixed window by another name."""

    def move_to(self, start_us: int, end_us: int) -> None:
        super().move_to(start_us, end_us)
        self.prev = 0


class RefundsTheWrongWindow(SlidingWindow):
    """Gives back to whatever window is current."""

    def refund(self, units: int, charged_us: int, start_us: int | None) -> bool:
        return super().refund(units, charged_us, self.start_us)


class DaysOf24Hours(FixedWindow):
    """A day is 86,400 seconds, wherever it is."""

    def touch(self) -> None:
        super().touch()
        self.end_us = self.start_us + (self.spec.window_us or 30 * 86_400_000_000)


class ReopensTheWindow(FixedWindow):
    """A clock set back finds the earlier window fresh."""

    def touch(self) -> None:
        if self.now_us < self.start_us:
            self.start_us = -1
        super().touch()


class ExpiresLate(Concurrency):
    """A place is still held at the instant of its expiry."""

    def take(self, cost: int, lease: str | None) -> None:
        super().take(cost, lease)
        assert lease is not None
        expiry_us, places = self.held[lease]
        self.held[lease] = (expiry_us + 1, places)


DEFECTS: list[type[Any]] = [
    RefillsBackwards,
    LosesTheRemainder,
    ForgetsAfterASecond,
    FreeUnit,
    NeverRebases,
    RoundsDown,
    RefundsAll,
    EndlessDebt,
    PenaltyBelowEmpty,
    IgnoresCost,
    NoFading,
    ForgetsThePrevious,
    RefundsTheWrongWindow,
    DaysOf24Hours,
    ReopensTheWindow,
    ExpiresLate,
]


@pytest.mark.parametrize("defect", DEFECTS, ids=lambda defect: defect.__name__)
def test_the_tables_catch(defect: type[Any], monkeypatch: pytest.MonkeyPatch) -> None:
    algorithm = next(name for name, sound in BUCKETS.items() if sound is defect.__bases__[0])
    monkeypatch.setitem(BUCKETS, algorithm, defect)
    assert any(play(group) for group in GROUPS if any(limit.algorithm == algorithm for limit in group.limits))


# ---- the rest ----------------------------------------------------------------------------------------------


def test_one_request_takes_from_one_bucket_once() -> None:
    spec = Spec("a", key=("user",))
    with pytest.raises(ValueError, match="only once"):
        Oracle().apply(0, [(spec, (5, 1, 1), "u", 1), (spec, (5, 1, 1), "u", 1)])


def test_conduct_and_numbers_are_not_identity() -> None:
    oracle = Oracle()
    assert oracle.apply(0, [(Spec("a", key=("user",)), (5, 1, 1000), "u", 5)]).admitted
    changed = Spec("a", key=("user",), count_denied=True, mode="shadow")
    assert oracle.apply(0, [(changed, (7, 1, 1000), "u", 0)]).statuses[0].remaining == 2
    other = Spec("a", key=("tenant",))
    assert oracle.apply(0, [(other, (7, 1, 1000), "u", 0)]).statuses[0].remaining == 7


def test_a_copy_is_another_oracle() -> None:
    oracle = Oracle([Spec("a"), Spec("c", algorithm="concurrency", ttl_us=1000)])
    charges = [Charge("a", Numbers(5, 1, 1000), "u", 2), Charge("c", Numbers(1), "u", 1)]
    assert oracle.copy().apply(0, charges).admitted
    assert oracle.apply(0, charges).statuses[0].remaining == 3


def test_places_need_a_name_of_their_own() -> None:
    oracle = Oracle([Spec("c", algorithm="concurrency", ttl_us=1000)])
    oracle.apply(0, [Charge("c", Numbers(5), "u", 1, "mine")])
    with pytest.raises(ValueError, match="a name of their own"):
        oracle.apply(0, [Charge("c", Numbers(5), "u", 1, "mine")])


@pytest.mark.parametrize("zone", ["UTC", "Europe/Berlin", "America/St_Johns", "Pacific/Apia", "Asia/Kathmandu"])
@pytest.mark.parametrize("align", ["day", "month"])
def test_calendar_windows_follow_each_other(zone: str, align: str) -> None:
    """From end to end through three years: no gap, no overlap, and every instant lies in the window it is
    asked for."""
    now_us = 1_262_304_000 * 1_000_000  # 2010
    for _ in range(1100 if align == "day" else 36):
        start_us, end_us = calendar_window(now_us, align, zone)
        assert start_us <= now_us < end_us
        assert calendar_window(start_us, align, zone) == (start_us, end_us)
        assert calendar_window(end_us - 1, align, zone) == (start_us, end_us)
        assert calendar_window(end_us, align, zone)[0] == end_us
        now_us = end_us
