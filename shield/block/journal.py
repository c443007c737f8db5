"""Blocks on disk, so that they survive a restart: a file of JSON lines, one for each block set or lifted.

Lines are appended and flushed as they happen. Opening the file reads them all, drops what is over and writes what is
left anew, in one step. A line that cannot be read (the last one after a crash) is skipped and counted. Past MAX_LINES
further ones the file is written anew too.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable
from pathlib import Path
from typing import IO, Any, Final

from shield.block.book import Block, BlockBook, subject_of

MAX_LINES: Final = 200_000
MAX_LINE_BYTES: Final = 8_192


class Journal:
    """The file of one book."""

    def __init__(self, path: Path) -> None:
        """OSError where it cannot be written."""
        self._path = path
        self._lines = 0
        self.unread = 0
        self.faults = 0
        self._file: IO[bytes] | None = None

    def open(self, book: BlockBook, now_us: int) -> None:
        """Puts what the file says into the book, and writes the file anew. OSError."""
        for entry in self._entries():
            try:
                subject = subject_of(entry["kind"], entry["value"])
                if entry.get("lifted"):
                    book.lift(subject)
                else:
                    book.restore(_block(entry), now_us)
            except (KeyError, TypeError, ValueError):
                self.unread += 1
        self._rewrite(book.all(now_us))

    def set(self, block: Block, book: BlockBook, now_us: int) -> None:
        """A block that was set or made longer."""
        self._append(as_object(block), book, now_us)

    def lifted(self, block: Block, book: BlockBook, now_us: int) -> None:
        """A block that was ended."""
        self._append({"kind": block.subject[0], "value": block.subject[1], "lifted": True}, book, now_us)

    def close(self) -> None:
        """No more lines."""
        if self._file is not None:
            self._file.close()
            self._file = None

    def _entries(self) -> Iterable[dict[str, Any]]:
        if not self._path.exists():
            return
        with open(self._path, "rb") as file:
            while line := file.readline(MAX_LINE_BYTES):
                try:
                    entry = json.loads(line)
                except (ValueError, RecursionError):
                    entry = None
                if isinstance(entry, dict):
                    yield entry
                else:
                    self.unread += 1

    def _append(self, entry: dict[str, Any], book: BlockBook, now_us: int) -> None:
        """A disk that is full costs the record of a block and not the block."""
        try:
            if self._lines >= MAX_LINES + 2 * len(book):
                self._rewrite(book.all(now_us))
                return
            if self._file is None:
                self._file = open(self._path, "ab")  # noqa: SIM115
            self._file.write(json.dumps(entry).encode() + b"\n")
            self._file.flush()
            self._lines += 1
        except OSError:
            self.faults += 1

    def _rewrite(self, blocks: list[Block]) -> None:
        self.close()
        fresh = self._path.with_name(self._path.name + ".new")
        descriptor = os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        with open(descriptor, "wb") as file:
            for block in blocks:
                file.write(json.dumps(as_object(block)).encode() + b"\n")
            file.flush()
            os.fsync(file.fileno())
        os.replace(fresh, self._path)
        self._lines = len(blocks)
        self._file = open(self._path, "ab")  # noqa: SIM115


def as_object(block: Block) -> dict[str, Any]:
    """A block as JSON has it; times are Unix seconds."""
    return {
        "kind": block.subject[0],
        "value": block.subject[1],
        "until": None if block.until_us is None else block.until_us / 1_000_000,
        "reason": block.reason,
        "by": block.by,
        "why": block.why,
        "since": block.since_us / 1_000_000,
        "level": block.level,
    }


def _block(entry: dict[str, Any]) -> Block:
    until = entry["until"]
    if entry["reason"] not in ("blocked", "challenge") or not isinstance(entry["by"], str):
        raise ValueError
    return Block(
        subject_of(entry["kind"], entry["value"]),
        None if until is None else int(float(until) * 1_000_000),
        entry["reason"],
        entry["by"],
        str(entry["why"]),
        int(float(entry["since"]) * 1_000_000),
        int(entry["level"]),
    )
