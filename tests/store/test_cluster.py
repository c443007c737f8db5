"""A real cluster: keys where they belong, and right answers while slots move and primaries come and go."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
from collections.abc import AsyncIterator, Iterator

import pytest

from shield import Decision, Policy, Request, Shield
from shield.detect.exchange import Claim, Said
from shield.errors import StoreError
from shield.store import StoreURLError, open_store
from shield.store.greeting import ACL_RULES
from shield.store.naming import Naming, slot_of
from shield.store.redis import RedisStore
from tests.servers import Server
from tests.store.clusters import PRIMARIES, ClusterOf, run_cluster, wait_for
from tests.store.wire import until
from tests.store.world import World, world

POLICY = """
version = 1
name = "cluster"
[[limit]]
name = "user"
key = ["tenant", "user"]
rate = "10/h"
cost = "request"
[[limit]]
name = "tenant"
key = ["tenant"]
rate = "1000/h"
cost = "request"
[[limit]]
name = "address"
key = ["ip"]
rate = "1000/h"
cost = "request"
[[limit]]
name = "tries"
key = ["ip"]
rate = "1000/h"
count_denied = true
[[limit]]
name = "places"
key = ["session"]
algorithm = "concurrency"
limit = 3
ttl = "60s"
"""
_names = itertools.count()


@pytest.fixture(scope="module")
def cluster() -> Iterator[ClusterOf]:
    with run_cluster() as made:
        yield made


@pytest.fixture
async def here(cluster: ClusterOf) -> AsyncIterator[World]:
    async with world(cluster.url, POLICY, deny_cache=0) as made:
        yield made


def apart() -> tuple[str, str]:
    """A tenant and an address of this test alone."""
    number = next(_names)
    return f"tenant{number}", f"10.0.{number // 250}.{number % 250}"


def left(decision: Decision) -> dict[str, int]:
    return {status.name: status.remaining for status in decision.limits}


def home(here: World, cluster: ClusterOf, limit: str, **facts: str) -> tuple[int, Server]:
    """The slot of a request's bucket, and who holds it."""
    charges = here.charges(user="", **facts)
    bucket = next(one for i in range(len(charges)) if (one := charges.bucket(i)).limit.name == limit)
    slot = here.store.place(here.store.address(bucket))
    return slot, cluster.holder(slot)


# ---- where keys lie


async def test_a_tenants_keys_share_a_slot_and_others_spread(here: World, cluster: ClusterOf) -> None:
    prefix = here.store._forms.prefix
    for user in range(20):
        assert (await here.ask(tenant="t", user=f"u{user}", ip=f"192.0.2.{user}", session=f"s{user}")).allowed
    keys = {key for key in cluster.keys(f"{prefix}:*") if b"~" not in key}
    tags: dict[bytes, int] = {}
    for key in keys:
        tag = key[key.index(b"{") + 1 : key.index(b"}")]
        tags[tag] = tags.get(tag, 0) + 1
    assert max(tags.values()) == 21, "the tenant's own and its users'"
    assert len(tags) == 41, "each address and each session by itself"
    for key in keys:
        holder = cluster.holder(slot_of(key))
        assert holder.client().exists(key), "the slot is the one that servers reckon, too"


def test_names_depend_on_nothing_but_what_they_name() -> None:
    one, other = Naming("p", tagged=True), Naming("p")
    assert one.key(b"p:", bytes(range(16))) == b"p:{AAECAwQF}BgcICQoLDA0ODw"
    assert other.key(b"p:", bytes(range(16))) == b"p:AAECAwQFBgcICQoLDA0ODw"
    assert one.tag(b"acme") != one.tag(b"acmf") != Naming("q", tagged=True).tag(b"acmf")
    assert slot_of(b"x:{user1000}y"[:11]) == slot_of(b"{user1000"), "of the tag alone"
    assert slot_of(b"123456789") == 0x31C3, "the check value of CRC-16/XMODEM"


