"""The oracle for nonces: when a request with one is let through, as plainly as it can be said.

Times are whole Unix microseconds. It shares no code with what it judges, and forgets nothing: what a store may
forget is what has passed its `until`.
"""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass, field

SECOND_US = 1_000_000


@dataclass
class Nonces:
    """What was used, since when that is known, and how long it is held."""

    since_us: int
    window_us: int
    skew_us: int
    until_us: dict[Hashable, int] = field(default_factory=dict)
    held_us: int = 0  # the widest window + skew that any nonce was looked at under
    narrower_us: int = 0  # what that was before the change at `widened_us`
    widened_us: int | None = None

    def judge(self, now_us: int, nonce: Hashable, stamp_us: int) -> str | None:
        """Why a request is refused for its nonce; None when it is not."""
        self._hold_by_this_window(now_us)
        if stamp_us > now_us + self.skew_us:
            return "stale"  # too far ahead
        if stamp_us < now_us - self.window_us:
            return "stale"  # too old
        if stamp_us + self.window_us + self.skew_us <= now_us:
            return "stale"  # it would not be held any more: only where future_skew is 0
        if stamp_us <= self.since_us + self.skew_us:
            return "stale"  # it may have been used before anything was known
        if (
            self.widened_us is not None
            and stamp_us <= self.widened_us + self.skew_us
            and stamp_us + self.narrower_us <= now_us
        ):
            return "stale"  # it may have been used and forgotten when the window was narrower
        if self.until_us.get(nonce, 0) > now_us:
            return "replay"
        return None

    def take(self, nonce: Hashable, stamp_us: int) -> None:
        """The request was admitted."""
        self.until_us[nonce] = stamp_us + self.held_us

    def lose(self, now_us: int) -> None:
        """Everything is forgotten at this instant."""
        self.until_us.clear()
        self.since_us, self.widened_us, self.held_us = now_us, None, 0

    def _hold_by_this_window(self, now_us: int) -> None:
        wanted_us = self.window_us + self.skew_us
        if wanted_us <= self.held_us:
            return
        if self.held_us:
            if self.widened_us is None or now_us > self.widened_us + self.held_us:
                self.narrower_us = self.held_us
            self.widened_us = now_us + SECOND_US  # clocks that are read one after the other
        self.held_us = wanted_us
