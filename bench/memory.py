"""What does a live key cost, and what do ten million attacker keys do?

Each in a process of its own, whose resident memory is read before and after.
"""

from __future__ import annotations

import subprocess
import sys

from .process import shield_of
from .record import Row

_COMMON = """
import gc, resource
def resident():
    with open("/proc/self/statm") as f:
        return int(f.read().split()[1]) * resource.getpagesize()
from shield import TokenBucket
gc.collect(); before = resident()
"""

_LIVE = """
n = 1_000_000
bucket = TokenBucket("1/h", burst=5, max_keys=n)
for start in range(0, n, 10_000):
    bucket.allow_many([b"user:%d" % i for i in range(start, start + 10_000)])
assert len(bucket) == n
print((resident() - before) / n)
"""

_ATTACK = """
bucket = TokenBucket("1/h", burst=5, max_keys=1_000_000)
assert bucket.allow("victim", cost=5)
for start in range(0, 10_000_000, 10_000):
    bucket.allow_many([b"attacker:%d" % i for i in range(start, start + 10_000)])
assert not bucket.allow("victim")
print((resident() - before) / 1e6, bucket.size_bytes / 1e6)
"""


def _fresh(code: str) -> list[float]:
    out = subprocess.run(
        [sys.executable, "-c", _COMMON + code], env=shield_of(), check=True, capture_output=True, text=True
    )
    return [float(word) for word in out.stdout.split()]


def live_key_bytes() -> float:
    """Of one of a million keys in a table of a million; on Linux."""
    return _fresh(_LIVE)[0]


def run(seconds: float) -> list[Row]:
    if sys.platform != "linux":
        return [Row("memory (reads /proc: Linux only)", 0.0, "bytes")]
    per_key = live_key_bytes()
    grown, bound = _fresh(_ATTACK)
    return [
        Row("a live key, one million of them", per_key, "bytes", "at most 64", per_key <= 64),
        Row(
            "ten million attacker keys, growth (table of one million)",
            grown,
            "MB",
            f"at most its bound of {bound:.1f} MB",
            grown <= bound + 4,
        ),
    ]
