"""Many requests in few commands: each is written once, hears its own part, and nothing grows without bound."""

from __future__ import annotations

import asyncio

import pytest

from shield.errors import StoreError, StoreTimeout
from shield.store.batch import MAX_BATCH
from tests.servers import Server
from tests.store.wire import Proxy, fake_server, saying, until
from tests.store.world import START_US, world


async def test_requests_of_one_turn_share_commands(proxy: Proxy) -> None:
    """P12: a lock around the round trip makes 20 at once take 20 of them. Here they take three commands."""
    async with world(proxy.url, prefix="turn") as here:
        decisions = await asyncio.gather(*[here.ask(user=f"u{i}") for i in range(20)])
        assert all(decisions)
        assert proxy.count(b"EVALSHA") == -(-20 // MAX_BATCH)


async def test_each_hears_of_its_own(any_server: Server) -> None:
    """Odd ones ask for more than there is; every cost shows which answer is whose."""
    async with world(any_server.url, prefix="own") as here:
        costs = [9 if i % 2 else 1 + i % 8 for i in range(100)]
        decisions = await asyncio.gather(*[here.ask(user=f"u{i}", cost=cost) for i, cost in enumerate(costs)])
        assert [decision.allowed for decision in decisions] == [cost <= 8 for cost in costs]
        assert [d.limits[0].remaining for d in decisions] == [8 - cost if cost <= 8 else 8 for cost in costs]


async def test_one_key_is_counted_through_all_commands(any_server: Server) -> None:
    async with world(any_server.url, prefix="counted", connections=4) as here:
        decisions = await asyncio.gather(*[here.ask() for _ in range(100)])
        assert sum(decision.allowed for decision in decisions) == 8


async def test_requests_on_both_sides_of_a_day_that_the_node_does_not_know(any_server: Server) -> None:
    """One clock that is days off: every request of the batch asks again with the server's day."""
    async with world(any_server.url, prefix="days") as here:
        here.store._clock = lambda: (START_US - 5 * 86_400_000_000) * 1000
        decisions = await asyncio.gather(*[here.ask(user=f"u{i}") for i in range(20)])
        assert all(decisions)


async def test_in_flight_is_bounded_then_they_wait_then_they_are_told() -> None:
    async with fake_server() as fake, world(fake.url, connections=2, max_in_flight=4, deadline="1s") as here:
        fake.behaviour = saying(b"", to=b"EVALSHA")
        await until(lambda: here.store.stats()["connections"] == 2)
        tasks = [asyncio.ensure_future(here.ask()) for _ in range(16)]
        await until(lambda: here.store.stats()["in_flight"] == 8)
        stats = here.store.stats()
        assert (stats["in_flight"], stats["waiting"]) == (8, 8)
        with pytest.raises(StoreError, match="are waiting for the store already") as told:
            await here.ask()
        assert not isinstance(told.value, StoreTimeout), "at once, and certainly not taken"
        results = await asyncio.gather(*tasks, return_exceptions=True)
        assert all(isinstance(result, StoreTimeout) for result in results)
        assert here.store.stats()["waiting"] == 0
        sent = sum(command[0] == b"EVALSHA" for command in fake.commands)
        assert here.store.stats()["in_flight"] == 8, "the server still owes these"
        assert sent <= 8, "who waited in vain was never written"


async def test_who_waited_is_served_when_there_is_room(proxy: Proxy) -> None:
    async with world(proxy.url, prefix="room", connections=1, max_in_flight=4) as here:
        proxy.replies.clear()
        tasks = [asyncio.ensure_future(here.ask(user=f"u{i}")) for i in range(8)]
        await until(lambda: here.store.stats()["in_flight"] == 4)
        proxy.replies.set()
        assert all(await asyncio.gather(*tasks))
        assert here.store.stats()["in_flight"] == 0


async def test_a_request_cancelled_before_it_is_written_is_not(proxy: Proxy) -> None:
    async with world(proxy.url, prefix="gone") as here:
        tasks = [asyncio.ensure_future(here.ask(cost=2)) for _ in range(2)]
        await asyncio.sleep(0)
        tasks[0].cancel()
        assert (await tasks[1]).allowed
        assert await here.used("bucket") == 2
        assert here.store.stats()["late_taken"] == 0


async def test_closing_tells_those_who_wait_for_their_turn() -> None:
    async with fake_server() as fake, world(fake.url, connections=1, max_in_flight=1) as here:
        fake.behaviour = saying(b"", to=b"EVALSHA")
        tasks = [asyncio.ensure_future(here.ask()) for _ in range(2)]
        await until(lambda: here.store.stats()["waiting"] == 1)
        await here.store.close()
        results = await asyncio.gather(*tasks, return_exceptions=True)
        assert all(isinstance(result, StoreError) for result in results)
