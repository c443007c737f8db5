"""A response as it goes by, kept for whoever repeats the request.

Kept is only what came to a clean end, and no more of its body than the policy allows: of a longer one remains that it
was sent.
"""

from __future__ import annotations

from collections.abc import Iterable

Pairs = list[tuple[str, str]]


class Capture:
    """One response. `status` is None until it begins."""

    __slots__ = ("_max_bytes", "_parts", "ended", "headers", "size", "status")

    def __init__(self, max_bytes: int) -> None:
        self._max_bytes = max_bytes
        self._parts: list[bytes] | None = []
        self.size = 0
        self.status: int | None = None
        self.headers: Pairs = []
        self.ended = False
        """Whether all of it was said."""

    def began(self, status: int, headers: Iterable[tuple[str, str]]) -> None:
        """Its head, without what Shield adds: a repeated request has quotas of its own."""
        self.status = status
        self.headers = list(headers)

    def feed(self, data: bytes) -> None:
        """The next of its body."""
        self.size += len(data)
        if self.size > self._max_bytes:
            self._parts = None
        elif self._parts is not None and data:
            self._parts.append(bytes(data))

    def lose(self) -> None:
        """Its body goes another way, such as a file that the server sends by itself."""
        self._parts = None

    @property
    def body(self) -> bytes | None:
        """None where it is not kept."""
        return None if self._parts is None else b"".join(self._parts)
