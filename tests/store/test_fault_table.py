"""What happens when a server is stopped, full, busy, loading, read-only, locked, of another kind or badly behaved.

Each test is one line of the README's table of faults. Real servers, one of its own for each test; what is asserted are
decisions, counts and orders, never how long something took.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Iterator

import pytest
import redis

from shield import Decision, Policy, Request, Shield
from shield.detect.exchange import Claim, Said
from shield.errors import StoreError
from shield.store.redis import RedisStore
from shield.store.target import describe
from tests.servers import Server, binaries, run_server
from tests.store.wire import proxy_to, until

KIND, BINARY = next(iter(binaries().items()))
POLICY = Policy.parse(
    'version = 1\nname = "faults"\n'
    + "".join(
        f'[[limit]]\nname = "{word}"\nkey = ["{key}"]\nrate = "1000/s"\nwhen_store_fails = "{word}"\n'
        for word, key in (("local", "user"), ("allow", "tenant"), ("deny", "ip"))
    )
)


@pytest.fixture
def own() -> Iterator[Server]:
    with run_server(KIND, BINARY, tcp=True, args=["--busy-reply-threshold", "20"]) as server:
        yield server


@contextlib.asynccontextmanager
async def shielded(url: str, **options: object) -> AsyncIterator[Shield]:
    query = "&".join(f"{name}={value}" for name, value in {"deadline": "20ms", **options}.items())
    async with Shield(POLICY, f"{url}?{query}") as shield:
        yield shield


def store_of(shield: Shield) -> RedisStore:
    assert isinstance(shield.store, RedisStore)
    return shield.store


async def degraded(shield: Shield) -> None:
    """Every request gets a decision, each limit as it says."""
    passed = await shield.check(Request(tenant="t"))
    assert (passed.allowed, passed.degraded) == (True, True)
    refused = await shield.check(Request(ip="192.0.2.1"))
    assert (refused.status, refused.reason, refused.degraded) == (503, "store_unavailable", True)
    assert (await shield.check(Request(user="u"))).degraded


async def normal(shield: Shield) -> Decision:
    """Until the store's truth is back, which it is by itself; a decision is had all the while."""
    async with asyncio.timeout(10):
        while True:
            decision = await shield.check(Request(user="fresh", tenant="t", ip="192.0.2.1"))
            if not decision.degraded:
                assert decision.allowed
                return decision
            await asyncio.sleep(0.005)


async def test_a_stopped_server_costs_a_few_deadlines_then_nothing_and_comes_back(own: Server) -> None:
    """SIGSTOP under load: not one request without a decision, and after three deadlines none waits at all."""
    async with shielded(own.url) as shield:
        await normal(shield)
        own.pause()
        try:
            decisions = []
            for _ in range(20):
                decisions += await asyncio.gather(*[shield.check(Request(tenant=f"t{i}")) for i in range(64)])
            assert all(decision.allowed and decision.degraded for decision in decisions)
            stats = store_of(shield).stats()
            assert stats["breaker_opened"] >= 1
            assert stats["timeouts"] <= 10 * 64, "once it is open, only probes wait"
        finally:
            own.resume()
        await normal(shield)
        assert store_of(shield).stats()["breaker_open"] == 0


async def test_what_a_stopped_server_took_is_given_back(own: Server) -> None:
    async with shielded(own.url, deadline="50ms", deny_cache=0) as shield:
        await normal(shield)
        own.pause()
        try:
            assert (await shield.check(Request(user="late"))).degraded
        finally:
            own.resume()
        await until(lambda: store_of(shield).stats()["late_given_back"] == 1)


async def test_a_killed_server_is_an_answer_at_once_and_a_new_one_is_found(own: Server) -> None:
    async with shielded(own.url, deadline="5s") as shield:
        await normal(shield)
        own.kill()
        await until(lambda: not shield.ready)
        started = time.monotonic()
        for _ in range(100):
            await degraded(shield)
        assert time.monotonic() - started < 5, "not one of three hundred waited for the deadline"
        with run_server(KIND, BINARY, tcp=True, port=own.port):
            await normal(shield)


