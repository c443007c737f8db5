"""Clocks a test owns: like time.time_ns, callables without arguments that return nanoseconds as int."""

from __future__ import annotations

from collections.abc import Callable

_PER_MILLION = 1_000_000


class ManualClock:
    """A clock that moves only when it is told to; calling it gives nanoseconds, like time.time_ns.

    It stands still between two commands, so `clock.advance(s=1)` is exactly a second for whoever reads it.
    """

    def __init__(self, now_ns: int = 1_763_900_000_000_000_000) -> None:
        self.now_ns = now_ns
        self._tick_ns = 0

    def __call__(self) -> int:
        now_ns = self.now_ns
        self.now_ns += self._tick_ns
        return now_ns

    def set(self, now_ns: int) -> None:
        """Jumps to an instant, ahead or back."""
        self.now_ns = now_ns

    def advance(self, *, s: int = 0, ms: int = 0, us: int = 0, ns: int = 0) -> None:
        """Moves forward by the sum of these. ValueError for a negative sum: that is `step_back`."""
        self.now_ns += _span_ns(s, ms, us, ns)

    def step_back(self, *, s: int = 0, ms: int = 0, us: int = 0, ns: int = 0) -> None:
        """Moves backwards, as a machine's clock does when it is corrected. ValueError for a negative sum."""
        self.now_ns -= _span_ns(s, ms, us, ns)

    def run(self, *, tick_ns: int) -> None:
        """From now on every reading moves the clock by so much, negative for backwards."""
        self._tick_ns = tick_ns

    def stand(self) -> None:
        """Stands still again."""
        self._tick_ns = 0


class DriftingClock:
    """A clock that runs fast (`ppm` > 0) or slow beside another one, in parts per million, exactly.

    It agrees with `clock` at the moment it is made, but for `offset_ns`. A clock at -1_000_000 ppm stands.
    """

    def __init__(self, clock: Callable[[], int], ppm: int, *, offset_ns: int = 0) -> None:
        self._clock = clock
        self._ppm = ppm
        self._origin_ns = clock()
        self._offset_ns = offset_ns

    def __call__(self) -> int:
        elapsed_ns = self._clock() - self._origin_ns
        drifted_ns = elapsed_ns * (_PER_MILLION + self._ppm) // _PER_MILLION
        return self._origin_ns + self._offset_ns + drifted_ns


def _span_ns(s: int, ms: int, us: int, ns: int) -> int:
    span_ns = ((s * 1000 + ms) * 1000 + us) * 1000 + ns
    if span_ns < 0:
        raise ValueError(f"a span of {span_ns} ns: clocks step back by step_back, and jump by set")
    return span_ns
