"""The blocks in force: asked before anything else of a request is looked at, and free where there are none.

A block is about an address, a network, a user, a tenant or an API key. An address counts as everywhere else: IPv4
whole, IPv6 by the policy's prefix. Lists of networks (`blocks.lists`) stand in compiled tables; what detectors and
operators block stands in dictionaries. Allowed subjects win over both.

A detector's blocks escalate: each further block of a subject takes the next of the steps (1 minute, 10 minutes, 1 hour,
24 hours), and a subject that was free of blocks for `forget_after` begins again at the first.

Bounds: `max_blocks` blocks; past them the one that ends first makes room, never an operator's, and that is counted.
"""

from __future__ import annotations

import heapq
import ipaddress
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Final

from shield.core.cidr import PrefixTable, canonical
from shield.request import Request

ADDRESS: Final = "ip"
NETWORK: Final = "network"
SUBJECTS: Final = ("user", "tenant", "api_key", "session")
KINDS: Final = (ADDRESS, NETWORK, *SUBJECTS)
BLOCKED: Final = "blocked"
CHALLENGE: Final = "challenge"
OPERATOR: Final = "operator"

MAX_VALUE: Final = 512
MAX_WHY: Final = 500
# Networks that operators block by hand; whole lists belong into a file.
MAX_NETWORKS: Final = 10_000
DEFAULT_MAX_BLOCKS: Final = 100_000
DEFAULT_STEPS_US: Final = (60_000_000, 600_000_000, 3_600_000_000, 86_400_000_000)
DEFAULT_FORGET_AFTER_US: Final = 86_400_000_000

Subject = tuple[str, str]
"""(kind, value): one of KINDS, and its canonical text."""


@dataclass(frozen=True, slots=True)
class Block:
    """One subject, refused or challenged until an instant."""

    subject: Subject
    until_us: int | None  # None: until it is lifted
    reason: str  # BLOCKED or CHALLENGE
    by: str  # OPERATOR, or "detector:NAME"
    why: str
    since_us: int
    level: int = 0  # how many steps of the escalation it has climbed

    def ends_before(self, now_us: int) -> bool:
        """Whether it is over."""
        return self.until_us is not None and self.until_us <= now_us


