"""Random histories of a policy, played to a Shield and to the oracle side by side: every answer must be equal.

Law 10 in one file. A history draws limits of every algorithm with numbers from the smallest to the largest allowed,
then requests, steps of the clock (forward, standing, back, and far back), changed numbers, refunds, extra charges and
releases.
"""

from __future__ import annotations

import dataclasses
import random
from collections.abc import Awaitable, Callable
from typing import Any

from shield import Policy, Request, Shield
from shield.policy import Limit, Numbers, SizeGuard
from tests.oracle import Oracle, Settled

DAY_US = 86_400_000_000
KEYS = {"user": ["u1", "u2"], "tenant": ["t1"], "ip": ["192.0.2.1", "2001:db8::1"]}
RATES = [(1, 1), (1, 10_000), (7, 3_000_000), (45, 60_000_000), (1, 30 * DAY_US), (999_983, 1_000_003), (11, 1_000_000)]
LIMITS = [1, 2, 3, 5, 10, 100, 10**9]
WINDOWS_US = [200_000, 1_000_000, 7_000_000, 60_000_000, 3_600_000_000, 30 * DAY_US]


def random_limit(source: random.Random, name: str) -> Limit:
    algorithm = source.choice(["token-bucket"] * 2 + ["sliding-window", "fixed-window", "calendar", "concurrency"])
    more: dict[str, Any] = {}
    if algorithm == "calendar":
        algorithm = "fixed-window"
        align = source.choice(["day", "month"])
        more = {"align": align, "timezone": source.choice(["UTC", "Europe/Oslo", "America/St_Johns"])}
        more["window_us"] = DAY_US if align == "day" else None
    elif algorithm in ("sliding-window", "fixed-window"):
        more["window_us"] = source.choice(WINDOWS_US)
    elif algorithm == "concurrency":
        more["ttl_us"] = source.choice([1_000_000, 60_000_000])
    else:
        more["plans"] = {"pro": random_numbers(source, algorithm)}
    if algorithm != "concurrency":
        more["count_denied"] = source.random() < 0.2
    key = tuple(source.sample(sorted(KEYS), source.choice([1, 1, 2])))
    mode = "shadow" if source.random() < 0.15 else "enforce"
    numbers = random_numbers(source, algorithm)
    return Limit(name, key, algorithm, numbers, mode=mode, cost=source.choice([1, "request", "request"]), **more)


def random_numbers(source: random.Random, algorithm: str) -> Numbers:
    if algorithm == "concurrency":
        return Numbers(source.choice([1, 2, 3, 1024]))
    if algorithm != "token-bucket":
        return Numbers(source.choice(LIMITS))
    return Numbers(source.choice(LIMITS), *source.choice(RATES))


def random_policy(source: random.Random) -> Policy:
    limits = tuple(random_limit(source, f"limit{i}") for i in range(source.choice([1, 2, 3, 6])))
    return Policy(limits=limits, size=SizeGuard(max_body_bytes=1000))


def changed_numbers(source: random.Random, policy: Policy) -> Policy:
    limits = [dataclasses.replace(limit, numbers=random_numbers(source, limit.algorithm)) for limit in policy.limits]
    source.shuffle(limits)
    return dataclasses.replace(policy, limits=tuple(limits))


