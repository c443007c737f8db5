from collections.abc import Callable, Sequence
from typing import Any, final

@final
class Detectors:
    trait_misses: int
    def __new__(
        cls,
        specs: Sequence[dict[str, Any]],
        rules: Sequence[dict[str, Any]],
        *,
        secret: bytes,
        traits_of: Callable[[str, bool], int],
        words: Sequence[tuple[int, str]] = ...,
        match: Callable[[str | None, str | None], tuple[int, ...]] | None = ...,
        normalise: Callable[[str], str] | None = ...,
        ipv6_prefix: int = ...,
    ) -> Detectors: ...
    def observe(
        self, request: object, outcome: bool, status: int | None, event: str | None, now_us: int
    ) -> list[tuple[int, dict[str, Any]]] | None: ...
    def stats(self) -> list[dict[str, int]]: ...
    def value(self, request: object, field: str) -> str | bytes | None: ...
    def export(
        self, now_us: int, at_least: float = ..., most: int = ...
    ) -> list[tuple[int, bytes, int, int, int, bytes | None]]: ...
    def merge(self, i: int, key: bytes, level: int, at_us: int, held: int, block: bytes, now_us: int) -> bool: ...
