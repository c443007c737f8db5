"""Waiting for one's turn, and holding a place: in the order of arrival, bounded, cancellable, to the microsecond."""

from __future__ import annotations

import asyncio

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shield import Policy, Refused, Request, RequestError, Shield, pacing
from shield.testing import FailingStore, ManualClock

POLICY = """
version = 1
[[limit]]
name = "outbound"
key = ["tenant"]
rate = "10/s"
burst = 2
count_denied = true
match = { path = "/never" }
[[limit]]
name = "exports"
key = ["tenant", "attributes.kind"]
algorithm = "concurrency"
limit = 2
ttl = "60s"
[[limit]]
name = "one"
key = ["tenant"]
algorithm = "concurrency"
limit = 1
ttl = "60s"
"""


@pytest.fixture
def clock():
    return ManualClock()


@pytest.fixture
def shield(clock):
    return Shield(Policy.parse(POLICY), clock=clock)


class Sleeper:
    """Sleeps by moving the clock, and oversleeps as a busy loop does."""

    def __init__(self, clock: ManualClock, late_us: int = 0) -> None:
        self.clock = clock
        self.late_us = late_us
        self.slept: list[float] = []

    async def __call__(self, seconds: float) -> None:
        self.slept.append(seconds)
        await asyncio.sleep(0)
        self.clock.advance(us=round(seconds * 1e6) + self.late_us)


async def test_waits_exactly_as_long_as_it_takes(shield, clock):
    sleeper, start_ns = Sleeper(clock), clock.now_ns
    for number in range(6):
        decision = await shield.wait("outbound", "acme", sleep=sleeper)
        assert decision.allowed
        assert clock.now_ns - start_ns == max(0, number - 1) * 100_000_000
    assert sleeper.slept == [0.1] * 4


async def test_what_is_slept_too_long_does_not_add_up(shield, clock):
    """100 calls at 10 a second take 9.8 s past the burst, however late each sleep ends."""
    sleeper, start_ns = Sleeper(clock, late_us=7_000), clock.now_ns
    for _ in range(100):
        assert await shield.wait("outbound", "acme", sleep=sleeper)
    took_s = (clock.now_ns - start_ns) / 1e9
    assert 9.8 <= took_s <= 9.8 + 0.008


async def test_turns_come_in_the_order_of_arrival_whatever_they_cost(shield, clock):
    sleeper, order = Sleeper(clock), []

    async def client(number: int, cost: int) -> None:
        assert await shield.wait("outbound", "acme", cost=cost, sleep=sleeper)
        order.append(number)

    await asyncio.gather(*(client(number, 2 if number % 3 == 0 else 1) for number in range(12)))
    assert order == list(range(12))


async def test_other_keys_do_not_wait(shield, clock):
    asleep = asyncio.Event()

    async def forever(seconds: float) -> None:
        asleep.set()
        await asyncio.Event().wait()

    await shield.wait("outbound", "acme", cost=2)
    waiting = asyncio.create_task(shield.wait("outbound", "acme", sleep=forever))
    await asleep.wait()
    assert await shield.wait("outbound", "globex")
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting
    assert shield._lines == {}


async def test_refuses_at_once_what_cannot_be_in_time(shield, clock):
    sleeper = Sleeper(clock)
    await shield.wait("outbound", "acme", cost=2)
    decision = await shield.wait("outbound", "acme", cost=2, timeout_s=0.15, sleep=sleeper)
    assert (decision.allowed, decision.status, decision.retry_after) == (False, 429, 0.2)
    never = await shield.wait("outbound", "acme", cost=3, sleep=sleeper)
    assert (never.allowed, never.retry_after) == (False, None)
    assert sleeper.slept == []
    # None of that was charged, though the limit counts refusals of requests.
    assert (await shield.wait("outbound", "acme", timeout_s=0.2, sleep=sleeper)).allowed
    assert sleeper.slept == [0.1]


async def test_a_line_is_bounded_and_its_end_is_turned_away(shield, clock, monkeypatch):
    monkeypatch.setattr(pacing, "MAX_WAITERS_PER_KEY", 2)
    go_on = asyncio.Event()

    async def sleep(seconds: float) -> None:
        await go_on.wait()
        clock.advance(us=round(seconds * 1e6))

    await shield.wait("outbound", "acme", cost=2)
    waiting = [asyncio.create_task(shield.wait("outbound", "acme", sleep=sleep)) for _ in range(3)]
    await asyncio.sleep(0)
    away = await shield.wait("outbound", "acme", sleep=sleep)
    assert (away.allowed, away.status, away.detail) == (False, 429, "too many are waiting for it already")
    go_on.set()
    assert shield.stats()["turns_waiting"] == 2
    assert all(decision.allowed for decision in await asyncio.gather(*waiting))
    assert shield.stats()["turns_refused"] == 1
    assert (shield._lines, shield._waiters) == ({}, 0)


