"""How late are answers at which rate, on either lane, up to where the server cannot keep up?

One worker on a core, the generator on another. First as much as it answers at all (closed loop), then parts of that in
an open loop with Poisson arrivals. How busy the worker was is what its own processor time says, so that a neighbour on
its core does not count. A point in doubt (lateness.py) is measured again, and then told as such.
"""

from __future__ import annotations

import sys
from typing import Any

from . import generator, latency
from .endpoint import Endpoint, serving
from .lateness import believed
from .machine import cores
from .record import Found, Measured, Row, Series, Skipped
from .traffic import LANES, Traffic

PARTS = (0.1, 0.25, 0.5, 0.7, 0.85, 1.0, 1.15)
PLOTTED = (0.25, 0.5, 0.85, 1.15)
SATURATIONS = 5
NEEDS = "needs Linux, where processes are pinned to cores and their processor time can be read"


def run(seconds: float, seed: int) -> list[Found]:
    if sys.platform != "linux":
        return [Skipped("latency against offered rate", NEEDS)]
    found: list[Found] = []
    for lane in LANES:
        found += of_lane(Traffic(lane=lane), seconds, seed)
    return found


def of_lane(traffic: Traffic, seconds: float, seed: int) -> list[Found]:
    """The figures and curves of one lane."""
    name = f"{traffic.lane} lane"
    with traffic.folder() as policy, serving(policy, cores=cores()[:1]) as server:
        each = saturations(server, traffic, seconds, seed)
        rate = Measured([wall for wall, _ in each])
        of_cpu = Measured([cpu for _, cpu in each])
        points = {part: point(server, traffic, part * rate, seconds, seed) for part in PARTS}
    half = points[0.5]
    rows: list[Found] = [
        Row(f"{name}: answers a second, closed loop", rate, "/s"),
        Row(f"{name}: answers for each second of its processor time", of_cpu, "/s"),
        Series(f"{name}: latency against offered rate", "load", [_bare(one) for one in points.values()]),
        Series(
            f"{name}: latency by percentile",
            "percentiles",
            [
                {"name": f"{one['offered']:,.0f}/s", "curve": one["curve"], "doubt": one["doubt"]}
                for part, one in points.items()
                if part in PLOTTED
            ],
        ),
    ]
    for percentile in ("p50", "p99"):
        what = f"{name}: {percentile} at half of that rate, open loop"
        rows.append(Skipped(what, half["doubt"]) if half["doubt"] else Row(what, half[percentile], "ms"))
    return rows


def saturations(server: Endpoint, traffic: Traffic, seconds: float, seed: int) -> list[tuple[float, float]]:
    """(answers a second, answers for each second of the worker's processor time), several times."""
    core = cores()[-1]
    generator.saturate(server.port, traffic, min(1.0, seconds), core=core, seed=seed)  # every path is warm then
    each = []
    for _ in range(SATURATIONS):
        before = sum(server.cpu_s())
        rate = generator.saturate(server.port, traffic, seconds, core=core, seed=seed)
        each.append((rate, rate * seconds / max(1e-6, sum(server.cpu_s()) - before)))
    return each


def point(server: Endpoint, traffic: Traffic, rate: float, seconds: float, seed: int) -> dict[str, Any]:
    """One offered rate: what was achieved, how late, how busy the worker was, and whether to believe it."""
    (found, used_s, _), doubt = believed(
        lambda: generator.generate(server.port, traffic, max(20.0, rate), seconds, seed=seed, cores=cores()[-1:]),
        server.workers,
    )
    busy = used_s / seconds / len(server.workers)
    return {
        "offered": round(found.offered, 1),
        "achieved": round(found.achieved, 1),
        "busy": round(busy, 4),
        **{name: round(ms, 4) for name, ms in latency.percentiles(found.latency).items()},
        "lag_p99": round(latency.ms(found.lag, 99), 4),
        "refused": found.refused,
        "doubt": doubt,
        "bytes_a_check": round((found.sent_bytes + found.received_bytes) / max(1, found.answers), 1),
        "curve": latency.curve(found.latency),
    }


def _bare(point: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in point.items() if name != "curve"}
