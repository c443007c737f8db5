"""Refusals that are remembered: an attack costs the server next to nothing, and nobody is refused wrongly."""

from __future__ import annotations

import asyncio

import pytest

from shield import Policy, Request, Shield
from shield.request import Nonce
from shield.store.denials import LONGEST_US, REFRESH_AFTER_US
from tests.servers import Server
from tests.store.wire import Proxy, until
from tests.store.world import START_US, World, world

SECOND_US = 1_000_000
ONE = """
version = 1
name = "one"
[[limit]]
name = "few"
key = ["user"]
rate = "5/h"
cost = "request"
"""


def asked(proxy: Proxy) -> int:
    return proxy.count(b"EVALSHA")


async def test_an_exhausted_key_costs_the_server_next_to_nothing(proxy: Proxy) -> None:
    """Ten seconds of the server's clock, a hundred thousand requests, 64 at once: a command a second."""
    async with world(proxy.url, ONE, prefix="attack") as here:
        admitted = 0
        for round_ in range(1563):
            decisions = await asyncio.gather(*[here.ask() for _ in range(64)])
            admitted += sum(decision.allowed for decision in decisions)
            assert not any(decision.degraded for decision in decisions)
            here.instant_us = START_US + round_ * 10 * SECOND_US // 1563
        assert admitted == 5
        assert asked(proxy) <= 20
        assert here.store.stats()["denials_known"] > 99_000


async def test_it_ends_with_the_second_or_with_what_there_was_to_wait_for(proxy: Proxy) -> None:
    for rate, span_us in (("5/h", LONGEST_US), ("10/s", 100_000)):
        async with world(proxy.url, ONE.replace("5/h", rate), prefix=f"ends{span_us}") as here:
            start_us = here.instant_us = START_US
            assert (await here.ask(cost=int(rate.split("/")[0]))).allowed
            assert not (await here.ask()).allowed
            before = asked(proxy)
            here.instant_us = start_us + min(span_us, REFRESH_AFTER_US) - 1
            refused = await here.ask()
            assert not refused.allowed
            assert asked(proxy) == before
            wait_us = 720 * SECOND_US if span_us == LONGEST_US else span_us
            assert refused.retry_after == (start_us + wait_us - here.instant_us) / SECOND_US
            here.instant_us = start_us + span_us
            assert (await here.ask()).allowed == (rate == "10/s")
            assert asked(proxy) == before + 1


async def test_one_asks_anew_while_the_others_are_still_refused(proxy: Proxy) -> None:
    async with world(proxy.url, ONE, prefix="anew") as here:
        await here.ask(cost=5)
        await here.ask()
        here.instant_us = START_US + REFRESH_AFTER_US
        before = asked(proxy)
        proxy.replies.clear()
        tasks = [asyncio.ensure_future(here.ask()) for _ in range(50)]
        await until(lambda: sum(task.done() for task in tasks) == 49)
        proxy.replies.set()
        assert not any(await asyncio.gather(*tasks))
        assert asked(proxy) == before + 1


async def test_a_smaller_cost_is_asked_and_a_larger_one_is_not(proxy: Proxy) -> None:
    async with world(proxy.url, ONE, prefix="costs") as here:
        await here.ask(cost=2)
        assert not (await here.ask(cost=5)).allowed
        before = asked(proxy)
        assert not (await here.ask(cost=6)).allowed
        assert asked(proxy) == before
        assert (await here.ask(cost=3)).allowed
        assert (await here.ask(cost=0)).allowed, "a peek is never refused"
        never = await here.ask(cost=6)
        assert never.retry_after is None or never.retry_after > 0


async def test_a_refund_is_seen_at_once(any_server: Server) -> None:
    async with world(any_server.url, ONE, prefix="refund") as here:
        charges = here.charges(cost=5)
        await here.store.apply(charges)
        assert not (await here.ask()).allowed
        assert await here.store.settle(here.settlement(charges, b"r", 4))
        assert (await here.ask()).allowed


async def test_a_refusal_heard_after_a_refund_is_not_remembered(proxy: Proxy) -> None:
    async with world(proxy.url, ONE, prefix="race", connections=1) as here:
        charges = here.charges(cost=5)
        await here.store.apply(charges)
        proxy.requests.clear()
        refused = asyncio.ensure_future(here.ask())
        await until(lambda: asked(proxy) == 2)
        settled = asyncio.ensure_future(here.store.settle(here.settlement(charges, b"r", 4)))
        await asyncio.sleep(0)
        proxy.requests.set()
        assert not (await refused).allowed
        assert await settled
        assert (await here.ask()).allowed


async def test_what_comes_back_late_is_seen_at_once(proxy: Proxy) -> None:
    async with world(proxy.url, ONE, prefix="late", deadline="50ms") as here:
        proxy.replies.clear()
        lost = asyncio.ensure_future(here.ask(cost=5))
        await asyncio.wait([lost])
        assert lost.exception() is not None
        proxy.replies.set()
        await until(lambda: here.store.stats()["late_given_back"] == 1)
        assert (await here.ask(cost=5)).allowed


async def test_other_numbers_are_asked(proxy: Proxy) -> None:
    """A plan, a reload: what was refused under some numbers says nothing about others."""
    text = ONE + 'plans = { pro = { rate = "50/h" } }\n'
    async with world(proxy.url, text, prefix="numbers") as here:
        await here.ask(cost=5)
        assert not (await here.ask()).allowed
        assert (await here.ask(plan="pro")).allowed
        assert not (await here.ask()).allowed


