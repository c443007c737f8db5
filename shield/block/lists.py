"""Lists of networks that are always blocked: files and URLs, one network or address a line.

A list is read by a thread that lets go of the interpreter, so decisions go on while a million lines are sorted, and put
in place of the old one when all of it was good. One that cannot be read, or has a line that is no network, stays as it
was; `notes` say so, and it is tried again when it is due.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Final

from shield.block.block import ADDRESS, BLOCKED, Block
from shield.core.cidr import PrefixTable
from shield.errors import PolicyError, PolicyIssue
from shield.identity.fetch import FetchError, read_file, read_url
from shield.identity.paths import path_of

if TYPE_CHECKING:
    from shield.policy import Policy

# Four million networks with comments; more is refused rather than read for minutes.
MAX_LIST_BYTES: Final = 256 * 1_048_576
FETCH_TIMEOUT_S: Final = 60.0
# A list that could not be had is tried again after this long, or when it is due if that is sooner.
RETRY_US: Final = 60_000_000
BY: Final = "list"


class BlockList:
    """One list: where it is, what it said last, and what is wrong with it."""

    def __init__(self, source: str, directory: str | None) -> None:
        self.source = source
        self.path = path_of(source, directory) if source.startswith("file:") else None
        self.table: PrefixTable | None = None
        self.why: str | None = None if self.path is not None else "it has not been read yet"
        """Why it could not be read when it was last due."""
        self.due_us = 0
        self._seen: tuple[int, int, int] | None = None

    @property
    def name(self) -> str:
        """Without a URL's query."""
        return self.source.partition("?")[0]

    def load_file(self) -> None:
        """Reads the file if it is another than before. ValueError, and the list stays as it was."""
        assert self.path is not None
        seen = _identity(self.path)
        if seen is None or seen != self._seen or self.table is None:
            self.table, self._seen = _table(_read(self.path)), seen

    async def load(self) -> None:
        """Reads it wherever it is. ValueError, and the list stays as it was."""
        if self.path is not None:
            await asyncio.to_thread(self.load_file)
            return
        try:
            text = await read_url(self.source, MAX_LIST_BYTES, timeout_s=FETCH_TIMEOUT_S, accept="text/plain, */*")
        except FetchError as error:
            raise ValueError(str(error)) from None
        self.table = await asyncio.to_thread(_table, text)


class BlockLists:
    """The lists of one policy."""

    def __init__(self, sources: Sequence[str], directory: str | None, refresh_us: int) -> None:
        self._refresh_us = refresh_us
        self._lists = [BlockList(source, directory) for source in sources]
        self._task: asyncio.Task[None] | None = None
        self._tables: tuple[tuple[str, PrefixTable], ...] = ()
        self.failures = 0
        """Times that a list could not be read when it was due."""

    @classmethod
    def of(cls, policy: Policy, now_us: int) -> BlockLists:
        """A policy's, those in files read. PolicyError."""
        lists = cls(policy.blocks.lists, policy.identity.directory, policy.blocks.refresh_us)
        lists.load_files(now_us)
        return lists

    def __len__(self) -> int:
        """Networks on all lists."""
        return sum(len(table) for _, table in self._tables)

    @property
    def size_bytes(self) -> int:
        return sum(table.size_bytes for _, table in self._tables)

    @property
    def notes(self) -> tuple[str, ...]:
        """What an operator should know, one sentence for each list that is not as it should be."""
        return tuple(
            f"block list {one.name}: {one.why}; {'the old one stays' if one.table is not None else 'it blocks nobody'}"
            for one in self._lists
            if one.why is not None
        )

    def load_files(self, now_us: int) -> None:
        """Reads all files. PolicyError names those that cannot be used."""
        issues = []
        for at, one in enumerate(self._lists):
            if one.path is None:
                continue
            try:
                one.load_file()
                one.due_us = now_us + self._refresh_us
            except ValueError as error:
                issues.append(PolicyIssue(f"blocks.lists[{at}]", str(error)))
        if issues:
            raise PolicyError(issues)
        self._settle()

    def take_over(self, previous: BlockLists) -> None:
        """What was fetched for the policy before this one stands in until it is fetched again."""
        before = {one.source: one for one in previous._lists}
        for one in self._lists:
            known = before.get(one.source)
            if one.table is None and known is not None:
                one.table, one.due_us, one.why = known.table, known.due_us, known.why
        self.failures = previous.failures
        self._settle()

    def find(self, ip: str, now_us: int) -> Block | None:
        """The block of an address that is on a list."""
        for name, table in self._tables:
            if ip in table:
                return Block(ADDRESS, ip, 0, BLOCKED, BY, now_us, why=f"on {name}"[:500])
        return None

    @property
    def is_empty(self) -> bool:
        return not self._tables

    def look(self, now_us: int) -> None:
        """Begins to read what is due. Needs a running loop."""
        if self._task is None and any(one.due_us <= now_us for one in self._lists):
            self._task = asyncio.get_running_loop().create_task(self.refresh(now_us))
            self._task.add_done_callback(self._done)

    def _done(self, task: asyncio.Task[None]) -> None:
        self._task = None
        if not task.cancelled() and task.exception() is not None:
            self.failures += 1

    async def refresh(self, now_us: int) -> None:
        """Reads what is due, one after the other: each takes memory while it is read."""
        for one in self._lists:
            if one.due_us > now_us:
                continue
            try:
                await one.load()
                one.why, one.due_us = None, now_us + self._refresh_us
            except ValueError as error:
                self.failures += 1
                one.why, one.due_us = str(error), now_us + min(self._refresh_us, RETRY_US)
            self._settle()

    async def close(self) -> None:
        """Ends what is under way."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)

    def _settle(self) -> None:
        self._tables = tuple((one.name, one.table) for one in self._lists if one.table is not None and len(one.table))


def no_lists() -> BlockLists:
    """Of a process that decides nothing."""
    return BlockLists((), None, RETRY_US)


def _read(path: Path) -> bytes:
    try:
        return read_file(path, MAX_LIST_BYTES)
    except FetchError as error:
        raise ValueError(str(error)) from None


def _identity(path: Path) -> tuple[int, int, int] | None:
    try:
        seen = os.stat(path)
    except (OSError, ValueError):
        return None
    return seen.st_ino, seen.st_size, seen.st_mtime_ns


def _table(text: bytes) -> PrefixTable:
    table = PrefixTable(text)
    if table.n_bad:
        line, shown = table.bad[0]
        many = f" (and {table.n_bad - 1:,} more lines)" if table.n_bad > 1 else ""
        raise ValueError(f"line {line}: found {shown!r}{many}; allowed: an address or network a line")
    return table
