"""settle.lua, case by case: what is given back, what becomes debt, and that both happen once."""

from __future__ import annotations

import pytest

from shield.policy.model import Numbers
from shield.store import Settlement
from tests.store.scripts import (
    MISPLACED,
    SLACK_MS,
    START_US,
    Ask,
    Both,
    Scripts,
    bucket,
    fixed,
    sliding,
)

SECOND_US = 1_000_000
DAY_US = 86_400 * SECOND_US
MAX_COST = 2**53 - 1


def test_a_refund_is_capped_by_what_has_drained(both: Both) -> None:
    """The case of the contract: take 10 of burst 10, wait until full, take 10, refund 9 of the first: nothing
    is left.
    """
    limit = bucket(rate=(1, 10_000), burst=10)
    assert both.check(START_US, [Ask(limit, "k", 10)]).admitted
    later_us = START_US + 100_000
    assert both.check(later_us, [Ask(limit, "k", 10)]).admitted
    assert both.settle(later_us, b"r", later_us + 1, START_US, [(limit, "k", 10, 1, None)])
    assert not both.check(later_us, [Ask(limit, "k", 1)]).admitted


def test_a_receipt_is_settled_once_and_not_when_expired(both: Both) -> None:
    limit = fixed(limit=10)
    outcome = both.check(START_US, [Ask(limit, "k", 10)])
    charged = [(limit, "k", 10, 4, outcome.states[0][2])]
    expires_us = START_US + 5 * SECOND_US
    assert both.settle(START_US + 1, b"once", expires_us, START_US, charged)
    assert not both.settle(START_US + 2, b"once", expires_us, START_US, charged)
    assert not both.settle(expires_us, b"late", expires_us, START_US, charged)
    assert both.check(START_US + 3, [Ask(limit, "k", 0)]).statuses[0].remaining == 6


def test_the_mark_of_a_receipt_outlives_it(scripts: Scripts) -> None:
    expires_us = START_US + 300 * SECOND_US
    entry = scripts.entry(fixed(), "k", 2, 1, 0)
    scripts.settle(START_US, Settlement(b"r" * 16, expires_us, START_US, (entry,)))
    left_ms = scripts.client.pttl(scripts.forms.mark_key(b"r" * 16, entry.address))
    assert 298_000 + SLACK_MS < left_ms <= 300_000 + SLACK_MS


def test_debt_ends_one_limit_below_empty(both: Both) -> None:
    for limit in (bucket(burst=10), fixed(limit=10), sliding(limit=10)):
        start_us = START_US - START_US % (60 * SECOND_US)
        both.check(START_US, [Ask(limit, "k", 5)])
        assert both.settle(START_US, limit.name.encode(), 2**52, START_US, [(limit, "k", 5, MAX_COST, start_us)])
        assert both.check(START_US, [Ask(limit, "k", 0)]).states[0][0] == 20


def test_debt_is_exact_and_never_forgiven(both: Both) -> None:
    limit = bucket(burst=10, rate=(1, 3))
    both.check(START_US, [Ask(limit, "k", 10)])
    later_us = START_US + 1
    for receipt, extra in enumerate((9, 1, 1, MAX_COST, 5)):
        both.settle(later_us, b"d%d" % receipt, 2**52, START_US, [(limit, "k", 0, extra, None)])
    assert both.check(later_us, [Ask(limit, "k", 0)]).states[0][:2] == (20, 0)
    lowered = Numbers(4, 1, 3)
    both.settle(later_us, b"low", 2**52, START_US, [(limit, "k", 0, 7, None, lowered)])
    assert both.check(later_us, [Ask(limit, "k", 0)]).states[0][:2] == (20, 0)
    for window in (fixed(limit=10), sliding(limit=10)):
        both.settle(START_US, window.name.encode(), 2**52, START_US, [(window, "k", 0, 20, 0)])
        both.settle(START_US, b"l" + window.name.encode(), 2**52, START_US, [(window, "k", 0, 7, 0, Numbers(4))])
        assert both.check(START_US, [Ask(window, "k", 0)]).states[0][0] == 20


@pytest.mark.parametrize("after_us", [-5, 0, 1, 2, 3, 4, 14, 15, 16, 100])
def test_a_refund_to_the_tick(both: Both, after_us: int) -> None:
    """Five units charged, four given back later: less what has drained since, and drained does not count backwards."""
    limit = bucket(burst=100, rate=(1, 3))
    both.check(START_US, [Ask(limit, "k", 50)])
    both.check(START_US, [Ask(limit, "k", 5)])
    both.settle(START_US + after_us, b"r", 2**52, START_US, [(limit, "k", 5, 1, None)])
    both.check(START_US + after_us, [Ask(limit, "k", 0)])


def test_a_settlement_that_finds_a_bucket_far_ahead_puts_it_right(both: Both) -> None:
    limit = bucket(burst=10)
    both.check(START_US + 400 * DAY_US, [Ask(limit, "k", 10)])
    both.settle(START_US, b"r", 2**52, START_US - SECOND_US * 20, [(limit, "k", 5, 4, None)])
    assert both.check(START_US + SECOND_US, [Ask(limit, "k", 1)]).admitted


def test_debt_stays_debt_when_the_clock_is_set_far_back(both: Both) -> None:
    for limit in (bucket(burst=10), fixed(limit=10), sliding(limit=10)):
        both.settle(START_US, limit.name.encode(), 2**52, START_US, [(limit, "k", 0, 20, 0)])
        back_us = START_US - 400 * DAY_US
        assert both.check(back_us, [Ask(limit, "k", 1)]).states[0][0] == 20


def test_drain_that_the_bucket_has_seen_is_not_refunded_again(both: Both) -> None:
    """Ten units drained while the clock ran ahead. Set back, it does not know of them; the bucket does."""
    limit = bucket(burst=10, rate=(1, SECOND_US))
    both.check(START_US, [Ask(limit, "k", 10)])
    both.check(START_US + 10 * SECOND_US, [Ask(limit, "k", 10)])
    both.settle(START_US + SECOND_US, b"r", 2**52, START_US, [(limit, "k", 10, 0, None)])
    assert not both.check(START_US + SECOND_US, [Ask(limit, "k", 1)]).admitted


def test_a_window_is_given_back_only_its_own(both: Both) -> None:
    limit = sliding(limit=10, window_us=60 * SECOND_US)
    start_us = START_US - START_US % (60 * SECOND_US)
    both.check(START_US, [Ask(limit, "k", 8)])
    for windows, left in ((1, 1), (2, 0)):
        later_us = start_us + windows * 60 * SECOND_US
        both.check(later_us, [Ask(limit, "k", 1)])
        charged = [(limit, "k", 8, 0, start_us)]
        assert both.settle(later_us, b"w%d" % windows, 2**52, START_US, charged)
        assert both.check(later_us, [Ask(limit, "k", 0)]).states[0][:2] == (1, 1 - left)


def test_settling_across_a_calendar_boundary_asks_again(scripts: Scripts) -> None:
    day = fixed("day", 5, DAY_US, align="day", timezone="UTC")
    entry = scripts.entry(day, "k", 1, 5, START_US - START_US % DAY_US)
    settlement = Settlement(b"r", 2**52, START_US, (entry,))
    assert scripts.settle(START_US, settlement, around_us=START_US - 9 * DAY_US) == (START_US, MISPLACED)
    assert scripts.settle(START_US, settlement) == (START_US, 1), "asking in vain did not use the receipt up"
