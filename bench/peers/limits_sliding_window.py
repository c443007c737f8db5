"""`limits` with the window that Shield's sliding one is like: two counters a key, the older one weighted."""

from __future__ import annotations

from collections.abc import Callable

NAME = "limits, MemoryStorage, sliding window counter"
DISTRIBUTION = "limits"


def make(rate_per_s: int) -> Callable[[str], bool]:
    from limits import parse
    from limits.storage import MemoryStorage
    from limits.strategies import SlidingWindowCounterRateLimiter

    limiter = SlidingWindowCounterRateLimiter(MemoryStorage())
    item = parse(f"{rate_per_s}/second")

    def hit(key: str) -> bool:
        return limiter.hit(item, key)

    return hit
