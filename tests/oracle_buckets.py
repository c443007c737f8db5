"""The oracle's buckets: one class for each algorithm, in exact fractions.

A bucket remembers what was used and when, never what is allowed. `at(now_us, numbers)` gives a copy of it,
brought to an instant under some numbers, and only such a copy is asked or changed. All four answer the same
questions:

    fits(cost)              may this cost be taken now?
    take(cost, lease)       take it
    penalise(cost)          charge a refusal, never beyond empty        } True when that
    refund(units, ...)      give back what was charged too much         } changed something
    owe(units)              charge what turned out to be missing        }
    remaining()             the largest whole cost that would fit now
    retry_after_us(cost)    how long until it fits: 0 when it does now, None when it never will
    reset_after_us()        how long until the bucket answers like a fresh one
"""

from __future__ import annotations

import copy
from fractions import Fraction
from math import ceil, floor
from typing import Any, NamedTuple

from tests.oracle_calendar import window_of

# A place is mostly freed by a release, long before it expires: never ask anyone to wait longer than this.
LONGEST_CONCURRENCY_WAIT_US = 1_000_000


class Numbers(NamedTuple):
    """What a limit allows: `limit` units, and for a token bucket `c` units back every `p` microseconds."""

    limit: int
    c: int = 0
    p: int = 0

    @property
    def rate(self) -> Fraction:
        """Units per microsecond."""
        return Fraction(self.c, self.p)


class Bucket:
    """What all algorithms share: being brought to an instant, as a copy."""

    def __init__(self, spec: Any) -> None:
        self.spec = spec
        self.now_us = 0
        self.numbers = Numbers(0)
        self.rebased = False  # so far ahead of the clock that it was put back: that has to be written

    def at(self, now_us: int, numbers: Numbers) -> Any:
        """A copy of this bucket as it stands at `now_us` under these numbers."""
        bucket = copy.copy(self)
        bucket.now_us, bucket.numbers, bucket.rebased = now_us, numbers, False
        bucket.touch()
        return bucket

    def touch(self) -> None:
        """Brings this copy to its `now_us`."""
        raise NotImplementedError


class TokenBucket(Bucket):
    """`level` units are used, counted at `at_us`; they drain at the rate. A fresh bucket has used nothing.

    The level is a whole number of ticks, where one unit is p ticks and c ticks drain per microsecond:
    draining and charging keep it so by themselves. Numbers with another p have another tick, and the level is
    rounded up to that, so that changing numbers mints nothing. It is the only rounding there is, and it is
    less than one tick.
    """

    level = Fraction(0)
    at_us = 0

    def touch(self) -> None:
        limit, p, rate = self.numbers.limit, self.numbers.p, self.numbers.rate
        self.level = Fraction(ceil(self.level * p), p)
        if self.at_us <= self.now_us:
            self.level = max(Fraction(0), self.level - (self.now_us - self.at_us) * rate)
            self.at_us = self.now_us
        elif self.ahead_us > ceil(limit / rate):
            # Further ahead than a full bucket takes to drain: no use of it explains that. Treat it as all
            # used; debt stays debt.
            self.level, self.at_us, self.rebased = max(self.level, Fraction(limit)), self.now_us, True
        # Else the clock went back a little: the bucket stands still until time has caught up with it.

    @property
    def ahead_us(self) -> int:
        """How long the bucket still stands still."""
        return max(0, self.at_us - self.now_us)

    def fits(self, cost: int) -> bool:
        return cost == 0 or self.level + cost <= self.numbers.limit

    def take(self, cost: int, lease: str | None) -> None:
        self.level += cost

    def penalise(self, cost: int) -> bool:
        return self._set(min(self.level + cost, max(self.level, Fraction(self.numbers.limit))))

    def refund(self, units: int, charged_us: int, start_us: int | None) -> bool:
        """Refill has given some of it back already since the charge; only the rest is given now.

        Time since the charge is the bucket's own, which does not go back with the clock. A bucket that was counted
        before the charge has been put back since, and counts as all used: nothing is given.
        """
        if self.at_us < charged_us:
            return False
        refilled = (self.at_us - charged_us) * self.numbers.rate
        return self._set(max(Fraction(0), self.level - max(Fraction(0), units - refilled)))

    def owe(self, units: int) -> bool:
        """Debt: at most one burst below empty."""
        return self._set(min(self.level + units, max(self.level, Fraction(2 * self.numbers.limit))))

    def _set(self, level: Fraction) -> bool:
        changed = level != self.level
        self.level = level
        return changed

    def remaining(self) -> int:
        return max(0, floor(self.numbers.limit - self.level))

    def retry_after_us(self, cost: int) -> int | None:
        if self.fits(cost):
            return 0
        if cost > self.numbers.limit:
            return None
        return self.ahead_us + ceil((self.level + cost - self.numbers.limit) / self.numbers.rate)

    def reset_after_us(self) -> int:
        return 0 if self.level == 0 else self.ahead_us + ceil(self.level / self.numbers.rate)

    def state(self, cost: int) -> tuple[int, ...]:
        """(units, ticks, at_us), where the level is units + ticks / p."""
        units = floor(self.level)
        ticks = (self.level - units) * self.numbers.p
        assert ticks.denominator == 1, "a level is a whole number of ticks"
        return units, int(ticks), self.at_us


