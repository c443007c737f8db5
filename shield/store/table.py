"""What the stores of this process and of this host have in common: a compiled table that answers at once."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from shield.errors import ReceiptError, StoreError

if TYPE_CHECKING:
    from shield.core import Charges, Registry, SharedTable, Table
    from shield.store import Lease, Settlement


class TableStore:
    """A store that is a table: it needs no I/O, so nothing of it ever waits."""

    name: str
    local = True
    registry: Registry
    table: Table | SharedTable
    secret: bytes
    """What receipts and leases of this store are sealed with: 32 bytes."""

    @property
    def ready(self) -> bool:
        return True

    async def open(self) -> None:
        """Nothing to open."""

    async def close(self) -> None:
        """Nothing to close."""

    async def apply(self, charges: Charges) -> None:
        """One atomic step; never waits."""
        self.table.apply(charges)

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
        return self.table.stats()
