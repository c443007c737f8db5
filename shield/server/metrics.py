"""What Prometheus sees. Counting is adding to plain integers; rendering happens when somebody scrapes.

Labels take their values from the policy (limits, owner) and from closed lists (reasons, statuses), never from
requests: no traffic makes a new time series.
"""

from __future__ import annotations

import platform
from bisect import bisect_left
from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING, Final

from prometheus_client import CollectorRegistry, GCCollector, PlatformCollector, ProcessCollector
from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    InfoMetricFamily,
    Metric,
)
from prometheus_client.exposition import choose_encoder
from prometheus_client.registry import Collector

if TYPE_CHECKING:
    from shield.decision import Decision
    from shield.policy import Policy

# Seconds. A local check takes some microseconds, one with Redis a few hundred, its deadline is 20 ms.
LATENCY_BUCKETS: Final = (
    *(0.000_01, 0.000_025, 0.000_05, 0.000_1, 0.000_25, 0.000_5),
    *(0.001, 0.002_5, 0.005, 0.01, 0.02, 0.05, 0.1, 1.0),
)
# What of a store's counts goes up and down; everything else it counts only grows.
GAUGES: Final = frozenset(
    {"keys", "max_keys", "size_bytes", "leases", "max_leases", "connections", "in_flight", "breaker_open"}
)

StoreStats = Callable[[], Mapping[str, object]]


class Metrics(Collector):
    """Counts decisions and renders them together with the store's counts and the process's."""

    def __init__(self, version: str, policy: Policy, stats: StoreStats) -> None:
        self._version = self.version = version
        self._stats = stats
        self._reasons: dict[str, int] = {}
        self._refusals: dict[str, int] = {}
        self._shadow: dict[str, int] = {}
        self._degraded = 0
        self._latency = [0] * (len(LATENCY_BUCKETS) + 1)
        self._latency_sum = 0.0
        self._problems: dict[tuple[str, int], int] = {}
        self._reloads = {"replaced": 0, "refused": 0}
        self._suppressed = 0
        self.trace_lost = 0
        self.in_flight = 0
        self.adopt(policy)
        self._registry = CollectorRegistry()
        self._registry.register(self)
        for collector in (ProcessCollector, PlatformCollector, GCCollector):
            collector(registry=self._registry)

    def add(self, collector: Collector) -> None:
        """Something else that is rendered with the rest."""
        self._registry.register(collector)

    def adopt(self, policy: Policy) -> None:
        """The policy in force. Limits it does not have any more are forgotten, or they would add up."""
        self._policy = (policy.name, policy.owner or "", policy.fingerprint)
        names = [limit.name for limit in policy.limits]
        self._refusals = {name: self._refusals.get(name, 0) for name in names}
        self._shadow = {name: self._shadow.get(name, 0) for name in names}

    # ---- counting ------------------------------------------------------------------------------------------

    def decided(self, decision: Decision, elapsed_s: float) -> None:
        """One decision, and how long it took."""
        reason = decision.reason
        self._reasons[reason] = self._reasons.get(reason, 0) + 1
        self._latency[bisect_left(LATENCY_BUCKETS, elapsed_s)] += 1
        self._latency_sum += elapsed_s
        if decision.degraded:
            self._degraded += 1
        if not decision.allowed:
            _add(self._refusals, decision.violated)
        if shadow := decision.shadow:
            _add(self._shadow, shadow)

    def problem(self, endpoint: str, status: int) -> None:
        """One answer that was no decision. `endpoint` is one of the routes' names."""
        key = (endpoint, status)
        self._problems[key] = self._problems.get(key, 0) + 1

    def reloaded(self, outcome: str) -> None:
        """A policy was "replaced", or "refused" and the running one kept."""
        self._reloads[outcome] += 1

    def suppressed(self, lines: int) -> None:
        """Log lines about refusals that were left out."""
        self._suppressed += lines

    # ---- rendering -----------------------------------------------------------------------------------------

    def render(self, accept: str) -> tuple[bytes, str]:
        """The exposition and its content type, in the format that `accept` prefers."""
        encode, content_type = choose_encoder(accept)
        return encode(self._registry), content_type

    def collect(self) -> Iterable[Metric]:
        """One snapshot, for the registry."""
        name, owner, fingerprint = self._policy
        build = InfoMetricFamily("shield_build", "The version that runs.")
        build.add_metric([], {"version": self._version, "python": platform.python_version()})
        yield build
        policy = InfoMetricFamily("shield_policy", "The policy in force.")
        policy.add_metric([], {"name": name, "owner": owner, "fingerprint": fingerprint})
        yield policy
        yield _counter("shield_decisions", "Decisions by reason; ok is allowed.", ["reason"], _rows(self._reasons))
        yield _counter(
            "shield_limit_refusals",
            "Refusals by each limit that denied.",
            ["limit", "owner"],
            [((limit, owner), count) for limit, count in self._refusals.items()],
        )
        yield _counter(
            "shield_shadow_refusals",
            "Requests that a limit in shadow mode would have refused.",
            ["limit", "owner"],
            [((limit, owner), count) for limit, count in self._shadow.items()],
        )
        yield _single("shield_degraded_decisions", "Decisions made without the store's truth.", self._degraded)
        yield self._histogram()
        yield _counter(
            "shield_http_problems",
            "Answers that were no decision, by endpoint and HTTP status.",
            ["endpoint", "status"],
            [((endpoint, str(status)), count) for (endpoint, status), count in self._problems.items()],
        )
        yield _counter("shield_policy_reloads", "Policies put in force or refused.", ["outcome"], _rows(self._reloads))
        yield _single("shield_log_lines_suppressed", "Lines about refusals that were left out.", self._suppressed)
        yield _single("shield_trace_records_lost", "Decisions that could not be traced.", self.trace_lost)
        yield GaugeMetricFamily("shield_in_flight", "Requests being answered.", value=self.in_flight)
        yield from self._store()

    def _histogram(self) -> HistogramMetricFamily:
        seen = 0
        buckets = []
        for bound, count in zip((*LATENCY_BUCKETS, float("inf")), self._latency, strict=True):
            seen += count
            buckets.append(("+Inf" if bound == float("inf") else repr(bound), seen))
        histogram = HistogramMetricFamily(
            "shield_check_duration_seconds", "From a request that was read to its decision, store included."
        )
        histogram.add_metric([], buckets, self._latency_sum)
        return histogram

    def _store(self) -> Iterable[Metric]:
        for name, value in self._stats().items():
            if not isinstance(value, (int, float)):
                continue
            if name in GAUGES:
                yield GaugeMetricFamily(f"shield_store_{name}", f"The store's {name.replace('_', ' ')}.", value=value)
            else:
                yield _single(f"shield_store_{name}", f"The store's count of {name.replace('_', ' ')}.", value)


def _add(counts: dict[str, int], names: Iterable[str]) -> None:
    for name in names:
        if name in counts:
            counts[name] += 1


def _rows(counts: Mapping[str, int]) -> list[tuple[tuple[str, ...], int]]:
    return [((name,), count) for name, count in counts.items()]


def _counter(
    name: str, documentation: str, labels: list[str], rows: Iterable[tuple[tuple[str, ...], int]]
) -> CounterMetricFamily:
    family = CounterMetricFamily(name, documentation, labels=labels)
    for values, count in rows:
        family.add_metric(values, count)
    return family


def _single(name: str, documentation: str, value: float) -> CounterMetricFamily:
    return CounterMetricFamily(name, documentation, value=value)