# ---- several slots in one request


async def test_what_several_slots_admit_is_taken_on_all(here: World) -> None:
    tenant, ip = apart()
    decision = await here.ask(tenant=tenant, ip=ip, session=tenant, cost=4)
    assert decision.allowed
    assert left(decision) == {"user": 6, "tenant": 996, "address": 996, "tries": 999, "places": 2}


async def test_a_refusal_of_the_tenant_gives_the_others_back(here: World) -> None:
    tenant, ip = apart()
    await here.ask(tenant=tenant, ip=ip, session=tenant, cost=8)
    refused = await here.ask(tenant=tenant, ip=ip, session=tenant, cost=5)
    assert (refused.allowed, refused.violated) == (False, ["user"])
    assert left(refused) == {"user": 2, "tenant": 992, "address": 992, "tries": 998, "places": 2}
    look = await here.ask(tenant=tenant, ip=ip, session=tenant, cost=0)
    assert left(look) == {"user": 2, "tenant": 992, "address": 992, "tries": 997, "places": 1}, (
        "the refusal was counted"
    )


async def test_a_refusal_elsewhere_takes_nothing_of_the_tenant_and_all_are_named(here: World) -> None:
    tenant, ip = apart()
    for _ in range(3):
        await here.ask(tenant=tenant, ip=ip, session=tenant)
    refused = await here.ask(tenant=tenant, ip=ip, session=tenant, cost=9)
    assert refused.violated == ["user", "places"]
    assert left(refused) == {"user": 7, "tenant": 997, "address": 997, "tries": 996, "places": 0}


async def test_a_part_that_is_out_of_memory_takes_nothing_anywhere(here: World, cluster: ClusterOf) -> None:
    tenant, ip = apart()
    _, holder = home(here, cluster, "tenant", tenant=tenant)
    while (where := home(here, cluster, "address", ip=ip))[1] is holder:
        _, ip = apart()
    client = holder.client()
    client.config_set("maxmemory", 1)
    try:
        decision = await here.ask(tenant=tenant, ip=ip)
        assert (decision.allowed, decision.reason) == (False, "store_full")
    finally:
        client.config_set("maxmemory", 0)
    assert left(await here.ask(tenant=tenant, ip=ip, cost=0))["address"] == 1000
    assert where[1] is not holder


async def test_a_receipt_is_settled_in_every_slot_and_once(here: World) -> None:
    tenant, ip = apart()
    charges = here.charges(tenant=tenant, ip=ip, cost=9)
    await here.store.apply(charges)
    settlement = here.settlement(charges, b"r" * 16, 2)
    assert await here.store.settle(settlement)
    assert not await here.store.settle(settlement)
    found = left(await here.ask(tenant=tenant, ip=ip, cost=0))
    assert (found["user"], found["tenant"], found["address"]) == (8, 998, 998)


async def test_places_are_released_wherever_they_lie(here: World) -> None:
    leases = []
    for session in range(6):
        charges = here.charges(session=f"released{session}")
        await here.store.apply(charges)
        leases += here.leases(charges)
    assert await here.store.release(leases) == 6
    assert await here.store.release(leases) == 0


async def test_the_last_place_is_released_while_its_slot_moves(here: World, cluster: ClusterOf) -> None:
    """A set that becomes empty is gone, and of a slot on its way a server touches no key that is gone."""
    charges = here.charges(session="moving")
    await here.store.apply(charges)
    (lease,) = here.leases(charges)
    slot = here.store.place(lease.address)
    source = cluster.holder(slot)
    target = next(server for server in cluster.servers if server is not source)
    cluster.begin_move(slot, source, target)
    assert await here.store.release([lease]) == 1
    assert await here.store.release([lease]) == 0
    cluster.end_move(slot, source, target)
    assert left(await here.ask(session="moving"))["places"] == 2


# ---- parts that fail


