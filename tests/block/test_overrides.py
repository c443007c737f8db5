"""Overrides: one key's own numbers, under which law 7 holds, on every store, for every node, until they end."""

from __future__ import annotations

import asyncio
import itertools
import random
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from shield import Policy, Request, Shield
from shield.block import override as override_module
from shield.block.block import THROTTLE
from shield.block.override import Override, OverrideBook
from shield.policy.override import with_overrides
from shield.store.redis import RedisStore
from shield.testing import ManualClock
from tests.oracle import Oracle
from tests.servers import Server

POLICY = Policy.parse("""
version = 1
[[limit]]
name = "user"
key = ["tenant", "user"]
rate = "10/s"
burst = 20
cost = "request"
plans = { pro = { rate = "30/s" } }
[[limit]]
name = "day"
key = ["tenant"]
algorithm = "fixed-window"
rate = "1000/day"
align = "day"
timezone = "UTC"
[[limit]]
name = "address"
key = ["ip"]
algorithm = "sliding-window"
rate = "100/m"
[[limit]]
name = "exports"
key = ["tenant"]
algorithm = "concurrency"
limit = 2
ttl = "60s"
match = { path = "/exports" }
[[detector]]
name = "busy"
on = { method = "TRACE" }
key = ["user"]
measure = "count"
leak = "1/s"
capacity = 1
action = "throttle"
factor = 0.5
""")
ADA = {"tenant": "acme", "user": "ada"}
prefixes = (f"override{n}" for n in itertools.count())


def give(shield: Shield, limit: str, key: Mapping[str, str], until_us: int | None = None, **numbers: Any) -> Override:
    stated = {"limit" if name == "places" else name: value for name, value in numbers.items()}
    return shield.abuse.blocks.override(POLICY, limit, key, stated, until_us=until_us, by="operator ann")


def limits_of(shield: Shield, **facts: Any) -> dict[str, tuple[int, int]]:
    return {one.name: (one.limit, one.remaining) for one in shield.check_nowait(Request(**facts)).limits}


def test_one_key_has_numbers_of_its_own_and_what_it_spent_stays_spent() -> None:
    shield = Shield(POLICY, clock=ManualClock())
    assert limits_of(shield, **ADA)["user"] == (20, 19)
    give(shield, "user", ADA, rate="100/s", burst=500)
    assert limits_of(shield, **ADA)["user"] == (500, 498)
    assert limits_of(shield, **ADA, plan="pro")["user"] == (500, 497), "whatever plan it has"
    assert limits_of(shield, tenant="acme", user="bob")["user"] == (20, 19)
    assert limits_of(shield, tenant="other", user="ada")["user"] == (20, 19)
    give(shield, "user", ADA, rate="1/s", burst=5)
    assert limits_of(shield, **ADA)["user"] == (5, 1)
    assert shield.abuse.blocks.lift_override(POLICY, "user", ADA, by="operator ann")
    assert limits_of(shield, **ADA)["user"] == (20, 15)
    assert not shield.abuse.blocks.lift_override(POLICY, "user", ADA, by="operator ann")


def test_every_algorithm_and_kind_of_key() -> None:
    shield = Shield(POLICY, clock=ManualClock())
    give(shield, "day", {"tenant": "acme"}, rate="5/day")
    give(shield, "address", {"ip": "2001:db8::1"}, rate="7/m")
    give(shield, "exports", {"tenant": "acme"}, places=3)
    assert limits_of(shield, tenant="acme", ip="2001:db8::ffff", path="/exports") == {
        "day": (5, 4),
        "address": (7, 6),
        "exports": (3, 2),
    }
    assert limits_of(shield, tenant="b", ip="2001:db8:0:1::1")["address"] == (100, 99)
    headers = shield.check_nowait(Request(tenant="acme")).headers
    assert headers["RateLimit-Policy"] == '"day";q=5;w=86400'


def test_a_throttle_leaves_a_part_of_them() -> None:
    shield = Shield(POLICY, clock=ManualClock())
    give(shield, "user", ADA, rate="100/s", burst=500)
    shield.abuse.blocks.answer(("user", "ada"), by="detector:busy", why="", reason=THROTTLE, factor=0.5)
    assert limits_of(shield, **ADA)["user"][0] == 250