async def test_a_reload_is_seen_at_once(any_server: Server) -> None:
    async with Shield(Policy.parse(ONE), f"{any_server.url}?prefix=reload&deadline=5s") as shield:
        for _ in range(6):
            last = await shield.check(Request(user="u"))
        assert not last.allowed
        await shield.replace_policy(Policy.parse(ONE.replace("5/h", "50/h")))
        assert (await shield.check(Request(user="u"))).allowed


async def test_a_reset_is_seen_when_the_store_is_told(server: Server) -> None:
    async with world(server.url, ONE, prefix="reset") as here:
        await here.ask(cost=5)
        assert not (await here.ask()).allowed
        with server.client() as client:
            client.delete(*client.keys("reset:*"))
        assert not (await here.ask()).allowed, "another node's reset: too strict for a second"
        here.store.forget_denials()
        assert (await here.ask()).allowed


async def test_a_sliding_window_is_remembered_into_the_next_one(proxy: Proxy) -> None:
    """Refused at the end of a window, and at the start of the next with the wait that the server would say."""
    text = ONE.replace('rate = "5/h"', 'algorithm = "sliding-window"\nrate = "5/2s"')
    async with world(proxy.url, text, prefix="slide") as here:
        here.instant_us = START_US + 1_900_000
        await here.ask(cost=5)
        first = await here.ask()
        assert first.retry_after == 0.5, "a fifth of the next window"
        before = asked(proxy)
        here.instant_us = START_US + 2_200_000
        charges = here.charges()
        await here.store.apply(charges)
        assert asked(proxy) == before
        assert (charges.admitted, charges.waits()) == (False, [200_000])
        assert charges.trace()[0]["state"] == [0, 5, START_US + 2 * SECOND_US, START_US + 4 * SECOND_US]
        here.instant_us += 200_000
        assert (await here.ask()).allowed


@pytest.mark.parametrize("limit", ["count_denied = true", 'algorithm = "concurrency"'])
async def test_what_must_not_be_remembered_is_not(proxy: Proxy, limit: str) -> None:
    text = ONE + limit + "\n"
    if "concurrency" in limit:
        text = text.replace('rate = "5/h"', 'limit = 5\nttl = "60s"').replace('cost = "request"\n', "")
    async with world(proxy.url, text, prefix=f"not{len(limit)}") as here:
        for _ in range(5):
            assert (await here.ask()).allowed
        before = asked(proxy)
        for _ in range(10):
            assert not (await here.ask()).allowed
        assert asked(proxy) == before + 10


async def test_a_nonce_is_taken_to_the_store(proxy: Proxy) -> None:
    async with world(proxy.url, ONE + "[guard.replay]\n", prefix="nonce") as here:
        await here.ask(cost=5)
        assert not (await here.ask()).allowed
        before = asked(proxy)
        assert not (await here.ask(nonce=Nonce("n", 1_763_900_000))).allowed
        assert asked(proxy) == before + 1


async def test_a_neighbour_that_is_not_known_is_not_shown(any_server: Server) -> None:
    """What a remembered refusal says is what the store said, and no more."""
    text = ONE + '[[limit]]\nname = "all"\nkey = ["tenant"]\nrate = "100/h"\n'
    async with world(any_server.url, text, prefix="shown") as here:
        await here.ask(cost=5, tenant="t")
        first, second = await here.ask(tenant="t"), await here.ask(tenant="t2")
        assert [status.name for status in first.limits] == ["few", "all"]
        assert [status.name for status in second.limits] == ["few"]
        assert (second.reason, second.violated, second.retry_after) == ("limit", ["few"], first.retry_after)
        assert not second.degraded
        assert await here.used("all", tenant="t2", user="v") == 1, "this look itself"


async def test_it_is_bounded(any_server: Server) -> None:
    async with world(any_server.url, ONE, prefix="bound", deny_cache=100) as here:
        for i in range(150):
            await here.ask(user=f"u{i}", cost=6)
        assert here.store._denials is not None
        assert len(here.store._denials) == 100


async def test_none_are_remembered_where_that_is_switched_off(proxy: Proxy) -> None:
    async with world(proxy.url, ONE, prefix="off", deny_cache=0) as here:
        before = asked(proxy)
        for _ in range(5):
            await here.ask(cost=6)
        assert asked(proxy) == before + 5


def test_a_clock_that_goes_back_ends_what_is_remembered() -> None:
    here = World("unix:///unused", ONE)
    step = here.store._forms.step(here.charges())
    denials = here.store._denials
    assert denials is not None
    denials.note(step, START_US, [1, 5, 0, START_US, 0], [720 * SECOND_US], 10, 11)
    assert denials.find(step, 12, 1) is not None
    assert denials.find(step, 9, 1) is None


def test_a_refusal_asked_before_and_heard_after_something_came_back_is_not_remembered() -> None:
    """Two connections: the refund was faster than the refusal."""
    here = World("unix:///unused", ONE)
    step = here.store._forms.step(here.charges())
    denials = here.store._denials
    assert denials is not None
    _, cell, form, _ = step.shape.deniable[0]
    denials.forget(step.cells[cell], form.id, 20)
    denials.note(step, START_US, [1, 5, 0, START_US, 0], [720 * SECOND_US], 20, 30)
    assert denials.find(step, 31, 1) is None
    denials.note(step, START_US, [1, 5, 0, START_US, 0], [720 * SECOND_US], 21, 30)
    assert denials.find(step, 31, 1) is not None
