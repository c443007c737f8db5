"""A Redis store under a policy, asked as the facade asks it."""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import AsyncIterator
from typing import Any

from shield import Decision, Policy, Request
from shield.compile import compile_policy
from shield.core import Charges, Registry
from shield.store import Lease, Settlement, SettlementEntry
from shield.store.redis import RedisStore

START_US = 1_763_900_000_000_000
POLICY = """
version = 1
name = "test"

[[limit]]
name = "bucket"
key = ["user"]
rate = "10/h"
burst = 8
cost = "request"
plans = { pro = { rate = "20/h", burst = 16 } }

[[limit]]
name = "window"
key = ["user"]
algorithm = "fixed-window"
rate = "100/day"
align = "day"
cost = "request"

[[limit]]
name = "sliding"
key = ["user"]
algorithm = "sliding-window"
rate = "100/h"

[[limit]]
name = "places"
key = ["user"]
algorithm = "concurrency"
limit = 100
ttl = "60s"
"""
_prefixes = itertools.count()


class World:
    """A store and a policy. `instant_us` is what time the scripts are told it is, None for the server's own."""

    def __init__(self, url: str, policy: str = POLICY, *, instant_us: int | None = START_US, **options: Any) -> None:
        options = {"prefix": f"w{next(_prefixes)}", "deadline": "5s", **options}
        query = "&".join(f"{name}={value}" for name, value in options.items())
        self.policy = Policy.parse(policy)
        self.compiled = compile_policy(self.policy, Registry())
        self.limits = {limit.name: limit for limit in self.policy.limits}
        self.store = RedisStore(f"{url}?{query}")
        self.instant_us = instant_us
        if instant_us is not None:
            self.store.instant = lambda: self.instant_us or 0

    def charges(self, **facts: Any) -> Charges:
        return self.compiled.charges(Request(**{"user": "u", **facts}))

    async def ask(self, **facts: Any) -> Decision:
        charges = self.charges(**facts)
        await self.store.apply(charges)
        return Decision(charges)

    async def used(self, name: str, **facts: Any) -> int:
        """What is used of a limit, looked at by a request that costs nothing."""
        decision = await self.ask(**facts, cost=0)
        status = next(status for status in decision.limits if status.name == name)
        return status.limit - status.remaining

    def settlement(self, charges: Charges, receipt: bytes, actual: int, expires_us: int = 2**52) -> Settlement:
        """What the facade would make of a report of the actual cost."""
        entries = [
            SettlementEntry(bucket.limit, self.store.address(bucket), cost, actual, start_us, plan)
            for i, plan, _, cost, start_us in charges.settlement()
            for bucket in (charges.bucket(i),)
        ]
        return Settlement(receipt, expires_us, charges.now_us, tuple(entries))

    def leases(self, charges: Charges) -> list[Lease]:
        return [
            Lease(bucket.limit.name, self.store.address(bucket), lease_id)
            for i, lease_id in charges.leases()
            for bucket in (charges.bucket(i),)
        ]


@contextlib.asynccontextmanager
async def world(url: str, policy: str = POLICY, **options: Any) -> AsyncIterator[World]:
    made = World(url, policy, **options)
    await made.store.open()
    try:
        yield made
    finally:
        await made.store.close()
