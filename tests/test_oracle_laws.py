"""The contract's laws, held against the oracle: what every store is compared with has to be right first.

Numbers are small on purpose: at a few units and a few microseconds every edge is hit often.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from fractions import Fraction
from itertools import pairwise
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from shield.testing import Admission, check_trace, check_window_trace
from tests.oracle import Oracle, Outcome, Settled, Spec
from tests.oracle_buckets import Numbers

START_US = 1_000
EXAMPLES = 100  # a law; several thousand of each were tried when the laws were written
KEY = "k"

forward = st.integers(0, 12)
steps_of_time = st.one_of(forward, forward, st.sampled_from([0, 0, 1, 300]), st.integers(-40, -1))
slow = st.integers(0, 4)
costs = st.sampled_from([0, 1, 1, 2, 3, 4, 6])
rates = st.tuples(st.integers(1, 5), st.integers(5, 9))
bucket_numbers = st.builds(lambda limit, rate: Numbers(limit, *rate), st.integers(1, 6), rates)
window_numbers = st.builds(Numbers, st.integers(1, 6))


def law(*strategies: Any) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """`given`, without a deadline: fractions are slow, and so is a busy machine."""
    return lambda test: settings(max_examples=EXAMPLES, deadline=None)(given(*strategies)(test))


def buckets(**conduct: Any) -> st.SearchStrategy[tuple[Spec, Numbers]]:
    return st.tuples(st.just(Spec("bucket", key=("b",), **conduct)), bucket_numbers)


roomy = st.builds(lambda limit, rate: Numbers(limit, *rate), st.integers(4, 9), rates)
roomy_buckets = st.tuples(st.just(Spec("bucket", key=("b",))), roomy)


def windows(algorithm: str, **conduct: Any) -> st.SearchStrategy[tuple[Spec, Numbers]]:
    def spec(window_us: int) -> Spec:
        return Spec(algorithm, algorithm, key=("w",), window_us=window_us, **conduct)

    return st.tuples(st.builds(spec, st.integers(1, 15)), window_numbers)


def several(**conduct: Any) -> st.SearchStrategy[list[tuple[Spec, Numbers]]]:
    """Up to three limits of different kinds in one request."""
    kinds = (
        buckets(**conduct),
        windows("sliding-window", **conduct),
        windows("fixed-window", **conduct),
    )
    return st.lists(st.one_of(*kinds), min_size=1, max_size=3, unique_by=lambda limit: limit[0].name)


def ask(oracle: Oracle, now_us: int, limits: list[tuple[Spec, Numbers]], cost: int) -> Outcome:
    return oracle.apply(now_us, [(spec, numbers, KEY, cost) for spec, numbers in limits])


def history(time: st.SearchStrategy[int] = steps_of_time) -> st.SearchStrategy[list[tuple[int, int]]]:
    """Steps of (microseconds since the last, cost)."""
    return st.lists(st.tuples(time, costs), min_size=1, max_size=25)


def admitted(oracle: Oracle, limit: tuple[Spec, Numbers], steps: list[tuple[int, int]]) -> list[Admission]:
    """What was admitted; instants at which nothing was are there too, with cost 0."""
    now_us = START_US
    found = []
    for step_us, cost in steps:
        now_us = max(0, now_us + step_us)
        outcome = ask(oracle, now_us, [limit], cost)
        found.append(Admission(now_us, cost if outcome.admitted else 0))
    return found


# ---- laws 1 and 5: never over, however the clock moves


@law(buckets(), history())
def test_a_bucket_is_never_over(limit: tuple[Spec, Numbers], steps: list[tuple[int, int]]) -> None:
    numbers = limit[1]
    assert check_trace(admitted(Oracle(), limit, steps), (numbers.c, numbers.p), numbers.limit) == []


@law(buckets(count_denied=True), history())
def test_a_bucket_that_counts_denials_is_never_over(limit: tuple[Spec, Numbers], steps: list[tuple[int, int]]) -> None:
    numbers = limit[1]
    assert check_trace(admitted(Oracle(), limit, steps), (numbers.c, numbers.p), numbers.limit) == []


@law(st.one_of(windows("sliding-window"), windows("fixed-window")), history())
def test_a_window_is_never_over(limit: tuple[Spec, Numbers], steps: list[tuple[int, int]]) -> None:
    spec, numbers = limit
    assert spec.window_us is not None
    sliding = spec.algorithm == "sliding-window"
    found = check_window_trace(admitted(Oracle(), limit, steps), numbers.limit, spec.window_us, sliding=sliding)
    assert found == []


def play_and_settle(
    oracle: Oracle, limit: tuple[Spec, Numbers], steps: list[tuple[int, int]], data: st.DataObject
) -> Iterator[tuple[int, Admission, int, int | None]]:
    """Takes, and settles some of it later. In turn (which, what was admitted, now, what it really cost or None)."""
    now_us = START_US
    admissions: list[Admission] = []
    open_: list[int] = []
    starts: list[int | None] = []
    for step_us, cost in steps:
        now_us += step_us
        outcome = ask(oracle, now_us, [limit], cost)
        if outcome.admitted and cost:
            open_.append(len(admissions))
            admissions.append(Admission(now_us, cost))
            starts.append(outcome.states[0][2] if limit[0].window_us else None)
            yield open_[-1], admissions[-1], now_us, None
        if open_ and data.draw(st.booleans()):
            which = open_.pop(data.draw(st.integers(0, len(open_) - 1)))
            entry = admissions[which]
            actual = data.draw(st.one_of(st.integers(0, int(entry.cost)), st.just(99)))
            settled = Settled(*limit, KEY, int(entry.cost), actual, entry.at_us, starts[which])
            assert oracle.settle(now_us, which, [settled])
            assert not oracle.settle(now_us, which, [settled])
            yield which, entry, now_us, actual


@law(roomy_buckets, history(slow), st.data())
def test_refunds_mint_nothing_in_a_bucket(
    limit: tuple[Spec, Numbers], steps: list[tuple[int, int]], data: st.DataObject
) -> None:
    """Settled at any later instant, for less or for more. Refunded is what the rule gives back."""
    numbers, oracle = limit[1], Oracle()
    admissions: dict[int, Admission] = {}
    for which, entry, now_us, actual in play_and_settle(oracle, limit, steps, data):
        back: Fraction | int = 0
        if actual is not None:
            back = max(0, entry.cost - actual - (now_us - entry.at_us) * numbers.rate)
            level = ask(oracle, now_us, [limit], 0).statuses[0].reset_after_us * numbers.rate
            assert level < 2 * numbers.limit + 1, "debt ends one burst below empty"
        admissions[which] = entry._replace(refunded=back)
    assert check_trace(admissions.values(), (numbers.c, numbers.p), numbers.limit) == []


@law(st.one_of(windows("sliding-window"), windows("fixed-window")), history(slow), st.data())
def test_refunds_mint_nothing_in_a_window(
    limit: tuple[Spec, Numbers], steps: list[tuple[int, int]], data: st.DataObject
) -> None:
    """Only the window that was charged is given anything back, while it counts."""
    (spec, numbers), oracle = limit, Oracle()
    assert spec.window_us is not None
    sliding = spec.algorithm == "sliding-window"
    admissions: dict[int, Admission] = {}
    for which, entry, now_us, actual in play_and_settle(oracle, limit, steps, data):
        windows_since = now_us // spec.window_us - entry.at_us // spec.window_us
        counts = windows_since == 0 or (sliding and windows_since == 1)
        back = max(0, int(entry.cost) - actual) if actual is not None and counts else 0
        admissions[which] = entry._replace(refunded=back)
    assert check_window_trace(admissions.values(), numbers.limit, spec.window_us, sliding=sliding) == []


@law(buckets(), history(st.integers(-3, 3)))
def test_a_clock_that_trembles_admits_no_more_than_it_moves_forward(
    limit: tuple[Spec, Numbers], steps: list[tuple[int, int]]
) -> None:
    numbers = limit[1]
    found = admitted(Oracle(), limit, steps)
    moved = sum(max(0, b.at_us - a.at_us) for a, b in pairwise(found))
    assert sum(entry.cost for entry in found) <= numbers.limit + moved * numbers.rate


@law(buckets(), history(), st.integers(1, 10**9))
def test_a_bucket_far_ahead_of_its_clock_is_empty_and_recovers(
    limit: tuple[Spec, Numbers], steps: list[tuple[int, int]], far_us: int
) -> None:
    numbers = limit[1]
    oracle = Oracle()
    admitted(oracle, limit, [(10**10, 1)])
    admitted(oracle, limit, steps)  # from START_US on: 10,000 seconds before the bucket's instant
    now_us = START_US + 2_000
    assert ask(oracle, now_us, [limit], numbers.limit).statuses[0].retry_after_us is not None
    full_us = -(-numbers.limit * numbers.p // numbers.c)
    assert ask(oracle, now_us + full_us + far_us, [limit], numbers.limit).admitted


# ---- law 2: a refused request costs nothing


@law(several(), history())
def test_a_refusal_changes_nothing(limits: list[tuple[Spec, Numbers]], steps: list[tuple[int, int]]) -> None:
    """But for a bucket too far ahead of its clock, which has to be written or could never recover."""
    oracle, now_us = Oracle(), START_US
    for step_us, cost in steps:
        now_us = max(0, now_us + step_us)
        before = dict(oracle.buckets)
        if ask(oracle, now_us, limits, cost).admitted:
            continue
        for place, bucket in oracle.buckets.items():
            assert bucket is before.get(place) or bucket.rebased


@law(several(count_denied=True), history(forward))
def test_a_counted_refusal_never_goes_beyond_empty(
    limits: list[tuple[Spec, Numbers]], steps: list[tuple[int, int]]
) -> None:
    oracle, now_us = Oracle(), START_US
    for step_us, cost in steps:
        now_us += step_us
        before = [status.remaining for status in ask(oracle.copy(), now_us, limits, 0).statuses]
        outcome = ask(oracle, now_us, limits, cost)
        if outcome.admitted:
            continue
        for left, status, (_, numbers) in zip(before, outcome.statuses, limits, strict=True):
            assert status.remaining == max(0, left - cost)
            assert status.reset_after_us <= 2 * max(15, -(-numbers.limit * max(numbers.p, 1) // max(numbers.c, 1)))


# ---- law 3: all or nothing


@law(several(), history())
def test_all_or_nothing(limits: list[tuple[Spec, Numbers]], steps: list[tuple[int, int]]) -> None:
    oracle, now_us = Oracle(), START_US
    for step_us, cost in steps:
        now_us = max(0, now_us + step_us)
        alone = [ask(oracle.copy(), now_us, [limit], cost) for limit in limits]
        outcome = ask(oracle, now_us, limits, cost)
        assert outcome.admitted == all(each.admitted for each in alone)
        for each, status in zip(alone, outcome.statuses, strict=True):
            assert status.fits == each.admitted
            taken = cost if outcome.admitted else 0
            assert status.remaining == each.statuses[0].remaining + (cost - taken if each.admitted else 0)


# ---- law 4: retry_after is exact


@law(st.one_of(several(), several(count_denied=True)), history(), costs)
def test_denied_one_microsecond_before_and_allowed_at_retry_after(
    limits: list[tuple[Spec, Numbers]], steps: list[tuple[int, int]], cost: int
) -> None:
    oracle, now_us = Oracle(), START_US
    for step_us, step_cost in steps:
        now_us = max(0, now_us + step_us)
        ask(oracle, now_us, limits, step_cost)
    outcome = ask(oracle, now_us, limits, cost)
    wait_us = outcome.retry_after_us
    assert (wait_us is None) == any(cost > numbers.limit for _, numbers in limits)
    if outcome.admitted:
        assert wait_us == 0
    elif wait_us is not None:
        assert wait_us > 0
        assert not ask(oracle.copy(), now_us + wait_us - 1, limits, cost).admitted
        assert ask(oracle.copy(), now_us + wait_us, limits, cost).admitted


@law(several(), history())
def test_remaining_fits_and_one_more_does_not(limits: list[tuple[Spec, Numbers]], steps: list[tuple[int, int]]) -> None:
    oracle, now_us = Oracle(), START_US
    for step_us, cost in steps:
        now_us = max(0, now_us + step_us)
        ask(oracle, now_us, limits, cost)
    for limit in limits:
        left = ask(oracle.copy(), now_us, [limit], 0).statuses[0].remaining
        assert ask(oracle.copy(), now_us, [limit], left).admitted
        assert not ask(oracle.copy(), now_us, [limit], left + 1).admitted


@law(several(), history())
def test_reset_after_is_when_it_answers_like_a_fresh_one(
    limits: list[tuple[Spec, Numbers]], steps: list[tuple[int, int]]
) -> None:
    oracle, now_us = Oracle(), START_US
    for step_us, cost in steps:
        now_us = max(0, now_us + step_us)
        ask(oracle, now_us, limits, cost)
    for limit in limits:
        status = ask(oracle, now_us, [limit], limit[1].limit).statuses[0]
        fresh_us = now_us + status.reset_after_us
        assert ask(oracle.copy(), fresh_us, [limit], limit[1].limit).admitted
        later = ask(oracle.copy(), fresh_us, [limit], 0).statuses[0]
        assert (later.remaining, later.reset_after_us) == (limit[1].limit, 0)
        if status.reset_after_us:
            assert ask(oracle.copy(), fresh_us - 1, [limit], 0).statuses[0].reset_after_us == 1


# ---- law 7: numbers are not identity


@law(st.lists(st.tuples(steps_of_time, costs, bucket_numbers), min_size=1, max_size=25))
def test_changing_numbers_mint_nothing_in_a_bucket(steps: list[tuple[int, int, Numbers]]) -> None:
    """Across a change of numbers the larger ones count."""
    spec, oracle, now_us = Spec("bucket"), Oracle(), START_US
    found = []
    for step_us, cost, numbers in steps:
        now_us = max(0, now_us + step_us)
        outcome = ask(oracle, now_us, [(spec, numbers)], cost)
        found.append(Admission(now_us, cost if outcome.admitted else 0))
    rate = max(numbers.rate for _, _, numbers in steps)
    burst = max(numbers.limit for _, _, numbers in steps)
    assert check_trace(found, (rate.numerator, rate.denominator), burst) == []


@law(roomy, roomy, history(slow))
def test_numbers_that_come_back_have_changed_less_than_a_tick(
    numbers: Numbers, other: Numbers, steps: list[tuple[int, int]]
) -> None:
    """A look under other numbers changes nothing; a take under them rounds up once there and once back."""
    spec, oracle, now_us = Spec("bucket"), Oracle(), START_US
    for step_us, cost in steps:
        now_us += step_us
        ask(oracle, now_us, [(spec, numbers)], cost)
    plain = ask(oracle, now_us, [(spec, numbers)], 0)
    ask(oracle, now_us, [(spec, other)], 0)
    assert ask(oracle, now_us, [(spec, numbers)], 0) == plain
    if not ask(oracle, now_us, [(spec, numbers)], 1).admitted:
        return  # what was not written at this instant would drain at the other rate first
    plain = ask(oracle, now_us, [(spec, numbers)], 0)
    if ask(oracle, now_us, [(spec, other)], 1).admitted:
        units, ticks, _ = ask(oracle, now_us, [(spec, numbers)], 0).states[0]
        was_units, was_ticks, _ = plain.states[0]
        more = Fraction(units * numbers.p + ticks - was_units * numbers.p - was_ticks, numbers.p) - 1
        assert 0 <= more < Fraction(1, other.p) + Fraction(1, numbers.p)


@law(st.lists(st.tuples(steps_of_time, costs, window_numbers), min_size=1, max_size=25), st.integers(1, 15))
def test_changing_numbers_mint_nothing_in_a_window(steps: list[tuple[int, int, Numbers]], window_us: int) -> None:
    spec = Spec("window", "fixed-window", window_us=window_us)
    oracle, now_us = Oracle(), START_US
    found = []
    for step_us, cost, numbers in steps:
        now_us = max(0, now_us + step_us)
        outcome = ask(oracle, now_us, [(spec, numbers)], cost)
        found.append(Admission(now_us, cost if outcome.admitted else 0))
    assert check_window_trace(found, max(numbers.limit for _, _, numbers in steps), window_us) == []


# ---- places in flight


@law(
    st.lists(st.tuples(forward, st.integers(0, 3), st.integers(-1, 5)), min_size=1, max_size=25),
    st.integers(1, 4),
    st.integers(1, 20),
)
def test_never_more_places_than_there_are(steps: list[tuple[int, int, int]], limit: int, ttl_us: int) -> None:
    """Against a plain list of what is held; the third number of a step is which of them to release first."""
    spec = Spec("places", "concurrency", ttl_us=ttl_us)
    oracle, now_us = Oracle(), START_US
    held: list[tuple[str, int, int]] = []
    for step_us, cost, which in steps:
        now_us += step_us
        held = [entry for entry in held if entry[1] > now_us]
        if 0 <= which < len(held):
            lease, _, places = held.pop(which)
            assert oracle.release(now_us, spec, KEY, lease) == places
            assert oracle.release(now_us, spec, KEY, lease) == 0
        outcome = oracle.apply(now_us, [(spec, Numbers(limit), KEY, cost)])
        in_use = sum(places for _, _, places in held)
        assert outcome.admitted == (cost == 0 or in_use + cost <= limit)
        if outcome.admitted and cost:
            assert outcome.leases[0] is not None
            held.append((outcome.leases[0], now_us + ttl_us, cost))
        assert outcome.statuses[0].remaining == limit - sum(places for _, _, places in held)
        wait_us = outcome.statuses[0].retry_after_us
        if not outcome.admitted and wait_us is not None:
            retry = [(spec, Numbers(limit), KEY, cost)]
            assert not oracle.copy().apply(now_us + wait_us - 1, retry).admitted
            assert oracle.copy().apply(now_us + wait_us, retry).admitted