class BlockBook:
    """All blocks of one process. Time is an argument."""

    def __init__(
        self,
        *,
        ipv6_prefix: int = 64,
        steps_us: Sequence[int] = DEFAULT_STEPS_US,
        forget_after_us: int = DEFAULT_FORGET_AFTER_US,
        max_blocks: int = DEFAULT_MAX_BLOCKS,
        allow: Mapping[str, Iterable[str]] | None = None,
        lists: Iterable[PrefixTable] = (),
    ) -> None:
        """`allow`: values by kind that are never blocked; networks under "ip"."""
        self._ipv6_prefix = ipv6_prefix
        self._steps_us = tuple(steps_us)
        self._forget_after_us = forget_after_us
        self._max_blocks = max_blocks
        allowed = dict(allow or {})
        self._allowed_networks = PrefixTable("\n".join(allowed.get(ADDRESS, ())).encode())
        self._allowed = {kind: frozenset(allowed.get(kind, ())) for kind in SUBJECTS}
        self._lists = tuple(lists)
        self._addresses: dict[bytes, Block] = {}
        self._networks: dict[str, Block] = {}
        self._network_table = PrefixTable()
        self._subjects: dict[str, dict[str, Block]] = {kind: {} for kind in SUBJECTS}
        self._ending: list[tuple[int, Subject]] = []
        self._ended: dict[Subject, tuple[int, int]] = {}  # subject -> (level, when it ended)
        self.pushed_out = 0
        self.refused = 0

    def __len__(self) -> int:
        return len(self._addresses) + len(self._networks) + sum(map(len, self._subjects.values()))

    @property
    def is_empty(self) -> bool:
        """Nothing to ask: no block and no list."""
        return not (self._addresses or self._networks or self._lists or any(self._subjects.values()))

    # ---- asking ------------------------------------------------------------------------------------------------

    def allows(self, request: Request) -> bool:
        """Whether an allow list names this request's address, user, tenant or key: no block or detector is for it."""
        if request.ip and request.ip in self._allowed_networks:
            return True
        return any(names and getattr(request, kind) in names for kind, names in self._allowed.items())

    def of_address(self, ip: str | None, now_us: int) -> Block | None:
        """The block that this address is under."""
        if not ip:
            return None
        if self._addresses:
            key = canonical(ip, self._ipv6_prefix)
            block = self._addresses.get(key) if key is not None else None
            if block is not None and not block.ends_before(now_us):
                return block
        if self._networks and ip in self._network_table:
            address = ipaddress.ip_address(ip.partition("%")[0])
            mapped = getattr(address, "ipv4_mapped", None)
            for text, block in self._networks.items():
                if (mapped or address) in ipaddress.ip_network(text) and not block.ends_before(now_us):
                    return block
        for table in self._lists:
            if ip in table:
                return Block((ADDRESS, ip), None, BLOCKED, "list", "on a block list", now_us)
        return None

    def of_subject(self, request: Request, now_us: int) -> Block | None:
        """The block that its user, tenant, API key or session is under."""
        for kind, blocks in self._subjects.items():
            if blocks:
                value = getattr(request, kind)
                block = blocks.get(value) if value.__class__ is str else None
                if block is not None and not block.ends_before(now_us):
                    return block
        return None

    # ---- changing ----------------------------------------------------------------------------------------------

    def add(
        self,
        subject: Subject,
        until_us: int | None,
        now_us: int,
        *,
        by: str,
        why: str,
        reason: str = BLOCKED,
        level: int = 0,
    ) -> Block:
        """Blocks a subject, in place of a block that it is under. ValueError where there is no room."""
        self.sweep(now_us)
        block = Block(subject, until_us, reason, by[:128], why[:MAX_WHY], now_us, level)
        if self._find(subject) is None and len(self) >= self._max_blocks:
            self._make_room()
        kind, value = subject
        if kind == ADDRESS:
            key = canonical(value.partition("/")[0], self._ipv6_prefix)
            if key is None:
                raise ValueError(f"ip: found {value[:64]!r}; allowed: an address")
            self._addresses[key] = block
        elif kind == NETWORK:
            if value not in self._networks and len(self._networks) >= MAX_NETWORKS:
                raise ValueError(f"network: {MAX_NETWORKS:,} networks are blocked already; put them into a list")
            self._networks[value] = block
            self._network_table = PrefixTable("\n".join(self._networks).encode())
        else:
            self._subjects[kind][value] = block
        if until_us is not None:
            heapq.heappush(self._ending, (until_us, subject))
        return block

    def escalate(self, subject: Subject, now_us: int, *, by: str, why: str, reason: str = BLOCKED) -> Block:
        """A detector's block: longer than the last one of this subject, up to the last step. One that an operator set,
        or that lasts longer, stays."""
        known = self._find(subject)
        level = 0
        if known is not None and not known.ends_before(now_us):
            if known.by == OPERATOR:
                return known
            level = known.level + 1
        elif subject in self._ended:
            before, ended_us = self._ended[subject]
            if now_us - ended_us < self._forget_after_us:
                level = before + 1
        level = min(level, len(self._steps_us) - 1)
        until_us = now_us + self._steps_us[level]
        if known is not None and known.until_us is not None and known.until_us > until_us:
            until_us = known.until_us
        return self.add(subject, until_us, now_us, by=by, why=why, reason=reason, level=level)

    def lift(self, subject: Subject) -> Block | None:
        """Ends a block now, and forgets what the subject did before. None where there was none."""
        self._ended.pop(subject, None)
        return self._remove(subject)

    def sweep(self, now_us: int) -> int:
        """Drops what is over; how many."""
        dropped = 0
        while self._ending and self._ending[0][0] <= now_us:
            _, subject = heapq.heappop(self._ending)
            block = self._find(subject)
            if block is not None and block.ends_before(now_us):
                self._remove(subject)
                if block.by != OPERATOR:
                    if len(self._ended) >= self._max_blocks:
                        del self._ended[next(iter(self._ended))]
                    self._ended[subject] = (block.level, block.until_us or now_us)
                dropped += 1
        return dropped

    def all(self, now_us: int) -> list[Block]:
        """Every block in force, those that end first in front."""
        self.sweep(now_us)
        blocks = [*self._addresses.values(), *self._networks.values()]
        for each in self._subjects.values():
            blocks += each.values()
        return sorted(blocks, key=lambda one: (one.until_us is None, one.until_us or 0, one.subject))

    def take_over(self, other: BlockBook, now_us: int) -> None:
        """The blocks of the book before this one: a reload lifts nothing."""
        for block in other.all(now_us):
            self.restore(block, now_us)
        self._ended.update(other._ended)
        self.pushed_out, self.refused = other.pushed_out, other.refused

    def restore(self, block: Block, now_us: int) -> None:
        """A block as it was, if it is not over."""
        if not block.ends_before(now_us) and len(self) < self._max_blocks:
            kept = self.add(
                *(block.subject, block.until_us, now_us),
                by=block.by, why=block.why, reason=block.reason, level=block.level,
            )  # fmt: skip
            self._replace(replace(kept, since_us=block.since_us))

    def stats(self) -> dict[str, int]:
        """For metrics."""
        return {
            "blocks": len(self),
            "max_blocks": self._max_blocks,
            "pushed_out": self.pushed_out,
            "refused": self.refused,
            "listed_networks": sum(map(len, self._lists)),
        }

    # ---- inside ------------------------------------------------------------------------------------------------

    def _place(self, subject: Subject) -> tuple[dict[bytes, Block], bytes | None] | tuple[dict[str, Block], str]:
        kind, value = subject
        if kind == ADDRESS:
            return self._addresses, canonical(value.partition("/")[0], self._ipv6_prefix)
        return (self._networks if kind == NETWORK else self._subjects[kind]), value

    def _find(self, subject: Subject) -> Block | None:
        blocks, key = self._place(subject)
        return blocks.get(key)  # type: ignore[arg-type]

    def _replace(self, block: Block) -> None:
        blocks, key = self._place(block.subject)
        blocks[key] = block  # type: ignore[index]

    def _remove(self, subject: Subject) -> Block | None:
        blocks, key = self._place(subject)
        removed = blocks.pop(key, None)  # type: ignore[arg-type]
        if removed is not None and subject[0] == NETWORK:
            self._network_table = PrefixTable("\n".join(self._networks).encode())
        return removed

    def _make_room(self) -> None:
        kept = []
        try:
            while self._ending:
                ending = heapq.heappop(self._ending)
                block = self._find(ending[1])
                if block is None or block.until_us != ending[0]:
                    continue
                if block.by == OPERATOR:
                    kept.append(ending)
                    continue
                self._remove(ending[1])
                self.pushed_out += 1
                return
        finally:
            for ending in kept:
                heapq.heappush(self._ending, ending)
        raise ValueError(f"{self._max_blocks:,} blocks are in force, all of them an operator's")


def subject_of(kind: str, value: str) -> Subject:
    """The canonical subject. ValueError names what is wrong."""
    if kind not in KINDS:
        raise ValueError(f"kind: found {kind[:64]!r}; allowed: {', '.join(KINDS)}")
    if not value or len(value) > MAX_VALUE or not value.isprintable():
        raise ValueError(f"{kind}: allowed: printable text of 1 to {MAX_VALUE} characters")
    if kind == ADDRESS:
        key = canonical(value, 128)
        if key is None:
            raise ValueError(f"ip: found {value[:64]!r}; allowed: an address; for a network say network")
        return kind, str(ipaddress.ip_address(key))
    if kind == NETWORK:
        try:
            return kind, str(ipaddress.ip_network(value, strict=False))
        except ValueError:
            raise ValueError(f"network: found {value[:64]!r}; allowed: a network such as 203.0.113.0/24") from None
    return kind, value