class FixedWindow(Bucket):
    """`cur` units were used in the window [start_us, end_us)."""

    cur = 0
    prev = 0  # only a sliding window looks back
    start_us = -1  # fresh: before any window
    end_us = 0

    def touch(self) -> None:
        start_us, end_us = window_of(self.now_us, self.spec)
        if start_us > self.start_us:
            self.move_to(start_us, end_us)
        elif self.start_us - start_us > end_us - start_us:
            # The clock went back more than one window. What was used there is forgotten: treat it as all
            # used.
            self.cur, self.prev = max(self.cur, self.numbers.limit), 0
            self.start_us, self.end_us = start_us, end_us
            self.rebased = True
        # Else it is this window, or the clock went back into the one before: the later one goes on counting.

    def move_to(self, start_us: int, end_us: int) -> None:
        self.cur, self.start_us, self.end_us = 0, start_us, end_us

    def fits(self, cost: int) -> bool:
        return cost == 0 or self.cur + cost <= self.numbers.limit

    def take(self, cost: int, lease: str | None) -> None:
        self.cur += cost

    def penalise(self, cost: int) -> bool:
        return self._set(self.cur + min(cost, self.remaining()))

    def refund(self, units: int, charged_us: int, start_us: int | None) -> bool:
        """Only the window that was charged is given anything back."""
        return self.start_us == start_us and self._set(self.cur - min(units, self.cur))

    def owe(self, units: int) -> bool:
        """Debt: at most one limit below empty."""
        return self._set(min(self.cur + units, max(self.cur, 2 * self.numbers.limit)))

    def _set(self, cur: int) -> bool:
        changed = cur != self.cur
        self.cur = cur
        return changed

    def remaining(self) -> int:
        return max(0, self.numbers.limit - self.cur)

    def retry_after_us(self, cost: int) -> int | None:
        if self.fits(cost):
            return 0
        return None if cost > self.numbers.limit else self.end_us - self.now_us

    def reset_after_us(self) -> int:
        return 0 if self.cur == 0 else self.end_us - self.now_us

    def state(self, cost: int) -> tuple[int, ...]:
        return self.cur, self.prev, self.start_us, self.end_us