async def test_a_part_that_never_answers_gives_the_others_back(cluster: ClusterOf) -> None:
    """For each of the parts: it hangs, the request is unknown, and nothing stays charged."""
    async with world(cluster.url, POLICY, deny_cache=0, deadline="100ms") as here:
        for late, hanging in enumerate(("tenant", "address"), 1):
            tenant, ip = apart()
            while home(here, cluster, "tenant", tenant=tenant)[1] is home(here, cluster, "address", ip=ip)[1]:
                tenant, ip = apart()
            await here.ask(tenant=tenant, ip=ip)
            _, holder = home(here, cluster, hanging, tenant=tenant, ip=ip)
            holder.pause()
            try:
                with pytest.raises(StoreError):
                    await here.ask(tenant=tenant, ip=ip, cost=5)
            finally:
                holder.resume()
            await until(lambda late=late: here.store.stats()["late_given_back"] == late)  # type: ignore[misc]
            await until(lambda: here.store.ready and not here.store._servers._undoing)  # type: ignore[union-attr]
            found = left(await here.ask(tenant=tenant, ip=ip, cost=0))
            assert (found["user"], found["address"]) == (9, 999), hanging


async def test_a_check_that_is_cancelled_is_given_back(here: World, cluster: ClusterOf) -> None:
    tenant, ip = apart()
    await here.ask(tenant=tenant, ip=ip)
    for turns in range(12):
        task = asyncio.create_task(here.ask(tenant=tenant, ip=ip))
        for _ in range(turns):
            await asyncio.sleep(0)
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task
            turns = -1
        if turns < 0:
            break
    await until(lambda: not here.store._servers._undoing and here.store.stats()["in_flight"] == 0)  # type: ignore[union-attr]
    assert left(await here.ask(tenant=tenant, ip=ip, cost=0))["user"] >= 8


async def test_one_server_that_is_away_degrades_its_slots_alone() -> None:
    with run_cluster() as cluster:
        policy = Policy.parse(POLICY)
        async with Shield(policy, f"{cluster.url}?prefix=alone&deadline=200ms") as shield:
            store = shield.store
            assert isinstance(store, RedisStore)
            tenants = [f"t{i}" for i in range(30)]
            holders = {}
            for tenant in tenants:
                first = await shield.check(Request(tenant=tenant, user="u"))
                assert not first.degraded
                holders[tenant] = cluster.holder(next(iter(store.places(first.charges))))
            away = cluster.servers[2]
            away.kill()
            for _ in range(3):
                for tenant in tenants:
                    decision = await shield.check(Request(tenant=tenant, user="u"))
                    assert decision.degraded == (holders[tenant] is away), tenant
            assert not store.ready


# ---- slots that move


async def test_a_slot_that_has_moved_is_found(cluster: ClusterOf) -> None:
    async with world(cluster.url, POLICY, deny_cache=0) as here:
        tenant, _ = apart()
        await here.ask(tenant=tenant, cost=3)
        slot, source = home(here, cluster, "tenant", tenant=tenant)
        target = next(server for server in cluster.servers if server is not source)
        cluster.begin_move(slot, source, target)
        cluster.end_move(slot, source, target)
        assert left(await here.ask(tenant=tenant, cost=0))["user"] == 7
        assert here.store.stats()["redirects"] >= 1
        await until(lambda: here.store.stats()["map_reads"] >= 2)
        before = here.store.stats()["redirects"]
        assert left(await here.ask(tenant=tenant, cost=0))["user"] == 7
        assert here.store.stats()["redirects"] == before, "and remembered"


