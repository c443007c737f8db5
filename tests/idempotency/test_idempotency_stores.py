"""What an idempotency key does, over every store: one owner, one answer, and nothing charged twice."""

from __future__ import annotations

import json

import pytest

from shield import ReceiptError, Request, RequestError
from shield.guard.idempotency import MAX_HEADER_BYTES
from tests.idempotency.conftest import Open
from tests.idempotency.keyed import LIMITS, policy

HOUR = 3600.0
ANSWER = (201, [("Location", "/orders/9"), ("Set-Cookie", "a=1"), ("Set-Cookie", "b=2")], b'{"id":9}')


async def test_a_retried_write_runs_once_and_gets_its_first_answer_again(opened: Open) -> None:
    async with opened(policy()) as node:
        first = await node.ask()
        assert first.allowed
        assert first.response is None
        assert (first.idempotency.lease_s, first.idempotency.retention_s) == (60.0, 86_400.0)
        assert await node.shield.complete(first, *ANSWER)
        again = await node.ask()
        assert (again.allowed, again.status, again.reason) == (False, 201, "idempotency_replay")
        assert (again.response.status, again.response.headers, again.response.body) == (
            201,
            tuple(ANSWER[1]),
            ANSWER[2],
        )
        assert (again.idempotency, again.violated, again.limits, again.retry_after) == (None, [], [], None)
        assert await node.left() == 2  # of three
        assert json.loads(again.to_json()) == again.as_dict()
        assert again.as_dict()["response"] == {
            "status": 201,
            "headers": {"Location": "/orders/9", "Set-Cookie": ["a=1", "b=2"]},
            "body_b64": "eyJpZCI6OX0=",
            "retained": True,
        }


async def test_in_flight_is_a_conflict_until_the_lease_ends_and_costs_nothing(opened: Open) -> None:
    async with opened(policy('lease = "30s"')) as node:
        owner = await node.ask()
        node.clock.move(10)
        second = await node.ask()
        assert (second.status, second.reason, second.retry_after) == (409, "idempotency_in_flight", 20.0)
        assert second.headers["Retry-After"] == "20"
        node.clock.move(19.999999)
        assert (await node.ask()).retry_after == 0.000001  # law 4
        node.clock.move(0.000001)
        taken_over = await node.ask()
        assert taken_over.allowed
        assert await node.left() == 1
        # Who was taken over changes nothing any more.
        assert not await node.shield.complete(owner, 200, body=b"late")
        assert not await node.shield.abandon(owner)
        assert not await node.shield.extend(owner)
        assert await node.shield.complete(taken_over, 200, body=b"mine")
        assert (await node.ask()).response.body == b"mine"


async def test_an_owner_whom_nobody_took_over_is_still_the_owner_after_its_lease(opened: Open) -> None:
    async with opened(policy('lease = "30s"')) as node:
        owner = await node.ask()
        node.clock.move(HOUR)
        assert await node.shield.complete(owner, 200, body=b"late, and the only one")
        assert (await node.ask()).response.body == b"late, and the only one"


async def test_another_payload_is_a_mismatch_whatever_became_of_the_first(opened: Open) -> None:
    async with opened(policy('lease = "30s"')) as node:
        owner = await node.ask(fingerprint="sha256:aa")
        other = await node.ask(fingerprint="sha256:bb")
        assert (other.status, other.reason, other.retry_after) == (422, "idempotency_mismatch", None)  # over 409
        node.clock.move(31)
        assert (await node.ask(fingerprint="sha256:bb")).reason == "idempotency_mismatch"
        await node.shield.complete(owner, 200)
        assert (await node.ask(fingerprint="sha256:bb")).reason == "idempotency_mismatch"
        assert (await node.ask(fingerprint=None)).reason == "idempotency_mismatch"
        assert (await node.ask(fingerprint="sha256:aa")).reason == "idempotency_replay"
        assert await node.left() == 2


async def test_the_key_is_taken_only_when_the_limits_admit(opened: Open) -> None:
    async with opened(policy()) as node:
        for _ in range(3):
            assert (await node.ask(None)).allowed  # no key, no guard
        refused = await node.ask()
        assert (refused.reason, refused.violated, refused.idempotency) == ("limit", ["writes"], None)
        assert (await node.ask(fingerprint="sha256:bb")).reason == "limit"  # nothing is known of the key
        node.clock.move(HOUR)
        assert (await node.ask()).allowed  # nobody owned it


