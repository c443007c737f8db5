"""Is a difference more than noise? The two tests that `--compare` asks, exact where that is cheap.

Both are about samples that do not depend on each other. Samples of one process, taken one after the other, do: they
share its memory layout and the machine's mood. So they are put together in blocks first, and `compare` says how much
of a difference one process alone can show.
"""

from __future__ import annotations

import itertools
import math
import random
import statistics
from collections.abc import Sequence

EXACT_UP_TO = 400
"""Products of sample sizes up to which the rank sum's distribution is counted out instead of approximated."""


def mann_whitney(one: Sequence[float], other: Sequence[float]) -> float:
    """The two-sided p of the Mann-Whitney U test: how likely ranks as uneven as these are when nothing differs.

    Exact without ties and up to EXACT_UP_TO pairs, else the normal approximation with corrections for ties and
    continuity. 1.0 when a side is empty or all values are equal. (Mann and Whitney, 1947.)
    """
    n, m = len(one), len(other)
    if not n or not m:
        return 1.0
    ordered = sorted([(value, 0) for value in one] + [(value, 1) for value in other])
    ranks, ties, at = 0.0, 0.0, 0
    while at < n + m:
        end = at
        while end < n + m and ordered[end][0] == ordered[at][0]:
            end += 1
        same = end - at
        ties += same**3 - same
        ranks += sum(1 for _, side in ordered[at:end] if side == 0) * (at + 1 + end) / 2
        at = end
    u = ranks - n * (n + 1) / 2
    least = min(u, n * m - u)
    if not ties and n * m <= EXACT_UP_TO:
        ways = _ways(n, m)
        return min(1.0, 2 * sum(ways[: int(least) + 1]) / math.comb(n + m, n))
    total = n + m
    variance = n * m / 12 * (total + 1 - ties / (total * (total - 1)))
    if variance <= 0:
        return 1.0
    z = max(0.0, abs(u - n * m / 2) - 0.5) / math.sqrt(variance)
    return math.erfc(z / math.sqrt(2))


def signed_rank(ratios: Sequence[float]) -> float:
    """The two-sided p of Wilcoxon's signed-rank test of paired figures, given as ratios: 1 when nothing differs.

    Exact: the distribution of the rank sum is counted out. Ratios of exactly 1 say nothing and are left out.
    1.0 without ratios. (Wilcoxon, 1945.)
    """
    logs = sorted((math.log(ratio) for ratio in ratios if ratio != 1), key=abs)
    n = len(logs)
    above = sum(rank for rank, log in enumerate(logs, 1) if log > 0)
    least = min(above, n * (n + 1) // 2 - above)
    ways = [1] + [0] * (n * (n + 1) // 2)
    for rank in range(1, n + 1):
        for at in range(len(ways) - 1, rank - 1, -1):
            ways[at] += ways[at - rank]
    return min(1.0, 2 * sum(ways[: least + 1]) / 2**n)


def _ways(n: int, m: int) -> list[int]:
    """How many of the orders of n and m values have each U, 0 to n * m: the Gaussian binomial's coefficients."""
    size = n * m + 1
    ways = [1] + [0] * (size - 1)
    for i in range(1, n + 1):  # times (1 - q^(m+i)) / (1 - q^i)
        for at in range(size - 1, m + i - 1, -1):
            ways[at] -= ways[at - m - i]
        for at in range(i, size):
            ways[at] += ways[at - i]
    return ways


def median_interval(
    values: Sequence[float], level: float = 0.99, resamples: int = 2000, seed: int = 1
) -> tuple[float, float]:
    """Within which the median of what these values come from lies with this confidence: a percentile bootstrap."""
    source = random.Random(seed)
    medians = sorted(statistics.median(source.choices(values, k=len(values))) for _ in range(resamples))
    cut = (1 - level) / 2
    return medians[int(cut * resamples)], medians[min(resamples - 1, int((1 - cut) * resamples))]


def ratio_interval(
    base: Sequence[float], changed: Sequence[float], level: float = 0.99, resamples: int = 2000, seed: int = 1
) -> tuple[float, float]:
    """Within which the ratio of the medians, changed to base, lies with this confidence: a percentile bootstrap.

    Needs samples on both sides and a base that is not 0 at its median.
    """
    source = random.Random(seed)
    ratios = []
    for _ in range(resamples):
        before = statistics.median(source.choices(base, k=len(base)))
        after = statistics.median(source.choices(changed, k=len(changed)))
        ratios.append(after / before if before else math.inf)
    ratios.sort()
    cut = (1 - level) / 2
    return ratios[int(cut * resamples)], ratios[min(resamples - 1, int((1 - cut) * resamples))]


def blocks(samples: Sequence[float], most: int = 12) -> list[float]:
    """At most so many medians of neighbouring samples, which depend on each other less than their samples do."""
    if len(samples) <= most:
        return list(samples)
    edges = [len(samples) * i // most for i in range(most + 1)]
    return [statistics.median(samples[a:b]) for a, b in itertools.pairwise(edges)]


def holm(chances: Sequence[float]) -> list[float]:
    """The same p-values for as many questions asked at once: Holm's step-down, which any one mistake is counted in."""
    order = sorted(range(len(chances)), key=chances.__getitem__)
    adjusted, highest = [1.0] * len(chances), 0.0
    for rank, at in enumerate(order):
        highest = max(highest, min(1.0, (len(chances) - rank) * chances[at]))
        adjusted[at] = highest
    return adjusted
