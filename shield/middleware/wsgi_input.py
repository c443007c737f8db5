"""A request body that is measured while a WSGI application reads it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Final

from shield.middleware.body import BodyMeter, BodyRefused

PIECE_BYTES: Final = 65_536
"""How much is read at once where the application asks for all: a body past its ceiling is not read to its end."""


class MeteredInput:
    """`wsgi.input`. Raises BodyRefused from where a body is too much."""

    def __init__(self, source: Any, meter: BodyMeter) -> None:
        self.source = source
        self._meter = meter

    @property
    def received(self) -> int:
        """Bytes that were read."""
        return self._meter.received

    def read(self, size: int | None = -1) -> bytes:
        """Up to `size` bytes, or all of them."""
        if size is not None and size >= 0:
            return self._counted(self.source.read(size))
        parts = []
        while part := self._counted(self.source.read(PIECE_BYTES)):
            parts.append(part)
        return b"".join(parts)

    def readline(self, size: int | None = -1) -> bytes:
        """Up to the end of a line. Without `size` no more than a piece at once: a line may have no end."""
        limited = PIECE_BYTES if size is None or size < 0 else size
        line = self._counted(self.source.readline(limited))
        parts = [line]
        while (size is None or size < 0) and len(line) == limited and not line.endswith(b"\n"):
            line = self._counted(self.source.readline(limited))
            parts.append(line)
        return b"".join(parts)

    def readlines(self, hint: int | None = -1) -> list[bytes]:
        """Lines, up to about `hint` bytes of them."""
        lines, taken = [], 0
        for line in self:
            lines.append(line)
            taken += len(line)
            if hint is not None and 0 < hint <= taken:
                break
        return lines

    def __iter__(self) -> Iterator[bytes]:
        while line := self.readline():
            yield line

    def _counted(self, data: bytes) -> bytes:
        if self._meter.fault is not None or self._meter.feed(data) is not None:
            assert self._meter.fault is not None
            raise BodyRefused(self._meter.fault)
        return data
