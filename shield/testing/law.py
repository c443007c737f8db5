"""Law 1, held against what was admitted: never more than the limit says, in any interval, in exact
integers."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from fractions import Fraction
from typing import Any, NamedTuple

from shield.rate import Rate


class Admission(NamedTuple):
    """What was admitted at an instant, and how much of it was given back later.

    A cost of 0 says only that the clock was seen at this instant.
    """

    at_us: int
    cost: int | Fraction = 1
    refunded: int | Fraction = 0


@dataclass(frozen=True, slots=True)
class Violation:
    """More was admitted from one admission to another, both included, than the limit allows."""

    first: int
    """Index of the first admission of the interval."""
    last: int
    from_us: int
    """Its instant; of a window limit, the start of the window."""
    to_us: int
    admitted: Fraction
    """Units, less what was refunded; of a sliding window with what still counts of the window before."""
    allowed: Fraction
    bucket: str = ""
    """From `replay_trace`: the limit's name and the key."""

    @property
    def excess(self) -> Fraction:
        return self.admitted - self.allowed

    def __str__(self) -> str:
        where = f"{self.bucket}: " if self.bucket else ""
        return (
            f"{where}{float(self.admitted):g} admitted in [{self.from_us}, {self.to_us}] us, "
            f"{float(self.allowed):g} allowed (admissions {self.first} to {self.last})"
        )


def check_trace(
    admissions: Iterable[Admission | tuple[Any, ...]], rate: Rate | str | tuple[int, int], burst: int
) -> list[Violation]:
    """Law 1 of a token bucket: in no interval [a, b] more than burst + rate * (b - a).

    `admissions` are Admissions, or tuples (at_us, cost) or (at_us, cost, refunded), in the order in which
    they were decided. The time between two of them is the clock's forward movement: a step back is worth
    nothing, and where a clock went forth and back unseen between two admissions, add one of cost 0 there.
    `rate` is a Rate, its text, or (c, p): c units every p microseconds. When numbers changed, give the
    largest. What was refunded is taken off its own admission; it is what was given back, which may be less
    than what was asked for.

    Returns the worst interval of every stretch that is over, the worst of all first; [] when the law holds.
    One pass, in integers. ValueError for admissions that are none.
    """
    c, p = _reduced(rate)
    found: list[Violation] = []
    worst: Violation | None = None
    # The level of a bucket without a ceiling: over all intervals that end here, the largest of units admitted
    # less units refilled, in ticks of 1 / p unit. Where it falls to zero a new interval begins.
    level: int | Fraction = 0
    first = first_us = forward_us = last_us = 0
    net: int | Fraction = 0
    for last, (at_us, units) in enumerate(_net(admissions)):
        moved_us = max(0, at_us - last_us) if last else 0
        level -= c * moved_us
        if level <= 0:
            level, net, first, first_us, forward_us = 0, 0, last, at_us, 0
        else:
            forward_us += moved_us
        last_us = at_us
        level += units * p
        net += units
        if level > burst * p:
            allowed = burst + Fraction(c * forward_us, p)
            here = Violation(first, last, first_us, at_us, Fraction(net), allowed)
            worst = here if worst is None or here.excess > worst.excess else worst
        elif worst is not None:
            found.append(worst)
            worst = None
    if worst is not None:
        found.append(worst)
    return sorted(found, key=lambda violation: -violation.excess)


def check_window_trace(
    admissions: Iterable[Admission | tuple[Any, ...]],
    limit: int,
    window: int | Callable[[int], tuple[int, int]],
    *,
    sliding: bool = False,
) -> list[Violation]:
    """Law 1 of a window limit: never more than its definition, less what was refunded.

    `window` is its length in microseconds, or for a calendar a function from an instant to the (start, end)
    that hold it. A fixed window admits `limit`; of a sliding one every admission must have fitted beside what
    still counts of the window before. `admissions` are as for `check_trace`: a window is opened by the
    clock's forward movement over its start, so what is admitted after a step back counts in the window that
    was open, and where the clock crossed a start unseen, add an admission of cost 0 on either side.

    Returns one violation for each window that is over, at its worst, the worst of all first.
    """
    if sliding and callable(window):
        raise ValueError("a sliding window has one length: give it in microseconds")
    bounds = window if callable(window) else _aligned(window)
    found: dict[int, Violation] = {}
    seen: int | None = None  # the start of the window that the last reading of the clock lay in
    opened = opened_us = first = 0
    cur: int | Fraction = 0
    prev: int | Fraction = 0
    for last, (at_us, units) in enumerate(_net(admissions)):
        start_us, end_us = bounds(at_us)
        window_us = end_us - start_us
        if seen is None or start_us > seen:
            prev = cur if seen is not None and start_us - seen == window_us else 0
            cur, opened, opened_us, first = 0, opened + 1, start_us, last
        seen = start_us
        cur += units
        fading = prev * (window_us - max(0, at_us - opened_us)) if sliding else 0
        if units > 0 and cur * window_us + fading > limit * window_us:
            counted = cur + Fraction(fading) / window_us
            here = Violation(first, last, opened_us, at_us, counted, Fraction(limit))
            if opened not in found or here.excess >= found[opened].excess:
                found[opened] = here
    return sorted(found.values(), key=lambda violation: -violation.excess)


def _net(admissions: Iterable[Admission | tuple[Any, ...]]) -> Iterator[tuple[int, int | Fraction]]:
    """(instant, units that were not given back) of each."""
    for index, entry in enumerate(admissions):
        admission = Admission(*entry)
        if not 0 <= admission.refunded <= admission.cost:
            raise ValueError(f"admission {index}: {admission} gives back what it never took")
        yield admission.at_us, admission.cost - admission.refunded


def _reduced(rate: Rate | str | tuple[int, int]) -> tuple[int, int]:
    if isinstance(rate, str):
        rate = Rate.parse(rate)
    return rate.reduced if isinstance(rate, Rate) else rate


def _aligned(window_us: int) -> Callable[[int], tuple[int, int]]:
    def bounds(now_us: int) -> tuple[int, int]:
        start_us = now_us - now_us % window_us
        return start_us, start_us + window_us

    return bounds
