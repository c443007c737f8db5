"""The Redis store: one decision over all limits, the same on every node."""

from __future__ import annotations

import asyncio
import time
from typing import Any

import pytest

from shield import Decision, Request
from shield.errors import ReceiptError, StoreProtocolError
from shield.store import Lease, RemoteStore, Settlement, Store, open_store
from shield.store.redis import RedisStore
from tests.servers import Server
from tests.store.wire import proxy_to, until
from tests.store.world import POLICY, START_US, World, world

DAY_US = 86_400_000_000


def test_it_is_a_store() -> None:
    store = open_store("redis://localhost/3?prefix=x")
    assert isinstance(store, RedisStore)
    assert isinstance(store, Store)
    assert isinstance(store, RemoteStore)
    assert (store.name, store.local, store.ready, store.where) == ("redis", False, False, "localhost:6379 db 3")


# ---- deciding


async def test_a_request_is_decided_by_all_its_limits(server: Server) -> None:
    async with world(server.url) as here:
        assert here.store.ready
        first = await here.ask(cost=3)
        assert first.allowed
        assert [(status.name, status.remaining) for status in first.limits] == [
            ("bucket", 5), ("window", 97), ("sliding", 99), ("places", 99)]  # fmt: skip
        second = await here.ask(cost=6)
        assert (second.allowed, second.violated, second.retry_after) == (False, ["bucket"], 360.0)
        assert [status.remaining for status in second.limits] == [5, 97, 99, 99]
        assert (await here.ask(cost=6, plan="pro")).allowed
        assert (await here.ask(cost=9)).retry_after is None


