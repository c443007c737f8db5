"""Nonces on Redis: what late replies give back, what a lost server no longer knows, and what it all costs."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator

import pytest

from shield import Policy, Request, Shield
from shield.core import Decision, Outcome
from shield.errors import StoreTimeout
from shield.request import Nonce
from shield.store.batch import MAX_BATCH
from tests.servers import Server, binaries, free_port, run_server
from tests.store.wire import Proxy, until
from tests.store.world import START_US, World, world

SECOND_US = 1_000_000
READY_US = START_US + 31 * SECOND_US
POLICY = """
version = 1
name = "nonces"
[[limit]]
name = "few"
key = ["user"]
rate = "8/h"
[[limit]]
name = "places"
key = ["user"]
algorithm = "concurrency"
limit = 100
[guard.replay]
"""
KIND, BINARY = next(iter(binaries().items()))


async def ask(here: World, value: str, stamp_us: int = READY_US, **facts: object) -> Decision:
    return await here.ask(tenant="t", nonce=Nonce(value, stamp_us / SECOND_US), **facts)


@contextlib.asynccontextmanager
async def ready(url: str, **options: object) -> AsyncIterator[World]:
    async with world(url, POLICY, **options) as here:
        here.instant_us = READY_US
        yield here


# ---- what it costs


async def test_a_nonce_takes_no_command_more(proxy: Proxy) -> None:
    async with ready(proxy.url, prefix="ncost") as here:
        for nonced in (False, True):
            before = len(proxy.commands)
            users = [f"u{i}" for i in range(2 * MAX_BATCH)]
            asked = [ask(here, f"n{user}", user=user) if nonced else here.ask(user=user) for user in users]
            assert all(await asyncio.gather(*asked))
            assert len(proxy.commands) - before == 2, "as many as share a command"
        mixed = [ask(here, "nu0") if i % 2 else here.ask(user=f"v{i}") for i in range(8)]
        assert [d.reason for d in await asyncio.gather(*mixed)] == ["ok", "replay"] * 4


async def test_a_batch_sees_its_own_nonces(any_server: Server) -> None:
    async with ready(any_server.url, prefix="nown") as here:
        found = await asyncio.gather(*(ask(here, "same", user=f"u{i}") for i in range(8)))
        assert [decision.reason for decision in found] == ["ok"] + ["replay"] * 7


async def test_keys_of_nonces_are_hashed_and_expire(server: Server) -> None:
    async with ready(server.url, prefix="nhashed", ttl_slack="1s") as here:
        assert (await ask(here, "secret" * 80)).allowed
        with server.client() as client:
            (key,) = client.keys("nhashed:~nonce:*")
            assert len(key) < 40
            assert abs(client.pttl(key) - 331_000) < 1000, "window, future skew and slack"
        assert (await ask(here, "secret" * 80)).reason == "replay"


# ---- what is given back


async def test_a_late_reply_gives_the_nonce_back(proxy: Proxy) -> None:
    async with ready(proxy.url, deadline="50ms", prefix="nlate") as here:
        proxy.replies.clear()
        with pytest.raises(StoreTimeout):
            await ask(here, "n")
        proxy.replies.set()
        await until(lambda: here.store.stats()["late_given_back"] == 2)  # the bucket and the nonce, and the place
        assert (await ask(here, "n")).limits[0].remaining == 7, "it burnt nothing"
        assert (await ask(here, "n")).reason == "replay"


async def test_a_late_refusal_for_a_nonce_gives_nothing_back(proxy: Proxy) -> None:
    async with ready(proxy.url, deadline="50ms", prefix="nlaterefused") as here:
        assert (await ask(here, "n")).allowed
        proxy.replies.clear()
        with pytest.raises(StoreTimeout):
            await ask(here, "n")
        proxy.replies.set()
        assert (await ask(here, "n")).reason == "replay", "it is still the first one's"
        assert here.store.stats()["late_taken"] == 0


async def test_giving_back_leaves_another_ones_nonce_alone(any_server: Server) -> None:
    async with ready(any_server.url, prefix="nowner") as here:
        step = here.store._forms.step(here.charges(tenant="t", nonce=Nonce("n", READY_US / SECOND_US)))
        assert (await ask(here, "n")).allowed
        assert step.nonce is not None
        here.store._servers.late.came(
            step, Outcome(READY_US, 1, [0, 1, 0, READY_US, 0, 0, 1, 0, 0, 0, 0, 1, 0, READY_US, 0])
        )
        await until(lambda: here.store.stats()["late_given_back"] == 2)
        assert (await ask(here, "n")).reason == "replay"


async def test_a_cancelled_check_gives_its_nonce_back(proxy: Proxy) -> None:
    async with ready(proxy.url, prefix="ncancel") as here:
        await until(lambda: here.store.stats()["connections"] == 2)
        proxy.replies.clear()
        before = proxy.count(b"EVALSHA")
        task = asyncio.create_task(ask(here, "n"))
        neighbour = asyncio.create_task(ask(here, "m"))
        await until(lambda: proxy.count(b"EVALSHA") == before + 1)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        proxy.replies.set()
        assert (await neighbour).allowed
        await until(lambda: here.store.stats()["late_given_back"] == 2)
        assert [(await ask(here, value)).reason for value in ("m", "n", "n")] == ["replay", "ok", "replay"]


# ---- what is lost


@pytest.mark.parametrize("how", ["flushed", "restarted"])
async def test_a_server_that_lost_its_nonces_refuses_until_they_are_stale(how: str) -> None:
    port = free_port()
    with contextlib.ExitStack() as servers:
        first = contextlib.ExitStack()
        own = servers.enter_context(first).enter_context(run_server(KIND, BINARY, tcp=True, port=port))
        async with ready(own.url, prefix="nlost") as here:
            assert (await ask(here, "n")).allowed
            here.instant_us = READY_US + 10 * SECOND_US
            assert (await ask(here, "m", READY_US + 15 * SECOND_US)).allowed, "made by a clock that is ahead"
            if how == "flushed":
                own.client().flushall()
            else:
                first.close()
                await until(lambda: here.store.stats()["connections"] == 0)
                servers.enter_context(run_server(KIND, BINARY, tcp=True, port=port))
                await until(lambda: here.store.stats()["connections"] == 2)
            decision = await ask(here, "n")
            assert (decision.reason, decision.retry_after) == ("stale", 30.000001)
            lost_us = here.instant_us
            for later in (1, 20, 31, 290, 306):
                here.instant_us = lost_us + later * SECOND_US
                assert (await ask(here, "n")).reason == "stale"
                assert (await ask(here, "m", READY_US + 15 * SECOND_US)).reason == "stale"
                fresh = await ask(here, f"fresh{later}", here.instant_us)
                assert fresh.reason == ("ok" if later >= 31 else "stale")


async def test_another_run_of_the_server_may_have_lost_the_last_writes() -> None:
    """A replica that was promoted has the fence of the primary it followed, and another run id."""
    with run_server(KIND, BINARY, tcp=True) as own:
        async with ready(own.url, prefix="nrun") as here:
            assert (await ask(here, "n")).allowed
            fence = own.client().get("nrun:~nonces")
            assert isinstance(fence, bytes)
            assert len(fence) == 32 + 40
        async with ready(own.url, prefix="nrun") as here:
            assert (await ask(here, "m")).allowed, "the same run knows all it was told"
        own.client().set("nrun:~nonces", fence[:32] + b"0" * 40)
        async with world(own.url, POLICY, prefix="nrun", instant_us=READY_US) as here:
            assert (await ask(here, "n")).reason == "stale"
            here.instant_us = READY_US + 31 * SECOND_US
            assert (await ask(here, "o", here.instant_us)).allowed


async def test_the_window_that_a_prefix_had_outlives_the_server() -> None:
    with run_server(KIND, BINARY, tcp=True) as own:
        async with ready(own.url, prefix="nwide") as here:
            assert (await ask(here, "n")).allowed
            before = own.client().get("nwide:~nonces")
        own.client().set("nwide:~nonces", before[:32] + b"0" * 40)
        async with ready(own.url, prefix="nwide"):
            after = own.client().get("nwide:~nonces")
            assert after[16:24] == before[16:24] != bytes(8)


@pytest.mark.parametrize("value", ["other", "12", ""])
async def test_what_shield_did_not_write_is_no_permission(any_server: Server, value: str) -> None:
    async with ready(any_server.url, prefix=f"nforeign{value}") as here:
        assert (await ask(here, "n")).allowed
        with any_server.client() as client:
            (key,) = client.keys(f"nforeign{value}:~nonce:*")
            if value != "12":
                client.set(key, value)
                assert (await ask(here, "n")).reason == "replay"
            client.delete(key)
            client.rpush(key, "a list")
            assert (await ask(here, "n")).reason == "replay"
            client.delete(key)
            client.set(f"nforeign{value}:~nonces", value)
            assert (await ask(here, "n")).reason == "stale"


async def test_out_of_memory_burns_no_nonce() -> None:
    with run_server(KIND, BINARY, tcp=True) as full:
        async with ready(full.url, prefix="nfull") as here:
            full.client().config_set("maxmemory", 1)
            assert (await ask(here, "n")).reason == "store_full"
            full.client().config_set("maxmemory", 0)
            assert [(await ask(here, "n")).reason for _ in range(2)] == ["ok", "replay"]
            full.client().flushall()
            full.client().config_set("maxmemory", 1)
            assert (await ask(here, "m")).reason == "stale", "and a fence that cannot be written lets nobody through"


# ---- the store is away


@pytest.mark.parametrize(("when", "reason"), [("deny", "store_unavailable"), ("allow", "ok")])
async def test_without_its_store_a_nonce_is_refused_unless_the_policy_says_otherwise(when: str, reason: str) -> None:
    policy = Policy.parse(POLICY + f'when_store_fails = "{when}"\n')
    async with Shield(policy, "unix:///nowhere/at/all") as shield:
        decision = await shield.check(Request(user="u", nonce=Nonce("n", 5)))
        assert (decision.reason, decision.degraded) == (reason, True)
        assert decision.retry_after == (1.0 if when == "deny" else 0.0)
        assert (await shield.check(Request(user="w"))).allowed, "what has none is decided by its limits"
