"""What a clock is."""

from __future__ import annotations

from collections.abc import Callable

Clock = Callable[[], int]
"""Returns nanoseconds as int: Unix time for `Shield`, any steady origin for `TokenBucket`. It may stand, step or drift:
the laws hold all the same. None stands for the system's clock, read without a Python call."""
