"""An instant by which something must have happened, moved cheaply and often."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable


class Deadline:
    """`passed` is called once `at` is over, in seconds of the loop's clock. Setting `at` to infinity lifts it.

    One timer serves every instant it is moved to. It may fire early, and is set again then, so that moving the
    deadline later or lifting it costs an assignment.
    """

    __slots__ = ("_loop", "_passed", "_timer", "_timer_at", "at")

    def __init__(self, loop: asyncio.AbstractEventLoop, passed: Callable[[], None]) -> None:
        self._loop = loop
        self._passed = passed
        self._timer: asyncio.TimerHandle | None = None
        self._timer_at = math.inf
        self.at = math.inf

    def set(self, at: float) -> None:
        """Moves it there."""
        self.at = at
        if at < self._timer_at:
            if self._timer is not None:
                self._timer.cancel()
            self._timer_at = at
            self._timer = self._loop.call_at(at, self._fire)

    def end(self) -> None:
        """For good."""
        self.at = math.inf
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _fire(self) -> None:
        self._timer = None
        self._timer_at = math.inf
        if self._loop.time() >= self.at:
            self.at = math.inf
            self._passed()
        elif self.at < math.inf:
            self.set(self.at)
