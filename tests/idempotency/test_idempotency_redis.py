"""Idempotency keys on servers: in the command of the charges; and what is left of late, lost and refused replies."""

from __future__ import annotations

import struct
import subprocess
import sys
import uuid
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from shield import Policy, PolicyError, Shield
from shield.errors import StoreError
from shield.store.greeting import ACL_RULES
from shield.store.memory import MemoryStore
from shield.store.redis import RedisStore
from tests.idempotency.keyed import LIMITS, START_NS, policy, redis, request, server_url
from tests.idempotency.test_idempotency_file import workers
from tests.servers import Server, binaries, run_server
from tests.store.clusters import wait_for
from tests.store.wire import Proxy, fake_server, proxy_to, saying, until

MANY = LIMITS.replace("burst = 3", "burst = 100000")
WITH_PLACES = MANY + '[[limit]]\nname = "jobs"\nkey = ["tenant"]\nalgorithm = "concurrency"\nlimit = 1\n'


@pytest.fixture
async def proxy(any_server: Server) -> AsyncIterator[Proxy]:
    async with proxy_to(any_server) as made:
        yield made


@pytest.fixture
def prefix() -> str:
    return f"t{uuid.uuid4().hex[:12]}"


def shielded(rules: Policy, proxy: Proxy, prefix: str, deadline: str = "5s") -> Shield:
    """A node of which the proxy sees nothing but decisions: it does not ask for blocks every second."""
    store = RedisStore(f"{proxy.url}?prefix={prefix}&deadline={deadline}")
    store.block_log = None  # type: ignore[assignment]
    return Shield(rules, store)


async def test_a_key_adds_no_round_trip_before_the_handler_and_one_after_it(proxy: Proxy, prefix: str) -> None:
    async with shielded(policy("", WITH_PLACES), proxy, prefix) as shield:
        await shield.check(request(None))
        await shield.release((await shield.check(request(None))).leases)
        for what in ("key", "no key"):
            before = proxy.count(b"EVALSHA"), len(proxy.commands)
            decision = await shield.check(request("k-1" if what == "key" else None, tenant="t"))
            assert decision.allowed
            assert (proxy.count(b"EVALSHA") - before[0], len(proxy.commands) - before[1]) == (1, 1)
            await shield.release(decision.leases)
            before = len(proxy.commands), 0
            if what == "key":
                await shield.complete(decision, 200, (), b"x")
                assert len(proxy.commands) - before[0] == 1


