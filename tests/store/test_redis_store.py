"""The Redis store: deadlines, late replies, reloads, and what it tells about itself."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from typing import Any

import pytest

from shield import Decision, Request
from shield.errors import ReceiptError, StoreError, StoreProtocolError, StoreTimeout
from shield.store import Lease, RemoteStore, Settlement, Store, open_store
from shield.store.redis import RedisStore
from tests.servers import Server, binaries, run_server
from tests.store.wire import Proxy, fake_server, healthy, proxy_to, saying, until
from tests.store.world import POLICY, START_US, World, world

DAY_US = 86_400_000_000


@pytest.fixture
async def proxy(any_server: Server) -> AsyncIterator[Proxy]:
    async with proxy_to(any_server) as made:
        yield made


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


async def test_a_node_with_a_wrong_clock_finds_the_right_day(server: Server) -> None:
    """The client only guesses the calendar day; when it guesses wrong it is told, asks again, and charges once."""
    for wrong_us in (-40 * DAY_US, -DAY_US, DAY_US, 3 * DAY_US, 400 * DAY_US):
        async with world(server.url) as here:
            here.store._clock = lambda wrong_us=wrong_us: (START_US + wrong_us) * 1000  # type: ignore[misc]
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
        assert len(names) == 4
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


# ---- deadlines and late replies


async def test_a_missed_deadline_is_given_back_when_it_turns_out_to_have_taken(proxy: Proxy) -> None:
    async with world(proxy.url, deadline="50ms", prefix="late") as here:
        proxy.replies.clear()
        with pytest.raises(StoreTimeout):
            await here.ask(cost=3)
        assert proxy.count(b"EVALSHA") == 1, "never sent twice"
        proxy.replies.set()
        await until(lambda: here.store.stats()["late_given_back"] == 2)  # buckets, and places
        assert here.store.stats()["late_taken"] == 1
        assert [await here.used(name) for name in ("bucket", "window")] == [0, 0]
        assert await here.used("sliding") == 3, "this one and the two looks before it, and nothing else"


async def test_a_late_refusal_gives_nothing_back(proxy: Proxy) -> None:
    async with world(proxy.url, deadline="50ms", prefix="lateno") as here:
        await here.ask(cost=3)
        proxy.replies.clear()
        with pytest.raises(StoreTimeout):
            await here.ask(cost=6)
        proxy.replies.set()
        assert await here.used("bucket") == 3
        assert here.store.stats()["late_taken"] == 0
        assert proxy.count(b"EVALSHA") == 3


async def test_a_late_refund_gives_no_more_than_has_not_drained(proxy: Proxy) -> None:
    """What refill has returned meanwhile is not returned again: a late give-back cannot mint either."""
    async with world(proxy.url, deadline="50ms", prefix="latemint") as here:
        proxy.replies.clear()
        with pytest.raises(StoreTimeout):
            await here.ask(cost=8)
        here.instant_us = START_US + 3_600_000_000  # ten units have drained, then eight are taken by somebody else
        proxy.requests.clear()
        proxy.replies.set()
        async with world(proxy._upstream.url, prefix="latemint", instant_us=here.instant_us) as other:
            assert (await other.ask(cost=8)).allowed
            proxy.requests.set()
            await until(lambda: here.store.stats()["late_given_back"] == 2)
            assert await other.used("bucket") == 8


async def test_a_cancelled_check_is_given_back(proxy: Proxy) -> None:
    async with world(proxy.url, prefix="cancel") as here:
        proxy.replies.clear()
        task = asyncio.create_task(here.ask(cost=3))
        neighbour = asyncio.create_task(here.ask(cost=2))
        await until(lambda: proxy.count(b"EVALSHA") == 2)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        proxy.replies.set()
        assert (await neighbour).allowed
        await until(lambda: here.store.stats()["late_given_back"] == 2)
        assert await here.used("bucket") == 2


async def test_a_check_cancelled_in_the_turn_its_reply_comes_is_given_back() -> None:
    here = World("unix:///unused", prefix="turn")
    futures: list[asyncio.Future[Any]] = []

    def request(payload: bytes, late: Any = None, context: Any = None) -> asyncio.Future[Any]:
        futures.append(asyncio.get_running_loop().create_future())
        return futures[-1]

    here.store._link.request = request  # type: ignore[method-assign]
    task = asyncio.create_task(here.store.apply(here.charges(cost=3)))
    await asyncio.sleep(0)
    day = START_US - START_US % DAY_US
    states = [0, 3, 0, START_US, 0, 0, 3, 0, day, day + DAY_US, 0, 1, 0, day, day + 3_600_000_000, 0, 1, 0, 0, 0]
    futures[0].set_result([START_US, 1, *states])
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert here.store.stats()["late_taken"] == 1
    assert len(futures) == 3, "the refund and the release"


async def test_a_give_back_that_cannot_be_sent_stays_charged() -> None:
    here = World("unix:///unused")
    charges = here.charges(cost=3)
    sent: list[Any] = []
    here.store._link.request = lambda payload, late=None, context=None: sent.append(context) or _never()  # type: ignore[method-assign,func-returns-value]
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(here.store.apply(charges), 0.001)
    del here.store._link.request  # type: ignore[method-assign]
    here.store._came_late([START_US, 1, *[0, 3, 0, START_US, 0] * 4], sent[0])
    assert here.store.stats()["late_lost"] == 2
    here.store._came_late([START_US, 1], sent[0])
    here.store._came_late("nonsense", sent[0])
    assert here.store.stats()["late_taken"] == 1


def _never() -> asyncio.Future[Any]:
    return asyncio.get_running_loop().create_future()


# ---- a server that is away


async def test_an_absent_server_is_an_error_at_once() -> None:
    async with world("unix:///nowhere/at/all", deadline="5s") as here:
        assert not here.store.ready
        started = time.monotonic()
        for _ in range(100):
            with pytest.raises(StoreError, match="not connected"):
                await here.ask()
        assert time.monotonic() - started < 2


async def test_a_mute_server_costs_a_few_deadlines_and_then_nothing(proxy: Proxy) -> None:
    async with world(proxy.url, deadline="20ms", prefix="mute") as here:
        proxy.requests.clear()
        for _ in range(3):
            with pytest.raises(StoreTimeout):
                await here.ask()
        with pytest.raises(StoreError, match="missed its deadline too often"):
            await here.ask()
        assert not here.store.ready
        assert here.store.stats()["breaker_open"] == 1
        asked = here.store.stats()["in_flight"]
        for _ in range(50):
            with pytest.raises(StoreError):
                await here.ask()
        assert here.store.stats()["in_flight"] - asked <= 2, "nothing but probes"
        proxy.requests.set()
        await until(lambda: here.store.ready)

        async def answers() -> bool:
            try:
                return bool(await here.ask())
            except StoreError:
                return False

        async with asyncio.timeout(10):
            while not await answers():
                await asyncio.sleep(0.01)
        assert here.store.stats()["breaker_open"] == 0


async def test_many_that_wait_together_are_one_failure(proxy: Proxy) -> None:
    async with world(proxy.url, deadline="20ms", prefix="herd") as here:
        proxy.requests.clear()
        results = await asyncio.gather(*[here.ask() for _ in range(40)], return_exceptions=True)
        assert all(isinstance(result, StoreTimeout) for result in results)
        assert here.store.stats()["breaker_open"] == 0
        proxy.requests.set()


async def test_a_restarted_server_is_found_and_told_the_scripts_again(tmp_path: Any) -> None:
    kind, binary = next(iter(binaries().items()))
    with run_server(kind, binary, tcp=True) as first:
        async with world(first.url, deadline="5s") as here:
            assert (await here.ask(cost=8)).allowed
            first.kill()
            await until(lambda: not here.store.ready)
            with pytest.raises(StoreError):
                await here.ask()
            with run_server(kind, binary, tcp=True, port=first.port):
                await until(lambda: here.store.ready)
                assert (await here.ask(cost=8)).allowed
                assert here.store.stats()["script_reloads"] == 0


async def test_a_script_flush_is_healed_with_one_load(server: Server) -> None:
    """P11: NOSCRIPT proves that nothing was taken; all who meet it share one load."""
    async with world(server.url, prefix="flush") as here:
        with server.client() as client:
            client.script_flush()
        decisions = await asyncio.gather(*[here.ask(user=f"u{i}") for i in range(50)])
        assert all(decisions)
        assert here.store.stats()["script_reloads"] == 1
        with server.client() as client:
            client.script_flush()
        charges = here.charges()
        await here.store.apply(charges)
        with server.client() as client:
            client.script_flush()
        assert await here.store.settle(here.settlement(charges, b"r", 0))
        with server.client() as client:
            client.script_flush()
        assert await here.store.release(here.leases(charges)) == 1


async def test_a_reload_ends_with_the_deadline(proxy: Proxy) -> None:
    async with world(proxy.url, deadline="50ms", prefix="slowload") as here:
        with proxy._upstream.client() as client:
            client.script_flush()
        loads = proxy.count(b"SCRIPT")
        task = asyncio.create_task(here.ask())
        await until(lambda: proxy.count(b"SCRIPT") > loads)
        proxy.replies.clear()
        with pytest.raises(StoreTimeout):
            await task
        proxy.replies.set()


# ---- a server that answers nonsense


@pytest.mark.parametrize(
    "reply",
    [b"+OK\r\n", b"$-1\r\n", b":1\r\n", b"*0\r\n", b"*2\r\n:1\r\n:9\r\n", b"*2\r\n:1\r\n:3\r\n", b"*-1\r\n",
     b"*22\r\n" + b"$1\r\nx\r\n" * 22, b"*22\r\n" + b":-1\r\n" * 22],
)  # fmt: skip
async def test_nonsense_is_no_permission(reply: bytes) -> None:
    async with fake_server() as fake:
        async with world(fake.url) as here:
            fake.behaviour = saying(reply, to=b"EVALSHA")
            charges = here.charges()
            with pytest.raises(StoreProtocolError):
                await here.store.apply(charges)
            with pytest.raises(StoreProtocolError):
                await here.store.settle(here.settlement(charges, b"r", 0))
            if not reply.startswith(b":"):
                with pytest.raises(StoreProtocolError):
                    await here.store.release([Lease("places", b"\0" * 16, "0")])


async def test_a_foreign_value_is_an_error_and_not_a_fresh_bucket(server: Server) -> None:
    async with world(server.url, prefix="foreign") as here:
        await here.ask(cost=8)
        with server.client() as client:
            key = client.keys("foreign:bucket:*")[0]
            client.set(key, "something else")
        with pytest.raises(StoreProtocolError, match=f"value at {key.decode()} was not written by this version"):
            await here.ask()
        assert here.store.ready


async def test_a_replica_is_not_asked(any_server: Server) -> None:
    """It would answer from what it last heard: a peek or a refusal is no write, so nothing else would stop it."""
    async with fake_server() as fake:

        async def behave(command: list[bytes], writer: asyncio.StreamWriter) -> bool:
            if command[0] == b"ROLE":
                writer.write(b"*2\r\n$5\r\nslave\r\n:1\r\n")
            return command[0] == b"ROLE"

        fake.behaviour = behave
        async with world(fake.url) as here:
            assert not here.store.ready
            with pytest.raises(StoreError, match="the server is a slave"):
                await here.ask()
            fake.behaviour = saying(b"-NOPERM this user has no permissions\r\n", to=b"ROLE")
            await until(lambda: here.store.ready)


async def test_a_server_out_of_memory_says_so() -> None:
    kind, binary = next(iter(binaries().items()))
    with run_server(kind, binary) as full:
        async with world(full.url) as here:
            full.client().config_set("maxmemory", 1)
            decision = await here.ask()
            assert (decision.allowed, decision.status, decision.reason) == (False, 503, "store_full")
            assert here.store.stats()["oom"] == 1


async def test_an_eviction_policy_that_forgets_is_warned_about() -> None:
    kind, binary = next(iter(binaries().items()))
    options = ["--maxmemory", "64mb", "--maxmemory-policy", "allkeys-lru"]
    with run_server(kind, binary, args=options) as forgetful:
        async with world(forgetful.url) as here:
            assert "allkeys-lru" in here.store.warnings[0]
            forgetful.client().config_set("maxmemory-policy", "noeviction")
        async with world(forgetful.url) as here:
            assert here.store.warnings == ()


# ---- getting in


async def test_a_password_lets_in_and_a_wrong_one_is_an_error() -> None:
    kind, binary = next(iter(binaries().items()))
    with run_server(kind, binary, tcp=True, args=["--requirepass", "p@ss/wörd"]) as locked:
        place = locked.url.removeprefix("redis://")
        async with world(f"redis://:p%40ss%2Fw%C3%B6rd@{place}") as here:
            assert (await here.ask()).allowed
        for wrong in ("", "default:nope@"):
            with pytest.raises(StoreError, match="refused the connection") as caught:
                async with world(f"redis://{wrong}{place}"):
                    pass
            assert "nope" not in str(caught.value)


async def test_a_database_is_selected(any_server: Server) -> None:
    async with world(any_server.url.replace("/0", "/5"), prefix="db5") as here:
        await here.ask()
    with any_server.client() as client:
        assert client.keys("db5:*") == []
        client.select(5)
        assert len(client.keys("db5:*")) == 4
    with pytest.raises(StoreError, match="refused the connection"):
        async with world(any_server.url.replace("/0", "/999")):
            pass


async def test_tls_is_verified(tls_server: Server) -> None:
    async with world(tls_server.url, ssl_ca_certs=tls_server.ca_file) as here:
        assert (await here.ask()).allowed
    async with world(tls_server.url) as here:
        assert not here.store.ready
        with pytest.raises(StoreError, match="certificate"):
            await here.ask()


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


def test_a_healthy_fake_says_what_a_server_says() -> None:
    assert healthy([b"PING"]) == b"+OK\r\n"
