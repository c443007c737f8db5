"""The store of one process: exact, bounded, and never more than a function call away."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from shield.clock import Clock
from shield.core import Charges, Registry, Table
from shield.errors import ReceiptError, StoreError

if TYPE_CHECKING:
    from shield.store import Lease, Settlement

# A live key takes 57 bytes, so the default is bounded by 57 MB, reached only as keys arrive.
DEFAULT_MAX_KEYS = 1_000_000
# A held place takes about 300 bytes.
DEFAULT_MAX_LEASES = 65_536
# Receipts that were settled and have not expired: at the default 5 minutes, 3,300 reports a second. 57 bytes each.
DEFAULT_MAX_RECEIPTS = 1_000_000


class MemoryStore:
    """`memory://?max_keys=1000000&max_leases=65536&max_receipts=1000000`: buckets that end with this process."""

    name = "memory"
    local = True

    def __init__(
        self,
        *,
        max_keys: int = DEFAULT_MAX_KEYS,
        max_leases: int = DEFAULT_MAX_LEASES,
        max_receipts: int = DEFAULT_MAX_RECEIPTS,
        clock: Clock | None = None,
        registry: Registry | None = None,
    ) -> None:
        self.registry = Registry() if registry is None else registry
        self.table = Table(
            self.registry, max_keys=max_keys, max_leases=max_leases, max_receipts=max_receipts, clock=clock
        )

    @property
    def ready(self) -> bool:
        return True

    async def open(self) -> None:
        """Nothing to open."""

    async def close(self) -> None:
        """Nothing to close: the buckets end with the process."""

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
