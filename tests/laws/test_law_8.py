"""Every resource has a bound: what an attacker can grow, grown as far as it goes."""

from __future__ import annotations

import asyncio

import pytest

from shield import Policy, ReceiptError, Request, Shield, StoreError
from shield.core import Registry, Table
from shield.receipt import MAX_HANDLE_CHARS

SLOTS = Policy.parse(
    'version = 1\nname = "slots"\n'
    '[[limit]]\nname = "slots"\nkey = ["user"]\nalgorithm = "concurrency"\nlimit = 4\nttl = "60s"\n'
)
S = 1_000_000_000


def test_places_are_bounded_over_all_keys_and_newcomers_are_refused():
    now = [1_763_900_000 * S]
    shield = Shield(SLOTS, "memory://?max_leases=10", clock=lambda: now[0])
    decisions = [shield.check_nowait(Request(user=f"u{i}")) for i in range(15)]
    assert [d.allowed for d in decisions] == [True] * 10 + [False] * 5
    assert (decisions[-1].reason, decisions[-1].status) == ("store_full", 503)
    assert decisions[-1].headers["Retry-After"] == "1"
    assert shield.stats()["leases"] == 10
    now[0] += 60 * S
    assert shield.check_nowait(Request(user="later")).allowed, "what has expired makes room"
    for i in range(100):
        now[0] += 60 * S
        assert shield.check_nowait(Request(user=f"wave{i}")).allowed
    assert shield.stats()["leases"] <= 10


def test_a_policy_meets_a_full_table_as_each_limit_says():
    limits = "".join(
        f'[[limit]]\nname = "{w}"\nkey = ["{k}"]\nrate = "2/h"\nwhen_full = "{w}"\n'
        for w, k in (("share", "user"), ("deny", "tenant"), ("allow", "ip"))
    )
    shield = Shield(Policy.parse('version = 1\nname = "full"\n' + limits), "memory://?max_keys=1", clock=lambda: 10**18)
    assert shield.check_nowait(Request(user="first")).allowed
    shared = [shield.check_nowait(Request(user=f"u{i}")) for i in range(3)]
    assert [d.allowed for d in shared] == [True, True, False]
    assert not any(d.degraded for d in shared)
    denied = shield.check_nowait(Request(tenant="t"))
    assert (denied.reason, denied.status, denied.violated) == ("store_full", 503, ["deny"])
    passed = shield.check_nowait(Request(ip="192.0.2.1"))
    assert (passed.allowed, passed.degraded) == (True, True)
    counts = shield.stats()
    assert (counts["full_shared"], counts["full_denied"], counts["full_allowed"]) == (3, 1, 1)
    assert shield.check_nowait(Request(user="first")).limits[0].remaining == 0, "who was there first lost nothing"


@pytest.mark.parametrize("when_full", ["share", "deny", "allow"])
def test_penalties_for_costs_that_never_fit_do_not_outgrow_a_full_table(when_full):
    policy = Policy.parse(
        f'version = 1\nname = "p"\n[[limit]]\nname = "b"\nkey = ["user"]\nrate = "2/h"\ncost = "request"\n'
        f'count_denied = true\nwhen_full = "{when_full}"\n'
    )
    shield = Shield(policy, "memory://?max_keys=3", clock=lambda: 10**18)
    assert all(shield.check_nowait(Request(user=f"first{i}")).allowed for i in range(3))
    for i in range(50):
        refused = shield.check_nowait(Request(user=f"u{i}", cost=3))
        assert (refused.reason, refused.retry_after) == ("limit", None)
    assert shield.stats()["keys"] == 3
    assert shield.check_nowait(Request(user="first0")).allowed, "who was there first lost nothing"


