"""Does anything grow or slow down with time? The endpoint at two fifths of what it can do, for as long as it is told.

`--seconds` is the length of a window; there are WINDOWS of them, so `--seconds 180` is an hour. What is told is the
last quarter against the first: processor time for an answer, latency, and memory. All users have come when the first
windows are over, so memory that grows after them is a leak.
"""

from __future__ import annotations

import statistics
import sys
from typing import Any

from . import generator, latency
from .endpoint import serving
from .machine import cores
from .offered import NEEDS
from .record import Found, Row, Series, Skipped
from .traffic import Traffic

WINDOWS = 20
PART = 0.4
WARM = 4
"""Windows that are let go by before memory is looked at: tables and pools reach their size first."""


def run(seconds: float, seed: int) -> list[Found]:
    if sys.platform != "linux":
        return [Skipped("soak", NEEDS)]
    traffic = Traffic(skew=1.0, denied=0.05)
    windows: list[dict[str, Any]] = []
    failed = doubted = 0
    with traffic.folder() as policy, serving(policy, cores=cores()[:1]) as server:
        rate = PART * generator.saturate(server.port, traffic, min(seconds, 2.0), core=cores()[-1], seed=seed)
        for at in range(WINDOWS):
            before = sum(server.cpu_s())
            load = generator.generate(server.port, traffic, rate, seconds, seed=seed + at, cores=cores()[-1:])
            used = sum(server.cpu_s()) - before
            failed += load.failed + load.unanswered
            doubted += bool(load.doubt)
            windows.append(
                {
                    "at_s": round((at + 1) * seconds, 3),
                    "p99 ms": round(latency.ms(load.latency, 99), 4),
                    "us an answer": round(used / max(1, load.answers) * 1e6, 3),
                    "MB": round(server.resident_bytes() / 1e6, 3),
                }
            )
    quarter = WINDOWS // 4

    def change(name: str) -> float:
        early, late = windows[:quarter], windows[-quarter:]
        return statistics.median(one[name] for one in late) / statistics.median(one[name] for one in early)

    name = f"soak of {WINDOWS * seconds:g} s"
    against = "the last quarter against the first"
    grown = windows[-1]["MB"] - windows[WARM]["MB"]
    return [
        Row(f"{name}: requests that failed", failed, "requests", "at most 0", failed == 0),
        Row(f"{name}: memory that grew after the warming", grown, "MB"),
        Row(f"{name}: processor time for an answer, {against}", change("us an answer"), "times"),
        Skipped(f"{name}: p99, {against}", f"the generator was in doubt in {doubted} windows")
        if doubted > WINDOWS // 4
        else Row(f"{name}: p99, {against}", change("p99 ms"), "times"),
        Series(name, "time", windows),
    ]
