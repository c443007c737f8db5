"""The decision trace: one JSON line for every decision, so that an oracle can be held against a live run.

Records wait in a buffer of TRACE_BUFFER_BYTES and are then written at once: memory is bounded and no record
is lost to load. A trace ends at TRACE_MAX_BYTES, or when the disk does not take it; deciding goes on.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec

from shield.server.bounds import TRACE_BUFFER_BYTES, TRACE_MAX_BYTES


class TraceWriter:
    """Call it with a record. `on_end` is told once, in a sentence, why nothing more is written."""

    def __init__(
        self, path: Path, on_end: Callable[[str], None], *, max_bytes: int = TRACE_MAX_BYTES, anew: bool = True
    ) -> None:
        """Starts the file `anew`, or goes on after its last whole line. Only its owner may read it. OSError when
        it cannot be written.
        """
        self._fd = os.open(path, os.O_CREAT | os.O_CLOEXEC | (os.O_WRONLY | os.O_TRUNC if anew else os.O_RDWR), 0o600)
        written = 0 if anew else _go_on(self._fd)
        self._buffer = bytearray()
        self._encoder = msgspec.json.Encoder()
        self._on_end = on_end
        self._left = max_bytes - written
        self._open = True
        self.lost = 0
        """Decisions that are not in the file because the trace ended."""

    def __call__(self, record: dict[str, Any]) -> None:
        """One decision. Never raises: a fault of the trace must not become one of the decision."""
        if not self._open:
            self.lost += 1
            return
        start = len(self._buffer)
        try:
            self._encoder.encode_into(record, self._buffer, start)
        except (TypeError, ValueError, OverflowError, RecursionError) as error:
            del self._buffer[start:]
            self.lost += 1
            self._end(f"a record could not be encoded: {type(error).__name__}")
            return
        self._buffer += b"\n"
        if len(self._buffer) >= TRACE_BUFFER_BYTES:
            self.flush()

    def flush(self) -> None:
        """Writes what waits."""
        if not self._open or not self._buffer:
            return
        if len(self._buffer) > self._left:
            self._end("it has reached its size")
            return
        written = 0
        try:
            while written < len(self._buffer):
                written += os.write(self._fd, self._buffer[written:])
        except OSError as error:
            self._end(f"it cannot be written: {error.strerror or error}")
            return
        self._left -= written
        self._buffer.clear()

    def close(self) -> None:
        """Writes what waits and closes the file."""
        self.flush()
        if self._open:
            self._open = False
            os.close(self._fd)

    def _end(self, why: str) -> None:
        self._open = False
        self.lost += self._buffer.count(b"\n")
        self._buffer.clear()
        os.close(self._fd)
        self._on_end(why)


def _go_on(fd: int) -> int:
    """Cuts off the line that a killed process has not finished; returns where the file ends now."""
    end = os.lseek(fd, 0, os.SEEK_END)
    while end:
        start = max(0, end - TRACE_BUFFER_BYTES)
        newline = os.pread(fd, end - start, start).rfind(b"\n")
        if newline >= 0:
            end = start + newline + 1
            break
        end = start
    os.ftruncate(fd, end)
    return os.lseek(fd, end, os.SEEK_SET)
