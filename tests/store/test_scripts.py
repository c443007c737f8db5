"""The scripts, case by case: what is admitted, what it costs, and what time does to it."""

from __future__ import annotations

from dataclasses import replace
from importlib import resources

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from shield.policy.model import Limit, Numbers
from tests.servers import Server
from tests.store.scripts import (
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


@pytest.mark.parametrize(
    "limit",
    [bucket(burst=3, count_denied=True), fixed(limit=3, count_denied=True), sliding(limit=3, count_denied=True)],
    ids=lambda limit: limit.algorithm,
)
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


@settings(max_examples=300, deadline=None, suppress_health_check=list(HealthCheck))
@given(
    numbers=st.lists(
        st.tuples(
            st.one_of(st.integers(0, MAX_COST), st.sampled_from([2**52, MAX_COST, 2**50 - 1, 2**50])),
            st.one_of(st.integers(0, 2**42), st.sampled_from([2**42, 2**42 - 1, 2**41 + 1, 1])),
            st.one_of(st.integers(1, 2**42), st.sampled_from([2**42, 2**42 - 1, 3, 1, 7])),
        ),
        min_size=1,
        max_size=20,
    )
)
def test_products_are_divided_without_rounding(any_server: Server, numbers: list[tuple[int, int, int]]) -> None:
    """muldivmod against Python's integers, over all it promises to be exact for."""
    text = (resources.files("shield.store.lua") / "level.lua").read_text()
    text += """
        local out = {}
        for i = 1, #ARGV, 3 do
          local q, r = muldivmod(tonumber(ARGV[i]), tonumber(ARGV[i + 1]), tonumber(ARGV[i + 2]))
          out[#out + 1], out[#out + 2] = string.format('%.0f', q), string.format('%.0f', r)
        end
        return out"""
    with any_server.client() as client:
        told = [int(part) for part in client.eval(text, 0, *[one for triple in numbers for one in triple])]
    for (a, b, d), quotient, rest in zip(numbers, told[::2], told[1::2], strict=True):
        assert rest == a * b % d
        exact = a * b // d
        assert quotient == exact if exact < 2**53 else quotient >= 2**53


@pytest.mark.parametrize(
    ("c", "p", "burst"),
    [
        (1, 30 * DAY_US, 1),
        (1, 30 * DAY_US, 10**9),
        (1, 1, 10**9),
        (1, 1, 1),
        (2_591_999_999_999, 2_592_000_000_000, 10**9),
        (999_983, 2_591_999_999_999, 10**9),
        (1, 1_428_571, 7),
    ],
)
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
