"""aiolimiter, a leaky bucket for one thing: a dict gives each key its own.

It waits where others refuse, so it is asked first whether it would."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

NAME = "aiolimiter, a limiter for each key"
DISTRIBUTION = "aiolimiter"


def make(rate_per_s: int) -> Callable[[str], Awaitable[bool]]:
    from aiolimiter import AsyncLimiter

    limiters: dict[str, AsyncLimiter] = {}

    async def hit(key: str) -> bool:
        limiter = limiters.get(key)
        if limiter is None:
            limiter = limiters[key] = AsyncLimiter(rate_per_s, 1)
        if not limiter.has_capacity():
            return False
        await limiter.acquire()
        return True

    return hit
