"""Blocks on disk: how they survive a restart, and how the processes of a host hear of each other's.

A file of JSON lines, one for each block that was set or lifted. Whoever has news appends it under a lock, having read
what others have appended before; everybody else notices by the file's size. What is over is left out when the file is
written anew, which whoever finds it too long does, in one step, under another inode. A line that cannot be read (what a
crash left, or somebody's hand) is skipped and counted.

The file belongs to its user alone. Nothing here waits for anything but the disk.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Final

from shield.block.said import Entry, decoded, encoded
from shield.errors import ShieldError

# Blocks that were replaced or lifted make the file longer than what it says: this many lines more, and it is written
# anew.
SPARE_LINES: Final = 50_000
# Twice what a million blocks take. A longer file is not ours, and reading it would take all memory.
MAX_FILE_BYTES: Final = 1_073_741_824

# Where everybody may make files, a link of somebody else's would lead us to write into what is ours.
_OPEN: Final = os.O_RDWR | os.O_APPEND | os.O_CLOEXEC | os.O_NOFOLLOW


class BlockFileError(ShieldError):
    """A file of blocks that cannot be used; the text says which and why."""


class BlockFile:
    """One process's way to the file."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.unread = 0
        """Lines that were no blocks."""
        self.faults = 0
        """Times that the file could not be read or written; what was to be written is written later."""
        self._fd = -1
        self._read_bytes = 0
        self._lines = 0

    def open(self) -> list[Entry]:
        """Makes the file if there is none; what it says. BlockFileError."""
        try:
            with self._locked():
                return self._news()
        except OSError as error:
            raise BlockFileError(f"{self.path}: cannot be used: {error.strerror or error}") from None

    def has_news(self) -> bool:
        """Whether it is another file than it was, or longer. Looks, and reads nothing."""
        try:
            seen = os.stat(self.path)
            return self._fd < 0 or seen.st_ino != os.fstat(self._fd).st_ino or seen.st_size != self._read_bytes
        except OSError:
            return True

    def exchange(self, news: Sequence[Entry], everything: Sequence[Entry]) -> tuple[list[Entry], bool]:
        """What others have appended, and whether `news` were: they are not while the file cannot be used. `everything`,
        which `news` are part of, is what is left of it where it has to be written anew or somebody has removed it.
        """
        heard: list[Entry] = []
        try:
            with self._locked() as made:
                heard = self._news()
                known = {block.place: block for block in heard}
                fresh = everything if made else [block for block in news if known.get(block.place) != block]
                self._append([encoded(block) for block in fresh])
                if self._lines > SPARE_LINES + 2 * len(everything):
                    # What was just heard may be older than what is known, and then the later line wins.
                    self._write_anew([*heard, *everything])
        except OSError:
            self.faults += 1
            return heard, False
        return heard, True

    def close(self) -> None:
        """Lets go of the file, which stays."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    # ---- inside ------------------------------------------------------------------------------------------------

    @contextlib.contextmanager
    def _locked(self) -> Iterator[bool]:
        """Holds the file that is at the path now, and nobody else does. Says whether it had to be made."""
        for _ in range(16):
            made = not self.path.exists()
            if self._fd < 0:
                self._fd = os.open(self.path, _OPEN | os.O_CREAT, 0o600)
                if os.fstat(self._fd).st_uid != os.geteuid():
                    self.close()
                    raise OSError("it is somebody else's")
                self._read_bytes = self._lines = 0
            fcntl.flock(self._fd, fcntl.LOCK_EX)
            if self._is_current():
                break
            self.close()  # it was written anew meanwhile
        else:
            raise OSError("it is replaced all the time")
        try:
            yield made
        finally:
            if self._fd >= 0:
                fcntl.flock(self._fd, fcntl.LOCK_UN)

    def _is_current(self) -> bool:
        try:
            return os.fstat(self._fd).st_ino == os.stat(self.path).st_ino
        except FileNotFoundError:
            return False

    def _news(self) -> list[Entry]:
        size = os.fstat(self._fd).st_size
        if size > MAX_FILE_BYTES:
            raise OSError(f"it has more than {MAX_FILE_BYTES:,} bytes")
        if size < self._read_bytes:
            self._read_bytes = self._lines = 0  # somebody has cut it
        data = os.pread(self._fd, size - self._read_bytes, self._read_bytes)
        whole = data.rfind(b"\n") + 1
        blocks = []
        for line in data[:whole].splitlines():
            self._lines += 1
            try:
                blocks.append(decoded(line))
            except ValueError:
                self.unread += 1
        if whole < len(data):
            # Nobody else is writing: that is what a crash left. It becomes a line of its own.
            os.write(self._fd, b"\n")
            self.unread += 1
            self._read_bytes = size + 1
        else:
            self._read_bytes += len(data)
        return blocks

    def _append(self, lines: list[bytes]) -> None:
        if not lines:
            return
        data = b"\n".join(lines) + b"\n"
        written = os.write(self._fd, data)
        self._read_bytes += written
        if written < len(data):
            raise OSError("the disk is full")
        self._lines += len(lines)

    def _write_anew(self, blocks: Sequence[Entry]) -> None:
        fresh = self.path.with_name(f"{self.path.name}.{os.getpid()}.new")
        lines = [encoded(block) for block in blocks]
        data = b"\n".join([*lines, b""])
        descriptor = os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
        try:
            with os.fdopen(descriptor, "wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            os.replace(fresh, self.path)
        except BaseException:
            fresh.unlink(missing_ok=True)
            raise
        self.close()
        self._fd = os.open(self.path, _OPEN)
        self._read_bytes, self._lines = len(data), len(lines)