async def test_killed_clients_come_back(own: Server) -> None:
    async with shielded(own.url, deadline="5s") as shield:
        for _ in range(3):
            connects = store_of(shield).stats()["connects"]
            own.client().execute_command("CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes")
            await until(lambda connects=connects: store_of(shield).stats()["connects"] > connects)  # type: ignore[misc]
            await normal(shield)


async def test_flushed_scripts_are_loaded_again(own: Server) -> None:
    async with shielded(own.url, deadline="5s") as shield:
        own.client().script_flush()
        assert not (await shield.check(Request(user="u"))).degraded
        assert store_of(shield).stats()["script_reloads"] == 1


async def test_a_busy_server_is_degraded_until_it_is_not(own: Server) -> None:
    """Somebody's endless script: BUSY is an error, then SCRIPT KILL ends it."""
    async with shielded(own.url, deadline="5s") as shield:
        await normal(shield)
        with redis.Redis.from_url(own.url) as client, contextlib.suppress(redis.ResponseError):
            spin = asyncio.create_task(asyncio.to_thread(client.eval, "while true do end", 0))
            killer = own.client()

            def busy() -> bool:
                try:
                    killer.ping()
                except redis.exceptions.BusyLoadingError:
                    return False
                except redis.ResponseError as error:
                    return str(error).startswith("BUSY")
                return False

            async with asyncio.timeout(10):
                while not await asyncio.to_thread(busy):  # noqa: ASYNC110 - what is waited for is another process
                    await asyncio.sleep(0.01)
            await degraded(shield)
            killer.script_kill()
            await spin
        await normal(shield)


async def test_a_server_without_memory_is_a_refusal_of_its_own(own: Server) -> None:
    async with shielded(own.url, deadline="5s") as shield:
        own.client().config_set("maxmemory", 1)
        decision = await shield.check(Request(user="u"))
        assert (decision.status, decision.reason) == (503, "store_full")
        own.client().config_set("maxmemory", 0)
        await normal(shield)


async def test_a_primary_that_becomes_a_replica_is_left_and_found_again(own: Server) -> None:
    async with shielded(own.url, deadline="5s") as shield:
        await normal(shield)
        with run_server(KIND, BINARY, tcp=True) as other:
            own.client().execute_command("REPLICAOF", "127.0.0.1", str(other.port))
            await degraded(shield)
            await until(lambda: not shield.ready)
            await degraded(shield)
            own.client().execute_command("REPLICAOF", "NO", "ONE")
            await normal(shield)


async def test_a_password_that_appears_is_a_fault_and_goes_away(own: Server) -> None:
    """NOAUTH: connections that are in stay in; new ones are refused until the password is as it was."""
    async with shielded(own.url, deadline="5s") as shield:
        admin = own.client()
        admin.config_set("requirepass", "secret")
        admin.execute_command("AUTH", "secret")
        admin.execute_command("CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes")
        await until(lambda: not shield.ready)
        await degraded(shield)
        admin.config_set("requirepass", "")
        await normal(shield)


async def test_a_foreign_value_is_a_fault_of_its_key_alone(own: Server) -> None:
    async with shielded(own.url, deadline="5s") as shield:
        await shield.check(Request(tenant="t"))
        client = own.client()
        name = next(key for key in client.keys("shield:*") if b"~" not in key)
        client.delete(name)
        client.rpush(name, "a list")
        broken = await shield.check(Request(tenant="t"))
        assert (broken.allowed, broken.degraded) == (True, True)
        assert not (await shield.check(Request(tenant="other"))).degraded
        assert client.type(name) == b"list", "it was left alone"