class Game:
    """One history. `set_clock` tells the Shield's store what time it is, in Unix microseconds. `in_parts`: a refused
    request may have taken and given back, and so have touched a bucket that the oracle did not. That shows when the
    clock is set back or numbers change, and at no other time.
    """

    def __init__(
        self,
        shield: Shield,
        set_clock: Callable[[int], None],
        source: random.Random,
        now_us: int,
        *,
        in_parts: bool = False,
    ) -> None:
        self.in_parts = in_parts
        self.shield, self.set_clock, self.source, self.now_us = shield, set_clock, source, now_us
        self.oracle = Oracle()
        self.settled_us = 0
        self.receipts: list[tuple[str, int, str | None, list[Settled]]] = []
        self.leases: list[tuple[str, Limit, tuple[str, ...], str]] = []
        self.has_leases = any(limit.algorithm == "concurrency" for limit in shield.policy.limits)
        set_clock(now_us)

    async def play(self, steps: int) -> None:
        moves: list[Callable[[], Awaitable[None]]] = [self.ask] * 12 + [self.settle, self.release]
        moves += [] if self.in_parts else [self.new_numbers]
        for _ in range(steps):
            await self.source.choice(moves)()
            self.move_clock()

    def move_clock(self) -> None:
        source = self.source
        kind = source.random()
        if kind < 0.55:
            step = source.choice([0, 1, 999, 10_000, 250_000, 1_000_000, 3_000_000])
        elif kind < 0.8:
            step = source.randrange(70_000_000)
        elif kind < 0.9:
            step = source.randrange(40 * DAY_US)
        elif self.in_parts or self.has_leases:
            step = 0  # a store may forget a lease once any clock reading was past it; the oracle never does so unasked
        elif kind < 0.97:
            step = -source.randrange(3_000_000)
        else:
            step = -source.randrange(80 * DAY_US)
        self.now_us = max(40 * DAY_US, self.now_us + step)
        self.set_clock(self.now_us)

    async def ask(self) -> None:
        source = self.source
        facts: dict[str, Any] = {name: source.choice(values) for name, values in KEYS.items() if source.random() < 0.9}
        cost = source.choice([0, 1, 1, 1, 2, 5, 100, 10**9, 2**53 - 1])
        plan = source.choice([None, None, "pro", "other"]) if not self.in_parts else None
        refused = source.random() < 0.1
        request = Request(**facts, cost=cost, plan=plan, bytes=1001 if refused else 10)
        decision = await self.shield.check(request)
        assert not decision.degraded

        met = [limit for limit in self.shield.policy.limits if all(name in facts for name in limit.key)]
        if refused:
            met = [limit for limit in met if limit.count_denied and limit.mode == "enforce"]
        charges = []
        for limit in met:
            own_cost = cost if limit.cost == "request" else 1
            key = tuple(facts[name] for name in limit.key)
            charges.append((limit, limit.numbers_for(plan), key, own_cost, f"lease{len(self.leases)}-{limit.name}"))
        expected = self.oracle.apply(self.now_us, charges, refused=refused)

        told = f"at {self.now_us}: {request}"
        assert decision.allowed == expected.admitted, told
        wait_us = expected.retry_after_us
        assert decision.retry_after == (None if wait_us is None else wait_us / 1_000_000), told
        if refused:
            return
        for status, exact, want in zip(decision.limits, decision.charges.trace(), expected.statuses, strict=True):
            wait_us, reset_us = exact["retry_after_us"], exact["reset_after_us"]
            got = (exact["verdict"] == 0, status.limit, exact["remaining"], wait_us, reset_us)
            assert got == tuple(want), f"{told}, {exact}: {got}, not {tuple(want)}"
            seconds = None if wait_us is None else wait_us / 1_000_000
            assert status == (got[0], got[1], got[2], reset_us / 1_000_000, seconds, exact["cost"], exact["limit"])
        self.remember(decision, charges, expected)

    def remember(self, decision: Any, charges: list[Any], expected: Any) -> None:
        held = iter(decision.leases)
        for charge, lease in zip(charges, expected.leases, strict=True):
            if lease is not None:
                self.leases.append((next(held), charge[0], charge[2], lease))
        assert next(held, None) is None
        if decision.receipt is not None:
            entries = []
            for charge, status, state in zip(charges, expected.statuses, expected.states, strict=True):
                limit, numbers, key, cost, _ = charge
                if limit.cost == "request" and status.fits and limit.algorithm != "concurrency":
                    start_us = None if limit.algorithm == "token-bucket" else state[2]
                    entries.append(Settled(limit, numbers, key, cost, 0, self.now_us, start_us))
            self.receipts.append((decision.receipt, self.now_us, decision.charges.request.plan, entries))

    async def settle(self) -> None:
        """At once, late, or a second time; for more, less or the same."""
        if not self.receipts:
            return
        receipt, charged_us, plan, entries = self.source.choice(self.receipts)
        # A receipt that has once expired stays so, wherever the clock goes.
        self.settled_us = max(self.settled_us, self.now_us)
        if self.settled_us >= charged_us + self.shield.policy.settle_within_us:
            return
        actual = self.source.choice([0, 1, entries[0].charged, entries[0].charged + 3, 10**12])
        by_name = {limit.name: limit for limit in self.shield.policy.limits}
        current = []
        for entry in entries:
            limit = by_name[entry.limit.name]
            current.append(entry._replace(limit=limit, numbers=limit.numbers_for(plan), actual=actual))
        first = await self.shield.report(receipt, cost=actual)
        assert first == self.oracle.settle(self.now_us, receipt, current)

    async def release(self) -> None:
        if self.leases:
            handle, limit, key, lease = self.source.choice(self.leases)
            assert await self.shield.release([handle]) == self.oracle.release(self.now_us, limit, key, lease)

    async def new_numbers(self) -> None:
        await self.shield.replace_policy(changed_numbers(self.source, self.shield.policy))


def us(seconds: float | None) -> int | None:
    """Back to the microseconds that the seconds were made of; exact below 2^53 of them."""
    return None if seconds is None else round(seconds * 1_000_000)
