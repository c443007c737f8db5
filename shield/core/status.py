"""The answer of one limit."""

from __future__ import annotations

from typing import NamedTuple


class LimitStatus(NamedTuple):
    """What one limit says about one cost. Durations are seconds; they are exact to the microsecond.

    As a condition it is its verdict: `if limiter.take(key): ...`.
    """

    allowed: bool
    limit: int
    """The most units that could ever be taken at once: the burst, the units of a window, the places."""
    remaining: int
    """The largest whole cost that would be allowed now, after this decision."""
    reset_after: float
    """Seconds until the limit answers as if it had never been used. 0 for concurrency."""
    retry_after: float | None
    """Seconds until this cost would be allowed: 0 when it was, None when it never can be."""
    cost: int = 1
    name: str = ""

    def __bool__(self) -> bool:
        return self.allowed
