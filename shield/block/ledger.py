"""The blocks of a process as they come, spread and stay: the book, the lists, the file and the store.

Whoever sets or lifts a block here says so in the book at once, and in the background to the file and to the store. What
others have said there comes into the book within POLL_S and the way there, and goes on to where it has not been. A copy
that is known already goes nowhere, so it ends, whatever ways there are. Nobody waits for any of it: a file or a store
that is away hears of it when it is back.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Mapping
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from shield.block.block import BLOCKED, LIFTED, Block, Place, Subject, subject_of
from shield.block.book import BlockBook
from shield.block.file import BlockFile
from shield.block.lists import BlockLists, no_lists
from shield.block.override import Override, OverrideBook
from shield.block.said import Entry, decoded, encoded
from shield.errors import StoreError
from shield.store.block_log import MOST_SAID, BlockLog, Said

if TYPE_CHECKING:
    from shield.policy import Policy

# How often it is looked what others have said: three of these, and two ways to a store, are well within a second.
POLL_S: Final = 0.25
# A listener that raises is passed over.
Listener = Callable[[Block], None]


class BlockLedger:
    """`now_us` is the clock that blocks begin and end by; `path` the file that they are kept in, None for none.

    BlockFileError for a file that cannot be used.
    """

    def __init__(self, now_us: Callable[[], int], path: Path | None = None) -> None:
        self._now_us = now_us
        self.book = BlockBook()
        self.overrides = OverrideBook()
        self.lists = no_lists()
        self.listeners: list[Listener] = []
        """Called with every block that was set or lifted here."""
        self.changed: Callable[[], None] = _nothing
        """Called when blocks may have come or gone."""
        self.faults = 0
        self._file = BlockFile(path) if path is not None else None
        self._log: BlockLog | None = None
        self._unwritten: dict[Place, Entry] = {}
        self._unsent: dict[Place, Entry] = {}
        self._news = asyncio.Event()
        self._turning = asyncio.Lock()
        self._task: asyncio.Task[None] | None = None
        if self._file is not None:
            self._hear(self._file.open())

    # ---- the policy --------------------------------------------------------------------------------------------

    def adopt(self, policy: Policy, lists: BlockLists) -> None:
        """The policy's settings and lists from now on. Blocks stay."""
        settings, prefix = policy.blocks, policy.identity.ipv6_prefix
        if (self.book.settings, self.book.ipv6_prefix) != (settings, prefix):
            book = BlockBook(settings, ipv6_prefix=prefix)
            book.take_over(self.book, self._now_us())
            self.book = book
        lists.take_over(self.lists)
        self.lists = lists
        self.changed()

    # ---- asking ------------------------------------------------------------------------------------------------

    @property
    def is_empty(self) -> bool:
        """Nobody is blocked or throttled."""
        return self.book.is_empty and self.lists.is_empty

    def of_address(self, ip: str | None) -> Block | None:
        """The block that an address is under, unless it is on an allow list."""
        if ip.__class__ is not str or not ip:
            return None
        now_us = self._now_us()
        block = self.book.of_address(ip, now_us)
        if block is None and not self.lists.is_empty:
            block = self.lists.find(ip, now_us)
        return None if block is None or self.book.allows_address(ip) else block

    def in_force(self, subject: Subject) -> Block | None:
        """The block or throttle that a subject itself is under."""
        return self.book.in_force(subject, self._now_us())

    # ---- saying ------------------------------------------------------------------------------------------------

    def block(
        self, kind: str, value: str, until_us: int | None, *, by: str, why: str = "", reason: str = BLOCKED
    ) -> Block:
        """An operator's block. ValueError for what is no subject, and where there is no room."""
        subject = subject_of(kind, value, self.book.ipv6_prefix)
        block = self.book.said_by_operator(subject, until_us, self._now_us(), by=by, why=why, reason=reason)
        if self.book.is_full:
            raise ValueError(f"{self.book.settings.max_blocks:,} blocks of operators are kept already (max_blocks)")
        self._say(block)
        return block

    def unblock(self, kind: str, value: str, *, by: str) -> Block | None:
        """Ends every block and throttle of a subject, and forgets what it did before; what was in force. None where
        nothing was. ValueError for what is no subject.
        """
        subject = subject_of(kind, value, self.book.ipv6_prefix)
        now_us = self._now_us()
        ended = self.in_force(subject)
        if ended is not None:
            self._say(self.book.said_by_operator(subject, None, now_us, by=by, why="", reason=LIFTED))
        return ended

    def answer(
        self, subject: Subject, *, by: str, why: str, reason: str = BLOCKED, factor: float = 1.0
    ) -> Block | None:
        """A detector's answer; None where it is left out."""
        block = self.book.escalated(subject, self._now_us(), by=by, why=why, reason=reason, factor=factor)
        if block is not None:
            self._say(block)
        return block

    def override(
        self,
        policy: Policy,
        limit: str,
        key: Mapping[str, str],
        numbers: Mapping[str, Any],
        *,
        until_us: int | None,
        by: str,
        why: str = "",
    ) -> Override:
        """Gives one key of a limit numbers of its own. ValueError for what does not fit the policy."""
        said = self.overrides.stated(policy, limit, key, numbers, self._now_us(), until_us=until_us, by=by, why=why)
        self._say(said)
        return said

    def lift_override(self, policy: Policy, limit: str, key: Mapping[str, str], *, by: str) -> bool:
        """Ends it. False where there was none. ValueError for what does not fit the policy."""
        said = self.overrides.lift(policy, limit, key, self._now_us(), by=by)
        if said is not None:
            self._say(said)
        return said is not None

    def _say(self, said: Entry) -> None:
        self._learn(said)
        if self._file is not None:
            self._unwritten[said.place] = said
        if self._log is not None:
            self._unsent[said.place] = said
        if self._task is None:
            self._write_here()
        else:
            self._news.set()
        self.changed()
        if isinstance(said, Block):
            self._tell(said)

    def _tell(self, block: Block) -> None:
        for listener in self.listeners:
            try:
                listener(block)
            except Exception:
                self.faults += 1

    def _learn(self, said: Entry) -> bool:
        now_us = self._now_us()
        return self.book.learn(said, now_us) if isinstance(said, Block) else self.overrides.learn(said, now_us)

    def _everything(self) -> list[Entry]:
        return [*self.book.everything(), *self.overrides.everything()]

    # ---- spreading ---------------------------------------------------------------------------------------------

    def start(self, log: BlockLog | None = None) -> None:
        """Begins to hear what others say, and to tell them. `log`: the store's copy. Needs a running loop."""
        if self._task is None:
            self._log = log
            if log is not None:
                self._unsent = {block.place: block for block in self._everything()}
            self._task = asyncio.get_running_loop().create_task(self._run())

    async def stop(self) -> None:
        """Ends it, when what was said here has been written."""
        task, self._task = self._task, None
        if task is not None:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
        await self.lists.close()
        self.close()

    def close(self) -> None:
        """Writes what was said here, and lets go of the file."""
        self._write_here()
        if self._file is not None:
            self._file.close()

    async def turn(self) -> None:
        """One look at all that others may have said. What was said here before is written and told after it."""
        async with self._turning:
            await self._turn()

    async def _turn(self) -> None:
        self._news.clear()
        self.book.sweep(self._now_us())
        self.overrides.sweep(self._now_us())
        if self._file is not None and (self._unwritten or self._file.has_news()):
            news, self._unwritten = self._unwritten, {}
            heard, written = await asyncio.to_thread(self._file.exchange, list(news.values()), self._everything())
            if not written:
                self._unwritten = news | self._unwritten
            fresh = self._hear(heard)
            if self._log is not None:
                self._unsent |= fresh
        if self._log is not None:
            await self._exchange(self._log)
        self.lists.look(self._now_us())
        self.changed()

    async def _exchange(self, log: BlockLog) -> None:
        first = True
        while first or self._unsent:
            first = False
            said = list(islice(self._unsent.values(), MOST_SAID))
            try:
                texts, lost = await log.exchange([self._said(block) for block in said], self.book.settings.max_blocks)
            except StoreError:
                return
            if lost:
                self._unsent = {block.place: block for block in self._everything()} | self._unsent
            for block in said:
                if self._unsent.get(block.place) is block and not lost:
                    del self._unsent[block.place]
            news = self._hear(_read(texts))
            if self._file is not None:
                self._unwritten |= news

    def _said(self, said: Entry) -> Said:
        place = "|".join(said.place).encode("utf-8", "surrogatepass")
        if isinstance(said, Block):
            forget_us = self.book.forgotten_at(said)
        else:
            forget_us = self.overrides.forgotten_at(said)
        return Said(place, said.order.encode(), encoded(said), forget_us)

    def _hear(self, said: Iterable[Entry]) -> dict[Place, Entry]:
        """Those of them that are news."""
        return {one.place: one for one in said if self._learn(one)}

    def _write_here(self) -> None:
        if self._file is not None and self._unwritten:
            heard, written = self._file.exchange(list(self._unwritten.values()), self._everything())
            if written:
                self._unwritten = {}
            self._hear(heard)

    async def _run(self) -> None:
        while True:
            try:
                await self.turn()
            except Exception:
                self.faults += 1
            try:
                async with asyncio.timeout(POLL_S):
                    await self._news.wait()
            except TimeoutError:
                pass

    def stats(self) -> dict[str, int]:
        """For metrics: the first four are gauges."""
        return {
            "blocks_in_force": len(self.book),
            "blocks_max": self.book.settings.max_blocks,
            "blocks_listed_networks": len(self.lists),
            "blocks_lists_failing": len(self.lists.notes),
            "blocks_pushed_out": self.book.pushed_out,
            "blocks_list_failures": self.lists.failures,
            "blocks_file_faults": self._file.faults if self._file is not None else 0,
            "blocks_file_lines_unread": self._file.unread if self._file is not None else 0,
            "blocks_faults": self.faults,
            "overrides_in_force": len(self.overrides),
        }


def _read(texts: Iterable[bytes]) -> Iterable[Entry]:
    for text in texts:
        try:
            yield decoded(text)
        except ValueError:
            continue  # a later release says what this one cannot know


def _nothing() -> None:
    pass
