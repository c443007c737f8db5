"""Every law is held against every store: a fixture gives a `World`, a Shield whose time the test owns."""

from __future__ import annotations

import dataclasses
import itertools
import os
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from dataclasses import dataclass, field

import pytest

from shield import Decision, Policy, Request, Shield
from shield.store.redis import RedisStore
from shield.store.shared import remove_table
from tests.servers import Server, binaries, run_server
from tests.store.clusters import ClusterOf, run_cluster

# A bucket that has drained may be forgotten, and a clock that is set back afterwards finds it fresh; the oracle forgets
# nothing. In a table so large hardly any slot is looked at again in the few steps of a test.
LARGE_TABLE = "memory://?max_keys=5000000"
START_US = 1_763_900_000_000_000
_prefixes = itertools.count()


@dataclass
class World:
    """One store under one policy, at an instant that only the test moves."""

    shield: Shield = field(init=False)
    now_us: int = START_US

    def clock(self) -> int:
        return self.now_us * 1000

    def set_clock(self, now_us: int) -> None:
        self.now_us = now_us

    async def ask(self, **facts: object) -> Decision:
        return await self.shield.check(Request(**facts))  # type: ignore[arg-type]

    async def remaining(self, name: str, **facts: object) -> int:
        """What is left of a limit, looked at without touching it: for one request every limit costs nothing."""
        policy = self.shield.policy
        peeks = tuple(dataclasses.replace(limit, cost=0) for limit in policy.limits)
        await self.shield.replace_policy(dataclasses.replace(policy, limits=peeks, size=None))
        decision = await self.ask(**facts)
        await self.shield.replace_policy(policy)
        return next(status.remaining for status in decision.limits if status.name == name)


MakeWorld = Callable[..., Awaitable[World]]


@pytest.fixture(scope="session", params=["memory", "shared", "cluster", *sorted(binaries())])
def backend(request: pytest.FixtureRequest) -> Iterator[Server | ClusterOf | str]:
    """The stores of this process and of this host, by name, then a cluster and every Valkey and Redis there is."""
    if request.param in ("memory", "shared"):
        yield request.param
        return
    if request.param == "cluster":
        with run_cluster() as cluster:
            yield cluster
        return
    with run_server(request.param, binaries()[request.param]) as server:
        yield server


@pytest.fixture
async def make_world(backend: Server | ClusterOf | str) -> AsyncIterator[MakeWorld]:
    """Makes a World for a policy; options are those of the store's URL."""
    opened: list[Shield] = []
    tables: list[str] = []

    async def make(policy: str | Policy, **options: object) -> World:
        if isinstance(backend, Server | ClusterOf):
            # What is remembered for a second does not show the limits that would not have refused: tests of its own.
            options = {"prefix": f"laws{next(_prefixes)}", "deadline": "5s", "deny_cache": 0, **options}
            url = backend.url
        elif backend == "shared":
            options = {"max_keys": 100_000, "max_leases": 5000, "max_receipts": 1000, **options}
            url = f"shared://laws{os.getpid()}-{next(_prefixes)}"
            tables.append(url)
        else:
            url = "memory://" if "max_keys" in options else LARGE_TABLE
        if options:
            url += ("&" if "?" in url else "?") + "&".join(f"{name}={value}" for name, value in options.items())
        world = World()
        policy = Policy.parse(policy) if isinstance(policy, str) else policy
        world.shield = Shield(policy, url, clock=world.clock)
        if isinstance(world.shield.store, RedisStore):
            world.shield.store.instant = lambda: world.now_us
        opened.append(world.shield)
        await world.shield.open()
        return world

    yield make
    for shield in opened:
        await shield.close()
    for url in tables:
        remove_table(url)
