"""One truth: every store gives the oracle's answers, and so do the tables of known answers."""

from __future__ import annotations

import asyncio
import random

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from shield import Policy, Request, Shield
from shield.policy import SizeGuard
from tests.golden import Group, groups
from tests.laws.against_oracle import DAY_US, Game, random_policy, us
from tests.laws.conftest import LARGE_TABLE, START_US
from tests.oracle import Status
from tests.store.clusters import ClusterOf


@pytest.mark.parametrize("seed", range(40))
async def test_every_store_answers_as_the_oracle(backend, make_world, seed):
    source = random.Random(seed)
    world = await make_world(random_policy(source))
    in_parts = isinstance(backend, ClusterOf)
    await Game(world.shield, world.set_clock, source, START_US, in_parts=in_parts).play(80)


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(source=st.randoms(use_true_random=False), start_us=st.sampled_from([40 * DAY_US, START_US, 2**51]))
def test_memory_answers_as_the_oracle(source, start_us):
    now = [start_us]

    def set_clock(now_us: int) -> None:
        now[0] = now_us

    async def play() -> None:
        shield = Shield(random_policy(source), LARGE_TABLE, clock=lambda: now[0] * 1000)
        await Game(shield, set_clock, source, start_us).play(40)

    asyncio.run(play())


@pytest.mark.parametrize("group", groups(), ids=lambda group: group.id)
async def test_known_answers(make_world, group: Group):
    world = await make_world(Policy(limits=group.limits, size=SizeGuard(max_body_bytes=10)))
    receipts: dict[str, object] = {}
    found: list[str] = []
    for step in group.steps:
        admitted, decision, statuses = 0, None, {}
        for now_us in step.instants():
            world.set_clock(now_us)
            if step.do in ("settle", "release"):
                earlier = receipts[step.of]
                if step.do == "settle":
                    done = await world.shield.report(earlier.receipt, cost=step.cost)
                else:
                    done = await world.shield.release(earlier.leases) > 0
                found += step.disagreements(done, {})
                continue
            size = 11 if step.do == "refused" else 1
            request = Request(user=step.user, tenant=step.tenant, plan=step.plan, cost=step.cost, bytes=size)
            decision = await world.shield.check(request)
            admitted += decision.allowed
        if decision is None:
            continue
        if step.label is not None:
            receipts[step.label] = decision
        for exact in decision.charges.trace():
            wait_us, reset_us = exact["retry_after_us"], exact["reset_after_us"]
            fits = exact["verdict"] == 0
            statuses[exact["limit"]] = Status(fits, exact["numbers"][0], exact["remaining"], wait_us, reset_us)
        if step.do == "refused":
            assert not decision.allowed
            continue
        found += step.disagreements(decision.allowed, statuses, us(decision.retry_after), admitted)
    assert found == []
