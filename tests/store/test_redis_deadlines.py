"""The Redis store when answers are late, lost or not to be had."""

from __future__ import annotations

import asyncio
import contextlib
import time
from typing import Any

import pytest

from shield.core import Outcome
from shield.errors import StoreError, StoreTimeout
from tests.servers import Server, binaries, run_server
from tests.store.wire import Proxy, until
from tests.store.world import START_US, World, world

DAY_US = 86_400_000_000


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
        await until(lambda: here.store.stats()["connections"] == 2)
        proxy.replies.clear()
        task = asyncio.create_task(here.ask(cost=3))
        neighbour = asyncio.create_task(here.ask(cost=2))
        await until(lambda: proxy.count(b"EVALSHA") == 1)  # they share a command
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

    def request(*args: Any, **options: Any) -> asyncio.Future[Any]:
        futures.append(asyncio.get_running_loop().create_future())
        return futures[-1]

    here.store._servers.link.request = here.store._servers.batcher.submit = request  # type: ignore[method-assign]
    task = asyncio.create_task(here.store.apply(here.charges(cost=3)))
    await asyncio.sleep(0)
    day = START_US - START_US % DAY_US
    states = [0, 3, 0, START_US, 0, 0, 3, 0, day, day + DAY_US, 0, 1, 0, day, day + 3_600_000_000, 0, 1, 0, 0, 0]
    futures[0].set_result(Outcome(START_US, 1, states))
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert here.store.stats()["late_taken"] == 1
    assert len(futures) == 3, "the refund and the release"


async def test_a_give_back_that_cannot_be_sent_stays_charged() -> None:
    here = World("unix:///unused")
    step = here.store._forms.step(here.charges(cost=3))
    here.store._servers.late.came(step, Outcome(START_US, 1, [0, 3, 0, START_US, 0] * 4))
    assert here.store.stats()["late_lost"] == 2
    for nothing in (0, 2, 3, 4):
        here.store._servers.late.came(step, Outcome(START_US, nothing, [0, 3, 0, START_US, 0] * 4))
    assert here.store.stats()["late_taken"] == 1


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
        # A probe that was sent while the server was mute may still be out: then the next one decides.
        for _ in range(100):
            await until(lambda: here.store.ready)
            with contextlib.suppress(StoreError):
                await here.ask()
                break
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
