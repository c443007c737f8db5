"""throttled-py with GCRA, which keeps one number a key, and a memory store that holds all keys.

Its default of 1,024 would drop most of them."""

from __future__ import annotations

from collections.abc import Callable

NAME = "throttled-py, MemoryStore, GCRA"
DISTRIBUTION = "throttled-py"


def make(rate_per_s: int) -> Callable[[str], bool]:
    from throttled import MemoryStore, RateLimiterType, Throttled, rate_limiter

    limiter = Throttled(
        using=RateLimiterType.GCRA.value,
        quota=rate_limiter.per_sec(rate_per_s, burst=rate_per_s),
        store=MemoryStore(options={"MAX_SIZE": 1_000_000}),
    )

    def hit(key: str) -> bool:
        return not limiter.limit(key).limited

    return hit