async def test_answers_are_right_at_every_point_of_a_move(here: World, cluster: ClusterOf) -> None:
    """A tenant whose keys lie on two servers at once: no server can take them in one step, and all of it holds."""
    tenant, ip = apart()
    users = [f"u{i}" for i in range(12)]
    expected = dict.fromkeys(users, 10)
    spent = 0

    async def ask(user: str, cost: int) -> None:
        nonlocal spent
        decision = await here.ask(tenant=tenant, user=user, cost=cost, ip=ip)
        allowed = expected[user] >= cost
        assert decision.allowed == allowed
        if allowed:
            expected[user] -= cost
            spent += cost
        found = left(decision)
        assert (found["user"], found["tenant"], found["address"]) == (expected[user], 1000 - spent, 1000 - spent)

    for user in users[:8]:
        await ask(user, 3)
    slot, source = home(here, cluster, "tenant", tenant=tenant)
    target = next(server for server in cluster.servers if server is not source)
    cluster.begin_move(slot, source, target)
    for round in range(12):
        for user in users:
            await ask(user, 3 if round % 3 else 0)
            await ask(user, 11)
        charges = here.charges(tenant=tenant, user=users[0], cost=1)
        await here.store.apply(charges)
        if charges.admitted:
            assert await here.store.settle(here.settlement(charges, b"%016d" % round, 0))
            assert not await here.store.settle(here.settlement(charges, b"%016d" % round, 0))
        cluster.move_keys(slot, source, target, at_most=1)
    assert here.store.stats()["split_steps"] > 0, "some of it was asked key by key"
    cluster.end_move(slot, source, target)
    for user in users:
        await ask(user, 1)


async def test_no_interval_is_over_while_slots_move_under_load(cluster: ClusterOf) -> None:
    burst, per_second, tenants = 50, 200, [f"moving{i}" for i in range(4)]
    policy = (
        'version = 1\nname = "load"\n'
        f'[[limit]]\nname = "tenant"\nkey = ["tenant"]\nrate = "{per_second}/s"\nburst = {burst}\n'
        '[[limit]]\nname = "user"\nkey = ["tenant", "user"]\nrate = "1000000/s"\n'
        '[[limit]]\nname = "address"\nkey = ["ip"]\nrate = "1000000/s"\n'
    )
    async with world(cluster.url, policy, instant_us=None, deny_cache=0) as here:
        admitted: dict[str, list[tuple[int, int]]] = {tenant: [] for tenant in tenants}
        stop = False
        asked = 0

        async def client(number: int) -> None:
            nonlocal asked
            while not stop:
                tenant = tenants[number % len(tenants)]
                charges = here.charges(tenant=tenant, user=f"u{asked % 7}", ip=f"192.0.2.{asked % 200}")
                asked += 1
                await here.store.apply(charges)  # a fault fails the test
                if charges.admitted:
                    admitted[tenant].append((charges.now_us, 1))

        began_us = (await here.ask(tenant="nobody", cost=0)).charges.now_us
        clients = [asyncio.create_task(client(number)) for number in range(24)]
        for tenant in tenants:
            for _ in range(2):
                slot, source = home(here, cluster, "tenant", tenant=tenant)
                target = next(server for server in cluster.servers if server is not source)
                cluster.begin_move(slot, source, target)
                while await asyncio.to_thread(cluster.move_keys, slot, source, target, at_most=1):
                    pass
                await asyncio.to_thread(cluster.end_move, slot, source, target)
        stop = True
        await asyncio.gather(*clients)
        assert here.store.stats()["redirects"] > 0
        for tenant in tenants:
            assert len(admitted[tenant]) >= burst
            # A decision bears the instant of its last part, and its first may have been charged milliseconds before:
            # intervals are those that begin with the first of all.
            for number, (now_us, _) in enumerate(sorted(admitted[tenant]), 1):
                assert number <= burst + per_second * (now_us - began_us) / 1_000_000, tenant


