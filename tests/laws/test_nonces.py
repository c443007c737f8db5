"""Replay protection, held against every store: a request is let through once, and never when that cannot be known."""

from __future__ import annotations

import asyncio
import dataclasses
import random

import pytest

from shield import Decision, Policy
from shield.request import Nonce
from tests.laws.conftest import START_US, MakeWorld, World
from tests.oracle_nonces import Nonces

SECOND_US = 1_000_000
MINUTE_US = 60 * SECOND_US
SKEW_US, WINDOW_US = 30 * SECOND_US, 5 * MINUTE_US
REPLAY = """
version = 1
name = "nonces"

[[limit]]
name = "few"
key = ["user"]
rate = "1/h"
burst = 2

[[limit]]
name = "penalties"
key = ["tenant"]
rate = "100/h"
count_denied = true

[guard.replay]
required = true
"""
READY_US = START_US + SKEW_US + 1
"""When the store has been there for long enough."""


async def ask(world: World, value: str | None, stamp_us: int, **facts: object) -> Decision:
    nonce = Nonce(value, stamp_us / SECOND_US)
    return await world.ask(**{"tenant": "t", "user": "u", "nonce": nonce, **facts})


async def first_contact(world: World, *tenants: str | None) -> None:
    """A store that is several servers knows nonces since a tenant's first, and that is now."""
    for tenant in tenants:
        assert (await ask(world, "first", world.now_us - 600 * SECOND_US, tenant=tenant)).reason == "stale"


async def ready(make_world: MakeWorld, policy: str | Policy = REPLAY, **options: object) -> World:
    """A store that has been there for as long as a clock may be ahead."""
    world = await make_world(policy, **options)
    await world.ask(tenant="t", method="POST", path="/orders/1", nonce=Nonce("first", 1))
    world.set_clock(READY_US)
    return world


# (seconds since the store is there, tenant, nonce, its timestamp, what comes of it): window 300, skew 30
TABLE: list[tuple[float, str, str, float, str]] = [
    (0, "t", "a", 0, "stale"),  # it may have been used before the store was there
    (0, "t", "a", 30, "stale"),
    (0, "t", "a", 30.000001, "stale"),  # and that is too far ahead
    (0.000001, "t", "a", 30.000001, "ok"),
    (0.000001, "t", "a", 30.000001, "replay"),
    (31, "t", "a", 31, "replay"),  # another timestamp makes no other nonce
    (31, "o", "a", 31, "ok"),  # another tenant does
    (31, "", "a", 31, "ok"),  # and none is none of them
    (31, "", "a", 31, "replay"),
    (330.000001, "t", "a", 30.000001, "replay"),  # the last instant at which it is not stale
    (330.000002, "t", "a", 30.000001, "stale"),
    (330.000002, "t", "a", 331, "replay"),
    (360.000000, "t", "a", 360, "replay"),
    (360.000001, "t", "a", 360, "ok"),  # held until 30.000001 + 300 + 30
    (360.000001, "t", "b", 390.000001, "ok"),
    (360.000001, "t", "c", 390.000002, "stale"),
    (360.000001, "t", "d", 60.000001, "ok"),
    (360.000001, "t", "e", 60, "stale"),
    (400, "o", "a", 400, "ok"),
    (400, "ten", "anta", 400, "ok"),
    (400, "tena", "nta", 400, "ok"),  # where the one ends and the other begins makes a difference
]


async def test_the_golden_table(make_world: MakeWorld) -> None:
    world = await make_world("version = 1\nname = 't'\n[guard.replay]\n")
    await first_contact(world, "t", "o", "", "ten", "tena")
    oracle = Nonces(START_US, WINDOW_US, SKEW_US)
    for row, (now, tenant, value, stamp, expected) in enumerate(TABLE):
        now_us, stamp_us = START_US + round(now * SECOND_US), START_US + round(stamp * SECOND_US)
        world.set_clock(now_us)
        reason = oracle.judge(now_us, (tenant, value), stamp_us)
        if reason is None:
            oracle.take((tenant, value), stamp_us)
        assert (reason or "ok") == expected, f"oracle, row {row}"
        decision = await ask(world, value, stamp_us, tenant=tenant)
        assert (decision.reason, decision.allowed) == (expected, expected == "ok"), f"row {row}"
        assert decision.status == {"ok": 200, "stale": 401, "replay": 409}[expected]


