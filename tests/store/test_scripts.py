"""The scripts, case by case: what is taken, what is written and for how long, and what they refuse to touch."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import replace

import pytest
import redis.exceptions

from shield.policy.model import Limit, Numbers
from shield.store import Settlement
from shield.store.lua import CHECK, RELEASE, SETTLE
from tests.servers import Server, binaries, run_server
from tests.store.scripts import (
    FULL,
    MISPLACED,
    REFUSED,
    SLACK_MS,
    START_US,
    TAKEN,
    Ask,
    Both,
    Scripts,
    bucket,
    fixed,
    places,
    sliding,
)

SECOND_US = 1_000_000
DAY_US = 86_400 * SECOND_US
MAX_COST = 2**53 - 1


@pytest.fixture
def both(server: Server) -> Iterator[Both]:
    with server.client() as client:
        yield Both(Scripts(client))


@pytest.fixture
def scripts(both: Both) -> Scripts:
    return both.scripts


def test_names_are_pinned() -> None:
    """A script's name is its text. When one changes on purpose: are states of the old one still read right?"""
    assert (CHECK.sha, SETTLE.sha, RELEASE.sha) == (b"?", b"?", b"?")


# ---- all or nothing


def test_a_refusal_costs_nothing_on_any_limit(both: Both) -> None:
    """P9 of the field: 100 an hour and 2 a minute, ten tries, two served: 98 are left of the hour, not 90."""
    hour = fixed("hour", 100, 3600 * SECOND_US)
    minute = fixed("minute", 2, 60 * SECOND_US)
    admitted = [both.check(START_US, [Ask(hour, "k", 1), Ask(minute, "k", 1)]).admitted for _ in range(10)]
    assert admitted == [True, True] + [False] * 8
    assert both.check(START_US, [Ask(hour, "k", 0)]).statuses[0].remaining == 98


def test_a_refusal_writes_nothing(scripts: Scripts) -> None:
    asks = [
        Ask(bucket("one"), "k", 1),
        Ask(sliding("two"), "k", 1),
        Ask(places("three"), "k", 1),
        Ask(fixed("no", 0), "k", 1),
    ]
    assert scripts.check(START_US, asks).status == REFUSED
    assert scripts.client.exists(*[scripts.key(ask.limit, "k") for ask in asks]) == 0


def test_a_peek_writes_nothing(scripts: Scripts) -> None:
    asks = [Ask(bucket(), "k", 0), Ask(sliding(), "k", 0), Ask(fixed(), "k", 0), Ask(places(), "k", 0)]
    assert scripts.check(START_US, asks).status == TAKEN
    assert scripts.client.exists(*[scripts.key(ask.limit, "k") for ask in asks]) == 0


def test_a_first_refusal_is_free(both: Both) -> None:
    """P4: a first request of cost 9 against 5 a minute is refused and leaves the bucket as it was."""
    limit = sliding(limit=5)
    assert not both.check(START_US, [Ask(limit, "k", 9)]).admitted
    assert both.check(START_US, [Ask(limit, "k", 5)]).admitted


def test_what_does_not_fit_is_never_charged(both: Both) -> None:
    """P14: cost 5 with 1 left stays refused and stored as it was, however often it is asked."""
    for limit in (sliding(limit=10), bucket(burst=10, rate=(1, DAY_US)), fixed(limit=10)):
        assert both.check(START_US, [Ask(limit, "k", 9)]).admitted
        for _ in range(4):
            assert not both.check(START_US, [Ask(limit, "k", 5)]).admitted
        assert both.check(START_US, [Ask(limit, "k", 1)]).admitted


def test_shadow_limits_refuse_nothing_and_take_only_what_fits(both: Both) -> None:
    shadow = bucket("shadow", burst=1, rate=(1, DAY_US), mode="shadow")
    real = bucket("real", burst=3, rate=(1, DAY_US))
    first, second = (both.check(START_US, [Ask(shadow, "k", 1), Ask(real, "k", 1)]) for _ in range(2))
    assert first.admitted
    assert second.admitted
    assert [status.fits for status in second.statuses] == [False, True]
    assert second.states[0][0] == 1


def test_a_refusal_by_a_shadow_limits_neighbour_leaves_it_alone(both: Both) -> None:
    shadow = fixed("shadow", 5, mode="shadow", count_denied=True)
    assert not both.check(START_US, [Ask(shadow, "k", 1), Ask(fixed("none", 0), "k", 1)]).admitted
    assert both.check(START_US, [Ask(shadow, "k", 0)]).states[0][0] == 0


