"""Idempotency keys in a cluster: in their tenant's slot and in the command of its limits, whatever lies elsewhere."""

from __future__ import annotations

import asyncio
import random
from pathlib import Path

import pytest

from shield import Decision, Shield
from shield.errors import StoreError
from shield.request import Nonce
from shield.store.naming import slot_of
from tests.idempotency.keyed import LIMITS, Clock, Keyed, memory, policy, redis, request
from tests.idempotency.test_idempotency_file import workers
from tests.servers import Server
from tests.store.clusters import PRIMARIES, ClusterOf, run_cluster, wait_for
from tests.store.wire import until

SPREAD = """
version = 1
name = "spread"
[[limit]]
name = "tenant"
key = ["tenant"]
rate = "60/h"
burst = 12
[[limit]]
name = "tries"
key = ["tenant", "user"]
rate = "60/h"
burst = 30
count_denied = true
[[limit]]
name = "user"
key = ["user"]
rate = "60/h"
burst = 9
[[limit]]
name = "address"
key = ["ip"]
algorithm = "sliding-window"
rate = "8/h"
[[limit]]
name = "tries-of-an-address"
key = ["ip"]
rate = "60/h"
burst = 40
count_denied = true
[[limit]]
name = "tries-of-a-session"
key = ["session"]
rate = "60/h"
burst = 20
count_denied = true
[[limit]]
name = "places"
key = ["session"]
algorithm = "concurrency"
limit = 3
ttl = "10m"
"""
GUARDS = 'lease = "30s"\nretention = "1h"\nmax_keys_per_tenant = 4\nmethods = ["POST"]\nstrict = { path = "/pay" }\n'
REPLAY = '[guard.replay]\nwindow = "5m"\nmax_per_tenant = 80\n'
ROOMY = LIMITS.replace("burst = 3", "burst = 100000") + '[[limit]]\nname = "address"\nkey = ["ip"]\nrate = "1000/h"\n'


def told(decision: Decision) -> dict[str, object]:
    """All that a decision says but who owns what."""
    found: dict[str, object] = decision.as_dict() | {"receipt": None, "leases": len(decision.leases), "headers": None}
    del found["request_id"]
    found["idempotency"] = found["idempotency"] is not None
    return found


class Histories:
    """The same requests to two nodes, and the same ends."""

    def __init__(self, one: Keyed, other: Keyed, source: random.Random) -> None:
        self.nodes, self.source = (one, other), source
        self.owners: list[tuple[Decision, Decision]] = []

    async def step(self, number: int, *, nonces: bool) -> None:
        source = self.source
        if self.owners and source.random() < 0.4:
            pair = source.choice(self.owners)
            action = source.choice(["complete", "complete", "abandon", "extend", "release"])
            found = [await end(node, mine, action, number) for node, mine in zip(self.nodes, pair, strict=True)]
            assert found[0] == found[1], (number, action)
            return
        facts = {
            "tenant": source.choice(["a", "a", "b", None]),
            "user": source.choice(["u", "u", "v"]),
            "ip": source.choice(["192.0.2.1", "192.0.2.2", None]),
            "session": source.choice(["s", "t", None]),
            "path": source.choice(["/orders", "/pay"]),
        }
        if nonces and source.random() < 0.6:
            facts["nonce"] = Nonce(f"n{source.randrange(60)}", self.nodes[0].clock.now_ns / 1e9)
        key, fingerprint = source.choice(["k", "l", "m", "n", "o", None]), source.choice(["x", "x", "x", "y"])
        one, other = [await node.ask(key, fingerprint=fingerprint, **facts) for node in self.nodes]
        assert told(one) == told(other), (number, facts, key)
        if one.allowed:
            self.owners.append((one, other))
        for node in self.nodes:
            node.clock.move(number % 7)


@pytest.mark.parametrize("seed", range(12))
async def test_a_cluster_answers_as_memory_does(cluster: ClusterOf, tmp_path: Path, seed: int) -> None:
    """Limits, nonces and keys of many slots at once: no answer shows that they are many."""
    rules = policy(GUARDS + REPLAY, SPREAD)
    async with memory(rules, tmp_path) as one, redis(rules, tmp_path, cluster) as other:
        for node in (one, other):
            for tenant in ("a", "b", None):
                stated = Nonce("first", node.clock.now_ns / 1e9)
                assert (await node.ask(None, tenant=tenant, nonce=stated)).reason == "stale"
            node.clock.move(120)
        histories = Histories(one, other, random.Random(seed))
        for number in range(120):
            await histories.step(number, nonces=True)


