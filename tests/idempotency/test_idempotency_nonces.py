"""A nonce and an idempotency key in one request: one step, the nonce first."""

from __future__ import annotations

from shield.request import Nonce
from tests.idempotency.conftest import Open
from tests.idempotency.keyed import LIMITS, Keyed, policy

PLACES = '[[limit]]\nname = "jobs"\nkey = ["tenant"]\nalgorithm = "concurrency"\nlimit = 9\n'
RULES = policy('lease = "30s"\nmax_keys_per_tenant = 2\n[guard.replay]\nwindow = "5m"\n', LIMITS + PLACES)


async def known_for_long(node: Keyed) -> None:
    """A store that has just been made knows of no older nonces; in a cluster that is a tenant's slot."""
    for tenant in ("acme", "other"):
        assert (await node.ask(None, tenant=tenant, nonce=Nonce("n", node.clock.now_ns / 1e9))).reason == "stale"
    node.clock.move(120)


async def test_an_answer_takes_the_nonce_and_no_charge(opened: Open) -> None:
    async with opened(RULES) as node:
        await known_for_long(node)
        stamp = Nonce("n-0", node.clock.now_ns / 1e9)
        first = await node.ask(nonce=stamp)
        assert first.allowed
        await node.shield.release(first.leases)
        await node.shield.complete(first, 201, (), b"x")
        for number in (1, 2, 3):
            fresh = Nonce(f"n-{number}", node.clock.now_ns / 1e9)
            again = await node.ask(nonce=fresh)
            assert (again.reason, again.status) == ("idempotency_replay", 201)
            used = await node.ask(nonce=fresh)
            assert (used.reason, used.status, used.response) == ("replay", 409, None)
        assert (await node.ask(nonce=stamp)).reason == "replay"
        assert await node.left() == 2


async def test_a_nonce_that_was_used_comes_before_the_key_and_a_refusal_takes_none(opened: Open) -> None:
    async with opened(RULES) as node:
        await known_for_long(node)

        def fresh(value: str) -> Nonce:
            return Nonce(value, node.clock.now_ns / 1e9)

        spent = fresh("spent")
        owner = await node.ask("k-1", nonce=spent)
        assert owner.allowed
        await node.shield.release(owner.leases)
        kept = fresh("kept")
        refusals = {
            "idempotency_in_flight": {"key": "k-1"},
            "idempotency_mismatch": {"key": "k-1", "fingerprint": "sha256:bb"},
        }
        for reason, facts in refusals.items():
            assert (await node.ask(**facts, nonce=spent)).reason == "replay"
            for _ in range(2):  # a refusal leaves the nonce as it was
                refused = await node.ask(**facts, nonce=kept)
                assert refused.reason == reason
                assert (refused.retry_after == 30.0) == (reason == "idempotency_in_flight")
        stale = await node.ask("k-1", nonce=Nonce("old", node.clock.now_ns / 1e9 - 3600))
        assert (stale.status, stale.reason) == (401, "stale")
        second = await node.ask("k-2", nonce=kept)
        assert second.allowed
        await node.shield.release(second.leases)
        full = await node.ask("k-3", nonce=fresh("full"))
        assert full.reason == "store_full"
        assert (await node.ask("k-3", nonce=kept)).reason == "replay"
        assert (await node.ask("k-3", tenant="other", nonce=fresh("full"))).allowed
        assert await node.left() == 1


async def test_a_nonce_that_was_used_does_not_take_a_key(opened: Open) -> None:
    async with opened(RULES) as node:
        await known_for_long(node)
        stamp = Nonce("n", node.clock.now_ns / 1e9)
        assert (await node.ask("k-1", nonce=stamp)).allowed
        assert (await node.ask("k-2", nonce=stamp)).reason == "replay"
        assert (await node.ask("k-2", nonce=Nonce("n-2", node.clock.now_ns / 1e9))).allowed
        assert await node.left() == 1