async def test_who_waits_in_line_too_long_is_turned_away(shield, clock):
    async def forever(seconds: float) -> None:
        await asyncio.Event().wait()

    await shield.wait("outbound", "acme", cost=2)
    first = asyncio.create_task(shield.wait("outbound", "acme", sleep=forever))
    await asyncio.sleep(0)
    late = await shield.wait("outbound", "acme", timeout_s=0.01, sleep=forever)
    assert (late.allowed, late.detail) == (False, "it was not its turn in time")
    first.cancel()
    await asyncio.gather(first, return_exceptions=True)
    assert (shield._lines, shield._waiters) == ({}, 0)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.sampled_from(["stays", "cancelled"]), st.integers(0, 3)), min_size=1, max_size=8))
def test_whoever_is_cancelled_takes_nothing_and_holds_nobody_up(clients):
    async def run() -> None:
        clock = ManualClock()
        shield = Shield(Policy.parse(POLICY), clock=clock)
        sleeper = Sleeper(clock)
        await shield.wait("outbound", "acme", cost=2)
        tasks = [asyncio.create_task(shield.wait("outbound", "acme", sleep=sleeper)) for _ in clients]
        for task, (fate, turns) in zip(tasks, clients, strict=True):
            for _ in range(turns):
                await asyncio.sleep(0)
            if fate == "cancelled":
                task.cancel()
        outcomes = await asyncio.gather(*tasks, return_exceptions=True)
        for outcome, (fate, _) in zip(outcomes, clients, strict=True):
            assert fate == "cancelled" or outcome.allowed
        assert (shield._lines, shield._waiters) == ({}, 0)

    asyncio.run(run())


async def test_a_slot_is_a_place_for_as_long_as_its_block(shield):
    key = {"tenant": "acme", "attributes.kind": "pdf"}
    async with shield.slot("exports", key) as decision:
        assert decision.limits[0].remaining == 1
        async with shield.slot("exports", Request(tenant="acme", attributes={"kind": "pdf"})):
            with pytest.raises(Refused) as refused:
                async with shield.slot("exports", key, timeout_s=0):
                    pytest.fail("there was no place")
            assert refused.value.decision.reason == "concurrency"
            async with shield.slot("exports", {"tenant": "acme", "attributes.kind": "csv"}):
                pass
    with pytest.raises(ZeroDivisionError):
        async with shield.slot("exports", key):
            raise ZeroDivisionError
    async with shield.slot("exports", key) as decision:
        assert decision.limits[0].remaining == 1


async def test_a_place_that_comes_free_here_is_taken_at_once_and_in_order(shield):
    order = []

    async def export(number: int) -> None:
        async with shield.slot("one", "acme"):
            order.append(number)
            await asyncio.sleep(0)

    async with asyncio.timeout(0.5):  # polling alone would take a second for each
        await asyncio.gather(*(export(number) for number in range(20)))
    assert order == list(range(20))


async def test_slots_of_a_remote_store(valkey):
    async with Shield(Policy.parse(POLICY), valkey.url + "?deadline=5s") as shield:
        async with shield.slot("one", "remote"):
            with pytest.raises(Refused):
                async with shield.slot("one", "remote", timeout_s=0):
                    pass
        async with shield.slot("one", "remote", timeout_s=0):
            pass
        assert await shield.wait("outbound", "remote")


async def test_a_store_that_fails_is_stood_in_for(clock):
    store = FailingStore(Shield(Policy.parse(POLICY), clock=clock).store)
    shield = Shield(Policy.parse(POLICY), store, clock=clock)
    store.fail_always("refused")
    decision = await shield.wait("outbound", "acme", timeout_s=0)
    assert decision.degraded


@pytest.mark.parametrize(
    ("name", "key", "field"),
    [
        ("nothing", "acme", "name"),
        ("one", "acme", "name"),
        ("outbound", {"user": "u"}, "key"),
        ("outbound", None, "key"),
        ("exports", "acme", "key"),
    ],
)
async def test_names_and_keys_that_do_not_fit(shield, name, key, field):
    asked = shield.slot(name, key).__aenter__() if name == "exports" else shield.wait(name, key)
    with pytest.raises(RequestError) as wrong:
        await asked
    assert wrong.value.field == field


async def test_values_that_are_none_are_refused_and_take_nothing(shield):
    assert (await shield.wait("outbound", "")).reason == "missing"
    assert (await shield.wait("outbound", "acme", cost=-1)).reason == "invalid"
