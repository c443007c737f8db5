"""What is remembered of idempotency keys, in stores of this process and of this host.

The law of this file: a key has one owner at a time. Looking at its record, the step over the charges and taking the key
are one section that no other request with a key comes into: a key is taken only where the limits admitted, and limits
are charged only where the key is taken. Whoever ends a record is its owner by the value that was written when it was
taken (compare and set), so an owner that was taken over, or has ended it before, changes nothing.

A record that is full of meaning is never dropped for another's sake: where there is no room a request is refused
(`store_full`). Instants are of the table's clock, in microseconds.
"""

from __future__ import annotations

import heapq
import threading
from typing import TYPE_CHECKING, Final, Literal, NamedTuple

from shield.answer import StoredAnswer
from shield.guard.idempotency import IN_FLIGHT, MISMATCH, REPLAY, Claim

if TYPE_CHECKING:
    from shield.core import Charges, SharedTable, Table
    from shield.policy.model import IdempotencyGuard

RUNNING, COMPLETED, ABANDONED = 1, 2, 3

Action = Literal["complete", "abandon", "extend"]
Outcome = Literal["done", "lost", "unknown"]
"""Of an ending: it was written; the record is not the owner's any more; there is no such record."""

FULL_RETRY_US: Final = 1_000_000
# Records that have run out and are dropped when one is taken, and when there is no room.
SWEEP: Final = 4
SWEEP_FULL: Final = 1_024
# What one record takes beside its answer, in any store of this host.
RECORD_BYTES: Final = 512


class Held(NamedTuple):
    """Which record, and who says so."""

    address: bytes
    holder: bytes
    owner: bytes


class Ending(NamedTuple):
    """What an owner says became of its request. `answer` goes with "complete" alone."""

    held: Held
    action: Action
    rules: IdempotencyGuard
    answer: StoredAnswer | None = None


class Record:
    """One key: who owns it, for which payload, and how it ended."""

    __slots__ = ("answer", "expires_us", "fingerprint", "holder", "lease_until_us", "owner", "state")

    def __init__(self, claim: Claim, now_us: int) -> None:
        rules = claim.rules
        self.state = RUNNING
        self.owner = claim.owner
        self.holder = claim.key.holder
        self.fingerprint = claim.key.fingerprint
        self.lease_until_us = now_us + rules.lease_us
        self.expires_us = now_us + max(rules.retention_us, rules.lease_us)
        self.answer: StoredAnswer | None = None


class Seen(NamedTuple):
    """Why a record stands in a request's way."""

    reason: str
    detail: str | None
    retry_us: int = 0
    answer: StoredAnswer | None = None

    @classmethod
    def replay(cls, answer: StoredAnswer) -> Seen:
        """The request was answered before."""
        return cls(REPLAY, None if answer.retained else NOT_RETAINED.format(answer.status), 0, answer)

    def refuse(self, charges: Charges) -> None:
        """A stored answer costs nothing; the others are refusals like any."""
        charges.turn_away(self.reason, self.detail, self.retry_us, penalised=self.answer is None, stored=self.answer)


def look(
    state: int,
    same: bool,
    strict: bool,
    lease_left_us: int,
    left_us: int,
    answer: StoredAnswer | None,
) -> Seen | None:
    """What a live record says to a request; None: the key may be taken. `same`: it came with the same payload."""
    if state == ABANDONED:
        return None
    if not same:
        return Seen(MISMATCH, OTHER_PAYLOAD)
    if answer is not None:
        return Seen.replay(answer)
    if lease_left_us > 0:
        return Seen(IN_FLIGHT, IN_USE, lease_left_us)
    if strict:
        return Seen(IN_FLIGHT, UNKNOWN_END, left_us)
    return None


OTHER_PAYLOAD: Final = "idempotency.key: it was used for another request; allowed: a key of its own"
IN_USE: Final = "idempotency.key: a request with it is being worked on"
UNKNOWN_END: Final = "idempotency.key: nobody knows what became of a request with it"
NOT_RETAINED: Final = "idempotency.key: the request has been answered with status {}, and the answer was not kept"
NO_ROOM: Final = "no room for another idempotency key"


