"""`limits` in its fastest configuration: memory storage and the fixed window, which keeps one counter a key."""

from __future__ import annotations

from collections.abc import Callable

NAME = "limits, MemoryStorage, fixed window"
DISTRIBUTION = "limits"


def make(rate_per_s: int) -> Callable[[str], bool]:
    from limits import parse
    from limits.storage import MemoryStorage
    from limits.strategies import FixedWindowRateLimiter

    limiter = FixedWindowRateLimiter(MemoryStorage())
    item = parse(f"{rate_per_s}/second")

    def hit(key: str) -> bool:
        return limiter.hit(item, key)

    return hit
