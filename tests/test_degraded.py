"""While the store's truth is not known: each limit as `when_store_fails` says, for every operation that can fail."""

from __future__ import annotations

import pytest

from shield import Policy, Request, Shield, StoreError
from shield.store.memory import MemoryStore
from shield.testing import FailingStore

POLICY = Policy.parse(
    'version = 1\nname = "degraded"\n'
    + "".join(
        f'[[limit]]\nname = "{name}"\nkey = ["{key}"]\nrate = "2/h"\nwhen_store_fails = "{name}"\n'
        for name, key in (("local", "user"), ("allow", "tenant"), ("deny", "ip"))
    )
    + '[[limit]]\nname = "slots"\nkey = ["session"]\nalgorithm = "concurrency"\nlimit = 1\n'
    + '[[limit]]\nname = "cost"\nkey = ["api_key"]\nrate = "10/h"\ncost = "request"\n'
)
NOW_NS = 1_763_900_000 * 10**9


def clock() -> int:
    return NOW_NS


@pytest.fixture
def store() -> FailingStore:
    return FailingStore(MemoryStore(clock=clock))


@pytest.fixture
def shield(store: FailingStore) -> Shield:
    return Shield(POLICY, store, clock=clock)


@pytest.mark.parametrize("how", ["refused", "timeout"])
async def test_each_limit_does_as_it_says(shield, store, how):
    store.fail_always(how)
    local = [await shield.check(Request(user="u")) for _ in range(3)]
    assert [(d.allowed, d.degraded) for d in local] == [(True, True), (True, True), (False, True)]
    assert local[-1].reason == "limit"
    passed = [await shield.check(Request(tenant="t")) for _ in range(9)]
    assert all(d.allowed and d.degraded and d.limits == [] and d.headers == {} for d in passed)
    refused = await shield.check(Request(ip="192.0.2.1"))
    assert (refused.reason, refused.status, refused.violated) == ("store_unavailable", 503, ["deny"])
    assert refused.headers["Retry-After"] == "1"
    both = await shield.check(Request(user="fresh", ip="192.0.2.1"))
    assert not both.allowed
    store.heal()
    assert [(await shield.check(Request(user="u"))).allowed for _ in range(3)] == [True, True, False]
    assert not (await shield.check(Request(user="fresh"))).degraded


async def test_a_denial_by_one_limit_takes_nothing_locally_either(shield, store):
    store.fail_always("refused")
    await shield.check(Request(user="u", ip="192.0.2.1"))
    allowed = [(await shield.check(Request(user="u"))).allowed for _ in range(3)]
    assert allowed == [True, True, False]


async def test_places_taken_while_the_store_was_away_can_be_released(shield, store):
    store.fail_next("refused")
    held = await shield.check(Request(session="s"))
    assert (held.allowed, held.degraded, len(held.leases)) == (True, True, 1)
    store.fail_next("refused")
    assert not (await shield.check(Request(session="s"))).allowed
    assert await shield.release(held.leases) == 1
    store.fail_next("refused")
    assert (await shield.check(Request(session="s"))).allowed


async def test_no_receipt_without_the_stores_truth(shield, store):
    store.fail_next("timeout")
    assert (await shield.check(Request(api_key="k", cost=3))).receipt is None
    decision = await shield.check(Request(api_key="k", cost=3))
    assert decision.receipt is not None
    store.fail_next("refused")
    with pytest.raises(StoreError):
        await shield.report(decision.receipt, cost=1)
    assert await shield.report(decision.receipt, cost=1), "a report that failed may be sent again"


async def test_whichever_operation_fails_every_request_gets_an_answer(store):
    """Fails the N-th operation, for every N, until a run has no failure left."""
    facts = {"user": "u", "tenant": "t", "session": "s", "api_key": "k"}
    for n in range(1, 100):
        failing = FailingStore(MemoryStore(clock=clock))
        failing.fail_at(n, "lost")
        shield = Shield(POLICY, failing, clock=clock)
        for _ in range(3):
            decision = await shield.check(Request(**facts, cost=2))
            assert decision.status in (200, 429, 503)
            try:
                if decision.receipt:
                    await shield.report(decision.receipt, cost=1)
                await shield.release(decision.leases)
            except StoreError:
                pass
        if not failing.failed:
            assert n > 3
            return
    pytest.fail("failures without end")