class SlidingWindow(FixedWindow):
    """The units of the window before count too, and fade evenly while the current one passes."""

    def move_to(self, start_us: int, end_us: int) -> None:
        self.prev = self.cur if start_us - self.start_us == self.spec.window_us else 0
        super().move_to(start_us, end_us)

    @property
    def fading(self) -> Fraction:
        """What of the previous window still counts. All of it while the clock is behind this window's
        start."""
        window_us = self.spec.window_us
        elapsed_us = max(0, self.now_us - self.start_us)
        return Fraction(self.prev * (window_us - elapsed_us), window_us)

    def fits(self, cost: int) -> bool:
        if cost == 0:
            return True
        slack = self.numbers.limit - self.cur - cost
        if slack < 0:
            return False
        return slack >= self.prev or self.fading <= slack

    def refund(self, units: int, charged_us: int, start_us: int | None) -> bool:
        if start_us is None or self.start_us != start_us + self.spec.window_us:
            return super().refund(units, charged_us, start_us)
        back = min(units, self.prev)
        self.prev -= back
        return back > 0

    def remaining(self) -> int:
        return max(0, floor(self.numbers.limit - self.cur - self.fading))

    def retry_after_us(self, cost: int) -> int | None:
        limit, window_us = self.numbers.limit, int(self.spec.window_us)
        if self.fits(cost):
            return 0
        if cost > limit:
            return None
        rest_us = self.end_us - self.now_us
        slack = limit - self.cur - cost
        if slack >= 0:  # in this window, once enough of the previous one has faded
            return rest_us - floor(Fraction(slack * window_us, self.prev))
        # In the next window, where what is current now is what fades.
        return rest_us + max(0, window_us - floor(Fraction((limit - cost) * window_us, self.cur)))

    def reset_after_us(self) -> int:
        if self.cur > 0:
            return self.end_us - self.now_us + int(self.spec.window_us)
        return self.end_us - self.now_us if self.prev > 0 else 0


class Concurrency(Bucket):
    """Places held under names, each until released or expired: `held[name] = (expiry_us, places)`."""

    def __init__(self, spec: Any) -> None:
        super().__init__(spec)
        self.held: dict[str, tuple[int, int]] = {}

    def touch(self) -> None:
        self.held = dict(self.held)  # nothing more: whether a place has expired depends on now alone

    def in_use(self) -> int:
        return sum(places for expiry_us, places in self.held.values() if self.now_us < expiry_us)

    def fits(self, cost: int) -> bool:
        return cost == 0 or self.in_use() + cost <= self.numbers.limit

    def take(self, cost: int, lease: str | None) -> None:
        if lease is None or lease in self.held:
            raise ValueError(f"places need a name of their own, not {lease!r}")
        self.held[lease] = (self.now_us + self.spec.ttl_us, cost)

    def release(self, lease: str) -> int:
        """Gives the places under this name back; how many came free by that."""
        expiry_us, places = self.held.pop(lease, (0, 0))
        return places if self.now_us < expiry_us else 0

    def penalise(self, cost: int) -> bool:
        return False  # a refusal cannot hold a place

    def refund(self, units: int, charged_us: int, start_us: int | None) -> bool:
        return False

    def owe(self, units: int) -> bool:
        return False

    def remaining(self) -> int:
        return max(0, self.numbers.limit - self.in_use())

    def enough_expire_us(self, cost: int) -> int:
        """The instant by which enough places have expired for this cost. 0: none need to, or it never
        fits."""
        if self.fits(cost) or cost > self.numbers.limit:
            return 0
        missing = self.in_use() + cost - self.numbers.limit
        live = [entry for entry in self.held.values() if self.now_us < entry[0]]
        return sorted(expiry_us for expiry_us, places in live for _ in range(places))[missing - 1]

    def retry_after_us(self, cost: int) -> int | None:
        if self.fits(cost):
            return 0
        if cost > self.numbers.limit:
            return None
        return min(LONGEST_CONCURRENCY_WAIT_US, self.enough_expire_us(cost) - self.now_us)

    def reset_after_us(self) -> int:
        return 0

    def state(self, cost: int) -> tuple[int, ...]:
        """(places in use, when enough of them have expired for this cost)."""
        return self.in_use(), self.enough_expire_us(cost)


BUCKETS: dict[str, type[Any]] = {
    "token-bucket": TokenBucket,
    "fixed-window": FixedWindow,
    "sliding-window": SlidingWindow,
    "concurrency": Concurrency,
}