async def test_a_refused_request_burns_nothing(make_world: MakeWorld) -> None:
    """Law 2: what a quota denies may come again with the same nonce, and a used one is charged nothing."""
    world = await ready(make_world)
    for value in ("a", "b"):
        assert (await ask(world, value, READY_US)).allowed
    assert (await ask(world, "c", READY_US)).reason == "limit"
    assert (await ask(world, "c", READY_US)).reason == "limit"
    assert (await ask(world, "a", READY_US)).reason == "replay", "the nonce is looked at before any quota"
    assert (await ask(world, "a", READY_US, user="other")).reason == "replay"
    assert await world.remaining("few", user="other", tenant="t", nonce=Nonce("x", READY_US / SECOND_US)) == 2
    assert (await ask(world, "c", READY_US, user="third")).allowed, "nobody has used it"
    assert (await ask(world, "c", READY_US, user="fourth")).reason == "replay"
    # 3 admitted and 6 refused, the peek not among them.
    assert (
        await world.remaining("penalties", user="v", tenant="t", nonce=Nonce("y", READY_US / SECOND_US)) == 100 - 3 - 6
    )


async def test_all_at_once_only_one(make_world: MakeWorld) -> None:
    world = await ready(make_world)
    found = await asyncio.gather(*(ask(world, "n", READY_US, user=f"u{i}") for i in range(20)))
    assert sorted(decision.reason for decision in found) == ["ok"] + ["replay"] * 19


async def test_waiting_helps_where_it_is_said_to(make_world: MakeWorld) -> None:
    world = await make_world(REPLAY)
    decision = await ask(world, "n", START_US)
    assert (decision.reason, decision.retry_after) == ("stale", 30.000001)
    world.set_clock(START_US + SKEW_US)
    assert (await ask(world, "n", START_US + SKEW_US)).reason == "stale"
    world.set_clock(READY_US)
    assert (await ask(world, "n", READY_US)).allowed, "made anew it is let through"
    # Too far ahead: right by waiting, to the microsecond.
    ahead_us = READY_US + 100 * SECOND_US
    decision = await ask(world, "m", ahead_us)
    assert (decision.reason, decision.retry_after) == ("stale", 70.0)
    assert decision.headers["Retry-After"] == "70"
    world.set_clock(READY_US + 70 * SECOND_US - 1)
    assert (await ask(world, "m", ahead_us)).reason == "stale"
    world.set_clock(READY_US + 70 * SECOND_US)
    assert (await ask(world, "m", ahead_us)).allowed
    for never in (START_US - 600 * SECOND_US, START_US):
        world.set_clock(READY_US + 400 * SECOND_US)
        decision = await ask(world, "o", never)
        assert (decision.reason, decision.retry_after) == ("stale", None)
        assert "Retry-After" not in decision.headers