@pytest.mark.parametrize("garbage", [b"\x00" * 64, b"HTTP/1.1 400 Bad Request\r\n\r\n", b"*2\r\n:1\r\n:9\r\n"])
async def test_a_network_that_corrupts_is_a_fault_and_heals(own: Server, garbage: bytes) -> None:
    async with proxy_to(own) as proxy, shielded(proxy.url, deadline="5s") as shield:
        await normal(shield)
        proxy.corrupt_next = garbage
        decisions = await asyncio.gather(*[shield.check(Request(tenant=f"t{i}")) for i in range(20)])
        assert all(decision.allowed for decision in decisions)
        assert any(decision.degraded for decision in decisions)
        await normal(shield)


async def test_a_slow_network_is_late_and_given_back(own: Server) -> None:
    async with proxy_to(own) as proxy, shielded(proxy.url, deadline="30ms") as shield:
        await normal(shield)
        proxy.replies.clear()
        assert (await shield.check(Request(user="slow"))).degraded
        proxy.replies.set()
        await until(lambda: store_of(shield).stats()["late_given_back"] >= 1)
        await normal(shield)


@pytest.mark.parametrize("kind", sorted(binaries()))
async def test_every_server_here_is_one_that_is_tested(kind: str) -> None:
    with run_server(kind, binaries()[kind], tcp=True) as server:
        async with shielded(server.url, deadline="5s") as shield:
            assert store_of(shield).warnings == ()
            await normal(shield)


@pytest.mark.parametrize(
    ("info", "warns"),
    [
        (b"redis_version:7.2.4\r\nvalkey_version:8.1.0\r\n", "Valkey 8.1.0 is untested"),
        (b"redis_version:7.2.4\r\n", "Redis 7.2.4 is untested; tested are Redis 6.2, Redis 7.0, Valkey 9.1"),
        (b"redis_version:5.0.14\r\n", "Redis 5.0.14 is untested"),
        (b"redis_version:7.0.15\r\n", None),
        (b"redis_version:7.2.4\r\nvalkey_version:9.1.2\r\n", None),
        (b"maxmemory:0\r\nmaxmemory_policy:allkeys-lru\r\n", None),
        (b"maxmemory:1\r\nmaxmemory_policy:allkeys-lru\r\n", "maxmemory-policy is allkeys-lru"),
        (b"\xff\xfe", None),
    ],
)
def test_other_servers_and_their_settings_are_warned_about(info: bytes, warns: str | None) -> None:
    found = describe(info)
    assert (found == ()) if warns is None else (len(found) == 1 and found[0].startswith(warns))


async def test_the_smallest_account_is_enough(own: Server) -> None:
    """The ACL of the documentation, word for word: it may do all that Shield does, and nothing else."""
    from shield.store.greeting import ACL_RULES

    own.client().execute_command(
        "ACL", "SETUSER", "shield", "reset", "on", ">pw", *ACL_RULES.format(prefix="shield").split()
    )
    url = own.url.replace("redis://", "redis://shield:pw@")
    async with shielded(url, deadline="5s") as shield:
        store = store_of(shield)
        await normal(shield)
        swapped = await store.exchange.swap(Said(b"n", 1, 0, b"x"), [Claim(b"m" * 16, b"a" * 16, 60_000_000)])
        assert swapped.won == [True]
        assert len((await store.exchange.swap(None, [])).heard) == 1
        assert store.warnings == ()
        assert store.nodes == 1
        assert store.stats()["late_lost"] == 0
        own.client().script_flush()
        await normal(shield)
        limited = redis.Redis.from_url(url)
        for forbidden in (("KEYS", "*"), ("FLUSHALL",), ("GET", "other"), ("CONFIG", "GET", "*"), ("SCRIPT", "FLUSH")):
            with pytest.raises(redis.exceptions.NoPermissionError):
                limited.execute_command(*forbidden)
        limited.close()
    async with shielded(own.url.replace("redis://", "redis://shield:pw@"), prefix="other", deadline="5s") as shield:
        with pytest.raises(StoreError):
            await store_of(shield).shared_secret()
