"""What the stores of this process and of this host have in common: a compiled table that answers at once."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import TYPE_CHECKING, Final, Protocol

from shield.errors import ReceiptError, StoreError

if TYPE_CHECKING:
    from shield.core import Charges, Registry, SharedTable, Table
    from shield.guard.idempotency import Claim
    from shield.store import Lease, Settlement
    from shield.store.key_records import Ending, Outcome


# A step is given back in the moment it was made; the mark that says so need not outlive it by much.
GIVE_BACK_US: Final = 1_000_000


class Records(Protocol):
    """What a table's store remembers of idempotency keys."""

    def step(self, table: Table | SharedTable, charges: Charges, claim: Claim) -> None: ...

    def end(self, ending: Ending, now_us: int) -> Outcome: ...

    def stats(self) -> dict[str, int]: ...


class TableStore:
    """A store that is a table: it needs no I/O, so nothing of it ever waits."""

    name: str
    local = True
    keeps_keys = True
    registry: Registry
    table: Table | SharedTable
    keys: Records
    secret: bytes
    """What receipts and leases of this store are sealed with: 32 bytes."""

    @property
    def ready(self) -> bool:
        return True

    async def open(self) -> None:
        """Nothing to open."""

    async def close(self) -> None:
        """Nothing to close."""

    async def apply(self, charges: Charges, claim: Claim | None = None) -> None:
        """One atomic step; never waits."""
        self.step(charges, claim)

    def step(self, charges: Charges, claim: Claim | None) -> None:
        """One atomic step. StoreError where the records of idempotency keys are out of reach."""
        if claim is None:
            self.table.apply(charges)
        else:
            self.keys.step(self.table, charges, claim)

    async def end(self, ending: Ending) -> Outcome:
        """What became of the request that owns an idempotency key."""
        return self.end_nowait(ending)

    def end_nowait(self, ending: Ending) -> Outcome:
        """The same."""
        return self.keys.end(ending, self.table.now_us())

    async def settle(self, settlement: Settlement) -> bool:
        """Refunds or charges the differences, once.

        ReceiptError for an expired receipt; StoreError when there is no room to remember that it was settled.
        """
        compiled = settlement.compiled
        if compiled is None:
            raise ValueError("a store of this process settles under a compiled policy")
        entries = [
            (
                compiled.index[entry.limit.name],
                entry.plan,
                entry.address,
                entry.charged,
                entry.actual,
                entry.window_start_us,
            )
            for entry in settlement.entries
        ]
        try:
            settled = self.table.settle(
                compiled, settlement.receipt_id, settlement.expires_us, settlement.charged_at_us, entries
            )
        except MemoryError as error:
            raise StoreError(f"not settled: {error}") from None
        if settled is None:
            raise ReceiptError("the receipt has expired")
        return settled

    async def release(self, leases: Sequence[Lease]) -> int:
        """Frees places; unknown and expired ones are no-ops."""
        return self.table.release([(lease.address, lease.lease_id) for lease in leases])

    def stats(self) -> dict[str, int]:
        return {**self.table.stats(), **self.keys.stats()}


def give_back(table: Table | SharedTable, charges: Charges) -> None:
    """Undoes a step that was made, under the rule for refunds."""
    policy, now_us = charges.policy, charges.now_us
    entries = [
        (policy.index[charges.limit(i).name], plan, charges.address_of(i), cost, 0, start_us)
        for i, plan, _, cost, start_us in charges.settlement(every=True)
    ]
    if entries:
        table.settle(policy, os.urandom(16), now_us + GIVE_BACK_US, now_us, entries)
    table.release([(charges.address_of(i), lease_id) for i, lease_id in charges.leases()])
    table.give_nonce_back(charges)
