"""How figures are taken and what one looks like."""

from __future__ import annotations

import gc
import operator
import statistics
import time
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from . import turns


class Measured(float):
    """A figure that remembers the samples it is the median of, in the order in which they were taken.

    Sums, differences and ratios of two such figures are made sample by sample too: what was taken in the same turn met
    the same noise. `pace` is how long a fixed piece of work took beside each sample (nanoseconds); a figure of time
    divided by it travels further than the time itself. A ratio of two figures needs none and has none.
    """

    samples: tuple[float, ...]
    pace: tuple[float, ...]

    def __new__(cls, samples: Sequence[float], pace: Sequence[float] = (), value: float | None = None) -> Measured:
        self = super().__new__(cls, statistics.median(samples) if value is None else value)
        self.samples, self.pace = tuple(samples), tuple(pace)
        return self

    def _with(self, other: float, apply: Callable[[float, float], float], ratio: bool = False) -> float:
        value = apply(float(self), float(other))
        if not isinstance(other, Measured):
            return Measured([apply(one, other) for one in self.samples], self.pace, value)
        if len(other.samples) != len(self.samples):
            return value
        pairs = zip(self.samples, other.samples, strict=True)
        return Measured([apply(a, b) for a, b in pairs if not ratio or b], () if ratio else self.pace, value)

    def __add__(self, other: float) -> float:
        return self._with(other, operator.add)

    def __sub__(self, other: float) -> float:
        return self._with(other, operator.sub)

    def __mul__(self, other: float) -> float:
        return self._with(other, operator.mul)

    __rmul__ = __mul__

    def __truediv__(self, other: float) -> float:
        return self._with(other, operator.truediv, ratio=isinstance(other, Measured))


class Row(NamedTuple):
    """One line of the table."""

    what: str
    value: float
    unit: str
    wanted: str = ""
    """The requirement in words, empty where there is none."""
    met: bool = True


class Series(NamedTuple):
    """Points of one plot."""

    what: str
    kind: str
    """What the plot is of, and so what its points hold: "load", "percentiles", "scaling", "peers", "time"."""
    points: list[dict[str, Any]]


class Skipped(NamedTuple):
    """What was not measured, and why not."""

    what: str
    why: str


Found = Row | Series | Skipped


def pace() -> None:
    """A fixed piece of interpreter work, some 100 us, that says how fast the machine is just now."""
    table: dict[str, int] = {}
    for i in range(500):
        table[f"pace:{i % 100}"] = i


def interleaved(works: Sequence[Callable[[int], None]], calls: Sequence[int], seconds: float) -> list[Measured]:
    """Nanoseconds a call of each work, which runs `calls[i]` calls at a time. The works take turns; medians are told.

    A noisy neighbour then disturbs all of them alike, which is what makes their ratio mean something. Time is that
    of the processor: what another process took in between does not count.
    """
    taken: list[list[float]] = [[] for _ in works]
    paces: list[float] = []
    gc.collect()
    gc.disable()
    try:
        until = time.perf_counter() + seconds * len(works)
        in_turns = turns.shared()  # then both processes take as many
        while len(paces) < turns.BLOCKS if in_turns else time.perf_counter() < until or len(paces) < 5:
            start = time.thread_time_ns()
            pace()
            paces.append(time.thread_time_ns() - start)
            for i, work in enumerate(works):
                turns.next_turn()
                start = time.thread_time_ns()
                work(calls[i])
                taken[i].append((time.thread_time_ns() - start) / calls[i])
    finally:
        gc.enable()
    return [Measured(samples, paces) for samples in taken]
