"""The blocks that a process knows: asked before anything else of a request is looked at, and free where there are none.

A block is about an address, a network, a user, a tenant, an API key or a session. Addresses count as everywhere else:
IPv4 whole, IPv6 by the policy's prefix. What is in force for a subject is the operator's word, else the detector's.

A detector's answers escalate: each further one to a subject takes the next of the steps (1 minute, 10 minutes, 1 hour,
24 hours), and for every `decay` that the subject was left alone it goes one step back. So a detector's block is
remembered beyond its end, for as long as that still makes a difference.

Bounds: `max_blocks` of detectors, of which the one that ends first makes room, and as many of operators, of which none
does. What a detector wants for a subject that is blocked since a moment ago is left out: other nodes, and requests that
were under way, want the same.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterable, Mapping
from typing import Final

from shield.block.block import (
    ADDRESS,
    BLOCKED,
    LIFTED,
    MAX_BY_CHARS,
    MAX_WHY_CHARS,
    NETWORK,
    OPERATOR,
    SUBJECTS,
    THROTTLE,
    Block,
    Place,
    Subject,
)
from shield.core.cidr import PrefixTable, canonical
from shield.policy.abuse import DAY_US, Blocks
from shield.request import Request

# Longer than a block takes to be everywhere.
SETTLED_US: Final = 2_000_000
# So long it is remembered that an operator has lifted a block: a copy of it may come back from a node that was away.
LIFTED_US: Final = DAY_US


class Index:
    """Blocks in force, by what a request states: one block a subject."""

    def __init__(self, ipv6_prefix: int) -> None:
        self._ipv6_prefix = ipv6_prefix
        self._addresses: dict[bytes, Block] = {}
        self._networks: dict[tuple[int, int], dict[int, Block]] = {}  # (size of the address, host bits) -> prefix
        self._subjects: dict[str, dict[str, Block]] = {kind: {} for kind in SUBJECTS}
        self._n = 0

    def __len__(self) -> int:
        return self._n

    def put(self, subject: Subject, block: Block | None) -> None:
        """From now on this one, or none, is the subject's."""
        kind, value = subject
        if kind == ADDRESS:
            key = canonical(value.partition("/")[0], self._ipv6_prefix)
            if key is not None:
                self._n += _put(self._addresses, key, block)
        elif kind == NETWORK:
            address, _, bits = value.partition("/")
            raw = canonical(address, 128) or b""
            at = len(raw), 8 * len(raw) - int(bits)
            prefixes = self._networks.setdefault(at, {})
            self._n += _put(prefixes, int.from_bytes(raw, "big") >> at[1], block)
            if not prefixes:
                del self._networks[at]
        else:
            self._n += _put(self._subjects[kind], value, block)

    def of_address(self, ip: str) -> Block | None:
        """The block of an address, else of the smallest network that it is in."""
        if self._addresses:
            key = canonical(ip, self._ipv6_prefix)
            found = self._addresses.get(key) if key is not None else None
            if found is not None:
                return found
        if self._networks:
            raw = canonical(ip, 128)
            if raw is not None:
                size, number = len(raw), int.from_bytes(raw, "big")
                for host_bits in sorted(bits for of, bits in self._networks if of == size):
                    found = self._networks[size, host_bits].get(number >> host_bits)
                    if found is not None:
                        return found
        return None

    def of_subject(self, request: Request) -> Block | None:
        """The block of its user, tenant, API key or session."""
        for kind, blocks in self._subjects.items():
            if blocks:
                value = getattr(request, kind)
                found = blocks.get(value) if value.__class__ is str else None
                if found is not None:
                    return found
        return None


def _put(blocks: dict, key: object, block: Block | None) -> int:  # type: ignore[type-arg]
    """By how much the number of blocks changed."""
    if block is None:
        return -1 if blocks.pop(key, None) is not None else 0
    added = 0 if key in blocks else 1
    blocks[key] = block
    return added


