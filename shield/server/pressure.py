"""Is this process itself saturated? Then what comes is shed at once, for a late answer helps nobody.

Two things fill up. With a local store it is the loop: bytes wait for their turn while others are decided. A turn
begins with the first bytes that are read in it; whoever comes up so much later that MAX_WAIT_S have passed has
waited that long at least. Once is a hiccup (a policy that is loaded, a machine that is busy elsewhere), after which
the loop catches up, and an answer costs hardly more than a refusal; a second such turn in a row is too much to do.
With a remote store it is the requests that wait for its answer: MAX_WAITING of them.
What is behind those two is bounded elsewhere: connections, requests of one connection in a turn, bytes held.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from shield.core.http_lane import Turns
from shield.server.bounds import MAX_WAIT_S, MAX_WAITING, SHED_RETRY_AFTER_S
from shield.server.problem import Problem

LATE: Final = "late"
WAITING: Final = "waiting"


class Pressure(Turns):
    """`clock` returns seconds and never goes back; None is the system's. `shed` is told the reason of each refusal."""

    def __init__(self, shed: Callable[[str], None], *, clock: Callable[[], float] | None = None) -> None:
        super().__init__(MAX_WAIT_S, clock)
        self._shed = shed
        self.waiting = 0
        """Requests whose decision a store is being asked for."""

    @property
    def too_high(self) -> bool:
        """A request that begins now is to be refused."""
        return self.late or self.waiting >= MAX_WAITING

    def refusal(self) -> Problem:
        """For a request that is refused; it is counted."""
        self._shed(LATE if self.late else WAITING)
        detail = "this server has more to decide than it can in time; the same request may be sent again"
        return Problem(503, detail, headers={"Retry-After": str(SHED_RETRY_AFTER_S)})
