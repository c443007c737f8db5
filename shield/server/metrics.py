"""What is counted while decisions are made: adding to plain integers. Rendering happens when somebody scrapes.

Labels take their values from the policy (limits, owner) and from closed lists (reasons, statuses), never from
requests: no traffic makes a new time series.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING, Final

import msgspec

from shield.core.http_lane import Tally
from shield.server.counts import LATENCY_BUCKETS, Counts
from shield.server.exposition import Exposition, PolicyInfo

if TYPE_CHECKING:
    from shield.decision import Decision
    from shield.policy import Policy

StoreStats = Callable[[], Mapping[str, object]]

_NONE: Final[frozenset[str]] = frozenset()


def no_stats() -> Mapping[str, object]:
    """Of a process that has no store."""
    return {}


class Metrics:
    """Counts decisions, and shows them together with the store's counts and the process's.

    `host_wide` names those of the store's counts that are of a table which several processes share.
    """

    def __init__(self, version: str, policy: Policy, stats: StoreStats, host_wide: frozenset[str] = _NONE) -> None:
        self.version = version
        self._stats = [stats]
        self._host_wide = host_wide
        self._counts = Counts(reloads={"replaced": 0, "refused": 0}, shed={"late": 0, "waiting": 0})
        self.tally = Tally(LATENCY_BUCKETS)
        """What is counted of every decision."""
        self.trace_lost = 0
        self.in_flight = 0
        self.adopt(policy)
        self._exposition = Exposition(version, lambda: self.policy, self.counts)

    def adopt(self, policy: Policy) -> None:
        """The policy in force. Limits it does not have any more are forgotten, or they would add up."""
        self.policy = PolicyInfo.of(policy)
        counts, names = self._counts, self.policy.limits
        counts.refusals = {name: counts.refusals.get(name, 0) for name in names}
        counts.shadow = {name: counts.shadow.get(name, 0) for name in (*names, *self.policy.shadow_guards)}

    def add(self, stats: StoreStats) -> None:
        """Something else that counts beside the store."""
        self._stats.append(stats)

    def decided(self, decision: Decision, elapsed_s: float) -> None:
        """One decision, and how long it took."""
        counts = self._counts
        self.tally.decided(decision.reason, elapsed_s)
        if decision.degraded:
            counts.degraded += 1
        if not decision.allowed:
            _add(counts.refusals, decision.violated)
            if decision.has_too_many_nonces:
                counts.nonces_many += 1
        if shadow := decision.shadow:
            _add(counts.shadow, shadow)

    def problem(self, endpoint: str, status: int) -> None:
        """One answer that was no decision. `endpoint` is one of the routes' names."""
        key = (endpoint, status)
        problems = self._counts.problems
        problems[key] = problems.get(key, 0) + 1

    def shed(self, why: str) -> None:
        """One request was refused because the process was saturated: "late" or "waiting"."""
        self._counts.shed[why] += 1

    def reloaded(self, outcome: str) -> None:
        """A policy was "replaced", or "refused" and the running one kept."""
        self._counts.reloads[outcome] += 1

    def suppressed(self, lines: int) -> None:
        """Log lines about refusals that were left out."""
        self._counts.suppressed += lines

    def counts(self) -> Counts:
        """All there is now. It may be kept: what is counted later is not in it, once it has been encoded."""
        numbers: dict[str, int | float] = {}
        for stats in self._stats:
            numbers |= {name: value for name, value in stats().items() if isinstance(value, (int, float))}
        return msgspec.structs.replace(
            self._counts,
            reasons=self.tally.reasons,
            latency=self.tally.latency,
            latency_sum_s=self.tally.latency_sum_s,
            refusals=_some(self._counts.refusals),
            shadow=_some(self._counts.shadow),
            trace_lost=self.trace_lost,
            in_flight=self.in_flight,
            store={name: value for name, value in numbers.items() if name not in self._host_wide},
            host={name: value for name, value in numbers.items() if name in self._host_wide},
        )

    def render(self, accept: str) -> tuple[bytes, str]:
        """The exposition and its content type, in the format that `accept` prefers."""
        return self._exposition.render(accept)


def _some(counts: dict[str, int]) -> dict[str, int]:
    """Of many limits few refuse."""
    return {name: count for name, count in counts.items() if count}


def _add(counts: dict[str, int], names: Iterable[str]) -> None:
    for name in names:
        if name in counts:
            counts[name] += 1