async def test_they_end_and_others_hear_of_it(tmp_path: Path) -> None:
    clock = ManualClock()
    url = f"shared://t?dir={tmp_path}&max_keys=1000&max_leases=10&max_receipts=10"
    async with Shield(POLICY, url, clock=clock) as one, Shield(POLICY, url, clock=clock) as other:
        give(one, "user", ADA, until_us=clock.now_ns // 1000 + 60_000_000, rate="100/s", burst=500)
        await one.abuse.blocks.turn()
        await other.abuse.blocks.turn()
        assert limits_of(other, **ADA)["user"][0] == 500
        clock.advance(s=60)
        for shield in (one, other):
            await shield.abuse.blocks.turn()
            assert limits_of(shield, **ADA)["user"][0] == 20


async def test_they_survive_a_restart_and_a_reload(tmp_path: Path) -> None:
    clock = ManualClock()
    shield = Shield(POLICY, clock=clock, blocks=tmp_path / "b")
    give(shield, "user", ADA, rate="100/s", burst=500)
    give(shield, "day", {"tenant": "acme"}, rate="5/day")
    await shield.close()
    again = Shield(POLICY, clock=clock, blocks=tmp_path / "b")
    assert limits_of(again, **ADA)["user"][0] == 500
    # Where the policy has no such limit, or it is another kind, they wait for one that has.
    other = Policy.parse('version = 1\n[[limit]]\nname = "user"\nkey = ["tenant", "user"]\nrate = "3/h"\n')
    await again.replace_policy(other)
    assert limits_of(again, **ADA) == {"user": (500, 498)}
    await again.replace_policy(Policy.parse('version = 1\n[[limit]]\nname = "user"\nkey = ["ip"]\nrate = "3/h"\n'))
    assert limits_of(again, ip="192.0.2.1") == {"user": (3, 2)}
    await again.replace_policy(POLICY)
    assert limits_of(again, **ADA)["day"][0] == 5


async def within_a_second(shield: Shield, burst: int) -> None:
    for _ in range(5):
        if (await shield.check(Request(**ADA, cost=0))).limits[0].limit == burst:
            return
        await asyncio.sleep(0.25)
    raise AssertionError("it has not been heard of")


async def test_nodes_of_one_redis_know_within_a_second_and_remembered_refusals_are_forgotten(
    any_server: Server,
) -> None:
    url = f"{any_server.url}?prefix={next(prefixes)}&deadline=5s"
    async with Shield(POLICY, url) as one, Shield(POLICY, url) as other:
        assert (await other.check(Request(**ADA, cost=20))).allowed
        assert not (await other.check(Request(**ADA, cost=20))).allowed
        give(one, "user", ADA, rate="10/s", burst=500)
        await within_a_second(other, 500)
        assert (await other.check(Request(**ADA, cost=400))).allowed
        one.abuse.blocks.lift_override(POLICY, "user", ADA, by="operator ann")
        await within_a_second(other, 20)


async def play(shield: Shield, clock: ManualClock, seed: int, steps: int) -> None:
    """Given and taken at random, with receipts settled later: every decision is the oracle's."""
    source, oracle = random.Random(seed), Oracle()
    for _ in range(steps):
        roll = source.random()
        if roll < 0.15:
            give(shield, "user", ADA, rate=source.choice(["1/s", "50/s", "7/h"]), burst=source.choice([3, 40, 1000]))
        elif roll < 0.2:
            shield.abuse.blocks.lift_override(POLICY, "user", ADA, by="operator ann")
        now_us, cost = clock.now_ns // 1000, source.choice([0, 1, 1, 2, 15])
        in_force = with_overrides(POLICY, shield.abuse.blocks.overrides.by_limit(now_us))
        user, day = in_force.limits[:2]
        mine = next((plan for plan in user.plans if plan.startswith("\x00")), None)
        charges = [
            (user, user.numbers_for(mine), ("acme", "ada"), cost),
            (day, day.numbers, ("acme",), 1),
        ]
        decision, expected = await shield.check(Request(**ADA, cost=cost)), oracle.apply(now_us, charges)
        assert (decision.allowed, decision.degraded) == (expected.admitted, False)
        assert [(one.limit, one.remaining) for one in decision.limits] == [
            (one.limit, one.remaining) for one in expected.statuses
        ]
        clock.advance(us=source.choice([0, 1, 1_000, 40_000, 300_000, 2_000_001, 70_000_000]))


@pytest.mark.parametrize("kind", ["memory", "shared", "redis"])
async def test_law_7_what_was_spent_stays_spent_and_nothing_is_minted(
    kind: str, tmp_path: Path, any_server: Server
) -> None:
    clock = ManualClock()
    if kind == "redis":
        store = RedisStore(f"{any_server.url}?prefix={next(prefixes)}&deadline=5s&deny_cache=0", clock=clock)
        store.instant = lambda: clock.now_ns // 1000
        async with Shield(POLICY, store, clock=clock) as shield:
            await play(shield, clock, 1, 200)
        return
    url = "memory://" if kind == "memory" else f"shared://t?dir={tmp_path}&max_keys=1000&max_leases=10&max_receipts=10"
    for seed in range(3):
        await play(Shield(POLICY, url, clock=clock, blocks=tmp_path / f"{seed}"), clock, seed, 300)
        clock.advance(s=10 * 86_400)


async def test_a_refund_goes_by_the_numbers_that_were_charged() -> None:
    """Law 1: a key that refills fast has its charge back by itself, and a refund adds nothing."""
    clock = ManualClock()
    shield = Shield(POLICY, clock=clock)
    give(shield, "user", ADA, rate="100/s", burst=10)
    receipt = shield.check_nowait(Request(**ADA, cost=10)).receipt
    assert receipt is not None
    clock.advance(ms=100)
    assert shield.check_nowait(Request(**ADA, cost=10)).allowed
    await shield.report(receipt, cost=1)
    assert not shield.check_nowait(Request(**ADA, cost=1)).allowed


@pytest.mark.parametrize(
    ("limit", "key", "numbers", "part"),
    [
        ("none", {"ip": "x"}, {"rate": "1/s"}, "limit: found 'none'"),
        ("user", {"tenant": "acme"}, {"rate": "1/s"}, "key: found tenant; allowed: tenant, user"),
        ("user", {"tenant": "acme", "user": ""}, {"rate": "1/s"}, "key.user"),
        ("user", {"tenant": "acme", "user": "\ud800"}, {"rate": "1/s"}, "half of a character"),
        ("user", ADA, {}, "rate"),
        ("user", ADA, {"rate": "much"}, "rate: found 'much'"),
        ("user", ADA, {"places": 3}, "limit: found in a token-bucket limit"),
        ("user", ADA, {"rate": "1/s", "burst": -1}, "burst: found -1"),
        ("day", {"tenant": "acme"}, {"rate": "5/h"}, "the limit's own period"),
        ("exports", {"tenant": "acme"}, {"places": 100_000}, "limit: found 100000"),
        ("address", {"ip": "nobody"}, {"rate": "5/m"}, "ip: found 'nobody'"),
    ],
)
def test_what_does_not_fit_is_said(limit: str, key: dict[str, str], numbers: dict[str, Any], part: str) -> None:
    shield = Shield(POLICY, clock=ManualClock())
    with pytest.raises(ValueError, match=r"found|allowed") as caught:
        give(shield, limit, key, **numbers)
    assert part in str(caught.value)
    assert shield.abuse.blocks.overrides.everything() == []


def test_bounds(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(override_module, "MAX_OVERRIDES", 5)
    monkeypatch.setattr(override_module, "MAX_DIFFERENT", 3)
    shield = Shield(POLICY, clock=ManualClock())
    for i in range(3):
        give(shield, "user", {"tenant": "acme", "user": f"u{i}"}, rate=f"{i + 1}/s")
    with pytest.raises(ValueError, match="different numbers"):
        give(shield, "user", {"tenant": "acme", "user": "u3"}, rate="9/s")
    for i in range(3, 5):
        give(shield, "user", {"tenant": "acme", "user": f"u{i}"}, rate="1/s")
    with pytest.raises(ValueError, match="5 overrides"):
        give(shield, "user", {"tenant": "acme", "user": "u9"}, rate="1/s")
    book = OverrideBook()
    for i in range(20):
        book.learn(Override("user", ("acme", f"u{i}"), i, "operator", i, rate="1/s"), 0)
    assert (len(book), book.left_out) == (10, 10)