class MemoryRecords:
    """The records of one process."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._records: dict[bytes, Record] = {}
        self._holders: dict[bytes, int] = {}
        self._expiries: list[tuple[int, bytes]] = []  # a heap; an entry whose record ends otherwise is stale
        self._bytes = 0
        self._counts = dict.fromkeys(("idempotency_full", "idempotency_not_kept"), 0)

    def step(self, table: Table | SharedTable, charges: Charges, claim: Claim) -> None:
        """The table's step, with the key as its last part."""
        with self._lock:
            now_us = table.now_us()
            record = self._live(claim.key.address, now_us)
            seen = None if record is None else self._look(record, claim, now_us)
            if seen is not None:
                seen.refuse(charges)
            elif not self._has_room(claim, record, now_us):
                self._counts["idempotency_full"] += 1
                charges.turn_away("store_full", NO_ROOM, FULL_RETRY_US)
            table.apply(charges, now_us=now_us)
            if charges.admitted:
                self._take(claim, now_us)

    def end(self, ending: Ending, now_us: int) -> Outcome:
        """Completes, abandons or extends, if the owner is still the owner."""
        held, rules = ending.held, ending.rules
        with self._lock:
            record = self._live(held.address, now_us)
            if record is None:
                return "unknown"
            if record.owner != held.owner or record.state != RUNNING:
                return "lost"
            if ending.action == "extend":
                record.lease_until_us = now_us + rules.lease_us
                self._until(record, held.address, max(record.expires_us, record.lease_until_us))
            elif ending.action == "abandon":
                # It is remembered for as long as its owner might still ask, and is in nobody's way.
                record.state = ABANDONED
                self._until(record, held.address, now_us + rules.lease_us)
            else:
                answer = ending.answer
                assert answer is not None
                if self._bytes + _size(answer) > rules.max_bytes:
                    self._counts["idempotency_not_kept"] += 1
                    answer = StoredAnswer(answer.status, (), None)
                record.state, record.answer = COMPLETED, answer
                self._bytes += _size(answer)
                self._until(record, held.address, now_us + rules.retention_us)
            return "done"

    def stats(self) -> dict[str, int]:
        """Counts for metrics."""
        return {"idempotency_keys": len(self._records), "idempotency_bytes": self._bytes, **self._counts}

    # ---- under the lock ----------------------------------------------------------------------------------------

    def _live(self, address: bytes, now_us: int) -> Record | None:
        record = self._records.get(address)
        if record is not None and record.expires_us <= now_us:
            self._drop(address, record)
            return None
        return record

    def _look(self, record: Record, claim: Claim, now_us: int) -> Seen | None:
        same = record.fingerprint == claim.key.fingerprint
        return look(
            record.state,
            same,
            claim.key.strict,
            record.lease_until_us - now_us,
            record.expires_us - now_us,
            record.answer,
        )

    def _has_room(self, claim: Claim, record: Record | None, now_us: int) -> bool:
        rules, holder = claim.rules, claim.key.holder
        if record is not None:
            return True
        self._sweep(now_us, SWEEP)
        if len(self._records) >= rules.max_keys or self._holders.get(holder, 0) >= rules.max_keys_per_tenant:
            self._sweep(now_us, SWEEP_FULL)
        return len(self._records) < rules.max_keys and self._holders.get(holder, 0) < rules.max_keys_per_tenant

    def _take(self, claim: Claim, now_us: int) -> None:
        address, holder = claim.key.address, claim.key.holder
        before = self._records.get(address)
        if before is None:
            self._holders[holder] = self._holders.get(holder, 0) + 1
        record = self._records[address] = Record(claim, now_us)
        heapq.heappush(self._expiries, (record.expires_us, address))

    def _until(self, record: Record, address: bytes, expires_us: int) -> None:
        record.expires_us = expires_us
        heapq.heappush(self._expiries, (expires_us, address))
        if len(self._expiries) > 2 * len(self._records) + 64:
            self._expiries = [(one.expires_us, name) for name, one in self._records.items()]
            heapq.heapify(self._expiries)

    def _sweep(self, now_us: int, most: int) -> None:
        expiries = self._expiries
        while expiries and expiries[0][0] <= now_us and most > 0:
            expires_us, address = heapq.heappop(expiries)
            record = self._records.get(address)
            if record is not None and record.expires_us == expires_us:
                self._drop(address, record)
                most -= 1

    def _drop(self, address: bytes, record: Record) -> None:
        del self._records[address]
        if record.answer is not None:
            self._bytes -= _size(record.answer)
        left = self._holders[record.holder] - 1
        if left:
            self._holders[record.holder] = left
        else:
            del self._holders[record.holder]


def _size(answer: StoredAnswer) -> int:
    return (0 if answer.body is None else len(answer.body)) + sum(
        len(name) + len(text) for name, text in answer.headers
    )
