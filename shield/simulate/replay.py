"""One policy on one stream of records: the facade that serves live, on a clock that stands at each record's instant."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any, Final

from shield.decision import Decision
from shield.detect.detection import Detection
from shield.detect.travel import Locate
from shield.policy import Policy
from shield.policy.model import CONCURRENCY
from shield.request import Request
from shield.shield import Shield
from shield.simulate.records import Record

# What a report can hold. Past these, clients are one line ("others"), and more of the same is counted.
MAX_CLIENTS: Final = 200_000
MAX_REFUSALS: Final = 100_000
MAX_DETECTIONS: Final = 10_000
MAX_CLOSE: Final = 50_000
MAX_BINS: Final = 500_000
OTHERS: Final = "(others)"
UNKNOWN: Final = "(no address)"
MINUTE_US: Final = 60_000_000


@dataclass(slots=True)
class Refused:
    """One client refused by one limit or for one reason."""

    count: int
    first_us: int
    last_us: int
    sample: str | None


@dataclass(slots=True)
class Outcome:
    """What a policy would have done."""

    policy: Policy
    requests: int = 0
    allowed: int = 0
    first_us: int | None = None
    last_us: int | None = None
    reasons: dict[str, int] = field(default_factory=dict)
    by_limit: dict[str, int] = field(default_factory=dict)
    shadow: dict[str, int] = field(default_factory=dict)
    clients: dict[str, list[int]] = field(default_factory=dict)  # [requests, refused]
    refusals: dict[tuple[str, str], Refused] = field(default_factory=dict)  # (client, limit or reason)
    refusals_left_off: int = 0
    closest: dict[str, dict[str, float]] = field(default_factory=dict)  # limit -> key -> the least share that was left
    detections: list[Detection] = field(default_factory=list)
    detections_left_off: int = 0
    minutes: dict[int, list[int]] = field(default_factory=dict)  # minute -> [allowed, refused, detections]
    detectors: dict[str, dict[str, int]] = field(default_factory=dict)


class Replay:
    """Feeds records to a Shield. `record` is called for each in the order of the log."""

    def __init__(self, policy: Policy, *, locate: Locate | None = None) -> None:
        self.outcome = Outcome(policy)
        self._now_us = 0
        self._shield = Shield(policy, clock=self._clock, locate=locate)
        self._shield.abuse.listeners.append(self._detected)
        self._watches = self._shield.abuse.active
        # A place is given back when the request ends, which a log does not say: no closeness of such a limit.
        self._close = {one.name: one.key for one in policy.limits if one.algorithm != CONCURRENCY}
        self.outcome.closest = {name: {} for name in self._close}

    def _clock(self) -> int:
        return self._now_us * 1000

    def run(self, records: Iterable[Record]) -> Outcome:
        """All of them."""
        for at_us, request, status, event in records:
            self.record(at_us, request, status, event)
        return self.finish()

    def finish(self) -> Outcome:
        """What came out of it."""
        self.outcome.detectors = {name: dict(stats) for name, stats in self._shield.abuse.stats().items()}
        return self.outcome

    def record(self, at_us: int, request: Request, status: int | None, event: str | None) -> Decision:
        """One request and its outcome. Lines that are out of order are decided at the latest instant so far."""
        out = self.outcome
        if at_us > self._now_us:
            self._now_us = at_us
        decision = self._shield.check_nowait(request)
        out.requests += 1
        if out.first_us is None:
            out.first_us = at_us
        out.last_us = self._now_us
        client = request.ip or UNKNOWN
        seen = out.clients.get(client)
        if seen is None:
            if len(out.clients) >= MAX_CLIENTS:
                client = OTHERS
            seen = out.clients.setdefault(client, [0, 0])
        seen[0] += 1
        minute = self._now_us // MINUTE_US
        here = out.minutes.get(minute)
        if here is None:
            if len(out.minutes) >= MAX_BINS:
                minute = next(reversed(out.minutes))
            here = out.minutes.setdefault(minute, [0, 0, 0])
        if decision.allowed:
            out.allowed += 1
            here[0] += 1
            if shadow := decision.shadow:
                for name in shadow:
                    out.shadow[name] = out.shadow.get(name, 0) + 1
        else:
            seen[1] += 1
            here[1] += 1
            self._refused(client, decision, request)
        if tight := decision.tight():
            self._closeness(tight, request)
        if self._watches and (status is not None or event is not None):
            # A request that was refused had no such outcome, but whether it would have been refused is what is asked:
            # detectors see what the log saw, so that a limit does not hide what they would say.
            self._shield.abuse.outcome(request, status, event)
        return decision

    def _refused(self, client: str, decision: Decision, request: Request) -> None:
        out = self.outcome
        out.reasons[decision.reason] = out.reasons.get(decision.reason, 0) + 1
        violated = decision.violated
        for name in violated:
            out.by_limit[name] = out.by_limit.get(name, 0) + 1
        for by in violated or (decision.reason,):
            known = out.refusals.get((client, by))
            if known is not None:
                known.count += 1
                known.last_us = self._now_us
            elif len(out.refusals) < MAX_REFUSALS:
                out.refusals[client, by] = Refused(1, self._now_us, self._now_us, _sample(request))
            else:
                out.refusals_left_off += 1

    def _closeness(self, tight: Iterable[tuple[str, int, int]], request: Request) -> None:
        for name, remaining, limit in tight:
            key = self._close.get(name)
            if key is None:
                continue
            least = self.outcome.closest[name]
            who = ", ".join(_value(request, field) for field in key)
            left = remaining / limit
            if left < least.get(who, 2.0) and (who in least or len(least) < MAX_CLOSE):
                least[who] = left

    def _detected(self, detection: Detection) -> None:
        out = self.outcome
        out.minutes.setdefault(self._now_us // MINUTE_US, [0, 0, 0])[2] += 1
        if len(out.detections) < MAX_DETECTIONS:
            out.detections.append(detection)
        else:
            out.detections_left_off += 1

    @property
    def now_us(self) -> int:
        """The instant of the latest record."""
        return self._now_us


def _sample(request: Request) -> str | None:
    if request.path is None:
        return None
    return f"{request.method or ''} {request.path}".strip()[:200]


def _value(request: Request, field: str) -> str:
    if field.startswith("attributes."):
        value: Any = (request.attributes or {}).get(field.removeprefix("attributes."))
    else:
        value = getattr(request, field, None)
    return "" if value is None else str(value)[:100]
