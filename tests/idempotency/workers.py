"""`python -m tests.idempotency.workers SCENARIO URL`: one of several processes with one table."""

from __future__ import annotations

import sys
import time

from shield import Shield
from shield.core import Charges
from shield.store.shared import SharedStore
from tests.idempotency.keyed import LIMITS, policy, request


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
    shield = Shield(policy("", LIMITS.replace("burst = 3", "burst = 100000")), sys.argv[2])
    {"race": race, "hold": hold}[sys.argv[1]](shield)
