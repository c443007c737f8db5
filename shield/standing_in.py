"""While a remote store is away: this node alone, with its share of every limit, and what it owes the store then."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from shield.policy.model import CONCURRENCY
from shield.sequel import Sequel

if TYPE_CHECKING:
    from shield.core import Charges
    from shield.policy import Policy
    from shield.store.standin import StandIn


class StandingIn(Sequel):
    """The part of `shield.Shield` that stands in for a store which is away."""

    _paying: asyncio.Task[None] | None
    """Tells the store what it does not know of."""
    _in_force: Policy

    def _alone(self, standin: StandIn, charges: Charges) -> Charges:
        """The step of this node's share, while the store is away."""
        assert self._remote is not None
        nodes = getattr(self._remote, "nodes", 1)
        return standin.decide(charges.request, self._in_force, nodes, self._remote.places(charges), self._debt_key)

    async def _joins_back(self, standin: StandIn, charges: Charges) -> bool:
        """Whether the store knows of all that was admitted without it on a request's buckets, at the latest now. Until
        then this node decides for them alone. The debts of other buckets are paid beside it.
        """
        if self._paying is None and self.store.ready:
            self._paying = asyncio.get_running_loop().create_task(self._pay_all(standin))
        keys = [key for i in range(len(charges)) if (key := self._debt_key(charges, i)) is not None]
        return await standin.pay(self.store, self._compiled, keys)

    async def _pay_all(self, standin: StandIn) -> None:
        assert self._remote is not None
        remote = self._remote
        try:
            await standin.pay_all(self.store, self._compiled, lambda key: remote.place(key[1]))
        finally:
            self._paying = None

    def _debt_key(self, charges: Charges, i: int) -> tuple[str, bytes] | None:
        """By what the store is told of a charge that it did not decide; None where it is not."""
        limit = charges.limit(i)
        if limit.algorithm == CONCURRENCY or limit.when_store_fails != "local":
            return None
        return limit.identity, self._address(charges, i)
