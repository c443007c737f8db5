"""The suite's own arithmetic: tests of difference, the scalability law, arrivals and skew."""

from __future__ import annotations

import itertools
import math
import random
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bench import arrivals, scaling, significance

# ---- differences -------------------------------------------------------------------------------------------


def test_mann_whitney_counts_the_orders_out():
    # Of the C(6, 3) = 20 orders of three and three, one puts all of one side first: p = 2 / 20.
    assert significance.mann_whitney([1, 2, 3], [4, 5, 6]) == pytest.approx(0.1)
    assert significance.mann_whitney([4, 5, 6], [1, 2, 3]) == pytest.approx(0.1)
    # U = 1: the orders with U 0 and 1 are one each, on both ends: 4 / 20.
    assert significance.mann_whitney([1, 2, 4], [3, 5, 6]) == pytest.approx(0.2)
    assert significance.mann_whitney([1, 4, 5, 8], [2, 3, 6, 7]) == 1.0


@given(st.integers(1, 5), st.integers(1, 5), st.randoms(use_true_random=False))
def test_mann_whitney_is_what_enumerating_gives(n, m, source):
    values = source.sample(range(100), n + m)
    one, other = values[:n], values[n:]

    def u(side, rest):
        return sum(a > b for a in side for b in rest)

    least = min(u(one, other), u(other, one))
    every = [
        u([values[i] for i in chosen], [values[i] for i in range(n + m) if i not in chosen])
        for chosen in itertools.combinations(range(n + m), n)
    ]
    expected = min(1.0, 2 * sum(x <= least for x in every) / len(every))
    assert significance.mann_whitney(one, other) == pytest.approx(expected)


def test_mann_whitney_with_ties_and_large_samples_is_normal():
    assert significance.mann_whitney([5.0] * 30, [5.0] * 30) == 1.0
    # All of thirty below all of thirty: z = (450 - 0.5) / sqrt(30 * 30 * 61 / 12).
    z = 449.5 / math.sqrt(900 * 61 / 12)
    expected = math.erfc(z / math.sqrt(2))
    assert significance.mann_whitney(range(30), range(30, 60)) == pytest.approx(expected)
    # The textbook's tie correction: [1, 2, 2] against [2, 3, 3] has ties of three twos and two threes.
    variance = 9 / 12 * (7 - (24 + 6) / 30)
    expected = math.erfc((3.5 - 0.5) / math.sqrt(variance) / math.sqrt(2))
    assert significance.mann_whitney([1, 2, 2], [2, 3, 3]) == pytest.approx(expected)
    assert significance.mann_whitney([], [1.0]) == 1.0


def test_the_ratio_of_medians_is_bracketed():
    assert significance.ratio_interval([10.0] * 5, [11.0] * 5) == (1.1, 1.1)
    low, high = significance.ratio_interval([9.0, 10.0, 11.0], [18.0, 20.0, 22.0])
    assert (low, high) == (pytest.approx(18 / 11), pytest.approx(22 / 9))
    assert significance.ratio_interval([1.0, 2.0], [3.0, 4.0]) == significance.ratio_interval([1.0, 2.0], [3.0, 4.0])


def test_signed_ranks_are_counted_out():
    assert significance.signed_rank([1.1, 1.2, 1.3, 1.4, 1.5]) == pytest.approx(2 / 32)
    assert significance.signed_rank([0.9, 0.8, 0.7, 0.6, 0.5]) == pytest.approx(2 / 32)
    # The smallest distance alone points the other way: rank sums 0 and 1, on both ends.
    assert significance.signed_rank([0.99, 1.2, 1.3, 1.4, 1.5]) == pytest.approx(4 / 32)
    assert significance.signed_rank([1.1, 1 / 1.2, 1.3, 1 / 1.25]) == 1.0
    assert significance.signed_rank([]) == significance.signed_rank([1.0, 1.0]) == 1.0


def test_the_interval_of_a_median_covers_its_values():
    assert significance.median_interval([2.0] * 9) == (2.0, 2.0)
    low, high = significance.median_interval([1.0, 2.0, 3.0, 4.0, 5.0])
    assert 1.0 <= low < 3.0 < high <= 5.0


def test_blocks_are_medians_of_neighbours():
    assert significance.blocks([3.0, 1.0, 2.0]) == [3.0, 1.0, 2.0]
    assert significance.blocks([1, 2, 9, 4, 4, 4], most=2) == [2, 4]
    assert len(significance.blocks(list(range(1000)))) == 12


def test_holm_asks_more_of_many_questions():
    assert significance.holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    assert significance.holm([0.5, 0.9]) == pytest.approx([1.0, 1.0])
    assert significance.holm([]) == []


# ---- scaling -----------------------------------------------------------------------------------------------


@given(
    rate=st.floats(1, 1e6),
    sigma=st.floats(0, 0.5),
    kappa=st.floats(0, 0.05),
    counts=st.lists(st.integers(1, 64), min_size=4, max_size=9, unique=True),
)
def test_the_law_behind_a_curve_is_found_again(rate, sigma, kappa, counts):
    law = scaling.Law(rate, sigma, kappa)
    found = scaling.fit([(n, law.throughput(n)) for n in counts])
    for n in (1, *counts, 128):
        assert found.throughput(n) == pytest.approx(law.throughput(n), rel=1e-3)
    if 1 in counts and max(counts) > 8:
        assert found.rate == pytest.approx(rate, rel=1e-6)
        assert found.sigma == pytest.approx(sigma, abs=1e-5)
        assert found.kappa == pytest.approx(kappa, abs=1e-6)