async def test_an_answer_that_does_not_speak_of_the_key_is_no_permission(prefix: str) -> None:
    """It is one of check.lua: taken, as any request without a key would be."""
    told = struct.pack("<7d", START_NS // 1000, 1, 0, 1, 0, START_NS // 1000, 0)
    async with fake_server() as fake:
        fake.behaviour = saying(b"$%d\r\n%b\r\n" % (len(told), told), to=b"EVALSHA")
        store = RedisStore(f"{fake.url}?prefix={prefix}&deadline=5s")
        async with Shield(policy(), store, secret=bytes(32)) as shield:
            assert not (await shield.check(request(None))).degraded
            decision = await shield.check(request("k-1"))
            assert (decision.reason, decision.idempotency) == ("store_unavailable", None)


def test_of_a_thousand_requests_over_four_processes_one_runs(any_server: Server, prefix: str) -> None:
    found = workers(server_url(any_server, prefix), "race_awaited", 4)
    outcomes = [word for line in found for word in line.split()]
    assert len(outcomes) == 1000
    assert outcomes.count("ok") == 1
    assert set(outcomes) <= {"ok", "idempotency_in_flight", "idempotency_replay"}


async def test_two_deployments_with_a_prefix_each_know_nothing_of_each_other(
    any_server: Server, tmp_path: Path
) -> None:
    async with (
        redis(policy(), tmp_path, any_server, "one-app") as one,
        redis(policy(), tmp_path, any_server, "two-app") as two,
        redis(policy(), tmp_path, any_server, "one-app") as neighbour,
    ):
        owner = await one.ask()
        assert (await two.ask()).allowed
        assert (await neighbour.ask()).reason == "idempotency_in_flight"
        with pytest.raises(ValueError, match="not a owner"):
            await two.shield.complete(owner.idempotency.owner, 200, (), b"one's")
        assert await neighbour.shield.complete(owner.idempotency.owner, 200, (), b"any node may say so")
        assert (await one.ask()).response.body == b"any node may say so"
        assert (await two.ask()).reason == "idempotency_in_flight"


async def test_a_check_whose_answer_is_late_gives_its_key_back(proxy: Proxy, prefix: str) -> None:
    async with shielded(policy("", WITH_PLACES), proxy, prefix, "100ms") as shield:
        store = shield.store
        proxy.replies.clear()
        late = await shield.check(request())
        assert (late.status, late.reason, late.retry_after) == (503, "store_unavailable", 1.0)
        assert proxy.count(b"EVALSHA") == 1, "never sent twice"
        proxy.replies.set()
        await until(lambda: store.stats()["late_given_back"] == 3)  # units, places and the key
        async with shielded(policy("", WITH_PLACES), proxy, prefix) as other:
            decision = await other.check(request(fingerprint="sha256:another"))
            assert decision.allowed
            assert decision.limits[0].remaining == 100_000 - 1


async def test_a_refusal_that_is_late_gives_nothing_back(proxy: Proxy, prefix: str) -> None:
    async with (
        shielded(policy("", MANY), proxy, prefix) as other,
        shielded(policy("", MANY), proxy, prefix, "100ms") as shield,
    ):
        owner = await other.check(request())
        sent = proxy.count(b"EVALSHA")
        proxy.replies.clear()
        assert (await shield.check(request())).reason == "store_unavailable"
        proxy.replies.set()
        assert (await other.check(request())).reason == "idempotency_in_flight"
        assert proxy.count(b"EVALSHA") == sent + 2
        assert await other.complete(owner, 200)


async def test_a_reply_that_never_comes_keeps_the_key_until_its_lease_ends(proxy: Proxy, prefix: str) -> None:
    async with shielded(policy('lease = "100ms"', MANY), proxy, prefix) as shield:
        await shield.check(request("other"))
        proxy.fail_at, proxy.how = len(proxy.commands) + 1, "unheard"
        assert (await shield.check(request())).reason == "store_unavailable"
        await until(lambda: shield.ready)
        found = await shield.check(request())
        while not found.allowed:
            assert found.reason == "idempotency_in_flight"
            assert 0 < found.retry_after <= 0.1
            found = await shield.check(request())


async def test_a_server_that_is_gone_between_begin_and_complete(prefix: str) -> None:
    kind = sorted(binaries())[0]
    with run_server(kind, binaries()[kind], tcp=True) as server:
        rules = policy('lease = "100ms"', MANY)
        async with Shield(rules, f"{server.url}?prefix={prefix}&deadline=200ms") as shield:
            owner = await shield.check(request())
            assert owner.allowed
            server.pause()
            with pytest.raises(StoreError):
                await shield.complete(owner, 200)
            assert (await shield.check(request())).reason == "store_unavailable"
            server.resume()
            await until(lambda: shield.ready)
            # Its lease has run out: somebody may take over. Or the late command was done after all.
            found = await shield.check(request())
            while found.reason in ("store_unavailable", "idempotency_in_flight"):
                found = await shield.check(request())
            assert found.reason in ("ok", "idempotency_replay")


async def test_values_that_are_not_ours_are_left_alone(any_server: Server, prefix: str, tmp_path: Path) -> None:
    client = any_server.client()
    async with redis(policy("", MANY), tmp_path, any_server, prefix) as node:
        owner = await node.ask("k-0")
        (record,) = client.keys(f"{prefix}:~key:*")
        (holder,) = client.keys(f"{prefix}:~keys:*")
        assert client.pttl(record) > 86_400_000
        assert client.pttl(holder) > 86_400_000
        kept = client.get(record)
        for foreign in (b"something else", b"\x02" + kept[1:], b""):
            client.set(record, foreign)
            assert (await node.ask("k-0")).reason == "store_unavailable"
            with pytest.raises(StoreError, match="left alone"):
                await node.shield.complete(owner, 200)
            assert client.get(record) == foreign
        client.delete(record)
        client.rpush(record, "x")
        assert (await node.ask("k-0")).reason == "store_unavailable"
        client.delete(record)
        client.set(record, kept + b"no answer of ours")
        assert (await node.ask("k-0")).reason == "idempotency_in_flight"
        client.delete(holder)
        client.set(holder, "x")
        assert (await node.ask("k-1")).reason == "store_unavailable"
        assert (await node.ask("k-1", tenant="other")).allowed
        client.set(record, b"\x01\x02" + kept[2:] + b"\xc1")
        assert (await node.ask("k-0")).reason == "store_unavailable"
        assert await node.left() == 100_000 - 1
    client.close()


async def test_a_server_without_memory(prefix: str) -> None:
    kind = sorted(binaries())[0]
    no_limits = "version = 1\n"
    with run_server(kind, binaries()[kind], tcp=True) as server:
        for limits in (MANY, no_limits):
            async with Shield(policy("", limits), f"{server.url}?prefix={prefix}&deadline=5s") as shield:
                owner = await shield.check(request("k-0"))
                server.client().config_set("maxmemory", 1)
                full = await shield.check(request("k-1"))
                assert (full.status, full.reason) == (503, "store_full")
                with pytest.raises(StoreError):
                    await shield.complete(owner, 200, (), b"x")
                assert (await shield.check(request("k-0"))).reason == "idempotency_in_flight"
                server.client().config_set("maxmemory", 0)
                assert (await shield.check(request("k-1"))).allowed
                assert await shield.complete(owner, 200, (), b"x")
            server.client().flushall()


async def test_lost_scripts_are_loaded_again(any_server: Server, prefix: str) -> None:
    async with Shield(policy("", MANY), server_url(any_server, prefix)) as shield:
        any_server.client().script_flush()
        owner = await shield.check(request())
        assert owner.allowed
        any_server.client().script_flush()
        assert await shield.complete(owner, 200)


@pytest.mark.skipif("valkey" not in binaries(), reason="no valkey server on this machine")
async def test_the_smallest_account_is_enough_for_keys(prefix: str) -> None:
    kind = "valkey"
    with run_server(kind, binaries()[kind], tcp=True) as server:
        rules = ACL_RULES.format(prefix=prefix).split()
        server.client().execute_command("ACL", "SETUSER", "shield", "reset", "on", ">pw", *rules)
        account = server.url.replace("redis://", "redis://shield:pw@")
        async with Shield(policy("", WITH_PLACES), f"{account}?prefix={prefix}&deadline=5s") as shield:
            owner = await shield.check(request())
            assert owner.allowed
            assert await shield.extend(owner)
            assert await shield.complete(owner, 200)
            assert (await shield.check(request())).reason == "idempotency_replay"


async def test_garbage_instead_of_an_answer(proxy: Proxy, prefix: str) -> None:
    async with shielded(policy("", MANY), proxy, prefix) as shield:
        for garbage in (b"*2\r\n:1\r\n:1\r\n", b"*10\r\n" + b":1\r\n" * 10, b":1\r\n", b"$1\r\nx\r\n", b"*0\r\n"):
            proxy.corrupt_next = garbage
            assert (await shield.check(request(uuid.uuid4().hex))).reason == "store_unavailable"
        owner = await shield.check(request("k"))
        for garbage in (b"*0\r\n", b":7\r\n", b"$1\r\nx\r\n", b"-ERR no\r\n"):
            proxy.corrupt_next = garbage
            with pytest.raises(StoreError):
                await shield.extend(owner)


def test_a_store_that_does_not_keep_keys_is_refused() -> None:
    class Forgetful(MemoryStore):
        keeps_keys = False

    with pytest.raises(PolicyError, match="does not keep idempotency keys"):
        Shield(policy(), Forgetful())
    assert Shield(Policy.parse(LIMITS), Forgetful())


def test_nothing_of_servers_is_imported_for_local_keys() -> None:
    code = "shield.Shield(shield.Policy.parse('[guard.idempotency]')); assert 'redis' not in sys.modules"
    subprocess.run([sys.executable, "-c", f"import sys, shield; {code}"], check=True)


async def test_an_answer_that_no_replica_knows_is_told_again(prefix: str) -> None:
    """With wait_replicas an answer counts when the replica has it, and so a failover forgets none that counted."""
    kind, binary = next(iter(binaries().items()))
    with (
        run_server(kind, binary, tcp=True, args=("--repl-diskless-sync-delay", "0")) as primary,
        run_server(kind, binary, tcp=True) as replica,
    ):
        replica.client().execute_command("REPLICAOF", "127.0.0.1", str(primary.port))
        wait_for(lambda: replica.client().info("replication")["master_link_status"] == "up")
        rules = policy("", MANY)
        async with Shield(rules, f"{primary.url}?prefix={prefix}&deadline=400ms&wait_replicas=1") as shield:
            kept, owner, dropped = [await shield.check(request(key)) for key in ("k-0", "k-1", "k-2")]
            assert await shield.complete(kept, 200, (), b"known")
            assert not await shield.complete(kept, 200, (), b"another"), "an answer is kept once"
            replica.pause()
            with pytest.raises(StoreError, match="not as many replicas"):
                await shield.extend(owner)
            for _ in range(2):
                with pytest.raises(StoreError, match="not as many replicas"):
                    await shield.complete(owner, 201, (), b"not yet")
                assert (await shield.check(request("k-1"))).response.body == b"not yet", "the server has it"
            assert not await shield.extend(owner)
            assert not await shield.complete(owner, 200, (), b"another"), "who changes nothing needs nobody"
            assert await shield.abandon(dropped), "nor does who lets go"
            replica.resume()
            await until(lambda: shield.ready)
            assert await shield.complete(owner, 201, (), b"not yet"), "the same, said again"
            primary.kill()
        replica.client().execute_command("REPLICAOF", "NO", "ONE")
        async with Shield(rules, f"{replica.url}?prefix={prefix}&deadline=5s") as shield:
            assert (await shield.check(request("k-0"))).response.body == b"known"
            assert (await shield.check(request("k-1"))).response.body == b"not yet"