async def test_a_promoted_replica_is_found_and_every_request_gets_a_decision() -> None:
    with run_cluster(replicas=True) as cluster:
        async with Shield(Policy.parse(POLICY), f"{cluster.url}?prefix=pro&deadline=100ms") as shield:
            tenants = [f"t{i}" for i in range(20)]
            for tenant in tenants:
                assert not (await shield.check(Request(tenant=tenant, user="u", cost=4))).degraded
            lost, heir = cluster.servers[0], cluster.servers[PRIMARIES]
            lost.client().wait(1, 5000)
            lost.kill()
            wait_for(lambda: heir.client().info("replication")["role"] == "master")
            async with asyncio.timeout(30):
                while True:  # every request gets a decision
                    found = [await shield.check(Request(tenant=tenant, user="other")) for tenant in tenants]
                    if shield.ready and not any(decision.degraded for decision in found):
                        break
            for tenant in tenants:
                look = await shield.check(Request(tenant=tenant, user="u", cost=0))
                assert (look.degraded, left(look)["user"]) == (False, 6), "what was replicated was not forgotten"


async def test_the_accounts_rules_are_enough(cluster: ClusterOf) -> None:
    for server in cluster.servers:
        server.client().execute_command(
            "ACL", "SETUSER", "shield", "reset", "on", ">pw", *ACL_RULES.format(prefix="rules").split()
        )
    url = cluster.url.replace("cluster://", "cluster://shield:pw@")
    async with world(url, POLICY, prefix="rules", deny_cache=0) as here:
        tenant, ip = apart()
        await here.ask(tenant=tenant, ip=ip, session=tenant, cost=3)
        slot, source = home(here, cluster, "tenant", tenant=tenant)
        target = next(server for server in cluster.servers if server is not source)
        cluster.begin_move(slot, source, target)
        assert not (await here.ask(tenant=tenant, user="new", ip=ip, session=tenant, cost=11)).allowed
        cluster.end_move(slot, source, target)
        assert left(await here.ask(tenant=tenant, ip=ip, cost=0))["user"] == 7
        claims = [Claim(bytes([i] * 16), b"a" * 16, 60_000_000) for i in range(9)]
        assert (await here.store.exchange.swap(Said(b"n", 1, 0, b"x"), claims)).won == [True] * 9
        assert len((await here.store.exchange.swap(None, [])).heard) == 1, "detectors meet in a cluster, too"
        assert here.store.warnings == ()


# ---- mistakes


async def test_a_server_that_is_no_cluster_says_so(any_server: Server) -> None:
    store = open_store(any_server.url.replace("redis://", "redis+cluster://").removesuffix("/0"))
    with pytest.raises(StoreError, match="cluster support disabled"):
        await store.open()


async def test_a_cluster_that_is_away_is_no_error_but_degraded() -> None:
    async with Shield(Policy.parse(POLICY), "redis+cluster://127.0.0.1:1?deadline=20ms") as shield:
        decision = await shield.check(Request(tenant="t", user="u"))
        assert decision.degraded
        assert not shield.ready


async def test_receipts_go_to_any_node(cluster: ClusterOf) -> None:
    policy = Policy.parse(POLICY)
    url = f"{cluster.url}?prefix=nodes&deadline=5s"
    async with Shield(policy, url) as one, Shield(policy, url) as other:
        decision = await one.check(Request(tenant="t", user="u", ip="192.0.2.1", cost=5))
        assert decision.receipt is not None
        assert await other.report(decision.receipt, cost=1)
        assert not await one.report(decision.receipt, cost=1)
        assert left(await other.check(Request(tenant="t", user="u", cost=0)))["user"] == 9


@pytest.mark.parametrize(
    "url",
    [
        "redis+cluster://:s3cret@h/1",
        "redis+cluster://:s3cret@h:port",
        "redis+cluster://:s3cret@h,,i",
        "redis+cluster://:s3cret@h?db=1",
        "redis+cluster://:s3cret@h?ssl_ca_certs=x",
        "redis+cluster://:s3cret@h?tls=maybe",
        "redis+cluster://:s3cret@" + ",".join(["h"] * 17),
    ],
)
def test_wrong_urls_are_named_without_a_password(url: str) -> None:
    with pytest.raises(StoreURLError) as caught:
        open_store(url)
    assert "s3" not in str(caught.value)
