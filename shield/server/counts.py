"""What a process has counted since its start, as plain values: they can be sent, and added up."""

from __future__ import annotations

from typing import Final

import msgspec

# Seconds. A local check takes some microseconds, one with Redis a few hundred, its deadline is 20 ms.
LATENCY_BUCKETS: Final = (
    *(0.000_01, 0.000_025, 0.000_05, 0.000_1, 0.000_25, 0.000_5),
    *(0.001, 0.002_5, 0.005, 0.01, 0.02, 0.05, 0.1, 1.0),
)


class Counts(msgspec.Struct, kw_only=True):
    """One process's counts, or the sum of several's."""

    reasons: dict[str, int] = {}
    """Decisions by their reason."""
    refusals: dict[str, int] = {}
    """By the limit that denied."""
    shadow: dict[str, int] = {}
    """By the limit or guard in shadow mode that would have."""
    degraded: int = 0
    nonces_many: int = 0
    """Refused because the tenant had as many nonces as it may."""
    latency: list[int] = msgspec.field(default_factory=lambda: [0] * (len(LATENCY_BUCKETS) + 1))
    """By LATENCY_BUCKETS, and what took longer than the last of them."""
    latency_sum_s: float = 0.0
    problems: dict[tuple[str, int], int] = {}
    """Answers that were no decision, by endpoint and status."""
    shed: dict[str, int] = {}
    reloads: dict[str, int] = {}
    suppressed: int = 0
    """Log lines that were left out."""
    trace_lost: int = 0
    in_flight: int = 0
    """Requests being answered: a gauge."""
    store: dict[str, int | float] = {}
    """The store's numbers as far as each process has its own."""
    host: dict[str, int | float] = {}
    """Those that are of one table which all processes of the host share: each of them tells the same."""

    @property
    def decisions(self) -> int:
        return sum(self.reasons.values())

    def add(self, other: Counts) -> None:
        """Adds another process's counts. What is the host's is taken once: the larger, which is the later of counts."""
        for mine, theirs in (
            (self.reasons, other.reasons),
            (self.refusals, other.refusals),
            (self.shadow, other.shadow),
            (self.problems, other.problems),
            (self.shed, other.shed),
            (self.reloads, other.reloads),
            (self.store, other.store),
        ):
            _add(mine, theirs)
        self.degraded += other.degraded
        self.nonces_many += other.nonces_many
        self.latency = [mine + theirs for mine, theirs in zip(self.latency, other.latency, strict=True)]
        self.latency_sum_s += other.latency_sum_s
        self.suppressed += other.suppressed
        self.trace_lost += other.trace_lost
        self.in_flight += other.in_flight
        for name, value in other.host.items():
            self.host[name] = max(value, self.host.get(name, value))

    def of_the_dead(self, gauges: frozenset[str]) -> Counts:
        """What stays of a process that has ended: it counted, but holds nothing any more."""
        return msgspec.structs.replace(
            self, in_flight=0, store={name: value for name, value in self.store.items() if name not in gauges}, host={}
        )


def _add(mine: dict, theirs: dict) -> None:  # type: ignore[type-arg]
    for key, count in theirs.items():
        mine[key] = mine.get(key, 0) + count
