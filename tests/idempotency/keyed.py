"""A Shield whose policy knows idempotency keys, over any store, and a clock that stands until it is moved."""

from __future__ import annotations

import uuid
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from shield import Policy, Request, Shield
from shield.core import Decision
from shield.request import IdempotencyKey
from shield.store import open_store
from shield.store.redis import RedisStore
from shield.store.shared import remove_table
from tests.servers import Server
from tests.store.clusters import ClusterOf

START_NS = 1_763_900_000_000_000_000

LIMITS = """
version = 1
name = "orders"
[[limit]]
name = "writes"
key = ["tenant"]
rate = "1/h"
burst = 3
"""
GUARD = "[guard.idempotency]\n"


class Clock:
    """Stands until it is moved."""

    def __init__(self) -> None:
        self.now_ns = START_NS

    def __call__(self) -> int:
        return self.now_ns

    def move(self, seconds: float) -> None:
        self.now_ns += round(seconds * 1_000_000) * 1000


class Keyed:
    """One node."""

    def __init__(self, shield: Shield, clock: Clock) -> None:
        self.shield = shield
        self.clock = clock

    async def ask(self, key: str | None = "k-1", **facts: Any) -> Decision:
        return await self.shield.check(request(key, **facts))

    async def left(self, tenant: str = "acme") -> int:
        """What is left of the tenant's writes."""
        decision = await self.shield.check(Request(tenant=tenant))
        if decision.allowed:  # it took one itself
            return int(decision.limits[0].remaining) + 1
        return 0


def request(key: str | None = "k-1", fingerprint: str | None = "sha256:aa", **facts: Any) -> Request:
    """A write of a user of acme's."""
    stated = {"tenant": "acme", "user": "u-1", "method": "POST", "path": "/orders"} | facts
    return Request(**stated, idempotency=IdempotencyKey(key=key, fingerprint=fingerprint))


def policy(guard: str = "", limits: str = LIMITS) -> Policy:
    return Policy.parse(f"{limits}{GUARD}{guard}")


@asynccontextmanager
async def memory(rules: Policy, directory: Path) -> AsyncIterator[Keyed]:
    clock = Clock()
    async with Shield(rules, "memory://", clock=clock) as shield:
        yield Keyed(shield, clock)


@asynccontextmanager
async def shared(rules: Policy, directory: Path) -> AsyncIterator[Keyed]:
    clock = Clock()
    url = f"shared://keyed?max_keys=1000&max_leases=100&max_receipts=100&dir={directory}"
    async with Shield(rules, open_store(url, clock=clock), clock=clock) as shield:
        yield Keyed(shield, clock)
    remove_table(url)


@asynccontextmanager
async def redis(
    rules: Policy, directory: Path, server: Server | ClusterOf, prefix: str | None = None
) -> AsyncIterator[Keyed]:
    clock = Clock()
    store = RedisStore(server_url(server, prefix or f"t{uuid.uuid4().hex[:12]}"), clock=clock)
    store.instant = lambda: clock.now_ns // 1000
    async with Shield(rules, store, clock=clock) as shield:
        yield Keyed(shield, clock)


def server_url(server: Server | ClusterOf, prefix: str) -> str:
    """A deadline that a busy machine keeps."""
    return f"{server.url}{'&' if '?' in server.url else '?'}prefix={prefix}&deadline=5s"


LOCAL = {"memory": memory, "shared": shared}
REMOTE = ("valkey", "redis", "redis_62", "cluster")
"""Fixtures of servers."""