@pytest.mark.parametrize("seed", range(8))
async def test_and_at_every_point_of_a_move(cluster: ClusterOf, tmp_path: Path, seed: int) -> None:
    """A tenant's records, the set of them and its limits on two servers, key by key."""
    source = random.Random(seed)
    rules = policy(GUARDS.replace("1h", "90s"), SPREAD)
    async with memory(rules, tmp_path) as one, redis(rules, tmp_path, cluster) as other:
        histories = Histories(one, other, source)
        store = other.shield.store
        look = await other.ask(None, tenant="a", user=None)
        await one.ask(None, tenant="a", user=None)
        slot = store.place(store.address(look.charges.bucket(0)))
        for number in range(120):
            if number % 40 == 5:
                source_server = cluster.holder(slot)
                target = next(server for server in cluster.servers if server is not source_server)
                cluster.begin_move(slot, source_server, target)
            if 5 < number % 40 < 30 and source.random() < 0.5:
                cluster.move_keys(slot, source_server, target, at_most=1)
            if number % 40 == 30:
                cluster.end_move(slot, source_server, target)
            await histories.step(number, nonces=False)
        assert store.stats()["split_steps"] > 0


async def end(node: Keyed, decision: Decision, action: str, step: int) -> object:
    shield = node.shield
    if action == "release" or decision.idempotency is None:
        return await shield.release(decision.leases)
    try:
        if action == "complete":
            return await shield.complete(decision, 201, (), b"%d" % step)
        return await (shield.abandon(decision) if action == "abandon" else shield.extend(decision))
    except ValueError as error:
        return str(error)


async def test_every_key_runs_once_while_its_slot_moves_under_load(cluster: ClusterOf) -> None:
    async with Shield(policy("", ROOMY), f"{cluster.url}?prefix=load&deadline=5s&deny_cache=0") as shield:
        store = shield.store
        look = await shield.check(request(None))
        slot = store.place(store.address(look.charges.bucket(0)))
        ran: dict[str, int] = {}
        reasons: set[str] = set()
        stop = False

        async def client(number: int) -> None:
            turn = 0
            while not stop:
                key = f"k{turn // 3}"
                decision = await shield.check(request(key, ip=f"192.0.2.{number}"))
                reasons.add(decision.reason)
                if decision.allowed:
                    ran[key] = ran.get(key, 0) + 1
                    assert await shield.complete(decision, 200, (), key.encode())
                elif decision.response is not None:
                    assert decision.response.body == key.encode()
                turn += 1

        clients = [asyncio.create_task(client(number)) for number in range(12)]
        for _ in range(3):
            source = cluster.holder(slot)
            target = next(server for server in cluster.servers if server is not source)
            cluster.begin_move(slot, source, target)
            for _ in range(40):
                await asyncio.to_thread(cluster.move_keys, slot, source, target, at_most=3)
            await asyncio.to_thread(cluster.end_move, slot, source, target)
        stop = True
        await asyncio.gather(*clients)
        assert reasons <= {"ok", "idempotency_in_flight", "idempotency_replay"}
        assert set(ran.values()) == {1}
        assert len(ran) > 5
        stats = store.stats()
        assert stats["split_steps"] > 0
        assert stats["redirects"] > 0


