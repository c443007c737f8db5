"""What Prometheus sees of detectors and blocks. Labels are the policy's detector names and closed lists."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

if TYPE_CHECKING:
    from shield.abuse import Abuse

_COUNTERS = {
    "detected": "Detections, repeats left out.",
    "covered": "Detections left out because a more particular detector had just reported the same subject.",
    "pushed_out": "Keys forgotten while they still counted: the detector's max_keys was reached.",
}
_GAUGES = {
    "keys": "Keys that the detector remembers.",
    "max_keys": "How many keys it may remember.",
    "size_bytes": "Bytes that it takes.",
}


class AbuseMetrics(Collector):
    """Renders the counts when somebody scrapes."""

    def __init__(self, abuse: Abuse) -> None:
        self._abuse = abuse

    def collect(self) -> Iterable[Metric]:
        """One snapshot."""
        stats = self._abuse.stats()
        for name, help_text in _COUNTERS.items():
            counter = CounterMetricFamily(f"shield_detector_{name}", help_text, labels=["detector"])
            for detector, counts in stats.items():
                counter.add_metric([detector], counts[name])
            yield counter
        for name, help_text in _GAUGES.items():
            gauge = GaugeMetricFamily(f"shield_detector_{name}", help_text, labels=["detector"])
            for detector, counts in stats.items():
                gauge.add_metric([detector], counts[name])
            yield gauge
        blocks = self._abuse.book.stats()
        yield GaugeMetricFamily("shield_blocks", "Blocks in force.", value=blocks["blocks"])
        yield GaugeMetricFamily("shield_blocks_max", "How many there may be.", value=blocks["max_blocks"])
        yield GaugeMetricFamily("shield_blocked_networks", "Networks on block lists.", value=blocks["listed_networks"])
        yield CounterMetricFamily("shield_blocked_requests", "Requests that a block refused.", value=blocks["refused"])
        yield CounterMetricFamily(
            "shield_blocks_pushed_out",
            "Blocks that ended early because max_blocks was reached.",
            value=blocks["pushed_out"],
        )
