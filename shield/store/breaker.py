"""A circuit breaker: after a few deadlines missed in a row nothing is asked for a while, then one probe
decides.

The law of this file: it knows no clock and no I/O; `now_us` (monotonic microseconds) is an argument. What
counts as a failure is for the caller to say; it should be what costs time, since time is all a breaker saves.

    closed     everything may pass; `threshold` failures in a row, each asked after the last, open it
    open       nothing passes until the cool-down is over
    half-open  one probe at a time passes: its success closes, its failure opens again for twice as long
"""

from __future__ import annotations

from typing import Final, Literal

# Three in a row are no coincidence of one slow command, and cost a caller three deadlines at most.
THRESHOLD: Final = 3
# Long enough to spare a server that is just starting, short enough that nobody notices a blip for longer.
COOL_DOWN_US: Final = 100_000
# A store that comes back is used again within a second.
MAX_COOL_DOWN_US: Final = 1_000_000


class Breaker:
    """One circuit. Not thread-safe: it belongs to one event loop."""

    __slots__ = (
        "_closed_to",
        "_cool_down_us",
        "_failed_us",
        "_failures",
        "_first_us",
        "_longest_us",
        "_probe_until",
        "_threshold",
        "opened",
    )

    def __init__(
        self,
        *,
        threshold: int = THRESHOLD,
        cool_down_us: int = COOL_DOWN_US,
        max_cool_down_us: int = MAX_COOL_DOWN_US,
    ) -> None:
        if threshold < 1 or cool_down_us < 1 or max_cool_down_us < cool_down_us:
            raise ValueError("threshold and cool_down_us must be at least 1, and max_cool_down_us no less than that")
        self._threshold = threshold
        self._first_us = self._cool_down_us = cool_down_us
        self._longest_us = max_cool_down_us
        self._failures = 0
        self._failed_us = 0
        self._closed_to: int | None = None  # until when nothing passes; None while closed
        self._probe_until: int | None = None  # until when the probe that is out may take
        self.opened = 0
        """How often it has opened."""

    @property
    def state(self) -> Literal["closed", "open", "half-open"]:
        if self._closed_to is None:
            return "closed"
        return "open" if self._probe_until is None else "half-open"

    def allow(self, now_us: int) -> bool:
        """Whether to try now. True while not closed means: this is the probe, report what becomes of it."""
        if self._closed_to is None:
            return True
        if now_us < self._closed_to:
            return False
        if self._probe_until is not None and now_us < self._probe_until:
            return False
        # A probe that nobody reported on, because its caller went away, must not keep the circuit open for
        # good.
        self._probe_until = now_us + self._longest_us
        return True

    def would_allow(self, now_us: int) -> bool:
        """What `allow` would say, without sending a probe out."""
        if self._closed_to is None:
            return True
        return now_us >= self._closed_to and (self._probe_until is None or now_us >= self._probe_until)

    def success(self) -> None:
        self._failures = 0
        self._closed_to = self._probe_until = None
        self._cool_down_us = self._first_us

    def failure(self, asked_us: int, now_us: int) -> None:
        """A try that began at `asked_us` has failed. Many that wait together and fail together are one
        failure: what was asked before the last one is no news.
        """
        if asked_us < self._failed_us:
            return
        self._failed_us = now_us
        if self._closed_to is None:
            self._failures += 1
            if self._failures < self._threshold:
                return
        else:
            self._cool_down_us = min(2 * self._cool_down_us, self._longest_us)
        self._failures = 0
        self._closed_to = now_us + self._cool_down_us
        self._probe_until = None
        self.opened += 1

    def undecided(self) -> None:
        """The try ended without saying anything about the store's health: the next one may be the probe."""
        self._probe_until = None
