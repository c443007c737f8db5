"""A node that stands in for its store: its share of every limit, from nothing, and no second burst afterwards."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator
from dataclasses import replace

import pytest

from shield import Decision, Policy, Request, Shield
from shield.policy.model import Numbers
from shield.policy.throttle import MAX_PERIOD_US
from shield.store.redis import RedisStore
from shield.store.standin import share_of
from tests.servers import Server
from tests.store.wire import Proxy, proxy_to, until
from tests.store.world import START_US

SECOND_US = 1_000_000
BURST, RATE = 10, 10
POLICY = Policy.parse(
    f'version = 1\nname = "s"\n[[limit]]\nname = "b"\nkey = ["user"]\nrate = "{RATE}/s"\nburst = {BURST}\n'
)
WINDOWS = Policy.parse(
    'version = 1\nname = "w"\n'
    + "".join(
        f'[[limit]]\nname = "{name}"\nkey = ["{key}"]\nalgorithm = "{algorithm}"\nrate = "100/100s"\n'
        for name, key, algorithm in (("fixed", "user", "fixed-window"), ("sliding", "tenant", "sliding-window"))
    )
    + '[[limit]]\nname = "day"\nkey = ["ip"]\nalgorithm = "fixed-window"\nrate = "2400/day"\nalign = "day"\n'
)


class Node:
    """One Shield behind a proxy, on the clock of the test."""

    def __init__(self, proxy: Proxy, prefix: str, time: list[int], policy: Policy) -> None:
        self.proxy = proxy
        self.shield = Shield(policy, f"{proxy.url}?prefix={prefix}&deadline=20ms", clock=lambda: time[0] * 1000)
        assert isinstance(self.shield.store, RedisStore)
        self.store = self.shield.store
        self.store.instant = lambda: time[0]

    async def ask(self, **facts: str) -> Decision:
        return await self.shield.check(Request(**(facts or {"user": "u"})))

    async def lose(self) -> None:
        """The store is late from now on, and the breaker has noticed."""
        self.proxy.requests.clear()
        while self.store.stats()["breaker_open"] == 0:
            assert (await self.ask(user="nobody")).degraded

    async def find(self) -> None:
        """The store is there again, and has been told."""
        self.proxy.requests.set()
        while True:
            await until(lambda: self.store.ready)
            if not (await self.ask(user="nobody")).degraded and not self.owing:
                return

    @property
    def owing(self) -> bool:
        assert self.shield._standin is not None
        return self.shield._standin.owing


@contextlib.asynccontextmanager
async def two_nodes(
    server: Server, prefix: str, policy: Policy = POLICY
) -> AsyncIterator[tuple[list[int], list[Node]]]:
    time = [START_US - START_US % (100 * SECOND_US)]
    async with contextlib.AsyncExitStack() as stack:
        nodes = []
        for _ in range(2):
            node = Node(await stack.enter_async_context(proxy_to(server)), prefix, time, policy)
            await stack.enter_async_context(node.shield)
            nodes.append(node)
        for node in nodes:
            await node.store._heart.beat()
            assert not (await node.ask(user="nobody")).degraded
        yield time, nodes


async def test_nodes_know_how_many_they_are(any_server: Server) -> None:
    async with two_nodes(any_server, "beat") as (_, nodes):
        assert [node.store.nodes for node in nodes] == [2, 2]
        await nodes[0].store.close()
        await nodes[1].store._heart.beat()
        assert nodes[1].store.nodes == 1, "it said goodbye"


async def test_it_starts_empty_and_refills_at_its_share(any_server: Server) -> None:
    async with two_nodes(any_server, "empty") as (time, nodes):
        node = nodes[0]
        await node.lose()
        first = await node.ask()
        assert (first.allowed, first.degraded, first.reason) == (False, True, "limit")
        assert first.retry_after == 2 / RATE
        time[0] += 2 * SECOND_US // RATE - 1
        assert not (await node.ask()).allowed
        time[0] += 1
        assert (await node.ask()).allowed
        assert not (await node.ask()).allowed
        time[0] += 60 * SECOND_US
        assert [(await node.ask()).allowed for _ in range(BURST // 2 + 1)] == [True] * (BURST // 2) + [False]


async def test_two_that_stand_in_and_come_back_admit_no_more_than_the_store(any_server: Server) -> None:
    """Law 1 over everything: what the store admitted before, what both admitted without it, what it admits after."""
    async with two_nodes(any_server, "law") as (time, nodes):
        admitted: list[int] = []

        async def ask_all(times: int) -> None:
            for node in nodes:
                for _ in range(times):
                    if (await node.ask()).allowed:
                        admitted.append(time[0])

        await ask_all(BURST)
        assert len(admitted) == BURST
        for node in nodes:
            await node.lose()
        for _ in range(30):
            time[0] += 100_000
            await ask_all(2)
        alone = len(admitted) - BURST
        assert RATE * 2.5 <= alone <= RATE * 3, "close to the whole rate, between them"
        for node in nodes:
            await node.find()
        await ask_all(BURST)
        for _ in range(10):
            time[0] += 100_000
            await ask_all(2)
        for i, start in enumerate(admitted):
            for j in range(i, len(admitted)):
                assert j - i + 1 <= BURST + RATE * (admitted[j] - start) / SECOND_US
        assert len(admitted) >= BURST + RATE * 3, "and it goes on as before"


async def test_who_spent_little_alone_owes_little(any_server: Server) -> None:
    """An hour of the rate is not an hour of debt: what has drained meanwhile is gone, as it is in the store."""
    async with two_nodes(any_server, "little") as (time, nodes):
        node = nodes[0]
        await node.lose()
        for _ in range(100):
            await node.ask()
            time[0] += SECOND_US
        await node.find()
        assert (await node.ask()).limits[0].remaining == BURST - 1


async def test_a_store_that_fails_while_it_is_told_is_told_again(any_server: Server) -> None:
    async with two_nodes(any_server, "again") as (time, nodes):
        node = nodes[0]
        await node.lose()
        await node.ask()
        time[0] += 10 * SECOND_US
        for _ in range(BURST):
            await node.ask()
        standin = node.shield._standin
        assert standin is not None
        assert standin.owing
        node.proxy.requests.set()
        node.proxy.replies.clear()  # it is done, and nobody hears of it
        while not standin._telling:
            await until(lambda: node.store.ready)
            await node.ask(user="nobody")
        node.proxy.replies.set()
        await node.find()
        assert not standin.owing
        assert (await node.ask()).limits[0].remaining == BURST - BURST // 2 - 1, "charged once"


async def test_windows_give_what_is_left_of_them(any_server: Server) -> None:
    async with two_nodes(any_server, "windows", WINDOWS) as (time, nodes):
        node = nodes[0]
        time[0] += 40 * SECOND_US
        await node.lose()
        fixed = [(await node.ask(user="u")).allowed for _ in range(60)]
        assert sum(fixed) == 30, "half of the sixty percent that are to come"
        assert not (await node.ask(tenant="t")).allowed, "and of a sliding one what fades"
        time[0] += 10 * SECOND_US
        assert sum([(await node.ask(tenant="t")).allowed for _ in range(60)]) == 5
        day = await node.ask(ip="192.0.2.1")
        assert day.limits[0].limit == 1200
        time[0] += 100 * SECOND_US
        assert sum([(await node.ask(user="u")).allowed for _ in range(60)]) == 50


async def test_deny_and_allow_stay_what_they_are(any_server: Server) -> None:
    for word, allowed in (("deny", False), ("allow", True)):
        limits = tuple(replace(limit, when_store_fails=word) for limit in POLICY.limits)
        async with two_nodes(any_server, f"word{word}", replace(POLICY, limits=limits)) as (_, nodes):
            await nodes[0].lose()
            decision = await nodes[0].ask()
            assert (decision.allowed, decision.degraded) == (allowed, True)
            await nodes[0].find()


async def test_a_node_that_starts_without_its_store_has_one_unit_of_each_key() -> None:
    async with Shield(POLICY, "redis://127.0.0.1:1?deadline=20ms", clock=lambda: START_US * 1000) as shield:
        for user in ("a", "b"):
            decisions = [await shield.check(Request(user=user)) for _ in range(3)]
            assert [(one.allowed, one.degraded) for one in decisions] == [(True, True), (False, True), (False, True)]


@pytest.mark.parametrize("nodes", [1, 2, 3, 7, 1000])
def test_a_share_is_at_least_one_unit_and_never_too_much(nodes: int) -> None:
    extreme = Numbers(5, 1, 30 * 86_400 * SECOND_US)
    for numbers in (POLICY.limits[0].numbers, extreme, Numbers(10**9, 1, 1), Numbers(0, 1, 1)):
        policy = replace(POLICY, limits=(replace(POLICY.limits[0], numbers=numbers),))
        share = share_of(policy, nodes).limits[0].numbers
        assert share.limit == (max(1, numbers.limit // nodes) if numbers.limit else 0)
        assert 1 <= share.refill_units <= share.refill_us <= MAX_PERIOD_US
        exact = numbers.refill_units / numbers.refill_us / nodes
        assert share.refill_units / share.refill_us <= max(exact * (1 + 1e-12), 1 / MAX_PERIOD_US)
