"""Is this process itself saturated? Then what comes is shed at once, for a late answer helps nobody.

Two things fill up. With a local store it is the loop: bytes wait for their turn while others are decided. A turn
begins with the first bytes that are read in it; whoever comes up so much later that MAX_WAIT_S have passed has
waited that long at least. Once is a hiccup (a policy that is loaded, a machine that is busy elsewhere), after which
the loop catches up, and an answer costs hardly more than a refusal; a second such turn in a row is too much to do.
With a remote store it is the requests that wait for its answer: MAX_WAITING of them.
What is behind those two is bounded elsewhere: connections, requests of one connection in a turn, bytes held.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from time import perf_counter
from typing import Final

from shield.server.bounds import MAX_WAIT_S, MAX_WAITING, SHED_RETRY_AFTER_S
from shield.server.problem import Problem

LATE: Final = "late"
WAITING: Final = "waiting"


class Pressure:
    """`clock` returns seconds and never goes back. `shed` is told the reason of each refusal."""

    def __init__(self, shed: Callable[[str], None], *, clock: Callable[[], float] = perf_counter) -> None:
        self._shed = shed
        self._clock = clock
        self._turn_began = -1.0
        self._long = False  # this turn was
        self._long_before = False  # and the one before
        self.late = False
        """What is read or begun at present has waited too long, and not for the first time."""
        self.waiting = 0
        """Requests whose decision a store is being asked for."""

    def look(self, loop: asyncio.AbstractEventLoop) -> None:
        """Called for each read, and for each request that begins in a task of its own."""
        now = self._clock()
        if self._turn_began < 0:
            self._turn_began = now
            loop.call_soon(self._turn_ended)
        elif now - self._turn_began > MAX_WAIT_S:
            self._long = True
            self.late = self._long_before

    def _turn_ended(self) -> None:
        self._turn_began = -1.0
        self._long_before, self._long = self._long, False
        self.late = False

    @property
    def too_high(self) -> bool:
        """A request that begins now is to be refused."""
        return self.late or self.waiting >= MAX_WAITING

    def refusal(self) -> Problem:
        """For a request that is refused; it is counted."""
        self._shed(LATE if self.late else WAITING)
        detail = "this server has more to decide than it can in time; the same request may be sent again"
        return Problem(503, detail, headers={"Retry-After": str(SHED_RETRY_AFTER_S)})
