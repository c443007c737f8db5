"""The file of a shared table: made whole by the first process, found and checked by all others.

The law of this file: a table has its name only when it is complete, all its blocks are allocated, and nothing of a
file is believed before its owner, its size and its header have been checked.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import os
import re
import secrets
import stat
import tempfile
import time
from pathlib import Path
from typing import Final

from shield.core import MappedFile, Mapping
from shield.errors import StoreError
from shield.store.key_file import remove_records
from shield.store.url import StoreURLError, split_url

# A key takes 48 bytes of a table that is allocated whole: the defaults fit the 64 MiB that containers have by default.
DEFAULT_MAX_KEYS: Final = 1_000_000
# Places held at one time, over all keys. 48 bytes each.
DEFAULT_MAX_LEASES: Final = 65_536
# Receipts that were settled and have not expired: at the default 5 minutes, 410 reports a second. 48 bytes each.
DEFAULT_MAX_RECEIPTS: Final = 125_000
# Nonces that were used and are not stale: at a window of 5 minutes, 340 requests with one a second. 48 bytes each.
DEFAULT_MAX_NONCES: Final = 125_000
BOUNDS: Final = {
    "max_keys": (1, 1_000_000_000, DEFAULT_MAX_KEYS),
    "max_leases": (1, 10_000_000, DEFAULT_MAX_LEASES),
    "max_receipts": (1, 1_000_000_000, DEFAULT_MAX_RECEIPTS),
    "max_nonces": (1, 1_000_000_000, DEFAULT_MAX_NONCES),
}
# Making huge pages of a table that is just being made copies all of it: some 100 ms for this much, which is twice the
# default. A larger one is left as the system makes it.
HUGE_AT_ONCE_BYTES: Final = 1 << 27
PRIVATE: Final = "private-"
_NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,63}")


class TableFile:
    """An open table file, with the lock that says it is in use."""

    def __init__(self, fd: int) -> None:
        self.fd = fd

    def close(self) -> None:
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1

    def __enter__(self) -> TableFile:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    __del__ = close


def default_directory() -> Path:
    if os.path.isdir("/dev/shm"):
        return Path("/dev/shm")
    return Path(os.environ.get("XDG_RUNTIME_DIR") or tempfile.gettempdir())


def where(url: str) -> tuple[Path, dict[str, int]]:
    """The file, and the bounds that the URL asks for."""
    parts = split_url(url)
    name = parts.bare.netloc
    if parts.scheme != "shared" or parts.bare.path not in ("", "/") or not _NAME.fullmatch(name):
        raise StoreURLError(
            "shared:// is followed by the table's name: 1 to 64 letters, digits, '_', '.' or '-', a letter or digit "
            "first"
        )
    whole = parts.options.whole
    parsers = {option: whole(least, most) for option, (least, most, _) in BOUNDS.items()}
    given = parts.options.take(**parsers, dir=str)
    return Path(given.pop("dir", None) or default_directory()) / f"shield-{name}.table", given


def beside(table: Path) -> Path:
    """The file in which the processes of a table tell each other of blocks."""
    return table.with_suffix(".blocks")


def attach(path: Path, given: dict[str, int], *, make: bool = True) -> tuple[TableFile, MappedFile]:
    try:
        while True:
            fd = _open(path) if path.exists() or not make else _make(path, given)
            if fd is not None:
                break
    except OSError as error:
        raise StoreError(f"shared table {path}: {_reason(error, path)}") from error
    file = TableFile(fd)
    try:
        found = os.fstat(fd)
        _check_owner(path, found)
        fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
        if found.st_size == 0:
            raise ValueError("it is empty")
        boot, offset_us, namespace = _clock_identity()
        mapping = Mapping(fd, found.st_size)
        mapped = MappedFile(mapping, boot=boot, offset_us=offset_us, time_namespace=namespace)
    except ValueError as error:
        file.close()
        raise StoreURLError(
            f"{path} cannot be used as a shared table: {error}. "
            "Use another name, or remove the file while nobody uses it"
        ) from None
    except OSError as error:
        file.close()
        raise StoreError(f"shared table {path}: {_reason(error, path)}") from error
    for option, value in given.items():
        if mapped.geometry[option] != value:
            file.close()
            raise StoreURLError(
                f"shared://: {option}: the table {path} was made with {mapped.geometry[option]}, "
                f"and {value} is asked for. Ask for the same or nothing, use another name, "
                "or remove the file while nobody uses it"
            )
    return file, mapped


def _open(path: Path) -> int | None:
    try:
        return os.open(path, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW)
    except FileNotFoundError:
        if path.parent.is_dir():
            return None  # it was there a moment ago
        raise


def _make(path: Path, given: dict[str, int]) -> int | None:
    """A new table under its name, whole: nobody ever sees half of one. None when another process was first."""
    bounds = {option: given.get(option, default) for option, (_, _, default) in BOUNDS.items()}
    size_bytes = MappedFile.size_bytes(**bounds)
    fd, temporary = _nameless(path)
    try:
        # All blocks now, so that a full disk is an error here and no SIGBUS at some later charge.
        os.posix_fallocate(fd, 0, size_bytes)
        fcntl.flock(fd, fcntl.LOCK_SH)
        mapping = Mapping(fd, size_bytes)
        if size_bytes <= HUGE_AT_ONCE_BYTES:
            mapping.use_huge_pages()
        created_us = time.time_ns() // 1000
        MappedFile.format(mapping, **bounds, secret=secrets.token_bytes(48), created_us=created_us)
        try:
            _link(temporary or Path(f"/proc/self/fd/{fd}"), path)
        except FileExistsError:
            os.close(fd)
            return None
    except BaseException:
        with contextlib.suppress(OSError):
            os.close(fd)
        raise
    finally:
        if temporary is not None:
            os.unlink(temporary)
    return fd


def _nameless(path: Path) -> tuple[int, Path | None]:
    """A new file that has no name yet, so that a process killed here leaves nothing; where the file system knows no
    such files, one with a temporary name.
    """
    flags = os.O_RDWR | os.O_CLOEXEC
    try:
        return os.open(path.parent, flags | os.O_TMPFILE, 0o600), None
    except OSError as error:
        if error.errno not in (errno.EOPNOTSUPP, errno.EISDIR, errno.EINVAL):
            raise
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(8)}")
    return os.open(temporary, flags | os.O_CREAT | os.O_EXCL, 0o600), temporary


def _link(source: Path, path: Path) -> None:
    """link(2) that follows a symbolic link: os.link does so only when it is given a directory."""
    directory = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.link(source, path.name, dst_dir_fd=directory, follow_symlinks=True)
    finally:
        os.close(directory)


def _check_owner(path: Path, found: os.stat_result) -> None:
    """What others may write, they may also read: the secret, and every bucket."""
    if not stat.S_ISREG(found.st_mode):
        raise ValueError("it is no regular file")
    if found.st_uid != os.geteuid():
        raise ValueError(f"it belongs to user {found.st_uid}, and this process runs as user {os.geteuid()}")
    if found.st_mode & 0o077:
        raise ValueError(f"others may use it (mode {stat.S_IMODE(found.st_mode):04o}, expected 0600)")


def unattended(fd: int) -> bool:
    """Whether no other process is attached. Turns our lock into an exclusive one and back: never waits."""
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
    return True


def remove_unattended_private(directory: Path) -> None:
    """Private tables whose supervisor was killed, and whose workers are gone too."""
    for path in directory.glob(f"shield-{PRIVATE}*.table"):
        with contextlib.suppress(OSError):
            fd = os.open(path, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW)
            try:
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
                if os.stat(path).st_ino == os.fstat(fd).st_ino:
                    beside(path).unlink(missing_ok=True)
                    path.unlink()
                    remove_records(path)
            finally:
                os.close(fd)


def _reason(error: OSError, path: Path) -> str:
    if error.errno == errno.ENOENT:
        return f"there is no directory {path.parent}; ?dir= chooses another"
    if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
        return f"{error.strerror}: the table is allocated whole; free some, ask for a smaller max_keys, or choose ?dir="
    if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
        return f"{error.strerror}: it belongs to another user, or the directory cannot be written"
    if error.errno == errno.ELOOP:
        return "it is a symbolic link, which a table never is: remove it"
    return error.strerror or str(error)


# ---- the clock ------------------------------------------------------------------------------------------------------


def _clock_identity() -> tuple[int, int, int]:
    """Which boot this is (never 0), Unix time less the boot clock in microseconds, and whose boot clock that is."""
    try:
        boot_id = Path("/proc/sys/kernel/random/boot_id").read_bytes()
        namespace = os.stat("/proc/self/ns/time").st_ino if os.path.exists("/proc/self/ns/time") else 0
    except OSError as error:
        raise StoreError(f"shared:// needs /proc to know this boot of the machine: {error.strerror}") from error
    boot = int.from_bytes(hashlib.blake2b(boot_id.strip(), digest_size=8).digest(), "little") | 1
    # Between two readings of the one clock lies the other: of a few tries the closest one counts.
    readings = []
    for _ in range(8):
        before = time.clock_gettime_ns(time.CLOCK_BOOTTIME)
        wall = time.time_ns()
        after = time.clock_gettime_ns(time.CLOCK_BOOTTIME)
        readings.append((after - before, wall - (before + after) // 2))
    return boot, min(readings)[1] // 1000, namespace
