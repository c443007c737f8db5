from collections.abc import Callable, Sequence
from typing import Any, final

@final
class Detectors:
    @property
    def trait_misses(self) -> int: ...
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
        locate: Callable[[str], object] | None = ...,
    ) -> Detectors: ...
    def observe(
        self, request: object, outcome: bool, status: int | None, event: str | None, now_us: int
    ) -> list[tuple[int, dict[str, Any]]] | None: ...
    def stats(self) -> list[dict[str, int]]: ...
    def value(self, request: object, field: str) -> str | bytes | None: ...
    def share(self, lighten: Callable[[Any], object]) -> None: ...
    def say(self, now_us: int, most_bytes: int) -> bytes: ...
    def hear(self, parcel: bytes, now_us: int, lag_us: int) -> list[tuple[int, dict[str, Any], Any]]: ...
    @property
    def unsaid(self) -> int: ...
