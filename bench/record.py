"""How figures are taken and what one looks like."""

from __future__ import annotations

import gc
import statistics
import time
from collections.abc import Callable, Sequence
from typing import NamedTuple


class Row(NamedTuple):
    """One line of the table."""

    what: str
    value: float
    unit: str
    wanted: str = ""
    """The requirement in words, empty where there is none."""
    met: bool = True


def interleaved(works: Sequence[Callable[[int], None]], calls: Sequence[int], seconds: float) -> list[float]:
    """Nanoseconds a call of each work, which runs `calls[i]` calls at a time. The works take turns; medians are told.

    A noisy neighbour then disturbs all of them alike, which is what makes their ratio mean something.
    """
    taken: list[list[float]] = [[] for _ in works]
    gc.collect()
    gc.disable()
    try:
        until = time.perf_counter() + seconds * len(works)
        while time.perf_counter() < until or len(taken[0]) < 5:
            for i, work in enumerate(works):
                start = time.perf_counter_ns()
                work(calls[i])
                taken[i].append((time.perf_counter_ns() - start) / calls[i])
    finally:
        gc.enable()
    return [statistics.median(samples) for samples in taken]