class BlockBook:
    """All that one process knows of blocks. Time is an argument, Unix microseconds."""

    def __init__(self, settings: Blocks | None = None, *, ipv6_prefix: int = 64) -> None:
        self.settings = settings or Blocks()
        self.ipv6_prefix = ipv6_prefix
        self._blocking = Index(ipv6_prefix)
        self._throttling = Index(ipv6_prefix)
        self._said: dict[Place, Block] = {}
        self._operators = 0
        self._ending: list[tuple[int, int, Place]] = []  # (instant, stamp, place): ends, or is forgotten
        self._allowed_networks = PrefixTable("\n".join(self.settings.allow).encode())
        self._allowed: Mapping[str, frozenset[str]] = {
            "user": frozenset(self.settings.allow_users),
            "tenant": frozenset(self.settings.allow_tenants),
            "api_key": frozenset(self.settings.allow_api_keys),
        }
        self.allows_people = any(self._allowed.values())
        """Whether somebody is on an allow list who is known by more than an address."""
        self.pushed_out = 0
        """Blocks that ended early, or were never set, because `max_blocks` was reached."""

    def __len__(self) -> int:
        """How many are in force, throttles among them."""
        return len(self._blocking) + len(self._throttling)

    @property
    def is_empty(self) -> bool:
        return not (len(self._blocking) or len(self._throttling))

    @property
    def is_full(self) -> bool:
        """Whether operators have no room for more."""
        return self._operators >= self.settings.max_blocks

    # ---- asking ------------------------------------------------------------------------------------------------

    def allows_address(self, ip: str | None) -> bool:
        """Whether an allow list names this address."""
        return bool(ip) and ip in self._allowed_networks

    def allows(self, request: Request) -> bool:
        """Whether an allow list names its address, user, tenant or key: no block and no detector is for it."""
        if self.allows_address(request.ip):
            return True
        if not self.allows_people:
            return False
        stated = ((getattr(request, kind), names) for kind, names in self._allowed.items() if names)
        return any(value.__class__ is str and value in names for value, names in stated)

    def of_address(self, ip: str | None, now_us: int) -> Block | None:
        """The block that this address is under."""
        if ip.__class__ is not str or not ip or not len(self._blocking):
            return None
        return self._current(self._blocking.of_address(ip), now_us)

    def of_subject(self, request: Request, now_us: int) -> Block | None:
        """The block that its user, tenant, API key or session is under."""
        if not len(self._blocking):
            return None
        return self._current(self._blocking.of_subject(request), now_us)

    def throttle_of(self, request: Request, now_us: int) -> Block | None:
        """The throttle that it is under; of several the one of the most particular subject."""
        index = self._throttling
        if not len(index):
            return None
        found = self._current(index.of_subject(request), now_us)
        if found is None and request.ip.__class__ is str and request.ip:
            found = self._current(index.of_address(request.ip), now_us)
        return found

    def _current(self, block: Block | None, now_us: int) -> Block | None:
        """The block, or what is left for its subject where it has ended and nobody has noticed."""
        if block is None or not block.ends_before(now_us):
            return block
        return self._show(block.place, now_us)

    # ---- what is said ------------------------------------------------------------------------------------------

    def learn(self, block: Block, now_us: int) -> bool:
        """A block from wherever. Whether it is news."""
        place = block.place
        known = self._said.get(place)
        if known is not None and known.rank >= block.rank:
            return False
        forget_us = self.forgotten_at(block)
        if forget_us is not None and forget_us <= now_us:
            return False
        self.sweep(now_us)
        operators = place[0] == OPERATOR
        if known is None and not operators and len(self._said) - self._operators >= self.settings.max_blocks:
            self._make_room(now_us)
        if known is None and operators:
            self._operators += 1
        self._said[place] = block
        self._expect_end(place, block)
        if len(self._ending) > 4 * len(self._said) + 1_024:  # most are of blocks that others have replaced
            self._ending = []
            for each in self._said.items():
                self._expect_end(*each)
        self._show(place, now_us)
        return True

    def _expect_end(self, place: Place, block: Block) -> None:
        for instant in {block.until_us, self.forgotten_at(block)} - {None}:
            heapq.heappush(self._ending, (instant or 0, block.stamp_us, place))

    def said_by_operator(
        self, subject: Subject, until_us: int | None, now_us: int, *, by: str, why: str, reason: str = BLOCKED
    ) -> Block:
        """An operator's block, or with LIFTED the end of every block of the subject: to be learnt."""
        kind, value = subject
        return Block(
            kind=kind,
            value=value,
            stamp_us=self._stamp(subject, now_us),
            reason=reason,  # type: ignore[arg-type]
            by=by[:MAX_BY_CHARS],
            since_us=now_us,
            until_us=until_us,
            why=why[:MAX_WHY_CHARS],
        )

    def escalated(
        self, subject: Subject, now_us: int, *, by: str, why: str, reason: str = BLOCKED, factor: float = 1.0
    ) -> Block | None:
        """A detector's answer, to be learnt: longer than its last one, up to the last step. None where the operator's
        word stands, or where it has been given a moment ago.
        """
        kind, value = subject
        operator = self._said.get((OPERATOR, kind, value))
        if operator is not None and operator.reason != LIFTED and not operator.ends_before(now_us):
            return None
        before = self._said.get((THROTTLE if reason == THROTTLE else "detector", kind, value))
        if before is not None and operator is not None and operator.stamp_us >= before.stamp_us:
            before = None  # what was before it was lifted is forgiven
        if before is not None and before.since_us <= now_us < before.since_us + SETTLED_US:
            return None
        level = 0 if before is None else self._level_after(before, now_us)
        until_us = now_us + self.settings.steps_us[level]
        if before is not None and before.until_us is not None and before.until_us > until_us:
            until_us = before.until_us
        return Block(
            kind=kind,
            value=value,
            stamp_us=self._stamp(subject, now_us),
            reason=reason,  # type: ignore[arg-type]
            by=by[:MAX_BY_CHARS],
            since_us=now_us,
            until_us=until_us,
            why=why[:MAX_WHY_CHARS],
            level=level,
            factor=factor,
        )

    def _level_after(self, before: Block, now_us: int) -> int:
        left_alone_us = max(0, now_us - (before.until_us or now_us))
        level = before.level + 1 - left_alone_us // self.settings.decay_us
        return max(0, min(level, len(self.settings.steps_us) - 1))

    def _stamp(self, subject: Subject, now_us: int) -> int:
        """Later than all that is known of the subject, whatever another node's clock says."""
        kind, value = subject
        known = (self._said.get((whose, kind, value)) for whose in (OPERATOR, "detector", THROTTLE))
        return max(now_us, *(block.stamp_us + 1 for block in known if block is not None), 0)

    # ---- what is shown -----------------------------------------------------------------------------------------

    def in_force(self, subject: Subject, now_us: int) -> Block | None:
        """The block that this very subject is under, else its throttle."""
        return self._show((OPERATOR, *subject), now_us) or self._show((THROTTLE, *subject), now_us)

    def all(self, now_us: int) -> list[Block]:
        """Every block in force, by kind and value."""
        self.sweep(now_us)
        subjects = {(kind, value) for _, kind, value in self._said}
        found = [
            block
            for subject in sorted(subjects)
            for whose in (OPERATOR, THROTTLE)
            if (block := self._effective((whose, *subject), now_us)) is not None
        ]
        return found

    def everything(self) -> Iterable[Block]:
        """All that is remembered, for whoever knows nothing yet."""
        return list(self._said.values())

    def take_over(self, other: BlockBook, now_us: int) -> None:
        """What the book before this one knew: a reload lifts nothing."""
        self.pushed_out = other.pushed_out
        for block in other.everything():
            self.learn(block, now_us)

    # ---- inside ------------------------------------------------------------------------------------------------

    def sweep(self, now_us: int) -> None:
        """Lets go of what is over."""
        while self._ending and self._ending[0][0] <= now_us:
            _, stamp_us, place = heapq.heappop(self._ending)
            block = self._said.get(place)
            if block is None or block.stamp_us != stamp_us:
                continue
            forget_us = self.forgotten_at(block)
            if forget_us is not None and forget_us <= now_us:
                self._forget(place)
            self._show(place, now_us)

    def _forget(self, place: Place) -> None:
        del self._said[place]
        if place[0] == OPERATOR:
            self._operators -= 1

    def forgotten_at(self, block: Block) -> int | None:
        """When it makes no difference any more that it was said. None: never by itself."""
        if block.reason == LIFTED:
            return block.stamp_us + LIFTED_US
        if block.until_us is None or not block.by_detector:
            return block.until_us
        return block.until_us + (block.level + 1) * self.settings.decay_us

    def _effective(self, place: Place, now_us: int) -> Block | None:
        """Of a throttle's place the throttle, of the others' the operator's word, else the detector's."""
        whose, kind, value = place
        operator = self._said.get((OPERATOR, kind, value))
        stands = operator is not None and operator.reason != LIFTED and not operator.ends_before(now_us)
        if stands and whose != THROTTLE:
            return operator
        said = self._said.get((THROTTLE if whose == THROTTLE else "detector", kind, value))
        if said is None or said.ends_before(now_us):
            return None
        lifted = operator is not None and operator.reason == LIFTED and operator.stamp_us >= said.stamp_us
        return None if lifted else said

    def _show(self, place: Place, now_us: int) -> Block | None:
        whose, kind, value = place
        if whose == OPERATOR:  # a lift ends throttles too
            self._throttling.put((kind, value), self._effective((THROTTLE, kind, value), now_us))
        block = self._effective(place, now_us)
        index = self._throttling if whose == THROTTLE else self._blocking
        index.put((kind, value), block)
        return block

    def _make_room(self, now_us: int) -> None:
        """The detector's block that ends first, or has ended longest ago, is forgotten."""
        kept = []
        while self._ending:
            ending = heapq.heappop(self._ending)
            block = self._said.get(ending[2])
            if block is None or block.stamp_us != ending[1]:
                continue
            if not block.by_detector:
                kept.append(ending)
                continue
            self._forget(ending[2])
            self._show(ending[2], now_us)
            self.pushed_out += not block.ends_before(now_us)
            break
        for ending in kept:
            heapq.heappush(self._ending, ending)
