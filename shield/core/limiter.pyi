from collections.abc import Callable, Sequence
from typing import final

from typing_extensions import disjoint_base

from shield.core.status import LimitStatus
from shield.rate import Rate

@disjoint_base
class KeyedLimiter:
    @property
    def rate(self) -> Rate: ...
    @property
    def max_keys(self) -> int: ...
    @property
    def size_bytes(self) -> int: ...
    def __len__(self) -> int: ...
    def allow(self, key: str | bytes, cost: int = 1) -> bool: ...
    def take(self, key: str | bytes, cost: int = 1) -> LimitStatus: ...
    def peek(self, key: str | bytes, cost: int = 1) -> LimitStatus: ...
    def allow_many(self, keys: Sequence[str | bytes], cost: int | Sequence[int] = 1) -> list[bool]: ...

@final
class TokenBucket(KeyedLimiter):
    @property
    def burst(self) -> int: ...
    def __init__(
        self,
        rate: str | Rate,
        burst: int | None = None,
        *,
        max_keys: int = 1_000_000,
        clock: Callable[[], int] | None = None,
        when_full: str = "share",
    ) -> None: ...

@final
class SlidingWindow(KeyedLimiter):
    def __init__(
        self,
        rate: str | Rate,
        *,
        max_keys: int = 1_000_000,
        clock: Callable[[], int] | None = None,
        when_full: str = "share",
    ) -> None: ...

def siphash128_digest(data: bytes, key: bytes) -> bytes: ...