def test_fewer_than_four_counts_fit_amdahl():
    law = scaling.Law(1000, 0.1)
    found = scaling.fit([(1, law.throughput(1)), (2, law.throughput(2)), (3, law.throughput(3))])
    assert (found.rate, found.sigma, found.kappa) == (pytest.approx(1000), pytest.approx(0.1), 0.0)
    assert [scaling.name_of(n) for n in (1, 3, 4)] == [
        "one point: nothing to fit",
        "Amdahl's law",
        "universal scalability law",
    ]
    assert scaling.fit([(1, 70.0)]) == (pytest.approx(70.0), 0.0, 0.0)


def test_better_than_linear_is_taken_for_linear():
    assert scaling.fit([(1, 100.0), (2, 210.0)]).sigma == 0.0


@pytest.mark.parametrize("points", [[], [(0, 1.0)], [(1, 0.0)]])
def test_nothing_to_fit_is_an_error(points):
    with pytest.raises(ValueError, match="needs"):
        scaling.fit(points)


def test_the_fewest_workers_and_the_peak():
    law = scaling.Law(100, 0.0, 0.01)
    assert law.peak == pytest.approx(10)
    assert law.ceiling == pytest.approx(1000 / 1.9)
    assert (law.workers(50), law.workers(100), law.workers(101)) == (1, 1, 2)
    assert law.workers(526) == 10
    assert law.workers(527) is None
    amdahl = scaling.Law(100, 0.25)
    assert (amdahl.peak, amdahl.ceiling) == (math.inf, 400)
    n = amdahl.workers(390)
    assert n is not None
    assert amdahl.throughput(n) >= 390 > amdahl.throughput(n - 1)
    assert amdahl.workers(400.1) is None
    assert scaling.Law(100).workers(12_345) == 124


def test_resampled_fits_say_how_far_to_trust_one():
    laws = scaling.resampled({1: [99.0, 100.0, 101.0], 2: [170.0, 180.0, 190.0]})
    told = scaling.estimate(180.0, [law.throughput(2) for law in laws])
    assert (told.low, told.high) == (pytest.approx(170.0), pytest.approx(190.0))
    assert laws == scaling.resampled({1: [99.0, 100.0, 101.0], 2: [170.0, 180.0, 190.0]})
    assert scaling.estimate(1.0, [1.0]) == (1.0, 1.0, 1.0)


# ---- arrivals and skew -------------------------------------------------------------------------------------


def test_constant_instants_are_divided_among_processes():
    assert list(arrivals.instants(4, 1)) == [0.0, 0.25, 0.5, 0.75]
    parts = [list(arrivals.instants(10, 1, part=part, parts=3)) for part in range(3)]
    assert sorted(itertools.chain(*parts)) == list(arrivals.instants(10, 1))


def test_poisson_instants_have_the_gaps_of_their_law():
    one = arrivals.instants(10_000, 5, "poisson", seed=3)
    assert one == arrivals.instants(10_000, 5, "poisson", seed=3)
    assert one != arrivals.instants(10_000, 5, "poisson", seed=4)
    gaps = [b - a for a, b in itertools.pairwise(one)]
    assert all(gap >= 0 for gap in gaps)
    assert len(one) == pytest.approx(50_000, rel=0.02)
    mean = sum(gaps) / len(gaps)
    deviation = math.sqrt(sum((gap - mean) ** 2 for gap in gaps) / len(gaps))
    assert deviation == pytest.approx(mean, rel=0.02)  # an exponential's
    halves = [arrivals.instants(10_000, 5, "poisson", part=part, parts=2) for part in (0, 1)]
    assert halves[0] != halves[1]
    assert sum(map(len, halves)) == pytest.approx(50_000, rel=0.02)


def test_other_arrivals_are_an_error():
    with pytest.raises(ValueError, match="allowed: constant, poisson"):
        arrivals.instants(1, 1, "bursts")


@pytest.mark.parametrize("skew", [0.0, 0.5, 1.0, 1.3])
def test_keys_are_drawn_as_often_as_zipf_says(skew):
    keys, draws = 50, 100_000
    found = Counter(itertools.islice(arrivals.zipf(keys, skew, random.Random(1)), draws))
    weights = [(k + 1) ** -skew for k in range(keys)]
    expected = [draws * weight / sum(weights) for weight in weights]
    assert set(found) <= set(range(keys))
    chi = sum((found[k] - expected[k]) ** 2 / expected[k] for k in range(keys))
    assert chi < 85  # 49 degrees of freedom: one in a thousand


def test_ten_million_keys_need_no_table():
    drawn = list(itertools.islice(arrivals.zipf(10_000_000, 1.0, random.Random(1)), 10_000))
    assert max(drawn) > 1_000_000
    assert max(drawn) < 10_000_000
    assert drawn.count(0) == pytest.approx(10_000 / sum(1 / k for k in range(1, 10_000_001)), rel=0.2)
