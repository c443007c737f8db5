"""What Prometheus sees of a process's counts, or of the sum of several's."""

from __future__ import annotations

import platform
from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING, Final, NamedTuple

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

from shield.server.counts import LATENCY_BUCKETS, Counts

if TYPE_CHECKING:
    from shield.policy import Policy

# What of a store's counts goes up and down; everything else it counts only grows.
GAUGES: Final = frozenset(
    {"keys", "max_keys", "size_bytes", "leases", "max_leases", "receipts", "max_receipts", "nonces", "max_nonces"}
    | {"idempotency_keys", "idempotency_bytes"}
    | {"connections", "in_flight", "waiting", "nodes", "breaker_open", "lease_keys"}
    | {"identity_tokens_cached", "identity_api_keys", "turns_waiting"}
    | {"blocks_in_force", "blocks_max", "blocks_listed_networks", "blocks_lists_failing", "events_queued"}
    | {"overrides_in_force"}
    | {"sharing_nodes"}
)
# What is no count of the store's.
OF_ITS_OWN: Final = ("identity_", "blocks_", "overrides_", "events_", "turns_", "middleware_")

Rows = Iterable[tuple[tuple[str, ...], int | float]]
More = Callable[[], Iterable[Metric]]


class PolicyInfo(NamedTuple):
    """What labels say of the policy in force."""

    name: str
    owner: str
    fingerprint: str
    limits: tuple[str, ...]
    shadow_guards: tuple[str, ...] = ()

    @classmethod
    def of(cls, policy: Policy) -> PolicyInfo:
        limits = [limit.name for limit in policy.limits]
        if policy.identity.failures is not None:
            limits.append(policy.identity.failures.name)
        return cls(policy.name, policy.owner or "", policy.fingerprint, tuple(limits), policy.shadow_guards)


class Exposition(Collector):
    """Renders counts as they are when somebody scrapes. `more` are families beside them."""

    def __init__(
        self, version: str, policy: Callable[[], PolicyInfo], counts: Callable[[], Counts], more: More = tuple
    ) -> None:
        self._version = version
        self._policy = policy
        self._counts = counts
        self._more = more
        self._registry = CollectorRegistry()
        self._registry.register(self)
        for collector in (ProcessCollector, PlatformCollector, GCCollector):
            collector(registry=self._registry)

    def render(self, accept: str) -> tuple[bytes, str]:
        """The exposition and its content type, in the format that `accept` prefers."""
        encode, content_type = choose_encoder(accept)
        return encode(self._registry), content_type

    def collect(self) -> Iterable[Metric]:
        """One snapshot, for the registry."""
        policy, counts = self._policy(), self._counts()
        build = InfoMetricFamily("shield_build", "The version that runs.")
        build.add_metric([], {"version": self._version, "python": platform.python_version()})
        yield build
        in_force = InfoMetricFamily("shield_policy", "The policy in force.")
        in_force.add_metric([], {"name": policy.name, "owner": policy.owner, "fingerprint": policy.fingerprint})
        yield in_force
        yield counter("shield_decisions", "Decisions by reason; ok is allowed.", ["reason"], _rows(counts.reasons))
        yield counter(
            "shield_limit_refusals",
            "Refusals by each limit that denied.",
            ["limit", "owner"],
            _by_limit(policy, counts.refusals),
        )
        yield counter(
            "shield_shadow_refusals",
            "Requests that a limit or guard in shadow mode would have refused.",
            ["limit", "owner"],
            [
                *_by_limit(policy, counts.shadow),
                *(((guard, policy.owner), counts.shadow.get(guard, 0)) for guard in policy.shadow_guards),
            ],
        )
        yield _single("shield_degraded_decisions", "Decisions made without the store's truth.", counts.degraded)
        yield _single(
            "shield_nonce_bound_refusals",
            "Refusals (store_full) because a tenant had as many nonces as guard.replay.max_per_tenant.",
            counts.nonces_many,
        )
        yield _histogram(counts)
        yield counter(
            "shield_http_problems",
            "Answers that were no decision, by endpoint and HTTP status.",
            ["endpoint", "status"],
            [((endpoint, str(status)), count) for (endpoint, status), count in counts.problems.items()],
        )
        yield counter(
            "shield_shed_requests",
            "Requests refused because they came up too late or too many waited for the store.",
            ["why"],
            _rows(counts.shed),
        )
        yield counter("shield_policy_reloads", "Policies put in force or refused.", ["outcome"], _rows(counts.reloads))
        yield _single("shield_log_lines_suppressed", "Lines about refusals that were left out.", counts.suppressed)
        yield _single("shield_trace_records_lost", "Decisions that could not be traced.", counts.trace_lost)
        yield GaugeMetricFamily("shield_in_flight", "Requests being answered.", value=counts.in_flight)
        yield from _store({**counts.store, **counts.host})
        yield from self._more()


def counter(name: str, documentation: str, labels: list[str], rows: Rows) -> CounterMetricFamily:
    """A counter with a row for each combination of label values."""
    family = CounterMetricFamily(name, documentation, labels=labels)
    for values, count in rows:
        family.add_metric(values, count)
    return family


def _by_limit(policy: PolicyInfo, counts: Mapping[str, int]) -> Rows:
    return [((limit, policy.owner), counts.get(limit, 0)) for limit in policy.limits]


def _histogram(counts: Counts) -> HistogramMetricFamily:
    seen = 0
    buckets = []
    for bound, count in zip((*LATENCY_BUCKETS, float("inf")), counts.latency, strict=True):
        seen += count
        buckets.append(("+Inf" if bound == float("inf") else repr(bound), seen))
    histogram = HistogramMetricFamily(
        "shield_check_duration_seconds", "From a request that was read to its decision, store included."
    )
    histogram.add_metric([], buckets, counts.latency_sum_s)
    return histogram


def _store(numbers: Mapping[str, int | float]) -> Iterable[Metric]:
    for name, value in numbers.items():
        words = name.replace("_", " ")
        owner = "" if name.startswith(OF_ITS_OWN) else "store_"
        whose = "The store's " if owner else ""
        if name in GAUGES:
            yield GaugeMetricFamily(f"shield_{owner}{name}", f"{whose}{words}.", value=value)
        else:
            yield _single(f"shield_{owner}{name}", f"{whose or 'The '}count of {words}.", value)


def _rows(counts: Mapping[str, int]) -> Rows:
    return [((name,), count) for name, count in counts.items()]


def _single(name: str, documentation: str, value: float) -> CounterMetricFamily:
    return CounterMetricFamily(name, documentation, value=value)
