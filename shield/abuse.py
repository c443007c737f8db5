"""Detectors and blocks at work on one Shield's stream.

    request -> blocked? -> decision -> seen(request)     before the answer leaves
    report  -> outcome(facts, status, event)

What was detected is acted upon (blocks, challenges) and then told to the listeners, in the order it was found. A
listener that raises is passed over for that one detection: detecting never keeps a decision from being made.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from shield.block import Block, BlockBook, Subject
from shield.block.book import BLOCKED, CHALLENGE, KINDS
from shield.block.journal import Journal
from shield.clock import Clock
from shield.core.cidr import PrefixTable
from shield.detect.detection import Detection
from shield.detect.travel import Locate
from shield.detect.watch import Watch
from shield.errors import PolicyError, PolicyIssue
from shield.policy import Policy
from shield.policy.detector import BLOCK, OBSERVE
from shield.policy.detector import CHALLENGE as TO_CHALLENGE
from shield.policy.model import Blocks
from shield.request import Request

Listener = Callable[[Detection], None]

# A list of four million networks with comments; more is refused rather than read for minutes.
MAX_LIST_BYTES = 256 * 1_048_576


class Abuse:
    """The detectors of the policy in force, and the blocks. `locate` answers where an address is, for travel."""

    def __init__(self, *, clock: Clock | None, locate: Locate | None = None) -> None:
        self._clock = clock if clock is not None else time.time_ns
        self._locate = locate
        self._watch: Watch | None = None
        self._ipv6_prefix = 64
        self._settings = Blocks()
        self._journal: Journal | None = None
        self.book = BlockBook()
        self.listeners: list[Listener] = []
        self.block_listeners: list[Callable[[Block, bool], None]] = []
        """Called with a block that was set, or lifted (True)."""
        self.listener_faults = 0
        self.acts = True
        """False: what a detector asks for is only told."""
        self.changed: Callable[[], None] = _nothing
        """Called when blocks come or go."""

    @property
    def active(self) -> bool:
        """True when something wants to see requests."""
        return self._watch is not None or not self.book.is_empty

    def adopt(self, policy: Policy) -> None:
        """The policy's detectors and lists from now on. PolicyError, which changes nothing."""
        self.prepare(policy)()

    def prepare(self, policy: Policy) -> Callable[[], None]:
        """Everything about a policy that may fail; what is returned puts it in force and cannot.

        Unchanged detectors go on with what they know, a changed set starts anew; blocks stay. PolicyError for a list or
        a file that cannot be used.
        """
        settings, prefix = policy.blocks or Blocks(), policy.identity.ipv6_prefix
        now_us = self.now_us()
        lists = [_read_list(path, f"blocks.lists[{at}]") for at, path in enumerate(settings.lists)]
        book = BlockBook(
            ipv6_prefix=prefix,
            steps_us=settings.steps_us,
            forget_after_us=settings.forget_after_us,
            max_blocks=settings.max_blocks,
            allow={
                "ip": settings.allow,
                "user": settings.allow_users,
                "tenant": settings.allow_tenants,
                "api_key": settings.allow_api_keys,
            },
            lists=lists,
        )
        book.take_over(self.book, now_us)
        journal = self._journal if settings.file == self._settings.file else _open_journal(settings, book, now_us)
        watch = self._watch
        if watch is None or (watch.detectors, self._ipv6_prefix) != (policy.detectors, prefix):
            watch = Watch(policy.detectors, ipv6_prefix=prefix, locate=self._locate) if policy.detectors else None

        def commit() -> None:
            if journal is not self._journal and self._journal is not None:
                self._journal.close()
            self._journal, self._watch, self._ipv6_prefix = journal, watch, prefix
            self.book, self._settings = book, settings

        return commit

    def now_us(self) -> int:
        """Microseconds since 1970, by the clock that decisions are made by."""
        return self._clock() // 1000

    # ---- requests ----------------------------------------------------------------------------------------------

    def block_of_address(self, request: Request) -> Block | None:
        """The block that a request's address is under: asked before who it comes from."""
        book = self.book
        if book.is_empty:
            return None
        ip = request.ip
        block = book.of_address(ip, self.now_us()) if ip.__class__ is str else None
        return self._unless_allowed(block, request)

    def block_of_subject(self, request: Request) -> Block | None:
        """The block that its user, tenant, API key or session is under: asked when these are certain."""
        book = self.book
        return None if book.is_empty else self._unless_allowed(book.of_subject(request, self.now_us()), request)

    def _unless_allowed(self, block: Block | None, request: Request) -> Block | None:
        if block is None or self.book.allows(request):
            return None
        self.book.refused += 1
        return block

    def seen(self, request: Request) -> Sequence[Detection]:
        """A request that was decided."""
        if self._watch is None:
            return ()
        found = self._watch.request(request, self._clock() // 1000)
        return self._tell(found, request) if found else ()

    def outcome(self, facts: Request, status: int | None, event: str | None) -> Sequence[Detection]:
        """What became of a request, with the facts that tell which it was."""
        if self._watch is None:
            return ()
        found = self._watch.outcome(facts, status, event, self._clock() // 1000)
        return self._tell(found, facts) if found else ()

    def stats(self) -> Mapping[str, Mapping[str, int]]:
        """By detector: what it holds, its bound, and what it found."""
        return {} if self._watch is None else self._watch.stats()

    def _tell(self, found: Sequence[Detection], request: Request) -> Sequence[Detection]:
        if self.book.allows(request):
            return ()
        for detection in found:
            self._act(detection, request)
            for listener in self.listeners:
                try:
                    listener(detection)
                except Exception:
                    self.listener_faults += 1
        return found

    def _act(self, detection: Detection, request: Request) -> None:
        detector = detection.detector
        if detector.action == OBSERVE or detector.mode != "enforce" or not self.acts or not detection.subject:
            return
        kind, value = detector.subject, detection.subject
        if kind == "principal":
            kind = next((name for name in ("user", "api_key", "session", "ip") if getattr(request, name)), "ip")
        if kind not in KINDS:
            return
        reason = {BLOCK: BLOCKED, TO_CHALLENGE: CHALLENGE}[detector.action]
        why = f"{detection.value:g} against {detection.threshold:g}"
        block = self.book.escalate((kind, value), self.now_us(), by=f"detector:{detector.name}", why=why, reason=reason)
        self._recorded(block)

    # ---- operators ---------------------------------------------------------------------------------------------

    def block(self, subject: Subject, until_us: int | None, *, by: str, why: str, reason: str = BLOCKED) -> Block:
        """Blocks a subject. ValueError where there is no room."""
        block = self.book.add(subject, until_us, self.now_us(), by=by, why=why, reason=reason)
        self._recorded(block)
        return block

    def unblock(self, subject: Subject) -> Block | None:
        """Lifts a block; None where there was none."""
        lifted = self.book.lift(subject)
        if lifted is not None:
            if self._journal is not None:
                self._journal.lifted(lifted, self.book, self.now_us())
            self._block_changed(lifted, True)
        return lifted

    def _recorded(self, block: Block) -> None:
        if self._journal is not None:
            self._journal.set(block, self.book, self.now_us())
        self._block_changed(block, False)

    def _block_changed(self, block: Block, lifted: bool) -> None:
        self.changed()
        for listener in self.block_listeners:
            try:
                listener(block, lifted)
            except Exception:
                self.listener_faults += 1

    def close(self) -> None:
        """Closes the file of blocks."""
        if self._journal is not None:
            self._journal.close()


def _open_journal(settings: Blocks, book: BlockBook, now_us: int) -> Journal | None:
    """The file of blocks, and what it says in the book."""
    if settings.file is None:
        return None
    journal = Journal(Path(settings.file))
    try:
        journal.open(book, now_us)
    except OSError as error:
        why = f"{settings.file}: cannot be used: {error.strerror or error}"
        raise PolicyError([PolicyIssue("blocks.file", why)]) from None
    return journal


def _nothing() -> None:
    pass


def _read_list(path: str, at: str) -> PrefixTable:
    try:
        with open(path, "rb") as file:
            text = file.read(MAX_LIST_BYTES + 1)
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else str(error)
        raise PolicyError([PolicyIssue(at, f"{path}: cannot be read: {reason}")]) from None
    if len(text) > MAX_LIST_BYTES:
        raise PolicyError([PolicyIssue(at, f"{path}: more than {MAX_LIST_BYTES:,} bytes")])
    try:
        table = PrefixTable(text)
    except ValueError as error:
        raise PolicyError([PolicyIssue(at, f"{path}: {error}")]) from None
    if table.n_bad:
        line, shown = table.bad[0]
        many = f" (and {table.n_bad - 1:,} more lines)" if table.n_bad > 1 else ""
        allowed = "an address or network a line"
        raise PolicyError([PolicyIssue(at, f"{path}: line {line}: found {shown!r}{many}; allowed: {allowed}")])
    return table
