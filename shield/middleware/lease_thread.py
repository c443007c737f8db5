"""Extends the leases of idempotency keys whose requests are still running, for servers of threads: one thread that
sleeps until the next is due. A loop has tasks for that.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

from shield.middleware.turn import EXTENSIONS_PER_LEASE, MAX_EXTENSIONS, Turn


class LeaseThread:
    """`extend` extends one turn's lease and says whether that was worth it."""

    def __init__(self, extend: Callable[[Turn], bool]) -> None:
        self._extend = extend
        self.forget()

    def forget(self) -> None:
        """In a process that was just forked: nothing runs here yet."""
        self._changed = threading.Condition()
        self._due: dict[Turn, tuple[float, int]] = {}
        self._thread: threading.Thread | None = None

    def add(self, turn: Turn) -> None:
        """From now on, until it is removed."""
        with self._changed:
            self._due[turn] = (time.monotonic() + _step_s(turn), MAX_EXTENSIONS)
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name="shield-leases", daemon=True)
                self._thread.start()
            else:
                self._changed.notify()

    def remove(self, turn: Turn) -> None:
        """It has ended."""
        with self._changed:
            self._due.pop(turn, None)

    def _run(self) -> None:
        while True:
            with self._changed:
                now = time.monotonic()
                late = [turn for turn, (at, _) in self._due.items() if at <= now]
                for turn in late:
                    left = self._due[turn][1] - 1
                    if left:
                        self._due[turn] = (now + _step_s(turn), left)
                    else:
                        del self._due[turn]
                if not late:
                    first = min((at for at, _ in self._due.values()), default=None)
                    self._changed.wait(None if first is None else first - now)
            for turn in late:
                if not self._extend(turn):
                    self.remove(turn)


def _step_s(turn: Turn) -> float:
    owned = turn.decision.idempotency
    return owned.lease_s / EXTENSIONS_PER_LEASE if owned is not None else 0.0