async def test_abandoned_is_as_if_never_used(opened: Open) -> None:
    async with opened(policy()) as node:
        owner = await node.ask()
        assert await node.shield.abandon(owner)
        assert not await node.shield.abandon(owner)
        assert not await node.shield.complete(owner, 200)
        corrected = await node.ask(fingerprint="sha256:corrected")
        assert corrected.allowed
        assert not await node.shield.complete(owner, 200, body=b"another's")
        assert await node.shield.complete(corrected, 200, body=b"mine")


async def test_completed_once(opened: Open) -> None:
    async with opened(policy()) as node:
        owner = await node.ask()
        assert await node.shield.complete(owner.idempotency.owner, 200, body=b"one")
        assert not await node.shield.complete(owner, 200, body=b"two")
        assert not await node.shield.abandon(owner)
        assert (await node.ask()).response.body == b"one"


async def test_extending_keeps_others_waiting(opened: Open) -> None:
    async with opened(policy('lease = "30s"\nretention = "40s"')) as node:
        owner = await node.ask()
        for _ in range(5):
            node.clock.move(29)
            assert await node.shield.extend(owner)
        assert (await node.ask()).retry_after == 30.0
        node.clock.move(30)
        assert (await node.ask()).allowed


async def test_retention_ends_at_its_instant(opened: Open) -> None:
    async with opened(policy('retention = "1h"')) as node:
        owner = await node.ask()
        node.clock.move(10)
        await node.shield.complete(owner, 200, body=b"x")
        node.clock.move(HOUR - 0.000001)
        assert (await node.ask()).reason == "idempotency_replay"
        node.clock.move(0.000001)
        with pytest.raises(ReceiptError, match="nothing is known"):
            await node.shield.complete(owner, 200)
        assert (await node.ask(fingerprint="sha256:new")).allowed


async def test_strict_routes_never_take_over(opened: Open) -> None:
    async with opened(policy('lease = "30s"\nretention = "1h"\nstrict = { path = "/payments/{rest...}" }')) as node:
        assert (await node.ask(path="/payments/1")).allowed
        assert (await node.ask(path="/orders")).allowed
        node.clock.move(31)
        stuck = await node.ask(path="/payments/1")
        assert (stuck.reason, stuck.retry_after) == ("idempotency_in_flight", HOUR - 31)
        assert "nobody knows" in stuck.detail
        assert (await node.ask(path="/orders")).allowed
        node.clock.move(HOUR - 31)
        assert (await node.ask(path="/payments/1")).allowed


@pytest.mark.parametrize(
    ("keep", "kept", "freed"),
    [
        ("all", [200, 302, 404, 429, 500], []),
        ("final", [200, 302, 404, 409], [408, 425, 429, 500, 503]),
        ("2xx", [200, 299], [302, 400, 500]),
    ],
)
async def test_which_answers_are_kept(opened: Open, keep: str, kept: list[int], freed: list[int]) -> None:
    async with opened(policy(f'keep = "{keep}"', LIMITS.replace("burst = 3", "burst = 100"))) as node:
        for status in [*kept, *freed]:
            owner = await node.ask(f"k-{status}")
            assert await node.shield.complete(owner, status, body=b"x")
            again = await node.ask(f"k-{status}", fingerprint="sha256:aa")
            assert again.allowed == (status in freed), status
            if status in kept:
                assert (again.status, again.reason) == (status, "idempotency_replay")


async def test_the_key_is_bound_to_tenant_user_method_and_path(opened: Open) -> None:
    async with opened(policy("", LIMITS.replace("burst = 3", "burst = 100"))) as node:
        await node.shield.complete(await node.ask(), 200, body=b"secret of u-1")
        for facts in (
            {"tenant": "other"},
            {"user": "u-2"},
            {"method": "PATCH"},
            {"path": "/orders/1"},
            {"tenant": "acmeu", "user": "-1"},
            {"tenant": None},
            {"user": None},
        ):
            assert (await node.ask(**facts)).allowed, facts
        for facts in ({"path": "//orders/?x=1"}, {"method": "post"}):
            assert (await node.ask(**facts)).reason == "idempotency_replay", facts