async def test_keys_lie_with_their_tenants_limits_and_nonces(cluster: ClusterOf, tmp_path: Path) -> None:
    async with redis(policy(GUARDS + REPLAY, SPREAD), tmp_path, cluster) as node:
        for tenant in ("acme", None):
            await node.ask(None, tenant=tenant, nonce=Nonce("n", node.clock.now_ns / 1e9))
        node.clock.move(120)
        prefix = node.shield.store._forms.prefix
        before = evalshas(cluster)
        assert (await node.ask("k", user=None, nonce=Nonce("n", node.clock.now_ns / 1e9))).allowed
        assert evalshas(cluster) - before == 1, "a key of a tenant adds no command"
        owner = await node.ask("l", user="u")
        assert owner.allowed
        slots = {slot_of(key) for key in cluster.keys(f"{prefix}:*") if b"~key" in key or b"~nonce:" in key}
        assert slots == {node.shield.store.place(node.shield.store.address(owner.charges.bucket(0)))}
        assert (await node.ask("k", tenant=None, user="alone")).allowed
        record = next(key for key in cluster.keys(f"{prefix}:~key:*") if slot_of(key) not in slots)
        alone = await node.ask(None, tenant=None, user="alone")
        assert alone.limits[0].name == "user"
        assert slot_of(record) == node.shield.store.place(node.shield.store.address(alone.charges.bucket(0)))


def evalshas(cluster: ClusterOf) -> int:
    found = [server.client().info("commandstats").get("cmdstat_evalsha", {"calls": 0}) for server in cluster.servers]
    return sum(one["calls"] for one in found)


def test_of_a_thousand_requests_over_four_processes_one_runs(cluster: ClusterOf) -> None:
    found = workers(f"{cluster.url}?prefix=race&deadline=5s", "race_awaited", 4)
    outcomes = [word for line in found for word in line.split()]
    assert (len(outcomes), outcomes.count("ok")) == (1000, 1)
    assert set(outcomes) <= {"ok", "idempotency_in_flight", "idempotency_replay"}


async def apart(cluster: ClusterOf, node: Keyed) -> tuple[str, Server, str, Server]:
    """A tenant and an address on two servers, and which."""
    store = node.shield.store
    for number in range(1000):
        tenant, ip = f"t{number}", f"192.0.2.{number % 250}"
        look = await node.shield.check(request(None, method="GET", tenant=tenant, ip=ip))
        homes = [cluster.holder(store.place(store.address(look.charges.bucket(i)))) for i in range(2)]
        if homes[0] is not homes[1]:
            return tenant, homes[0], ip, homes[1]
    raise AssertionError("all on one server")


async def test_a_commit_whose_answer_is_late_gives_everything_back(cluster: ClusterOf) -> None:
    """The tenant's server hangs when the address was charged, and takes the key after all."""
    async with Shield(policy("", ROOMY), f"{cluster.url}?prefix=late&deadline=150ms&deny_cache=0") as shield:
        node = Keyed(shield, Clock())
        tenant, home, ip, _ = await apart(cluster, node)
        before = await node.shield.check(request(None, tenant=tenant, ip=ip))
        home.pause()
        try:
            late = await node.ask(tenant=tenant, ip=ip)
            assert (late.status, late.reason, late.retry_after) == (503, "store_unavailable", 1.0)
        finally:
            home.resume()
        await until(lambda: shield.store.stats()["late_given_back"] == 1)
        await until(lambda: shield.ready and not shield.store._servers._undoing)
        again = await node.ask(tenant=tenant, ip=ip, fingerprint="sha256:another")
        assert again.allowed, "the key is as if it had never been used"
        assert [one.remaining for one in again.limits] == [one.remaining - 1 for one in before.limits]


async def test_a_record_whose_new_server_hangs_in_the_middle_of_a_move_is_given_back(cluster: ClusterOf) -> None:
    """Its place was reserved on the old server; that it was taken turns out late."""
    async with Shield(policy("", ROOMY), f"{cluster.url}?prefix=middle&deadline=150ms&deny_cache=0") as shield:
        store = shield.store
        look = await shield.check(request("k-0"))
        slot = store.place(store.address(look.charges.bucket(0)))
        source = cluster.holder(slot)
        target = next(server for server in cluster.servers if server is not source)
        cluster.begin_move(slot, source, target)
        (holder,) = source.client().keys("middle:~keys:*")
        target.pause()
        try:
            assert (await shield.check(request("k-1"))).reason == "store_unavailable"
            assert sorted(len(member) for member in source.client().zrange(holder, 0, -1)) == [16, 32]
        finally:
            target.resume()
        await until(lambda: store.stats()["late_given_back"] == 1)
        await until(lambda: shield.ready and not store._servers._undoing)
        assert [len(member) for member in source.client().zrange(holder, 0, -1)] == [16, 16]
        again = await shield.check(request("k-1", fingerprint="sha256:another"))
        assert (again.reason, again.limits[0].remaining) == ("ok", look.limits[0].remaining - 1)
        cluster.end_move(slot, source, target)
        assert await shield.complete(again, 200, (), b"x")
        assert (await shield.check(request("k-1", fingerprint="sha256:another"))).response.body == b"x"


