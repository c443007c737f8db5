"""Detectors at work on one Shield's stream: every request and every reported outcome is shown to them.

    request -> decision -> seen(request)            before the answer leaves
    report  -> outcome(facts, status, event)

What was detected goes to the listeners, in the order it was found. A listener that raises is passed over for that one
detection: detecting never keeps a decision from being made.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence

from shield.clock import Clock
from shield.detect.detection import Detection
from shield.detect.travel import Locate
from shield.detect.watch import Watch
from shield.policy import Policy
from shield.request import Request

Listener = Callable[[Detection], None]


class Abuse:
    """The detectors of the policy in force. `locate` answers where an address is, for impossible travel."""

    def __init__(self, *, clock: Clock | None, locate: Locate | None = None) -> None:
        self._clock = clock if clock is not None else time.time_ns
        self._locate = locate
        self._watch: Watch | None = None
        self._ipv6_prefix = 64
        self.listeners: list[Listener] = []
        self.listener_faults = 0

    @property
    def active(self) -> bool:
        """True when something wants to see requests."""
        return self._watch is not None

    def adopt(self, policy: Policy) -> None:
        """The policy's detectors from now on. Unchanged ones go on with what they know; a changed set starts anew."""
        prefix = policy.identity.ipv6_prefix
        if self._watch is not None and (self._watch.detectors, self._ipv6_prefix) == (policy.detectors, prefix):
            return
        self._ipv6_prefix = prefix
        self._watch = Watch(policy.detectors, ipv6_prefix=prefix, locate=self._locate) if policy.detectors else None

    def seen(self, request: Request) -> Sequence[Detection]:
        """A request that was decided."""
        if self._watch is None:
            return ()
        found = self._watch.request(request, self._clock() // 1000)
        return self._tell(found) if found else ()

    def outcome(self, facts: Request, status: int | None, event: str | None) -> Sequence[Detection]:
        """What became of a request, with the facts that tell which it was."""
        if self._watch is None:
            return ()
        found = self._watch.outcome(facts, status, event, self._clock() // 1000)
        return self._tell(found) if found else ()

    def stats(self) -> Mapping[str, Mapping[str, int]]:
        """By detector: what it holds, its bound, and what it found."""
        return {} if self._watch is None else self._watch.stats()

    def _tell(self, found: Sequence[Detection]) -> Sequence[Detection]:
        for detection in found:
            for listener in self.listeners:
                try:
                    listener(detection)
                except Exception:
                    self.listener_faults += 1
        return found