async def test_an_answer_that_is_too_large_is_known_and_not_kept(opened: Open) -> None:
    async with opened(policy("max_body_bytes = 10", LIMITS.replace("burst = 3", "burst = 9"))) as node:
        for key, body in (("k-1", b"x" * 11), ("k-2", None)):
            owner = await node.ask(key)
            assert await node.shield.complete(owner, 201, {"Location": "/orders/9"}, body)
            again = await node.ask(key)
            assert (again.allowed, again.status, again.reason) == (False, 409, "idempotency_replay")
            assert "status 201" in again.detail
            assert again.response.as_dict() == {
                "status": 201, "headers": {"Location": "/orders/9"}, "body_b64": None, "retained": False,
            }  # fmt: skip
            assert json.loads(again.to_json()) == again.as_dict()
            assert (await node.ask(key, fingerprint="sha256:bb")).reason == "idempotency_mismatch"
        whole = await node.ask("k-3")
        await node.shield.complete(whole, 200, (), b"x" * 10)
        assert (await node.ask("k-3")).response.body == b"x" * 10
        many = await node.ask("k-4")
        await node.shield.complete(many, 200, {"X": "x" * MAX_HEADER_BYTES}, b"")
        assert (await node.ask("k-4")).response.as_dict()["retained"] is False


async def test_keys_of_one_tenant_are_bounded_and_none_is_dropped(opened: Open) -> None:
    guard = 'max_keys_per_tenant = 2\nretention = "1h"'
    async with opened(policy(guard, LIMITS.replace("burst = 3", "burst = 100"))) as node:
        owners = [await node.ask(f"k-{i}") for i in range(2)]
        full = await node.ask("k-2")
        assert (full.status, full.reason, full.retry_after) == (503, "store_full", 1.0)
        assert await node.left() == 98
        assert (await node.ask("k-2", tenant="other")).allowed
        assert (await node.ask("k-1")).reason == "idempotency_in_flight"
        assert await node.shield.complete(owners[1], 200, body=b"x")
        assert (await node.ask("k-2")).reason == "store_full"
        assert (await node.ask("k-1")).reason == "idempotency_replay"
        assert node.shield.stats()["idempotency_full"] == 2
        node.clock.move(HOUR)
        assert (await node.ask("k-2")).allowed


async def test_nothing_is_charged_to_a_tenant_for_its_replays_but_refusals_are_where_they_count(opened: Open) -> None:
    """Law 2: a limit with count_denied is charged for conflicts, which are refusals; not for an answer."""
    limits = LIMITS.replace("burst = 3", "burst = 10\ncount_denied = true")
    async with opened(policy("", limits)) as node:
        owner = await node.ask()
        await node.ask()
        await node.ask(fingerprint="sha256:bb")
        await node.shield.complete(owner, 200)
        await node.ask()
        await node.ask()
        assert await node.left() == 7


async def test_who_it_is_must_be_known(opened: Open) -> None:
    async with opened(policy()) as node:
        refused = await node.ask(tenant=None, user=None)
        assert (refused.status, refused.reason) == (400, "missing")
        assert "tenant" in refused.detail
        assert (await node.ask(tenant="", user="")).reason == "missing"


async def test_required_and_missing(opened: Open) -> None:
    async with opened(policy("required = true")) as node:
        for missing in (Request(tenant="acme", method="POST"), Request(tenant="acme", method="patch", path="/x")):
            refused = await node.shield.check(missing)
            assert (refused.status, refused.reason) == (400, "idempotency_missing")
        assert (await node.ask("")).reason == "idempotency_missing"
        assert (await node.shield.check(Request(tenant="acme", method="GET"))).allowed
        assert await node.left() == 2


async def test_where_keys_mean_nothing_they_are_ignored(opened: Open) -> None:
    guard = 'methods = ["POST"]\nmatch = { path = "/orders" }\nrequired = true'
    async with opened(policy(guard, LIMITS.replace("burst = 3", "burst = 100"))) as node:
        for facts in ({"method": "GET"}, {"method": "PATCH"}, {"path": "/other"}):
            for _ in range(2):
                decision = await node.ask("not, a key", **facts)
                assert decision.allowed
                assert decision.idempotency is None
        # A key that was stated counts where the request does not say where it goes.
        for facts in ({"method": None}, {"path": None}, {"method": None, "path": None}):
            assert (await node.ask(**facts)).idempotency is not None
            assert (await node.ask(**facts)).reason == "idempotency_in_flight"


