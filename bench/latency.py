"""Latencies as HdrHistograms: three digits from a nanosecond to an hour, summed over processes without loss.

`record_corrected_value` is not for us: latency is counted from the intended instant, so nothing is left to correct.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable

from hdrh.histogram import HdrHistogram

HIGHEST_NS = 3_600_000_000_000
DIGITS = 3
PERCENTILES = (50.0, 90.0, 99.0, 99.9)
_CURVE = (0.0, 25.0, 50.0, 75.0, 90.0, 95.0, 97.5, 99.0, 99.5, 99.9, 99.95, 99.99, 99.999)


def histogram(latencies_s: Iterable[float] = ()) -> HdrHistogram:
    """Of seconds; what is longer than an hour counts as an hour."""
    made = HdrHistogram(1, HIGHEST_NS, DIGITS)
    # Recording costs microseconds in Python; most latencies share their leading digits with another.
    for value, count in Counter(_three_digits(round(one * 1e9)) for one in latencies_s).items():
        made.record_value(min(HIGHEST_NS, value), count)
    return made


def _three_digits(value_ns: int) -> int:
    """The value to a part in four thousand at least, which is finer than the histogram keeps."""
    drop = max(0, value_ns.bit_length() - 12)
    return max(1, value_ns >> drop << drop)


def encoded(of: HdrHistogram) -> str:
    """As text, which `decoded` reads."""
    return of.encode().decode("ascii")


def decoded(text: str) -> HdrHistogram:
    return HdrHistogram.decode(text)


def ms(of: HdrHistogram, percentile: float) -> float:
    """Within how many milliseconds this percentile of the answers came; 0 without any."""
    return of.get_value_at_percentile(percentile) / 1e6 if of.get_total_count() else 0.0


def percentiles(of: HdrHistogram) -> dict[str, float]:
    """{"p50": milliseconds, ..., "max": milliseconds}."""
    return {**{f"p{percentile:g}": ms(of, percentile) for percentile in PERCENTILES}, "max": ms(of, 100.0)}


def curve(of: HdrHistogram) -> list[dict[str, float]]:
    """The points of a percentile plot, as far out as so many latencies can tell."""
    count = of.get_total_count()
    return [
        {"percentile": percentile, "ms": ms(of, percentile)}
        for percentile in _CURVE
        if count * (100 - percentile) / 100 >= 1
    ]
