"""What time it is, for a store whose truth is a server's clock: a guess here, and what tests say instead."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from shield.clock import Clock


def monotonic_us() -> int:
    """This process' monotonic clock in microseconds."""
    return time.monotonic_ns() // 1000


class Instants:
    """`clock` (Unix nanoseconds) guesses the server's calendar day. `fixed`, for tests alone: what time the scripts are
    told it is, in Unix microseconds, instead of the server's own.
    """

    def __init__(self, clock: Clock | None) -> None:
        self._clock = clock
        self.fixed: Callable[[], int] | None = None

    def wire(self) -> bytes:
        """The instant as an argument of the scripts; empty: the server's own."""
        return b"" if self.fixed is None else b"%d" % self.fixed()

    def passing_us(self) -> int:
        """What is remembered ages by this clock: monotonic, or the one of a test."""
        return monotonic_us() if self.fixed is None else self.fixed()

    def around_us(self, wire: bytes) -> int:
        """About what time it is at the server."""
        if self._clock is not None:
            return self._clock() // 1000
        return int(wire) if wire else time.time_ns() // 1000
