"""Leases of one node and of two: what is decided without the store, what is not, and what becomes of the rest."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator
from typing import Any

import pytest

from shield import Policy, Request, Shield
from shield.compile import compile_policy
from shield.core import Decision, Registry
from shield.errors import StoreError
from shield.request import IdempotencyKey, Nonce
from shield.store.leases import DRIFT, IDLE_WINDOWS, TTL_US, Leases
from tests.servers import Server
from tests.store.wire import Proxy, until
from tests.store.world import START_US, World

BURST = 2_000
ONE = """
version = 1
name = "one"
[[limit]]
name = "hot"
key = ["tenant"]
rate = "20000/s"
burst = 2000
lease = "auto"
cost = "request"
plans = { pro = { rate = "40000/s", burst = 4000 } }
"""
ALSO = ONE + '[[limit]]\nname = "also"\nkey = ["user"]\nrate = "1000/s"\nburst = 500\n'
SHADOW = ONE + '[[limit]]\nname = "shadow"\nkey = ["user"]\nrate = "100/s"\nlease = "auto"\nmode = "shadow"\n'


class Node(World):
    """A node whose clock and server's clock are the test's: both stand at `instant_us` and move together."""

    nodes = 1

    def __init__(self, url: str, policy: str = ONE, **options: Any) -> None:
        super().__init__(url, policy, **options)
        self.registry = Registry()
        self.compiled = compile_policy(self.policy, self.registry)
        self.leases = self.store._leases = Leases(
            self.store._forms,
            self.store._servers.run,
            self.store._instants,
            nodes=lambda: self.nodes,
            slack_ms=60_000,
            clock=lambda: (self.instant_us or 0) * 1000,
        )

    async def asks(self, times: int, **facts: Any) -> list[Decision]:
        return [await self.ask(**{"tenant": "acme", **facts}) for _ in range(times)]

    async def heats(self, **facts: Any) -> int:
        """Until units are held, as many as this node may. How many it admitted on the way."""
        admitted = 0
        while self.held < BURST // 2 // self.nodes // 2:
            admitted += sum(decision.allowed for decision in await self.asks(50, **facts))
            await self.quiet()
        return admitted

    async def idle(self) -> None:
        """Until nobody has asked for long enough."""
        for _ in range(IDLE_WINDOWS + 2):
            self.leases._tick()
            await self.quiet()

    async def quiet(self) -> None:
        """Until nothing is on its way."""
        await until(lambda: not self.leases._tasks)

    @property
    def held(self) -> int:
        now_us = self.leases.purses.now_us()
        return sum(account.purse.left(now_us) for account in self.leases._accounts.values())

    @property
    def commands(self) -> int:
        return self.store.stats()["checks"] + self.store.stats()["lease_commands"]


@contextlib.asynccontextmanager
async def node(url: str, policy: str = ONE, **options: Any) -> AsyncIterator[Node]:
    made = Node(url, policy, **{"prefix": f"n{time.monotonic_ns()}", **options})
    await made.store.open()
    try:
        yield made
    finally:
        await made.store.close()


async def test_a_hot_key_costs_few_commands_and_the_quota_is_what_it_was(server: Server) -> None:
    async with node(server.url) as here:
        admitted = sum(decision.allowed for decision in await here.asks(3 * BURST))
        assert here.commands < 100
        await here.quiet()
        admitted += sum(decision.allowed for decision in await here.asks(10))
        assert BURST * 0.99 <= admitted <= BURST
        for _ in range(20):
            here.instant_us = (here.instant_us or 0) + 10_000
            await here.quiet()
            admitted += sum(decision.allowed for decision in await here.asks(300))
        assert 3 * BURST - BURST // 2 <= admitted <= 3 * BURST, "the last lease is on its way"


async def test_a_key_that_is_not_asked_for_often_is_not_leased(any_server: Server) -> None:
    async with node(any_server.url) as here:
        await here.asks(7)
        assert here.store.stats()["lease_commands"] == 0
        assert here.store.stats()["checks"] == 7


async def test_two_nodes_share_what_there_is(server: Server) -> None:
    async with node(server.url, prefix="both") as here, node(server.url, prefix="both") as there:
        here.nodes = there.nodes = 2
        admitted = 0
        for _ in range(BURST // 5):
            for one in (here, there):
                admitted += sum(decision.allowed for decision in await one.asks(10))
        assert BURST - BURST // 4 <= admitted <= BURST, "the next lease of either is on its way"
        assert here.commands + there.commands < BURST / 5


async def test_it_is_spent_for_nine_tenths_of_its_life_after_it_was_asked_for(any_server: Server) -> None:
    async with node(any_server.url) as here:
        await here.heats()
        await here.quiet()
        before = here.commands
        here.instant_us = START_US + TTL_US - TTL_US // DRIFT - 1
        assert (await here.asks(1))[0].allowed
        assert here.commands == before
        here.instant_us += 1
        assert here.held == 0
        assert (await here.asks(1))[0].allowed, "by the store"
        assert here.commands > before


async def test_its_life_counts_from_when_it_was_asked_for(any_server: Server) -> None:
    async with node(any_server.url) as here:
        run = here.leases._run

        async def slow(call: bytes, key: bytes, **options: Any) -> Any:
            reply = await run(call, key, **options)
            here.instant_us = (here.instant_us or 0) + TTL_US // 2
            return reply

        here.leases._run = slow
        await here.asks(8)
        await here.quiet()
        assert here.held > 0
        assert here.instant_us == START_US + TTL_US // 2
        here.instant_us = START_US + TTL_US - TTL_US // DRIFT - 1
        assert here.held > 0
        here.instant_us += 1
        assert here.held == 0
        here.leases._run = run


async def test_a_grant_that_comes_late_is_given_back(proxy: Proxy) -> None:
    async with node(proxy.url, deadline="50ms", deny_cache=0) as here:
        await here.asks(7)
        proxy.replies.clear()
        with pytest.raises(StoreError):
            await here.ask(tenant="acme")
        await until(lambda: here.store.stats()["lease_failures"] == 1)
        proxy.replies.set()
        await until(lambda: here.store.stats()["lease_late"] == 1)
        await until(lambda: here.store.stats()["late_given_back"] == 1)
        await here.quiet()
        assert here.held == 0
        assert await here.used("hot", tenant="acme", plan="pro") == 7, "only what was admitted"


async def test_a_grant_that_no_replica_has_heard_of_is_given_back(any_server: Server) -> None:
    async with node(any_server.url, deadline="50ms", wait_replicas=1) as here:
        asked = await asyncio.gather(*[here.ask(tenant="acme") for _ in range(20)], return_exceptions=True)
        assert all(isinstance(one, StoreError) for one in asked)
        await until(lambda: here.store.stats()["lease_late"] >= 1)
        assert here.held == 0


async def test_what_is_not_wanted_any_more_comes_back(any_server: Server) -> None:
    async with node(any_server.url) as here:
        admitted = await here.heats()
        assert here.held > 0
        await here.idle()
        assert len(here.leases.purses) == 0
        assert await here.used("hot", tenant="acme", plan="pro") == admitted


async def test_what_is_held_comes_back_when_a_node_ends(any_server: Server) -> None:
    async with node(any_server.url, prefix="end", instant_us=START_US) as there:
        async with node(any_server.url, prefix="end", instant_us=START_US) as here:
            admitted = await here.heats()
            assert await there.used("hot", tenant="acme") > admitted, "what is out counts as used"
        assert await there.used("hot", tenant="acme") == admitted


async def test_units_of_other_numbers_are_not_spent_and_given_back(any_server: Server) -> None:
    async with node(any_server.url) as here:
        admitted = await here.heats()
        larger = Policy.parse(ONE.replace("burst = 2000", "burst = 3000"))
        here.compiled = compile_policy(larger, here.registry)
        before = here.store.stats()["checks"]
        assert (await here.asks(1))[0].allowed
        assert here.store.stats()["checks"] == before + 1
        await here.idle()
        assert await here.used("hot", tenant="acme") == admitted + 1
        assert await here.heats() > 0, "and others are taken"


async def test_a_policy_that_is_not_the_one_in_force_opens_nothing(any_server: Server) -> None:
    """A throttled caller's: its numbers are not those that everybody else's units would be taken under."""
    async with node(any_server.url) as here:
        here.leases.purses.policy = compile_policy(Policy.parse(ONE), here.registry)
        await here.asks(50)
        assert here.store.stats()["lease_commands"] == 0


async def test_a_reset_gives_everything_back(any_server: Server) -> None:
    async with node(any_server.url) as here:
        admitted = await here.heats()
        here.store.forget_denials()
        await here.quiet()
        assert here.held == 0
        assert await here.used("hot", tenant="acme") == admitted


@pytest.mark.parametrize(
    "facts",
    [
        {"nonce": Nonce("n", 1)},
        {"idempotency": IdempotencyKey("k")},
        {"plan": "pro"},
        {"cost": BURST // 2 + 1},
    ],
)
async def test_what_must_be_asked_is_asked(any_server: Server, facts: dict[str, Any]) -> None:
    async with node(any_server.url) as here:
        await here.heats()
        before = here.store.stats()["checks"]
        await here.asks(3, **facts)
        assert here.store.stats()["checks"] == before + 3


async def test_with_a_limit_that_is_not_leased_the_step_goes_whole(any_server: Server) -> None:
    async with node(any_server.url, ALSO) as here:
        decisions = await here.asks(600, user="u")
        assert sum(decision.allowed for decision in decisions) == 500
        assert here.store.stats()["lease_commands"] == 0
        assert await here.used("hot", tenant="acme", user="v") == 500, "what the other refused cost nothing"


async def test_all_or_nothing_here_too(any_server: Server) -> None:
    both = ONE + '[[limit]]\nname = "also"\nkey = ["user"]\nrate = "1/s"\nburst = 200\nlease = "auto"\n'
    async with node(any_server.url, both) as here:
        admitted = sum(decision.allowed for decision in await here.asks(600, user="u"))
        assert 190 <= admitted <= 200
        assert here.leases.purses.decisions > 50
        here.store.forget_denials()
        await here.quiet()
        assert await here.used("hot", tenant="acme") == admitted


async def test_a_shadow_limit_refuses_nothing(any_server: Server) -> None:
    async with node(any_server.url, SHADOW) as here:
        decisions = await here.asks(400, user="u")
        assert all(decision.allowed for decision in decisions)
        assert decisions[-1].shadow == ["shadow"]


async def test_a_refusal_says_when_at_the_latest(any_server: Server) -> None:
    async with node(any_server.url) as here:
        refused = [decision for decision in await here.asks(2 * BURST) if not decision.allowed]
        await here.quiet()
        for _ in range(20):
            here_now = here.leases.purses.decisions
            decision = (await here.asks(1))[0]
            await here.quiet()
            if decision.allowed:
                continue
            refused.append(decision)
            assert decision.retry_after is not None
            assert decision.limits[0].remaining == 0
            assert (decision.status, decision.reason, decision.degraded) == (429, "limit", False)
            here.instant_us = (here.instant_us or 0) + round(decision.retry_after * 1e6)
            assert (await here.asks(1))[0].allowed, f"after {here_now} decisions"
        assert len(refused) > BURST / 2


async def test_what_is_held_is_spent_while_the_store_is_away(proxy: Proxy) -> None:
    async with node(proxy.url, deadline="50ms") as here:
        await here.heats()
        proxy.requests.clear()
        held = here.held
        decisions = await here.asks(held - 1)
        assert all(decision.allowed and not decision.degraded for decision in decisions)
        with pytest.raises(StoreError):
            await here.asks(held)
        proxy.requests.set()


async def test_a_store_that_lost_its_state_is_told_what_was_spent(any_server: Server) -> None:
    async with node(any_server.url) as here:
        await here.heats()
        with any_server.client() as client:
            client.delete(*[key for key in client.keys(f"{here.store._forms.prefix}:*") if b"~" not in key])
        await here.asks(here.held - 5)
        here.leases._start(next(iter(here.leases._accounts.values())))
        await here.quiet()
        assert here.store.stats()["lease_lost"] >= 1
        assert await here.used("hot", tenant="acme", plan="pro") > 0


async def test_a_receipt_of_what_a_lease_paid_is_settled(any_server: Server) -> None:
    policy = Policy.parse(ONE)
    async with Shield(policy, f"{any_server.url}?prefix=receipts&deadline=5s") as shield:
        decision = await shield.check(Request(tenant="acme", cost=10))
        for _ in range(100):
            decision = await shield.check(Request(tenant="acme", cost=10))
        assert shield.stats()["lease_decisions"] > 0
        assert decision.receipt is not None
        assert await shield.report(decision.receipt, cost=1)
        assert not await shield.report(decision.receipt, cost=1)


async def test_other_stores_take_the_same_policy() -> None:
    async with Shield(Policy.parse(ONE)) as shield:
        allowed = [(await shield.check(Request(tenant="acme"))).allowed for _ in range(10)]
        assert all(allowed)


async def test_a_trace_says_who_decided(any_server: Server) -> None:
    lines: list[dict[str, Any]] = []
    async with Shield(Policy.parse(ONE), f"{any_server.url}?prefix=trace&deadline=5s", trace=lines.append) as shield:
        for _ in range(50):
            await shield.check(Request(tenant="acme"))
    leased = [line for line in lines if line["charges"][0]["leased"]]
    assert 0 < len(leased) < 50
    now_us = time.time_ns() // 1000
    assert all(now_us - 60_000_000 < line["now_us"] <= now_us for line in leased)


@pytest.mark.skipif(not hasattr(time, "CLOCK_BOOTTIME"), reason="no such clock here")
def test_the_clock_counts_suspend() -> None:
    from shield.core import Purses

    before = time.clock_gettime_ns(time.CLOCK_BOOTTIME) // 1000
    now_us = Purses(lambda purse: None).now_us()
    assert before <= now_us <= time.clock_gettime_ns(time.CLOCK_BOOTTIME) // 1000