@pytest.mark.parametrize("limit", [bucket(burst=3, count_denied=True), fixed(limit=3, count_denied=True), sliding(limit=3, count_denied=True)],
                         ids=lambda limit: limit.algorithm)  # fmt: skip
def test_counted_refusals_stop_at_empty(both: Both, limit: Limit) -> None:
    assert not both.check(START_US, [Ask(limit, "k", 2), Ask(fixed("none", 0), "k", 1)]).admitted
    assert both.check(START_US, [Ask(limit, "k", 0)]).statuses[0].remaining == 1
    for cost in (5, MAX_COST):
        assert not both.check(START_US, [Ask(limit, "k", cost)]).admitted
    assert both.check(START_US, [Ask(limit, "k", 0)]).statuses[0].remaining == 0
    refused = both.check(START_US, [Ask(replace(limit, name="g"), "k", 1)], refused=True)
    assert not refused.admitted
    assert refused.statuses[0].remaining == 2


# ---- exact numbers


@pytest.mark.parametrize(
    ("c", "p", "burst"),
    [(1, 30 * DAY_US, 1), (1, 30 * DAY_US, 10**9), (1, 1, 10**9), (1, 1, 1), (2_591_999_999_999, 2_592_000_000_000, 10**9),
     (999_983, 2_591_999_999_999, 10**9), (1, 1_428_571, 7)],
)  # fmt: skip
def test_extreme_rates_agree_to_the_microsecond(both: Both, c: int, p: int, burst: int) -> None:
    """Refused one microsecond before retry_after, admitted at it; and what is left afterwards is exact."""
    limit = bucket(rate=(c, p), burst=burst)
    now_us = START_US
    assert both.check(now_us, [Ask(limit, "k", burst)]).admitted
    for cost in (1, burst // 2 + 1, burst):
        wait_us = both.check(now_us, [Ask(limit, "k", cost)]).statuses[0].retry_after_us
        assert wait_us is not None
        if now_us + wait_us >= 2**52:
            continue
        assert not both.check(now_us + wait_us - 1, [Ask(limit, "k", cost)]).admitted
        now_us += wait_us
        assert both.check(now_us, [Ask(limit, "k", cost)]).admitted


def test_fractions_are_refilled(both: Both) -> None:
    """P2: 45 a minute, burst 5, one try a second for 600 seconds: 454 are admitted, not 302."""
    limit = bucket(rate=(3, 4 * SECOND_US), burst=5)
    admitted = sum(both.check(START_US + second * SECOND_US, [Ask(limit, "k", 1)]).admitted for second in range(600))
    assert admitted == 454


def test_a_short_bucket_is_not_forgotten_at_once(both: Both) -> None:
    """P1: 1000/s with burst 100, 300 hits at one instant: 100 are admitted, and the key is there."""
    limit = bucket(rate=(1, 1000), burst=100)
    assert sum(both.check(START_US, [Ask(limit, "k", 1)]).admitted for _ in range(300)) == 100
    assert both.scripts.client.pttl(both.scripts.key(limit, "k")) > 100


def test_sub_microsecond_drain_has_a_time_to_live(server: Server) -> None:
    """One unit at a million a second drains in a microsecond: the time to live is rounded up and never 0."""
    with server.client() as client:
        scripts = Scripts(client, slack_ms=0)
        limit = bucket(rate=(1, 1), burst=10)
        # The key may be gone a millisecond later; that it was written at all shows in the reply of SET
        # inside.
        assert scripts.check(START_US, [Ask(limit, "k", 1)]).status == TAKEN


def test_huge_costs_neither_wrap_nor_round(both: Both) -> None:
    for limit in (bucket(burst=10**9), fixed(limit=10**9), sliding(limit=10**9), places()):
        for cost in (10**9 + 1, 2**31, 2**32, 2**52, MAX_COST - 1, MAX_COST):
            outcome = both.check(START_US, [Ask(limit, "k", cost)])
            assert outcome.statuses[0].retry_after_us is None


# ---- time


@pytest.mark.parametrize("back_us", [1, 5 * SECOND_US, 10 * SECOND_US, 10 * SECOND_US + 1, 400 * DAY_US])
def test_a_clock_set_back_mints_nothing(both: Both, back_us: int) -> None:
    limits = [
        bucket(burst=10),
        fixed(limit=10, window_us=10 * SECOND_US),
        sliding(limit=10, window_us=10 * SECOND_US),
    ]
    for limit in limits:
        assert both.check(START_US, [Ask(limit, "k", 10)]).admitted
        assert not both.check(START_US - back_us, [Ask(limit, "k", 1)]).admitted
        assert not both.check(START_US - back_us, [Ask(limit, "k", 1)]).admitted


def test_a_bucket_far_ahead_recovers_although_it_only_refuses(both: Both) -> None:
    """The rebase is written by a refusal: without it every later request would find the bucket as far ahead."""
    limit = bucket(burst=10)
    assert both.check(START_US + 400 * DAY_US, [Ask(limit, "k", 1)]).admitted
    assert not both.check(START_US, [Ask(limit, "k", 1)]).admitted
    assert both.check(START_US + SECOND_US, [Ask(limit, "k", 1)]).admitted
    window = sliding(limit=1)
    assert both.check(START_US + 400 * DAY_US, [Ask(window, "k", 1)]).admitted
    assert not both.check(START_US, [Ask(window, "k", 1)]).admitted
    assert both.check(START_US + 120 * SECOND_US, [Ask(window, "k", 1)]).admitted


def test_a_peek_at_a_bucket_far_ahead_leaves_it(both: Both) -> None:
    limit = bucket(burst=10)
    assert both.check(START_US + 400 * DAY_US, [Ask(limit, "k", 1)]).admitted
    before = both.scripts.client.get(both.scripts.key(limit, "k"))
    assert both.check(START_US, [Ask(limit, "k", 0)]).statuses[0].remaining == 0
    assert both.scripts.client.get(both.scripts.key(limit, "k")) == before


def test_without_an_instant_the_servers_clock_counts(scripts: Scripts) -> None:
    seconds, microseconds = scripts.client.time()
    answer = scripts.check(None, [Ask(bucket(), "k", 1)])
    assert 0 <= answer.now_us - (seconds * SECOND_US + microseconds) < 60 * SECOND_US
    assert answer.states[0][2] == answer.now_us


def test_places_run_out_to_the_microsecond(both: Both) -> None:
    limit = places(limit=2, ttl_us=1_000)
    assert both.check(START_US, [Ask(limit, "k", 2)]).admitted
    assert not both.check(START_US + 999, [Ask(limit, "k", 1)]).admitted
    assert both.check(START_US + 1_000, [Ask(limit, "k", 2)]).admitted


def test_places_taken_before_the_clock_went_back_keep_their_key_alive(scripts: Scripts) -> None:
    limit = places(limit=2, ttl_us=60 * SECOND_US)
    scripts.check(START_US + 1_000 * SECOND_US, [Ask(limit, "k", 1)])
    scripts.check(START_US, [Ask(limit, "k", 1)])
    assert scripts.client.pttl(scripts.key(limit, "k")) > 1_050_000


def test_a_bucket_ahead_of_the_clock_lives_as_long_as_that(scripts: Scripts) -> None:
    limit = bucket(rate=(1, SECOND_US), burst=3600)
    scripts.check(START_US + 1_800 * SECOND_US, [Ask(limit, "k", 1)])
    scripts.check(START_US, [Ask(limit, "k", 1)])
    assert scripts.client.pttl(scripts.key(limit, "k")) > SLACK_MS + 1_800_000


def test_a_window_stands_still_while_the_clock_is_behind_it(both: Both) -> None:
    minute_us = 60 * SECOND_US
    start_us = START_US - START_US % minute_us
    limit = sliding(limit=10, window_us=minute_us)
    both.check(start_us - 1, [Ask(limit, "k", 8)])
    assert both.check(start_us, [Ask(limit, "k", 1)]).admitted
    behind_us = start_us - minute_us // 2
    assert both.check(behind_us, [Ask(limit, "k", 1)]).admitted
    refused = both.check(behind_us, [Ask(limit, "k", 1)])
    assert not refused.admitted
    # Eight fade from where this window starts, half a minute from now.
    assert refused.statuses[0].retry_after_us == minute_us // 2 + minute_us - 7 * minute_us // 8


def test_what_fades_is_rounded_up(both: Both) -> None:
    """Seven units of a window of ten, three microseconds in: 4.9 of them count, so five, and five fit beside them."""
    limit = sliding(limit=10, window_us=10)
    start_us = START_US - START_US % 10
    both.check(start_us, [Ask(limit, "k", 7)])
    assert both.check(start_us + 13, [Ask(limit, "k", 0)]).statuses[0].remaining == 5
    assert not both.check(start_us + 13, [Ask(limit, "k", 6)]).admitted
    assert both.check(start_us + 13, [Ask(limit, "k", 5)]).admitted


# ---- numbers are not identity


def test_numbers_change_and_what_was_spent_stays_spent(both: Both) -> None:
    slow, fast = Numbers(10, 1, 3_000_000), Numbers(20, 1, 7)
    limit = bucket(burst=10, rate=(1, 3_000_000))
    assert both.check(START_US, [Ask(limit, "k", 10, slow)]).admitted
    assert both.check(START_US + 1, [Ask(limit, "k", 10, fast)]).admitted
    assert not both.check(START_US + 1, [Ask(limit, "k", 1, slow)]).admitted
    assert both.check(START_US + 1, [Ask(limit, "k", 0, Numbers(5, 1, 11))]).statuses[0].remaining == 0


def test_a_part_of_a_unit_may_round_up_to_a_whole_one(both: Both) -> None:
    """Two thirds of a unit in ticks of 3 are one unit in ticks of 1: rounded up, so that nothing is minted."""
    limit = bucket(burst=10, rate=(1, 3))
    both.check(START_US, [Ask(limit, "k", 5)])
    assert both.check(START_US + 1, [Ask(limit, "k", 1)]).states[0][:2] == (5, 2)
    assert both.check(START_US + 1, [Ask(limit, "k", 0, Numbers(10, 1, 1))]).states[0][:2] == (6, 0)


# ---- calendars


def test_calendar_windows_turn_where_the_zone_does(both: Both) -> None:
    day = fixed("day", 5, DAY_US, align="day", timezone="America/Sao_Paulo")
    start_us, end_us = (
        1_763_866_800 * SECOND_US,
        1_763_953_200 * SECOND_US,
    )  # 23 November 2025, local midnights
    assert both.check(end_us - 1, [Ask(day, "k", 5)]).states[0] == (5, 0, start_us, end_us)
    assert not both.check(end_us - 1, [Ask(day, "k", 1)]).admitted
    assert both.check(end_us, [Ask(day, "k", 5)]).admitted


def test_boundaries_that_do_not_hold_take_nothing(scripts: Scripts) -> None:
    """A node whose own clock is days off learns the server's time, and asks again with boundaries around
    that.
    """
    day = fixed("day", 5, DAY_US, align="day", timezone="UTC")
    asks = [Ask(bucket(), "k", 1), Ask(day, "k", 1)]
    for wrong_us in (-3 * DAY_US, 3 * DAY_US):
        answer = scripts.check(START_US, asks, around_us=START_US + wrong_us)
        assert (answer.now_us, answer.status) == (START_US, MISPLACED)
    assert scripts.client.exists(scripts.key(asks[0].limit, "k"), scripts.key(day, "k")) == 0
    for near_us in (-DAY_US, 0, DAY_US):
        assert scripts.check(START_US, asks, around_us=START_US + near_us).status == TAKEN


# ---- places


def test_places_come_free_by_release_or_by_time(both: Both) -> None:
    limit = places(limit=2, ttl_us=10 * SECOND_US)
    first, second = both.scripts.lease(), both.scripts.lease()
    assert both.check(START_US, [Ask(limit, "k", 1, lease=first)]).admitted
    assert both.check(START_US + SECOND_US, [Ask(limit, "k", 1, lease=second)]).admitted
    full = both.check(START_US + SECOND_US, [Ask(limit, "k", 1)])
    assert full.statuses[0].retry_after_us == SECOND_US
    assert full.states[0] == (2, START_US + 10 * SECOND_US)
    assert both.release(START_US + SECOND_US, limit, "k", second) == 1
    assert both.release(START_US + SECOND_US, limit, "k", second) == 0
    assert both.check(START_US + SECOND_US, [Ask(limit, "k", 1)]).admitted
    assert both.release(START_US + 10 * SECOND_US, limit, "k", first) == 0, "it had run out by itself"
    assert both.check(START_US + 10 * SECOND_US, [Ask(limit, "k", 1)]).admitted


def test_a_lease_of_several_places_is_freed_whole(both: Both) -> None:
    limit = places(limit=1024)
    lease = both.scripts.lease()
    assert both.check(START_US, [Ask(limit, "k", 1000, lease=lease)]).admitted
    assert not both.check(START_US, [Ask(limit, "k", 25)]).admitted
    assert both.release(START_US, limit, "k", lease) == 1000
    assert both.scripts.client.exists(both.scripts.key(limit, "k")) == 0


def test_places_of_a_lowered_limit(both: Both) -> None:
    limit = places(limit=5)
    for _ in range(5):
        assert both.check(START_US, [Ask(limit, "k", 1)]).admitted
    lowered = both.check(START_US + 1, [Ask(limit, "k", 1, Numbers(2))])
    assert not lowered.admitted
    assert lowered.states[0] == (5, START_US + 60 * SECOND_US)


# ---- time to live


def test_every_key_expires_and_none_too_early(server: Server) -> None:
    """P5 and P15: the first write sets the time to live, rounded up, and never again without one."""
    with server.client() as client:
        scripts = Scripts(client, slack_ms=0)
        slow = Numbers(3, 1, 10 * SECOND_US)
        limits = {
            bucket("b", rate=(1, 100_000), burst=100): 200,
            bucket("p", rate=(1, 100_000), burst=100, plans={"free": slow}): 20_000,
            fixed("f", window_us=10 * SECOND_US): 10_000 - START_US % (10 * SECOND_US) // 1000,
            sliding("s", window_us=10 * SECOND_US): 20_000 - START_US % (10 * SECOND_US) // 1000,
            places("c", ttl_us=7_000_500): 7_001,
        }
        for limit, expected_ms in limits.items():
            for hit in (1, 2):
                scripts.check(START_US, [Ask(limit, "k", 1)])
                left_ms = client.pttl(scripts.key(limit, "k"))
                due_ms = expected_ms * (hit if limit.algorithm == "token-bucket" else 2) // 2
                assert due_ms - 2_000 < left_ms <= due_ms + 1, limit.name


def test_a_part_of_a_millisecond_is_a_millisecond(server: Server) -> None:
    with server.client() as client:
        scripts = Scripts(client, slack_ms=0)
        limit = bucket(rate=(1, 100_500), burst=1)
        left_ms = []
        for i in range(100):
            scripts.check(START_US, [Ask(limit, f"k{i}", 1)])
            left_ms.append(client.pttl(scripts.key(limit, f"k{i}")))
        assert max(left_ms) == 101


def test_an_emptied_bucket_may_be_forgotten_at_once(server: Server) -> None:
    """A time to live of 0 would be an error of SET."""
    with server.client() as client:
        scripts = Scripts(client, slack_ms=0)
        limit = bucket(rate=(1, SECOND_US), burst=10)
        scripts.check(START_US, [Ask(limit, "k", 3)])
        entry = scripts.entry(limit, "k", 3, 0)
        assert scripts.settle(START_US, Settlement(b"r", START_US + 1, START_US, (entry,))) == (START_US, 1)


def test_the_slack_is_added(scripts: Scripts) -> None:
    limit = bucket(rate=(1, SECOND_US), burst=10)
    scripts.check(START_US, [Ask(limit, "k", 10)])
    assert SLACK_MS + 8_000 < scripts.client.pttl(scripts.key(limit, "k")) <= SLACK_MS + 10_001


def test_the_slowest_bucket_lives_long_enough(scripts: Scripts) -> None:
    """A billion units at one a month: 82 million years, still a time to live the server accepts."""
    limit = bucket(rate=(1, 30 * DAY_US), burst=10**9)
    assert scripts.check(START_US, [Ask(limit, "k", 10**9)]).status == TAKEN
    assert scripts.client.pttl(scripts.key(limit, "k")) > 2**52


def test_more_than_a_server_can_wait_is_cut_to_what_it_can(scripts: Scripts) -> None:
    limit = bucket(rate=(1, 30 * DAY_US), burst=10**9)
    scripts.client.set(scripts.key(limit, "k"), struct.pack("<Bdddd", 17, 2**32 - 1, 0, START_US, 30 * DAY_US))
    entry = scripts.entry(limit, "k", 3, 0)
    assert scripts.settle(START_US, Settlement(b"r", 2**52, START_US, (entry,)))[1] == 1
    assert scripts.client.pttl(scripts.key(limit, "k")) > 2**52


# ---- settling


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
    left_ms = scripts.client.pttl(scripts.forms.mark_key(b"r" * 16))
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


# ---- what was not written by these scripts

GARBAGE = [
    b"",
    b"7",
    b"x" * 33,
    b"\x11" + b"\xff" * 32,
    struct.pack("<Bdddd", 18, 1, 0, START_US, 1_000_000),
    struct.pack("<Bdddd", 17, -1, 0, START_US, 1_000_000),
    struct.pack("<Bdddd", 17, 0.5, 0, START_US, 1_000_000),
    struct.pack("<Bdddd", 17, 1, 1_000_000, START_US, 1_000_000),
    struct.pack("<Bdddd", 17, 1, 0, float("nan"), 1_000_000),
    struct.pack("<Bdddd", 17, 1, 0, START_US, 0),
    struct.pack("<Bdddd", 17, 1, 0, START_US, float("inf")),
    struct.pack("<Bdddd", 17, 2.0**32, 0, START_US, 1_000_000),
]


@pytest.mark.parametrize("stored", GARBAGE)
def test_a_foreign_value_is_an_error_and_stays(scripts: Scripts, stored: bytes) -> None:
    limit, other = bucket("mine"), bucket("other")
    key = scripts.key(limit, "k")
    scripts.client.set(key, stored)
    with pytest.raises(redis.exceptions.ResponseError, match="was not written by this version"):
        scripts.check(START_US, [Ask(other, "k", 1), Ask(limit, "k", 1)])
    with pytest.raises(redis.exceptions.ResponseError, match="was not written by this version"):
        scripts.settle(START_US, Settlement(b"r", 2**52, START_US, (scripts.entry(limit, "k", 2, 1),)))
    assert scripts.client.get(key) == stored
    assert scripts.client.exists(scripts.key(other, "k"), scripts.forms.mark_key(b"r")) == 0


def test_a_key_of_another_type_is_an_error_and_stays(scripts: Scripts) -> None:
    for limit in (bucket("mine"), fixed("mine"), sliding("mine")):
        scripts.client.delete(scripts.key(limit, "k"))
        scripts.client.rpush(scripts.key(limit, "k"), "a list")
        with pytest.raises(redis.exceptions.ResponseError, match="was not written by this version"):
            scripts.check(START_US, [Ask(bucket("other"), "k", 1), Ask(limit, "k", 1)])
        with pytest.raises(redis.exceptions.ResponseError, match="WRONGTYPE"):
            scripts.settle(START_US, Settlement(b"r", 2**52, START_US, (scripts.entry(limit, "k", 2, 1),)))
        assert scripts.client.type(scripts.key(limit, "k")) == b"list"
    limit = places("mine2")
    scripts.client.set(scripts.key(limit, "k"), "text")
    with pytest.raises(redis.exceptions.ResponseError, match="WRONGTYPE"):
        scripts.check(START_US, [Ask(bucket("other"), "k", 1), Ask(limit, "k", 1)])
    assert scripts.client.exists(scripts.key(bucket("other"), "k")) == 0


def test_numbers_that_do_not_match_the_keys_are_refused(scripts: Scripts) -> None:
    for script, arguments in ((CHECK, (b"x" * 79, b"")), (SETTLE, (b"\0" * 33, b""))):
        with pytest.raises(redis.exceptions.ResponseError, match="do not match"):
            scripts.client.evalsha(script.sha, 1, b"key", *arguments)


# ---- a server without memory


@pytest.mark.parametrize("kind", sorted(binaries()))
def test_out_of_memory_takes_nothing(kind: str) -> None:
    """Redis refuses the first write of a script or none: whatever is taken, all of it is."""
    with run_server(kind, binaries()[kind], args=["--maxmemory-policy", "noeviction"]) as server:
        scripts = Scripts(server.client())
        known, other = bucket("known"), bucket("other")
        assert scripts.check(START_US, [Ask(known, "k", 1)]).status == TAKEN
        scripts.client.config_set("maxmemory", 1)
        asks = [Ask(known, "k", 1), Ask(other, "k", 0), Ask(places(), "k", 1)]
        answer = scripts.check(START_US, asks)
        assert (answer.status, answer.verdicts) == (FULL, (2, 0, 2))
        assert [state[0] for state in answer.states] == [1, 0, 0]
        counted = fixed(limit=1, count_denied=True)
        assert scripts.check(START_US, [Ask(counted, "k", 2), Ask(known, "k", 1)]).status == REFUSED
        with pytest.raises(redis.exceptions.ResponseError, match="OOM command not allowed|used memory > 'maxmemory'"):
            scripts.settle(START_US, Settlement(b"r", 2**52, START_US, (scripts.entry(known, "k", 1, 0),)))
        scripts.client.config_set("maxmemory", 0)
        assert scripts.client.keys("*") == [scripts.key(known, "k")]
        assert scripts.check(START_US, asks).states == ((2, 0, START_US), (0, 0, START_US), (1, 0))
