"""What comes after a decision: receipts that are settled, places that are released.

Both are sealed handles that carry all they need, so no node remembers a request and any may settle it. Which secret
opens a handle says where its charge is: the store's own, or this process while it stood in for the store.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Sequence
from typing import TYPE_CHECKING

from shield.core import Charges, LocalDecider
from shield.errors import ReceiptError, RequestError, StoreError
from shield.policy import Policy
from shield.policy.model import Limit
from shield.receipt import Charged, Handles, HeldLease, Receipt, limit_digest
from shield.request import MAX_COST
from shield.store.table import TableStore

if TYPE_CHECKING:
    from shield.core import CompiledPolicy
    from shield.store import RemoteStore, Store


class Sequel(LocalDecider):
    """The half of `shield.Shield` that settles and releases."""

    policy: Policy
    store: Store
    _local: TableStore
    _remote: RemoteStore | None
    _compiled: CompiledPolicy
    _limits: dict[bytes, Limit]
    _handles: Handles | None
    _own: Handles

    def _address(self, charges: Charges, i: int) -> bytes:
        return charges.address_of(i) if self._remote is None else self._remote.address(charges.bucket(i))

    def _receipt(self, charges: Charges) -> str | None:
        if self._handles is None or charges.degraded or not (charges.admitted and charges.settleable):
            return None
        charged = tuple(
            Charged(limit_digest(charges.limit(i).identity), plan, self._address(charges, i), kind, cost, start_us)
            for i, plan, kind, cost, start_us in charges.settlement()
        )
        if not charged:
            return None
        expires_us = charges.now_us + self.policy.settle_within_us
        return self._handles.seal_receipt(Receipt(os.urandom(16), expires_us, charges.now_us, charged))

    def _leases(self, charges: Charges) -> list[str]:
        # Which secret opens a lease says where its place is: the shared one in the store, our own in this process.
        handles = self._own if charges.degraded else self._handles
        if handles is None:
            return []
        held = []
        for i, lease_id in charges.leases():
            address = charges.address_of(i) if charges.degraded else self._address(charges, i)
            held.append(handles.seal_lease(HeldLease(charges.limit(i).name, address, lease_id)))
        return held

    async def report(
        self, receipt: str, *, cost: int | None = None, bytes: int | None = None, type_cost: int | None = None
    ) -> bool:
        """Settles what a request really took: the difference is refunded or charged, once, on any node.

        `cost` settles limits with `cost = "request"` and "graphql", `bytes` those with "bytes", `type_cost` those with
        "graphql:type"; a figure that is not given leaves its charges as they are. False when there was nothing to
        settle or it was settled before.

        ReceiptError for a receipt that is not of this service, altered or expired; RequestError for a figure that is
        none; StoreError when the store is away.
        """
        from shield.store import Settlement, SettlementEntry

        stated = {"cost": cost, "bytes": bytes, "type_cost": type_cost}
        actual = {name: _figure(name, value) for name, value in stated.items()}
        opened = await self._open_receipt(receipt)
        entries = [
            SettlementEntry(
                limit=self._limits[charged.limit],
                plan=charged.plan,
                address=charged.address,
                charged=charged.cost,
                actual=figure,
                window_start_us=charged.window_start_us,
            )
            for charged in opened.charges
            if charged.limit in self._limits and (figure := actual.get(charged.kind)) is not None
        ]
        if not entries:
            return False
        settlement = Settlement(
            opened.id, opened.expires_us, opened.charged_us, tuple(entries), compiled=self._compiled
        )
        return await self.store.settle(settlement)

    async def release(self, leases: Sequence[str]) -> int:
        """Gives concurrency places back. How many came free; expired and released ones are no-ops, unknown text too."""
        from shield.store import Lease

        await self._agree_on_secret()
        here: list[Lease] = []
        there: list[Lease] = []
        unread = 0
        for text in leases:
            if (held := _opened(self._own, text)) is not None:
                here.append(Lease(held.limit, held.address, held.lease_id))
            elif (held := _opened(self._handles, text)) is not None:
                there.append(Lease(held.limit, held.address, held.lease_id))
            else:
                unread += 1
        freed = await self._local.release(here) if here else 0
        if there:
            freed += await self.store.release(there)
        if unread and self._handles is None:
            raise StoreError("the store has not yet handed out the secret that leases are sealed with")
        return freed

    async def _open_receipt(self, receipt: str) -> Receipt:
        await self._agree_on_secret()
        if self._handles is None:
            raise StoreError("the store has not yet handed out the secret that receipts are sealed with")
        return self._handles.open_receipt(receipt)

    async def _agree_on_secret(self) -> None:
        if self._handles is None and self._remote is not None:
            with contextlib.suppress(StoreError):  # no receipts until the store answers
                self._handles = Handles(await self._remote.shared_secret())


def _opened(handles: Handles | None, text: str) -> HeldLease | None:
    """The lease, if these handles sealed it."""
    try:
        return handles.open_lease(text) if handles is not None else None
    except ReceiptError:
        return None


def _figure(field: str, value: int | None) -> int | None:
    if value is None:
        return None
    if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value <= MAX_COST:
        raise RequestError(field, "expected an integer from 0 to 2**53 - 1")
    return value
