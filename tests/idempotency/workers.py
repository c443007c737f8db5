"""`python -m tests.idempotency.workers SCENARIO URL`: one of several processes with one table."""

from __future__ import annotations

import asyncio
import sys
import time

from shield import Decision, Shield
from shield.core import Charges
from shield.store.shared import SharedStore
from tests.idempotency.keyed import LIMITS, policy, request

RULES = policy("", LIMITS.replace("burst = 3", "burst = 100000"))


def race(shield: Shield) -> None:
    """A quarter of a thousand requests with one key; whoever owns it answers in the middle of them."""
    print("ready", flush=True)
    sys.stdin.readline()
    owner, outcomes = None, []
    for turn in range(250):
        decision = shield.check_nowait(request("one"))
        while decision.reason == "store_unavailable":  # 503: asked again, as a client would
            decision = shield.check_nowait(request("one"))
        outcomes.append(decision.reason)
        if decision.allowed:
            owner = decision
        if owner is not None and turn == 200:
            assert shield.complete_nowait(owner, 200, (), b"done")
    print(" ".join(outcomes))


async def race_awaited(url: str) -> None:
    """The same, all at once, with a store that is waited for."""
    async with Shield(RULES, url) as shield:
        print("ready", flush=True)
        await asyncio.to_thread(sys.stdin.readline)
        owners: list[Decision] = []

        async def ask() -> str:
            decision = await shield.check(request("one"))
            while decision.reason == "store_unavailable":
                decision = await shield.check(request("one"))
            if decision.allowed:
                owners.append(decision)
            return decision.reason

        outcomes = await asyncio.gather(*[ask() for _ in range(250)])
        for owner in owners:
            assert await shield.complete(owner, 200, (), b"done")
        print(" ".join(outcomes))


def hold(shield: Shield) -> None:
    """Stops in the middle of a section, where the key is written and the charges are taken."""
    store = shield.store
    assert isinstance(store, SharedStore)

    def stops(db: object, charges: Charges) -> None:
        print("holding", flush=True)
        time.sleep(60)

    store.keys._commit = stops  # type: ignore[method-assign,assignment]
    shield.check_nowait(request("k-1"))


if __name__ == "__main__":
    if sys.argv[1] == "race_awaited":
        asyncio.run(race_awaited(sys.argv[2]))
    else:
        {"race": race, "hold": hold}[sys.argv[1]](Shield(RULES, sys.argv[2]))
