"""Throttles: smaller numbers for one subject, under which law 7 holds in both directions, on every store."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from shield import Policy, Request, Shield
from shield.block.block import THROTTLE
from shield.errors import PolicyError
from shield.policy.throttle import with_throttles
from shield.store.redis import RedisStore
from shield.testing import ManualClock
from tests.oracle import Oracle
from tests.servers import Server

POLICY = """
version = 1
[[limit]]
name = "user-burst"
key = ["tenant", "user"]
rate = "10/s"
burst = 20
plans = { pro = { rate = "30/s" } }
[[limit]]
name = "user-minute"
key = ["user"]
algorithm = "sliding-window"
rate = "100/m"
[[limit]]
name = "tenant"
key = ["tenant"]
rate = "1000/s"
[[detector]]
name = "busy"
on = { method = "TRACE" }
key = ["user"]
measure = "count"
leak = "1/s"
capacity = 1
action = "throttle"
factor = 0.25
"""
POLICY_OF = Policy.parse(POLICY)
ADA = Request(tenant="acme", user="ada")


def throttled(shield: Shield, user: str) -> None:
    shield.abuse.blocks.answer(("user", user), by="detector:busy", why="", reason=THROTTLE, factor=0.25)


def limits_of(shield: Shield, **facts: str) -> dict[str, tuple[int, int]]:
    decision = shield.check_nowait(Request(tenant="acme", **facts))
    return {one.name: (one.limit, one.remaining) for one in decision.limits}


def test_a_throttled_user_has_a_quarter_and_nobody_else_less() -> None:
    clock = ManualClock()
    shield = Shield(POLICY_OF, clock=clock)
    assert limits_of(shield, user="ada") == {"user-burst": (20, 19), "user-minute": (100, 99), "tenant": (1000, 999)}
    for _ in range(3):
        shield.check_nowait(Request(user="ada", method="TRACE"))
    # 1 of 20 units was spent, and 1 is spent now; the 3 in between were of no tenant.
    assert limits_of(shield, user="ada") == {"user-burst": (5, 3), "user-minute": (25, 20), "tenant": (1000, 998)}
    assert limits_of(shield, user="bob") == {"user-burst": (20, 19), "user-minute": (100, 99), "tenant": (1000, 997)}
    assert limits_of(shield, user="ada", plan="pro")["user-burst"][0] == 7
    assert limits_of(shield, user="ada", plan="nobody's")["user-burst"][0] == 5, "an unheard-of plan is no way out"
    clock.advance(s=60)
    assert limits_of(shield, user="ada")["user-burst"] == (20, 19)


def test_the_detector_in_shadow_throttles_nobody() -> None:
    shield = Shield(Policy.parse(POLICY.replace("factor", 'mode = "shadow"\nfactor')), clock=ManualClock())
    for _ in range(5):
        shield.check_nowait(Request(user="ada", method="TRACE"))
    assert shield.abuse.stats()["busy"]["detected"] == 1
    assert limits_of(shield, user="ada")["user-burst"][0] == 20


async def play(shield: Shield, clock: ManualClock, seed: int, steps: int) -> None:
    """Throttled and let go again at random: every decision is the oracle's, under the numbers of the moment."""
    source, oracle = random.Random(seed), Oracle()
    limits = with_throttles(shield.policy)
    blocks = shield.abuse.blocks
    for _ in range(steps):
        roll = source.random()
        if roll < 0.1:
            throttled(shield, "ada")
        elif roll < 0.2:
            blocks.unblock("user", "ada", by="operator")
        now_us = clock.now_ns // 1000
        plan = source.choice([None, "pro"])
        request = Request(tenant="acme", user="ada", plan=plan)
        under = blocks.book.throttle_of(request, now_us)
        names = [plan] if under is None else [f"\x00user\x000.25\x00{plan or ''}", "\x00user\x000.25\x00"]
        charges = []
        for limit in limits:
            numbers = next((limit.plans[name] for name in names if name in limit.plans), limit.numbers)
            key = tuple(getattr(request, name) for name in limit.key)
            charges.append((limit, numbers, key, 1))
        decision, expected = await shield.check(request), oracle.apply(now_us, charges)
        assert (decision.allowed, decision.degraded) == (expected.admitted, False)
        assert [(one.limit, one.remaining) for one in decision.limits] == [
            (one.limit, one.remaining) for one in expected.statuses
        ]
        clock.advance(us=source.choice([0, 1, 1_000, 40_000, 300_000, 2_000_001, 70_000_000]))


@pytest.mark.parametrize("seed", range(4))
async def test_law_7_what_was_spent_stays_spent_and_nothing_is_minted(seed: int, tmp_path: Path) -> None:
    clock = ManualClock()
    url = "memory://" if seed % 2 else f"shared://t?dir={tmp_path}&max_keys=1000&max_leases=10&max_receipts=10"
    await play(Shield(POLICY_OF, url, clock=clock), clock, seed, 400)


async def test_law_7_on_redis(any_server: Server) -> None:
    clock = ManualClock()
    store = RedisStore(f"{any_server.url}?prefix=throttle&deadline=5s&deny_cache=0", clock=clock)
    store.instant = lambda: clock.now_ns // 1000
    async with Shield(POLICY_OF, store, clock=clock) as shield:
        await play(shield, clock, 7, 300)


def test_the_factor_belongs_to_a_throttle() -> None:
    with pytest.raises(PolicyError, match="factor"):
        Policy.parse(POLICY.replace('"throttle"', '"block"'))
    for wrong in ("0", "1", "2", '"half"'):
        with pytest.raises(PolicyError, match="factor"):
            Policy.parse(POLICY.replace("0.25", wrong))


def test_a_throttle_that_throttles_nobody_is_warned_about() -> None:
    assert not [one for one in POLICY_OF.warnings() if "throttles" in one]
    policy = Policy.parse(POLICY.replace("factor", 'subject = "session"\nfactor'))
    (warning,) = [one for one in policy.warnings() if "throttles" in one]
    assert "no limit has session in its key" in warning


def test_fingerprints_of_policies_without_it_are_as_they_were() -> None:
    assert Policy.parse("version = 1").fingerprint == Policy.parse("version = 1\n[blocks]").fingerprint
    assert Policy.parse("version = 1").fingerprint == "95f3673e0228"
