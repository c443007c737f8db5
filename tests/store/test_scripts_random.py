"""Random lives of buckets, every answer held against exact fractions."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from shield.policy.model import Limit, Numbers
from tests.servers import Server
from tests.store.scripts import START_US, Ask, Both, Scripts, bucket, fixed, places, sliding

DAY_US = 86_400_000_000
MAX_COST = 2**53 - 1

# (burst, c, p): from one unit in thirty days to one a microsecond, ordinary and prime, reduced.
RATES = [
    (1, 1, 30 * DAY_US),
    (10**9, 1, 30 * DAY_US),
    (10**9, 1, 1),
    (1, 1, 1),
    (200, 1, 10_000),
    (7, 5, 432_000),
    (10**9, 999_983, 30 * DAY_US - 1),
    (10**9, 2_591_999_999_999, 2_592_000_000_000),
    (3, 1_000_003, 2_147_483_647),
    (10**6, 125, 432),
]
WINDOWS_US = [1, 7, 1_000, 60_000_000, 86_399_999_999, 30 * DAY_US]
CALENDARS = [("day", "UTC"), ("day", "America/Sao_Paulo"), ("month", "Europe/Oslo"), ("month", "UTC")]


def costs() -> st.SearchStrategy[int]:
    return st.one_of(
        st.integers(0, 12),
        st.sampled_from([0, 1, 10**9, 10**9 - 1, 10**9 + 1, 2**31, 2**32, 2**52, MAX_COST]),
        st.integers(0, MAX_COST),
    )


def far_steps_us() -> st.SearchStrategy[int]:
    """How the clock moves now and then: very far, or by amounts that mean nothing to any limit."""
    return st.one_of(
        st.integers(-5_000_000, 10_000_000),
        st.sampled_from([DAY_US, 31 * DAY_US, -DAY_US, -40 * DAY_US, 10**15, -(10**15)]),
        st.integers(-(10**14), 10**14),
    )


def spans_us(limit: Limit, numbers: list[Numbers]) -> list[int]:
    """The times that mean something to a limit: a unit's and a full bucket's drain, a window, a lease."""
    if limit.algorithm == "token-bucket":
        units = [(unit, many) for many in numbers for unit in (1, many.limit)]
        return [min(-(-unit * many.refill_us // many.refill_units), 10**14) for unit, many in units]
    return [limit.ttl_us or limit.window_us or 30 * DAY_US]


def conduct() -> st.SearchStrategy[dict[str, Any]]:
    return st.fixed_dictionaries(
        {"count_denied": st.booleans(), "mode": st.sampled_from(["enforce", "enforce", "enforce", "shadow"])}
    )


@st.composite
def limits(draw: st.DrawFn, name: str) -> tuple[Limit, list[Numbers]]:
    """A limit, and the numbers it may come to have."""
    how = draw(conduct())
    algorithm = draw(st.sampled_from(["bucket", "bucket", "sliding", "fixed", "calendar", "places"]))
    if algorithm == "bucket":
        rates = draw(st.lists(st.sampled_from(RATES), min_size=1, max_size=3))
        numbers = [Numbers(*rate) for rate in rates]
        first = numbers[0]
        return bucket(name, (first.refill_units, first.refill_us), first.limit, **how), numbers
    units = draw(st.lists(st.sampled_from([1, 2, 5, 10, 100, 10**9]), min_size=1, max_size=2))
    if algorithm == "places":
        numbers = [Numbers(min(unit, 20)) for unit in units]
        ttl_us = draw(st.sampled_from([1, 1_000, 5_000_000, DAY_US]))
        return places(name, numbers[0].limit, ttl_us, **how), numbers
    numbers = [Numbers(unit) for unit in units]
    if algorithm == "calendar":
        align, timezone = draw(st.sampled_from(CALENDARS))
        window_us = DAY_US if align == "day" else None
        return fixed(name, units[0], window_us, align=align, timezone=timezone, **how), numbers
    make = sliding if algorithm == "sliding" else fixed
    return make(name, units[0], draw(st.sampled_from(WINDOWS_US)), **how), numbers


class Life:
    """One run: draws actions and carries them out on both sides."""

    def __init__(self, data: st.DataObject, both: Both) -> None:
        self.draw = data.draw
        self.both = both
        count = self.draw(st.integers(1, 4))
        self.limits = [self.draw(limits(f"l{i}")) for i in range(count)]
        self.spans_us = [span for limit, numbers in self.limits for span in spans_us(limit, numbers)]
        # On a multiple of every window, or a little off.
        self.now_us = START_US - START_US % (60 * DAY_US) + self.draw(st.sampled_from([0, 0, 1, -1, 123_456_789]))
        self.taken: list[tuple[int, list[Any]]] = []  # (charged_us, [(limit, key, cost, start_us)])
        self.leases: list[tuple[Limit, str, str]] = []
        self.receipts = 0

    def step_us(self) -> int:
        """Mostly a few quarters of a span that means something, give or take a microsecond, and mostly forwards."""
        kind = self.draw(st.integers(0, 9))
        if kind == 0:
            return self.draw(far_steps_us())
        if kind <= 3:
            return 0
        span_us = self.draw(st.sampled_from(self.spans_us))
        quarters = self.draw(st.sampled_from([0, 1, 1, 2, 3, 4, 4, 5, 8, 9, -1, -2, -4, -5]))
        return span_us * quarters // 4 + self.draw(st.sampled_from([0, 0, 1, -1]))

    def act(self) -> None:
        self.now_us = min(max(self.now_us + self.step_us(), 10**15), 2**52 - 10**9)
        action = self.draw(st.sampled_from(["check"] * 8 + ["settle", "settle", "release"]))
        if action == "settle" and self.taken:
            self.settle()
        elif action == "release" and self.leases:
            limit, key, lease = self.draw(st.sampled_from(self.leases))
            self.both.release(self.now_us, limit, key, lease)
        else:
            self.check()

    def check(self) -> None:
        chosen = [pair for pair in self.limits if self.draw(st.integers(0, 3)) > 0] or self.limits[:1]
        asks = []
        for limit, numbers in chosen:
            key = self.draw(st.sampled_from(["a", "a", "a", "b"]))
            now = self.draw(st.sampled_from(numbers))
            asks.append(Ask(limit, key, self.draw(self.cost_for(now)), now, self.both.scripts.lease()))
        outcome = self.both.check(self.now_us, asks, refused=self.draw(st.integers(0, 19)) == 0)
        if not outcome.admitted:
            return
        charged = []
        for ask, status, state in zip(asks, outcome.statuses, outcome.states, strict=True):
            if not status.fits or ask.cost == 0:
                continue
            if ask.limit.algorithm == "concurrency":
                assert ask.lease is not None
                self.leases.append((ask.limit, ask.key, ask.lease))
            else:
                start_us = None if ask.limit.algorithm == "token-bucket" else state[2]
                charged.append((ask.limit, ask.key, ask.cost, start_us))
        if charged:
            self.taken.append((self.now_us, charged))

    def cost_for(self, numbers: Numbers) -> st.SearchStrategy[int]:
        if numbers.limit <= 20:
            return st.integers(0, numbers.limit + 2)
        some = st.sampled_from([1, numbers.limit // 3, numbers.limit // 2, numbers.limit - 1, numbers.limit])
        return st.one_of(some, some, some, costs())

    def settle(self) -> None:
        charged_us, charged = self.draw(st.sampled_from(self.taken))
        settled = []
        for limit, key, cost, start_us in charged:
            numbers = next(numbers for known, numbers in self.limits if known is limit)
            actual = self.draw(st.one_of(st.integers(0, cost), st.sampled_from([0, cost, 2 * cost, MAX_COST])))
            settled.append((limit, key, cost, actual, start_us, self.draw(st.sampled_from(numbers))))
        self.receipts += self.draw(st.integers(0, 1))  # now and then one that was settled before
        expires_us = self.now_us + self.draw(st.sampled_from([300_000_000, 300_000_000, 1, 0]))
        self.both.settle(self.now_us, b"r%015d" % self.receipts, expires_us, charged_us, settled)


@settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck), print_blob=True)
@given(data=st.data())
def test_scripts_agree_with_exact_fractions(server: Server, data: st.DataObject) -> None:
    """Whatever is asked at whatever instants, under whatever numbers: state and verdict are the oracle's,
    exactly.
    """
    with server.client() as client:
        life = Life(data, Both(Scripts(client)))
        for _ in range(data.draw(st.integers(1, 30))):
            life.act()


if __name__ == "__main__":
    pytest.main([__file__])
