"""Shield's own, asked as the others are."""

from __future__ import annotations

from collections.abc import Callable

NAME = "Shield, TokenBucket.allow"
DISTRIBUTION = "shield-limiter"


def make(rate_per_s: int) -> Callable[[str], bool]:
    from shield import TokenBucket

    return TokenBucket(f"{rate_per_s}/s").allow
