"""How long to wait before a worker that has died is started again."""

from __future__ import annotations

import random
from collections.abc import Callable

from shield.server.bounds import RESTART_FIRST_S, RESTART_MAX_S, RESTART_STEADY_S


class Backoff:
    """Twice as long after each death, up to RESTART_MAX_S, and forgotten after a long life.

    Half of each pause is chance (`random` is from 0 to below 1), so that workers which died together do not come
    back together.
    """

    def __init__(self, random: Callable[[], float] = random.random) -> None:
        self._random = random
        self._next_s = RESTART_FIRST_S

    def pause_s(self, lived_s: float) -> float:
        """The pause after a death; `lived_s` is how long the worker had been ready, 0 if it never was."""
        if lived_s >= RESTART_STEADY_S:
            self._next_s = RESTART_FIRST_S
        pause_s = self._next_s * (1 + self._random()) / 2
        self._next_s = min(2 * self._next_s, RESTART_MAX_S)
        return pause_s