@pytest.mark.parametrize(
    ("nonce", "reason", "word"),
    [
        (None, "nonce_missing", "nonce"),
        (Nonce(), "nonce_missing", "nonce"),
        (Nonce("", 1), "nonce_missing", "nonce"),
        (Nonce("n" * 10_000, 1), "invalid", "10000 bytes"),
        (Nonce("n" * 512, 1), "stale", "too long ago"),
        (Nonce(5, 1), "invalid", "nonce.value"),  # type: ignore[arg-type]
        (Nonce("\ud800", 1), "invalid", "nonce.value"),
        (Nonce("n"), "invalid", "nonce.timestamp: absent"),
        (Nonce("n", "1e9"), "invalid", "nonce.timestamp"),
        (Nonce("n", "1763900031"), "invalid", "nonce.timestamp"),
        (Nonce("n", True), "invalid", "nonce.timestamp"),
        (Nonce("n", float("nan")), "invalid", "nonce.timestamp"),
        (Nonce("n", float("inf")), "stale", "too far ahead"),
        (Nonce("n", 9_404_983_440_000), "stale", "too far ahead"),  # the year 300000
        (Nonce("n", 10**400), "stale", "too far ahead"),
        (Nonce("n", -(10**400)), "stale", "too long ago"),
        (Nonce("n", -1), "stale", "too long ago"),
        (Nonce("n", START_US // SECOND_US + 31 + 600), "stale", "too far ahead"),  # a clock ten minutes fast
        (Nonce("n", START_US // SECOND_US + 31 - 600), "stale", "too long ago"),  # and one ten minutes slow
        ("n", "invalid", "nonce: expected an object"),
    ],
    ids=lambda value: str(value)[:30],
)
async def test_what_a_client_may_send_is_refused_by_name(
    make_world: MakeWorld, nonce: Nonce | None, reason: str, word: str
) -> None:
    world = await ready(make_world)
    decision = await world.ask(tenant="t", user="u", nonce=nonce)
    assert (decision.reason, decision.allowed) == (reason, False)
    assert decision.detail is not None
    assert word in decision.detail
    assert decision.violated == []
    assert decision.limits == []


async def test_without_the_guard_a_nonce_means_nothing(make_world: MakeWorld) -> None:
    world = await make_world(REPLAY.replace("[guard.replay]\nrequired = true", ""))
    assert (await ask(world, "n", 5)).allowed
    assert (await ask(world, "n", 5)).allowed


async def test_it_is_for_matching_requests(make_world: MakeWorld) -> None:
    policy = REPLAY + 'match = { method = ["POST"], path = "/orders/{id}" }\n'
    world = await ready(make_world, policy)
    assert (await world.ask(tenant="t", user="a", method="GET", path="/orders/1")).allowed
    assert (await world.ask(tenant="t", user="b", method="POST", path="/orders/1")).reason == "nonce_missing"
    asked = {"method": "POST", "path": "/orders/1"}
    assert (await ask(world, "n", READY_US, **asked)).allowed
    assert (await ask(world, "n", READY_US, user="c", **asked)).reason == "replay"
    assert (await ask(world, "n", READY_US, user="c", method="GET")).allowed, "nobody looks at it there"


async def test_a_tenant_has_no_more_nonces_than_it_may(make_world: MakeWorld) -> None:
    """The bound is strict: never more than that many in any time that one is held."""
    policy = "version = 1\nname = 't'\n[guard.replay]\nmax_per_tenant = 40\nwindow = '10s'\nfuture_skew = '5s'\n"
    world = await make_world(policy)
    await first_contact(world, "t", "o", None)
    held_us, admitted = 20 * SECOND_US, []
    full = None
    for step in range(900):
        now_us = READY_US + step * 50_000
        world.set_clock(now_us)
        decision = await ask(world, f"n{step}", now_us)
        if decision.allowed:
            admitted.append(now_us)
        else:
            full = decision
            assert (decision.status, decision.reason, decision.violated) == (503, "store_full", [])
            assert decision.retry_after is not None
            assert 0 < decision.retry_after <= 1
            assert decision.detail is not None
            assert "max_per_tenant" in decision.detail
            assert decision.headers.keys() == {"Retry-After"}
        assert sum(one > now_us - held_us for one in admitted) <= 40
    assert full is not None
    assert len(admitted) > 70
    assert (await ask(world, "other", now_us, tenant="o")).allowed, "another tenant has a bound of its own"
    found = [(await ask(world, f"nobody{i}", now_us, tenant=None)).allowed for i in range(11)]
    assert found == [True] * 10 + [False], "and all without one have one together"


async def test_a_narrower_window_forgets_nothing_and_a_wider_one_refuses_what_may_be_gone(
    make_world: MakeWorld,
) -> None:
    policy = Policy.parse("version = 1\nname = 't'\n[guard.replay]\nwindow = '10s'\nfuture_skew = '2s'\n")
    assert policy.replay is not None
    wide = dataclasses.replace(policy, replay=dataclasses.replace(policy.replay, window_us=60 * SECOND_US))
    world = await make_world(policy)
    await first_contact(world, "t")
    start_us = START_US + 100 * SECOND_US
    for at in range(40):  # one nonce a second
        world.set_clock(start_us + at * SECOND_US)
        assert (await ask(world, f"n{at}", world.now_us)).allowed
    await world.shield.replace_policy(wide)
    for at in range(41):
        decision = await ask(world, f"n{at}", start_us + at * SECOND_US)
        # Those of the last twelve seconds are still held, and those before are not known.
        assert decision.reason == ("ok" if at == 40 else "replay" if at > 27 else "stale"), at
    widened_us = world.now_us
    for later in (1, 5, 20, 59, 62, 63, 64, 80):
        world.set_clock(widened_us + later * SECOND_US)
        for at in range(40):
            assert not (await ask(world, f"n{at}", start_us + at * SECOND_US)).allowed, (later, at)
        assert (await ask(world, f"later{later}", world.now_us)).allowed, "what is made now is not in doubt"
    await world.shield.replace_policy(policy)
    assert (await ask(world, "later80", world.now_us)).reason == "replay"


@pytest.mark.parametrize("seed", range(6))
async def test_random_histories_agree_with_the_oracle(make_world: MakeWorld, seed: int) -> None:
    source = random.Random(seed)
    window_us, skew_us = source.choice([(10, 2), (300, 30), (5, 0), (7, 7)])
    window_us, skew_us = window_us * SECOND_US, skew_us * SECOND_US
    policy = Policy.parse(REPLAY.replace("burst = 2", "burst = 30").replace("count_denied = true", ""))
    assert policy.replay is not None

    def with_window(window_us: int) -> Policy:
        return dataclasses.replace(
            policy, replay=dataclasses.replace(policy.replay, window_us=window_us, future_skew_us=skew_us)
        )

    world = await make_world(with_window(window_us))
    await first_contact(world, "t", "u", "v")
    oracle = Nonces(START_US, window_us, skew_us)
    made: list[tuple[str, str, int]] = []
    let_through: set[tuple[str, str, int]] = set()
    for _ in range(300):
        world.set_clock(world.now_us + source.choice([0, 0, 1, 500_000, SECOND_US, source.randrange(20 * SECOND_US)]))
        now_us = world.now_us
        if source.random() < 0.03:
            oracle.window_us = source.choice([5, 10, 60, 300]) * SECOND_US
            await world.shield.replace_policy(with_window(oracle.window_us))
            await first_contact(world, "t", "u", "v")  # and since a tenant's first how long they are held
            oracle.judge(now_us, "", now_us)
        if made and source.random() < 0.5:
            tenant, value, stamp_us = source.choice(made[-40:])
        else:
            edge = source.choice([0, 0, skew_us, skew_us + 1, -oracle.window_us, -oracle.window_us - 1])
            tenant, value, stamp_us = source.choice("tuv"), str(source.randrange(60)), now_us + edge
            made.append((tenant, value, stamp_us))
        reason = oracle.judge(now_us, (tenant, value), stamp_us)
        decision = await ask(world, value, stamp_us, tenant=tenant, user=source.choice("abcdef"))
        if reason is None and decision.allowed:
            oracle.take((tenant, value), stamp_us)
            assert (tenant, value, stamp_us) not in let_through, "law: never twice"
            let_through.add((tenant, value, stamp_us))
        assert decision.reason == (reason or ("ok" if decision.allowed else "limit"))
