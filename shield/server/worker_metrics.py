"""What Prometheus sees of a supervisor's workers, each by its number."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from prometheus_client.core import GaugeMetricFamily, Metric

from shield.server.crew import Slot
from shield.server.exposition import counter


def worker_metrics(places: Sequence[Slot]) -> Iterable[Metric]:
    """Whether each works, what it has decided and how often it was started anew; and its process."""
    slots = [(str(slot.number), slot) for slot in places]
    up = GaugeMetricFamily("shield_worker_up", "1 while the worker decides.", labels=["worker"])
    for number, slot in slots:
        up.add_metric([number], slot.worker is not None and slot.worker.admitted)
    yield up
    yield counter(
        "shield_worker_decisions",
        "Decisions by each worker and those before it.",
        ["worker"],
        [((number,), slot.counts().decisions) for number, slot in slots],
    )
    yield counter(
        "shield_worker_restarts",
        "Workers that were started after one that died.",
        ["worker"],
        [((number,), max(0, slot.starts - 1)) for number, slot in slots],
    )
    yield counter(
        "shield_worker_deaths",
        "Workers that ended without being told to, by cause.",
        ["worker", "cause"],
        [((number, cause), deaths) for number, slot in slots for cause, deaths in slot.deaths.items()],
    )
    families: dict[str, Metric] = {}
    for number, slot in slots:
        for found in slot.worker.process_metrics.collect() if slot.worker is not None else ():
            family = families.setdefault(found.name, Metric(found.name, found.documentation, found.type))
            for sample in found.samples:
                family.add_sample(sample.name, {"worker": number}, sample.value)
    yield from families.values()