async def test_receipts_and_leases_have_a_length_and_are_not_forgeable():
    policy = Policy.parse(
        'version = 1\nname = "r"\n[[limit]]\nname = "b"\nkey = ["user"]\nrate = "10/h"\ncost = "request"\n'
    )
    shield, other = Shield(policy), Shield(policy)
    receipt = shield.check_nowait(Request(user="u", cost=3)).receipt
    altered = receipt[:20] + ("A" if receipt[20] != "A" else "B") + receipt[21:]
    for bad in ("", "x", altered, "A" * (MAX_HANDLE_CHARS + 1), "\ud800", "ä" * 40, None):
        with pytest.raises(ReceiptError):
            await shield.report(bad, cost=1)
    with pytest.raises(ReceiptError):
        await other.report(receipt, cost=1)
    assert await shield.release(["", "x", receipt, "A" * 100_000, "\ud800"]) == 0
    assert await shield.report(receipt, cost=1)


def test_bounds_are_checked_where_they_are_set():
    for options in ({"max_keys": 0}, {"max_keys": 10**10}, {"max_leases": 0}, {"max_leases": 10**9}):
        with pytest.raises(ValueError, match=next(iter(options))):
            Table(Registry(), **options)


async def test_settled_receipts_have_a_bound_of_their_own():
    """Marks of settled receipts must not push anybody's bucket out of the table."""
    now = [1_763_900_000 * S]
    policy = Policy.parse(
        'version = 1\nname = "r"\n[[limit]]\nname = "b"\nkey = ["user"]\nrate = "10/h"\ncost = "request"\n'
    )
    shield = Shield(policy, "memory://?max_keys=100&max_receipts=20", clock=lambda: now[0])
    receipts = [shield.check_nowait(Request(user=f"u{i}", cost=2)).receipt for i in range(21)]
    for receipt in receipts[:20]:
        assert await shield.report(receipt, cost=1)
    with pytest.raises(StoreError, match="max_receipts"):
        await shield.report(receipts[20], cost=1)
    assert shield.stats()["keys"] == 21
    now[0] += 299 * S
    assert not await shield.report(receipts[0], cost=0), "settled before"
    now[0] += S
    with pytest.raises(ReceiptError, match="expired"):
        await shield.report(receipts[0], cost=0)
    now[0] -= S
    with pytest.raises(ReceiptError, match="expired"):
        await shield.report(receipts[0], cost=0)
    later = shield.check_nowait(Request(user="later", cost=2)).receipt
    with pytest.raises(ReceiptError, match="expired"):
        await shield.report(receipts[20], cost=1)
    assert await shield.report(later, cost=1), "what has expired makes room"


def test_calendar_buckets_that_nobody_asks_for_any_more_are_forgotten():
    """A limit that was renamed leaves its cells behind: they must go when their day is over, asked or not."""
    now = [1_763_900_000 * S]

    def policy(name: str) -> Policy:
        return Policy.parse(
            f'version = 1\nname = "c"\n[[limit]]\nname = "{name}"\nkey = ["user"]\nalgorithm = "fixed-window"\n'
            'rate = "1/day"\nalign = "day"\n'
        )

    shield = Shield(policy("old"), "memory://?max_keys=200", clock=lambda: now[0])
    assert all(shield.check_nowait(Request(user=f"u{i}")).allowed for i in range(200))
    asyncio.run(shield.replace_policy(policy("new")))
    now[0] += 3 * 86_400 * S
    assert all(shield.check_nowait(Request(user=f"v{i}")).allowed for i in range(150))


def test_a_leases_bound_counts_what_one_request_takes_together():
    limits = "".join(
        f'[[limit]]\nname = "s{i}"\nkey = ["user"]\nalgorithm = "concurrency"\nlimit = 9\n' for i in range(5)
    )
    shield = Shield(Policy.parse(f'version = 1\nname = "many"\n{limits}'), "memory://?max_leases=4")
    decision = shield.check_nowait(Request(user="u"))
    assert (decision.reason, decision.violated) == ("store_full", ["s4"])
    assert shield.stats()["leases"] == 0