async def test_the_servers_clock_decides(server: Server) -> None:
    async with world(server.url, instant_us=None) as here:
        charges = here.charges()
        await here.store.apply(charges)
        assert abs(charges.now_us - time.time_ns() // 1000) < 60_000_000


async def test_nodes_with_different_clocks_count_as_one(server: Server) -> None:
    """P7: with one node's clock a minute ahead ten are admitted, not twenty: nobody asks the nodes what time it is."""
    policy = """
        version = 1
        name = "skew"
        [[limit]]
        name = "sliding"
        key = ["user"]
        algorithm = "sliding-window"
        rate = "10/day"
    """
    options: dict[str, Any] = {"prefix": "skew", "instant_us": None}
    async with world(server.url, policy, **options) as here, world(server.url, policy, **options) as ahead:
        ahead.store._clock = lambda: time.time_ns() + 61_000_000_000
        decisions = [await node.ask() for _ in range(10) for node in (here, ahead)]
        assert sum(map(bool, decisions)) == 10
        assert (decisions[-1].retry_after or 0) <= 2 * 86_400


async def test_a_node_with_a_wrong_clock_finds_the_right_day(server: Server) -> None:
    """The client only guesses the calendar day; when it guesses wrong it is told, asks again, and charges once."""
    for wrong_us in (-40 * DAY_US, -DAY_US, DAY_US, 3 * DAY_US, 400 * DAY_US):
        async with world(server.url) as here:
            here.store._clock = lambda wrong_us=wrong_us: (START_US + wrong_us) * 1000
            decision = await here.ask(cost=2)
            assert [status.remaining for status in decision.limits] == [6, 98, 99, 99]
            charges = here.charges(cost=2)
            await here.store.apply(charges)
            assert await here.store.settle(here.settlement(charges, b"r", 7))
            assert await here.used("window") == 9


async def test_no_limits_need_no_server() -> None:
    here = World("unix:///nowhere/at/all", 'version = 1\nname = "empty"\n')
    assert (await here.ask()).allowed


async def test_keys_are_hashed_and_short(server: Server) -> None:
    """A key of a megabyte costs what any other does, and cannot be read back."""
    async with world(server.url, prefix="keys") as here:
        assert (await here.ask(user="secret" * 200_000)).allowed
        with server.client() as client:
            names = client.keys("keys:*")
        assert len(names) == 5, "a cell, a set of places, the version, the nodes, the fence of nonces"
        assert all(len(name) < 40 and b"secret" not in name for name in names)


async def test_what_a_guard_refused_is_only_penalised(server: Server) -> None:
    policy = """
        version = 1
        name = "guarded"
        [guard.size]
        max_body_bytes = 10
        [[limit]]
        name = "free"
        key = ["user"]
        rate = "10/h"
        [[limit]]
        name = "counted"
        key = ["user"]
        rate = "10/h"
        count_denied = true
    """
    async with world(server.url, policy) as here:
        refused = await here.ask(bytes=11)
        assert (refused.allowed, refused.status) == (False, 413)
        allowed = await here.ask(bytes=1)
        assert {status.name: status.remaining for status in allowed.limits} == {"free": 9, "counted": 8}


async def test_stores_of_two_prefixes_share_nothing(any_server: Server) -> None:
    async with world(any_server.url, prefix="one") as one, world(any_server.url, prefix="two") as two:
        await one.ask(cost=8)
        assert await two.used("bucket") == 0
        bucket = one.charges().bucket(0)
        assert one.store.address(bucket) != two.store.address(bucket)
        assert len(one.store.address(bucket)) == 16


# ---- after the decision


async def test_settling_once_on_any_node(server: Server) -> None:
    async with world(server.url, prefix="nodes") as here, world(server.url, prefix="nodes") as there:
        charges = here.charges(cost=6)
        await here.store.apply(charges)
        settlement = here.settlement(charges, b"receipt", 2)
        assert await there.store.settle(settlement)
        assert not await here.store.settle(settlement)
        assert await here.used("bucket") == await here.used("window") == 2
        expired = here.settlement(charges, b"expired", 2, expires_us=START_US)
        with pytest.raises(ReceiptError, match="expired"):
            await here.store.settle(expired)
        assert await here.store.settle(Settlement(b"nothing", 2**52, START_US, ()))


async def test_places_are_released_on_any_node(server: Server) -> None:
    async with world(server.url, prefix="leases") as here, world(server.url, prefix="leases") as there:
        charges = [here.charges(cost=0) for _ in range(5)]
        for each in charges:
            await here.store.apply(each)
        leases = [lease for each in charges for lease in here.leases(each)]
        assert await here.used("places") == 5 + 1
        assert await there.store.release([*leases[:3], Lease("places", b"\0" * 16, "ffff"), leases[0]]) == 3
        assert await there.store.release(leases * 500) == 2
        assert await there.store.release([]) == 0


async def test_the_secret_is_agreed_on(server: Server) -> None:
    async with world(server.url, prefix="secret") as here, world(server.url, prefix="secret") as there:
        secret, other = await asyncio.gather(here.store.shared_secret(), there.store.shared_secret())
        assert secret == other == await here.store.shared_secret()
        assert len(secret) == 32
        with server.client() as client:
            client.set("secret:~secret", "short")
        with pytest.raises(StoreProtocolError, match="secret:~secret"):
            await here.store.shared_secret()


# ---- never over


@pytest.mark.parametrize("nodes", [1, 3])
async def test_many_callers_on_many_nodes_never_get_over(server: Server, nodes: int) -> None:
    """Eight units, two hundred callers at once: exactly eight are admitted."""
    worlds = [World(server.url, prefix=f"over{nodes}") for _ in range(nodes)]
    for each in worlds:
        await each.store.open()
    try:
        decisions = await asyncio.gather(*[worlds[i % nodes].ask() for i in range(200)])
        assert sum(map(bool, decisions)) == 8
        assert await worlds[0].used("window") == 8
    finally:
        for each in worlds:
            await each.store.close()


async def test_a_facade_over_redis_degrades_and_recovers(any_server: Server) -> None:
    from shield import Policy, Shield

    async with proxy_to(any_server) as proxy:
        store = f"{proxy.url}?prefix=facade&deadline=50ms"
        async with Shield(Policy.parse(POLICY), store) as shield:
            decision = await shield.check(Request(user="u", cost=2))
            assert isinstance(decision, Decision)
            assert not decision.degraded
            assert decision.receipt is not None
            assert await shield.report(decision.receipt, cost=1)
            assert not await shield.report(decision.receipt, cost=1)
            assert await shield.release(decision.leases) == 1
            proxy.requests.clear()
            assert (await shield.check(Request(user="u"))).degraded
            proxy.requests.set()
            await until(lambda: shield.ready)
            assert not (await shield.check(Request(user="u"))).degraded
