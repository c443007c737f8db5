"""How throughput grows with workers: Gunther's universal scalability law, and Amdahl's where there is less to see.

    X(n) = rate * n / (1 + sigma * (n - 1) + kappa * n * (n - 1))

sigma is what is done one after the other (contention), kappa what each pair of workers costs (coherence). With
kappa = 0 it is Amdahl's law. Turned over, n / X(n) is linear in 1 / rate, sigma / rate and kappa / rate, so the fit is
least squares, weighted so that every point's relative error counts alike, and no coefficient is below 0.
(N. Gunther, Guerrilla Capacity Planning, 2007.)
"""

from __future__ import annotations

import itertools
import math
import random
import statistics
from collections.abc import Mapping, Sequence
from typing import NamedTuple

POINTS_FOR_COHERENCE = 4
"""With fewer counts of workers three coefficients fit anything; then kappa is taken as 0 and Amdahl's law fitted."""


class Law(NamedTuple):
    """A fitted law. Throughput in the unit of the points it was fitted to."""

    rate: float
    """What one worker does."""
    sigma: float = 0.0
    kappa: float = 0.0

    def throughput(self, workers: float) -> float:
        n = workers
        return self.rate * n / (1 + self.sigma * (n - 1) + self.kappa * n * (n - 1))

    @property
    def peak(self) -> float:
        """The count of workers past which more make it slower; infinity without coherence."""
        return math.sqrt(max(0.0, 1 - self.sigma) / self.kappa) if self.kappa else math.inf

    @property
    def ceiling(self) -> float:
        """The most throughput that any count of workers reaches."""
        if self.kappa:
            return self.throughput(max(1.0, self.peak))
        return self.rate / self.sigma if self.sigma else math.inf

    def workers(self, wanted: float) -> int | None:
        """The fewest workers that reach this throughput; None when none do."""
        if wanted <= self.rate:
            return 1
        if wanted > self.ceiling:
            return None
        low, high = 1, 2
        most = math.floor(self.peak) if self.kappa else 1 << 40
        while high < most and self.throughput(high) < wanted:
            low, high = high, high * 2
        high = min(high, most)
        if self.throughput(high) < wanted:
            return None  # only a fraction of a worker between two counts would
        while high - low > 1:
            middle = (low + high) // 2
            low, high = (middle, high) if self.throughput(middle) < wanted else (low, middle)
        return high


def name_of(counts: int) -> str:
    """Which law is fitted to so many counts of workers."""
    if counts >= POINTS_FOR_COHERENCE:
        return "universal scalability law"
    return "Amdahl's law" if counts > 1 else "one point: nothing to fit"


def fit(points: Sequence[tuple[int, float]]) -> Law:
    """The law of (workers, throughput). ValueError without points or for one that is not above 0."""
    if not points or any(n < 1 or x <= 0 for n, x in points):
        raise ValueError("scaling: needs (workers, throughput), both above 0")
    counts = len({n for n, _ in points})
    terms = 3 if counts >= POINTS_FOR_COHERENCE else min(2, counts)
    rows = [([1.0, n - 1.0, n * (n - 1.0)], n / x) for n, x in points]
    best: tuple[float, list[float]] | None = None
    # Not below 0: the best of the fits with some coefficients left at 0, which three terms can afford to try.
    for kept in itertools.chain.from_iterable(itertools.combinations(range(1, terms), k) for k in range(terms)):
        columns = (0, *kept)
        solved = _least_squares([[terms_[at] / y for at in columns] for terms_, y in rows])
        if solved is None or min(solved) < 0 or solved[0] <= 0:
            continue
        whole = [0.0, 0.0, 0.0]
        for at, value in zip(columns, solved, strict=True):
            whole[at] = value
        error = sum((sum(c * t for c, t in zip(whole, terms_, strict=True)) / y - 1) ** 2 for terms_, y in rows)
        if best is None or error < best[0] - 1e-15:
            best = error, whole
    assert best is not None  # the mean alone is always a fit
    a, b, c = best[1]
    return Law(1 / a, b / a, c / a)


def _least_squares(rows: Sequence[Sequence[float]]) -> list[float] | None:
    """The coefficients that bring every row nearest to 1; None when the rows do not determine them."""
    size = len(rows[0])
    matrix = [[sum(row[i] * row[j] for row in rows) for j in range(size)] for i in range(size)]
    right = [sum(row[i] for row in rows) for i in range(size)]
    for at in range(size):
        pivot = max(range(at, size), key=lambda r: abs(matrix[r][at]))
        if abs(matrix[pivot][at]) < 1e-12 * max(1e-300, abs(matrix[0][0])):
            return None
        matrix[at], matrix[pivot] = matrix[pivot], matrix[at]
        right[at], right[pivot] = right[pivot], right[at]
        for below in range(at + 1, size):
            factor = matrix[below][at] / matrix[at][at]
            matrix[below] = [x - factor * y for x, y in zip(matrix[below], matrix[at], strict=True)]
            right[below] -= factor * right[at]
    solved = [0.0] * size
    for at in reversed(range(size)):
        known = sum(matrix[at][j] * solved[j] for j in range(at + 1, size))
        solved[at] = (right[at] - known) / matrix[at][at]
    return solved


class Estimate(NamedTuple):
    """A figure and between what it lies in nine of ten resampled fits."""

    value: float
    low: float
    high: float


def resampled(samples: Mapping[int, Sequence[float]], resamples: int = 500, seed: int = 1) -> list[Law]:
    """Laws fitted to points drawn again from the samples at each count of workers: how far the fit can be trusted."""
    source = random.Random(seed)
    return [
        fit([(n, statistics.median(source.choices(xs, k=len(xs)))) for n, xs in samples.items()])
        for _ in range(resamples)
    ]


def estimate(value: float, others: Sequence[float]) -> Estimate:
    """A value with the 5th and 95th percentile of its resampled others."""
    ordered = sorted(others)
    last = len(ordered) - 1
    return Estimate(value, ordered[int(0.05 * last)], ordered[math.ceil(0.95 * last)])
