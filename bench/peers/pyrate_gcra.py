"""pyrate-limiter with GCRA, which keeps one number a key, and a factory that gives every name a bucket of its own."""

from __future__ import annotations

from collections.abc import Callable

NAME = "pyrate-limiter, StateBucket, GCRA"
DISTRIBUTION = "pyrate-limiter"


def make(rate_per_s: int) -> Callable[[str], bool]:
    from pyrate_limiter import GCRA, BucketFactory, Duration, Limiter, MonotonicClock, Rate, RateItem, StateBucket

    rates = [Rate(rate_per_s, Duration.SECOND)]
    clock = MonotonicClock()

    class ByName(BucketFactory):
        def __init__(self) -> None:
            self._buckets: dict[str, StateBucket] = {}

        def wrap_item(self, name: str, weight: int = 1) -> RateItem:
            return RateItem(name, clock.now(), weight=weight)

        def get(self, item: RateItem) -> StateBucket:
            found = self._buckets.get(item.name)
            if found is None:
                found = self._buckets[item.name] = StateBucket(rates, GCRA())
            return found

    limiter = Limiter(ByName())

    def hit(key: str) -> bool:
        return bool(limiter.try_acquire(key, blocking=False))

    return hit