@pytest.mark.parametrize(
    "key",
    [
        *("a,b", "a b", "a\nb", "a\x00b", "\x7f", "é", "\ud800", "a\\", "x" * 256, "x" * 10_000),
        *('"', '"a', 'a"', '""', '"a"b', '"é"', '"a\\b"', f'"{"x" * 256}"'),
    ],
)
async def test_keys_that_are_none_are_refused_and_take_nothing(opened: Open, key: str) -> None:
    async with opened(policy()) as node:
        refused = await node.ask(key)
        assert (refused.status, refused.reason) == (400, "idempotency_invalid")
        assert refused.detail.startswith("idempotency.key: ")
        assert len(refused.detail) < 200
        assert await node.left() == 3


async def test_values_that_are_no_text_are_the_clients_fault(opened: Open) -> None:
    async with opened(policy()) as node:
        for facts in ({"tenant": 7}, {"user": 7}, {"method": 7}, {"path": 7}, {"path": "/" + "x" * 9000}):
            refused = await node.ask(**facts)
            assert refused.reason == "invalid", facts
        assert (await node.ask(fingerprint=7)).reason == "invalid"  # type: ignore[arg-type]
        assert (await node.ask(7)).reason == "idempotency_invalid"  # type: ignore[arg-type]
        assert (await node.ask(fingerprint="x" * 257)).reason == "idempotency_invalid"
        odd = Request(tenant="a", method="POST", idempotency="k")  # type: ignore[arg-type]
        assert (await node.shield.check(odd)).reason == "invalid"
        assert await node.left() == 3


async def test_owners_that_are_none_are_refused(opened: Open) -> None:
    async with opened(policy()) as node:
        mine = await node.ask(tenant="acme")
        theirs = await node.ask(tenant="other")
        owner = theirs.idempotency.owner
        for wrong in ("", "x", owner[:-1], owner[:-2] + ("AA" if owner[-2:] != "AA" else "BB"), "x" * 300_000):
            with pytest.raises(ReceiptError):
                await node.shield.complete(wrong, 200)
        with pytest.raises(ReceiptError):
            await node.shield.complete(await node.ask(None), 200)
        # An owner ends its own key and nobody else's.
        assert await node.shield.complete(mine, 200, body=b"mine")
        assert (await node.ask(tenant="other")).reason == "idempotency_in_flight"


async def test_answers_that_are_none_are_errors_that_name_the_field(opened: Open) -> None:
    async with opened(policy()) as node:
        owner = await node.ask()
        for status in (0, 100, 199, 600, True, "200", None):
            with pytest.raises(RequestError, match=r"^status: "):
                await node.shield.complete(owner, status)  # type: ignore[arg-type]
        for headers in ({"a b": "x"}, {"a": "x\r\nSet-Cookie: y"}, {"": "x"}, {1: "x"}, [("a", 1)]):
            with pytest.raises(RequestError, match=r"^headers: "):
                await node.shield.complete(owner, 200, headers)  # type: ignore[arg-type]
        with pytest.raises(RequestError, match=r"^body: "):
            await node.shield.complete(owner, 200, (), "text")  # type: ignore[arg-type]
        assert (await node.ask()).reason == "idempotency_in_flight"
        hop = {"Connection": "close", "Transfer-Encoding": "chunked", "ETag": '"1"'}
        assert await node.shield.complete(owner, 200, hop, memoryview(b"x"))  # type: ignore[arg-type]
        assert (await node.ask()).response.headers == (("ETag", '"1"'),)


async def test_another_policy_keeps_what_was_answered(opened: Open) -> None:
    async with opened(policy()) as node:
        owner = await node.ask("k-1")
        await node.shield.complete(owner, 200, body=b"x")
        running = await node.ask("k-2")
        await node.shield.replace_policy(policy('retention = "1h"'))
        assert (await node.ask("k-1")).response.body == b"x"
        await node.shield.replace_policy(policy().parse(LIMITS))
        assert (await node.ask("k-1")).reason != "idempotency_replay"  # keys mean nothing here
        assert await node.shield.complete(running, 200)


async def test_leases_and_receipts_come_with_the_key_and_not_with_a_conflict(opened: Open) -> None:
    limits = (
        LIMITS.replace("burst = 3", 'burst = 100\ncost = "request"')
        + '[[limit]]\nname = "jobs"\nkey = ["tenant"]\nalgorithm = "concurrency"\nlimit = 5\n'
    )
    async with opened(policy("", limits)) as node:
        first = await node.ask(cost=7)
        assert first.receipt
        assert len(first.leases) == 1
        conflict = await node.ask(cost=7)
        assert (conflict.receipt, conflict.leases) == (None, [])
        assert await node.shield.report(first.receipt, cost=1)
        assert await node.shield.release(first.leases) == 1
        assert await node.left() == 99
