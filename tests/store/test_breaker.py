"""The breaker: time is an argument, so every instant can be looked at."""

from __future__ import annotations

import pytest

from shield.store.breaker import Breaker


def make() -> Breaker:
    return Breaker(threshold=3, cool_down_us=100, max_cool_down_us=350)


def open_at(breaker: Breaker, now_us: int) -> None:
    for i in range(3):
        assert breaker.allow(now_us - 2 + i)
        breaker.failure(now_us - 2 + i, now_us - 2 + i)
    assert breaker.state == "open"


def test_failures_in_a_row_open_it() -> None:
    breaker = make()
    for instant in (1, 2):
        breaker.failure(instant, instant)
    breaker.success()
    for instant in (3, 4):
        breaker.failure(instant, instant)
    assert breaker.state == "closed"
    breaker.failure(5, 5)
    assert (breaker.state, breaker.opened) == ("open", 1)


def test_what_was_asked_before_the_last_failure_is_no_news() -> None:
    breaker = make()
    for _ in range(100):
        breaker.failure(asked_us=10, now_us=30)
    assert breaker.state == "closed"
    breaker.failure(asked_us=31, now_us=51)
    breaker.failure(asked_us=29, now_us=52)
    assert breaker.state == "closed"
    breaker.failure(asked_us=52, now_us=72)
    assert not breaker.allow(73)


def test_nothing_passes_until_the_cool_down_is_over_and_then_one_probe() -> None:
    breaker = make()
    open_at(breaker, 1000)
    assert not breaker.allow(1099)
    assert not breaker.would_allow(1099)
    assert breaker.would_allow(1100)
    assert breaker.allow(1100)
    assert breaker.state == "half-open"
    assert not breaker.would_allow(1101)
    assert not breaker.allow(1101)


def test_a_probe_that_succeeds_closes_it() -> None:
    breaker = make()
    open_at(breaker, 1000)
    assert breaker.allow(1100)
    breaker.success()
    assert breaker.state == "closed"
    assert breaker.would_allow(1101)
    assert all(breaker.allow(1101) for _ in range(10))


def test_probes_that_fail_wait_twice_as_long_up_to_a_bound() -> None:
    breaker = make()
    open_at(breaker, 1000)
    now_us = 1100
    for wait_us in (200, 350, 350):
        assert breaker.allow(now_us)
        breaker.failure(now_us, now_us)
        assert not breaker.allow(now_us + wait_us - 1)
        now_us += wait_us
    assert breaker.allow(now_us)
    breaker.success()
    open_at(breaker, now_us + 10)
    assert breaker.allow(now_us + 10 + 100), "a success forgets how long it has been"


def test_stragglers_do_not_prolong_it() -> None:
    breaker = make()
    open_at(breaker, 1000)
    breaker.failure(asked_us=999, now_us=1050)
    assert breaker.allow(1100)
    breaker.failure(asked_us=990, now_us=1101)
    assert breaker.state == "half-open"


def test_a_probe_without_a_verdict_is_replaced() -> None:
    breaker = make()
    open_at(breaker, 1000)
    assert breaker.allow(1100)
    breaker.undecided()
    assert breaker.allow(1101)
    assert not breaker.allow(1102)
    assert breaker.allow(1101 + 350), "nobody ever reported on that one"


@pytest.mark.parametrize("wrong", [{"threshold": 0}, {"cool_down_us": 0}, {"cool_down_us": 10, "max_cool_down_us": 9}])
def test_bounds(wrong: dict[str, int]) -> None:
    with pytest.raises(ValueError, match="at least 1"):
        Breaker(**wrong)
