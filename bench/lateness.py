"""How late are answers? One rule for every figure of latency: none where something else than the server was late.

That is the generator itself, whoever had a worker's core meanwhile, or the hypervisor. Such a window is measured again,
a few times, and then there is the reason in place of a figure.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

from .endpoint import cpu_s, waited_s
from .generator import Load
from .load import undisturbed

MAX_WAITED = 0.05
"""Of the time that a worker wants its core others may have had it so much: more, and the latency is theirs."""


class Window(NamedTuple):
    """A load, and what the workers had of their cores during it."""

    load: Load
    used_s: float
    waited_s: float

    @property
    def doubt(self) -> str:
        """Why these latencies are not the server's; empty when they are."""
        if self.waited_s > MAX_WAITED * (self.used_s + self.waited_s):
            part = self.waited_s / (self.used_s + self.waited_s)
            return self.load.doubt or f"others had the worker's core for {part:.0%} of the time that it wanted it"
        return self.load.doubt


def believed(measure: Callable[[], Load], workers: Sequence[int]) -> tuple[Window, str]:
    """A window of this load beyond doubt, or the last one with what is wrong with it. `workers` are process ids."""

    def window() -> Window:
        used, waited = sum(map(cpu_s, workers)), sum(map(waited_s, workers))
        load = measure()
        return Window(load, sum(map(cpu_s, workers)) - used, sum(map(waited_s, workers)) - waited)

    return undisturbed(window, lambda found: found.doubt)