async def test_a_key_that_moves_with_its_slot(cluster: ClusterOf, tmp_path: Path) -> None:
    """MOVED: whoever is told how it ended finds the slot again, and so does whoever repeats the request."""
    async with redis(policy("", ROOMY), tmp_path, cluster) as node:
        owner, other = await node.ask("k", ip="192.0.2.1"), await node.ask("l", ip="192.0.2.1")
        move_home(cluster, node, owner)
        assert (await node.ask("k", ip="192.0.2.1")).reason == "idempotency_in_flight"
        assert await node.shield.complete(owner, 201, (), b"moved")
        assert node.shield.store.stats()["redirects"] > 0
        move_home(cluster, node, owner)
        assert await node.shield.complete(other, 201)
        assert (await node.ask("k", ip="192.0.2.1")).response.body == b"moved"


def move_home(cluster: ClusterOf, node: Keyed, owner: Decision) -> None:
    """The whole slot of a decision's first limit, to another server."""
    slot = node.shield.store.place(node.shield.store.address(owner.charges.bucket(0)))
    source = cluster.holder(slot)
    target = next(server for server in cluster.servers if server is not source)
    cluster.begin_move(slot, source, target)
    cluster.end_move(slot, source, target)


async def test_a_promoted_replica_knows_what_is_in_flight_and_what_was_answered() -> None:
    """With wait_replicas nobody has to hope that it had heard of it."""
    rules = policy('lease = "10m"', ROOMY)
    with run_cluster(replicas=True) as cluster:
        url = f"{cluster.url}?prefix=pro&deadline=500ms&wait_replicas=1"
        async with Shield(rules, url) as shield:
            owners: dict[str, Decision] = {}
            for number in range(12):
                tenant = f"t{number}"
                owners[tenant] = await shield.check(request(tenant=tenant, ip="192.0.2.1"))
                assert owners[tenant].allowed
                if number % 2:
                    assert await shield.complete(owners[tenant], 200, (), b"early")
            lost, heir = cluster.servers[0], cluster.servers[PRIMARIES]
            lost.kill()
            # Before the promotion nobody can say whose the key is: refused, never run twice.
            for tenant in owners:
                found = await shield.check(request(tenant=tenant, ip="192.0.2.1"))
                assert found.reason in ("store_unavailable", "idempotency_in_flight", "idempotency_replay")
            await asyncio.to_thread(wait_for, lambda: heir.client().info("replication")["role"] == "master")
        # Its replica has none of its own, so what is done from here on waits for nobody.
        async with Shield(rules, url.replace("wait_replicas=1", "wait_replicas=0")) as other:
            await until(lambda: other.ready)
            for number, (tenant, owner) in enumerate(owners.items()):
                again = await other.check(request(tenant=tenant))
                if number % 2:
                    assert again.response.body == b"early"
                    continue
                assert again.reason == "idempotency_in_flight"
                assert await other.complete(owner.idempotency.owner, 200, (), b"late")
                assert not await other.complete(owner, 200, (), b"twice")
                assert (await other.check(request(tenant=tenant))).response.body == b"late"


async def test_a_server_of_the_cluster_that_is_away_is_told_of_again(cluster: ClusterOf) -> None:
    async with Shield(policy("", ROOMY), f"{cluster.url}?prefix=away&deadline=150ms") as shield:
        node = Keyed(shield, Clock())
        tenant, home, ip, _ = await apart(cluster, node)
        owner = await node.ask(tenant=tenant, ip=ip)
        home.pause()
        try:
            with pytest.raises(StoreError):
                await shield.extend(owner)
            assert (await node.ask(tenant=tenant, ip=ip)).reason == "store_unavailable"
        finally:
            home.resume()
        await until(lambda: shield.ready)
        assert await shield.complete(owner, 200)
        assert (await node.ask(tenant=tenant, ip=ip)).reason == "idempotency_replay"
