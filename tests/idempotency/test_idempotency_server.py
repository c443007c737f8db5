"""Idempotency keys over HTTP: /v1/check, /v1/authz, /v1/idempotency."""

from __future__ import annotations

import io
import json
from base64 import b64encode
from typing import Any

import pytest

from shield.server.auth import CallerTokens
from tests.server.running import Running, serving

POLICY = """
[identity.headers]
tenant = "X-Tenant"

[[limit]]
name = "writes"
key = ["tenant"]
rate = "1/h"
burst = 5

[guard.idempotency]
max_body_bytes = 100
"""
WRITE = {
    "tenant": "acme",
    "method": "POST",
    "path": "/orders",
    "idempotency": {"key": "k-1", "fingerprint": "sha256:aa"},
}
ANSWER = {"status": 201, "headers": {"Location": "/orders/9", "Set-Cookie": ["a", "b"]}, "body_b64": "eyJpZCI6OX0="}


async def tell(server: Running, body: Any, **headers: str) -> tuple[int, dict[str, Any]]:
    async with server.client.post("/v1/idempotency", json=body, headers=headers) as answer:
        return answer.status, json.loads(await answer.text())


async def owned(server: Running, **facts: Any) -> str:
    decision = await server.check(WRITE | facts)
    assert decision["allowed"]
    assert (decision["idempotency"]["lease_s"], decision["idempotency"]["retention_s"]) == (60.0, 86_400.0)
    owner: str = decision["idempotency"]["owner"]
    return owner


async def test_a_write_is_owned_completed_and_answered_again() -> None:
    async with serving(POLICY) as server:
        owner = await owned(server)
        assert (await server.check(WRITE))["reason"] == "idempotency_in_flight"
        complete = {"owner": owner, "action": "complete", "response": ANSWER}
        assert await tell(server, complete) == (200, {"done": True})
        again = await server.check(WRITE)
        assert (again["allowed"], again["status"], again["reason"]) == (False, 201, "idempotency_replay")
        assert again["response"] == ANSWER | {"retained": True}
        assert again["limits"] == []
        status, problem = await tell(server, complete)
        assert (status, problem["field"]) == (409, "owner")
        mismatch = await server.check(WRITE | {"idempotency": {"key": "k-1", "fingerprint": "sha256:bb"}})
        assert mismatch["reason"] == "idempotency_mismatch"


async def test_abandon_and_extend() -> None:
    async with serving(POLICY) as server:
        owner = await owned(server)
        server.clock.now_ns += 50 * 10**9
        assert (await tell(server, {"owner": owner, "action": "extend"}))[0] == 200
        assert (await server.check(WRITE))["retry_after"] == 60.0
        assert (await tell(server, {"owner": owner, "action": "abandon", "response": None}))[0] == 200
        assert (await tell(server, {"owner": owner, "action": "extend"}))[0] == 409
        assert await owned(server) != owner


async def test_a_body_that_is_too_large_to_keep_or_to_send() -> None:
    async with serving(POLICY) as server:
        for key, response in (
            ("k-1", ANSWER | {"body_b64": b64encode(b"x" * 101).decode()}),
            ("k-2", {"status": 201, "retained": False}),
        ):
            owner = await owned(server, idempotency={"key": key})
            assert (await tell(server, {"owner": owner, "action": "complete", "response": response}))[0] == 200
            again = await server.check(WRITE | {"idempotency": {"key": key}})
            assert (again["status"], again["reason"]) == (409, "idempotency_replay")
            assert (again["response"]["status"], again["response"]["retained"]) == (201, False)
        huge = json.dumps({"owner": owner, "response": {"status": 200, "body_b64": "x" * 3_000_000}}).encode()
        async with server.client.post("/v1/idempotency", data=io.BytesIO(huge)) as answer:
            assert answer.status == 413


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"owner": None}, "owner"),
        ({"owner": 1}, "owner"),
        ({"action": "finish"}, "action"),
        ({"action": None}, "action"),
        ({"action": "extend"}, "response"),
        ({"response": None}, "response"),
        ({"response": {}}, "response.status"),
        ({"response": ANSWER | {"status": 99}}, "response.status"),
        ({"response": ANSWER | {"status": 10**30}}, "response.status"),
        ({"response": ANSWER | {"headers": {"a b": "c"}}}, "response.headers"),
        ({"response": ANSWER | {"headers": {"a": "c\r\nd: e"}}}, "response.headers"),
        ({"response": ANSWER | {"headers": {"a": 1}}}, "response.headers"),
        ({"response": ANSWER | {"body_b64": "!"}}, "response.body_b64"),
        ({"response": ANSWER | {"body": "x"}}, "response.body"),
        ({"other": 1}, "other"),
    ],
)
async def test_what_is_wrong_is_named_and_ends_nothing(change: dict[str, Any], field: str) -> None:
    async with serving(POLICY) as server:
        owner = await owned(server)
        status, problem = await tell(server, {"owner": owner, "action": "complete", "response": ANSWER} | change)
        assert status == 400, problem
        assert problem["field"] == field
        assert owner not in server.log()
        assert (await server.check(WRITE))["reason"] == "idempotency_in_flight"


async def test_owners_whom_nobody_knows() -> None:
    async with serving(POLICY) as server:
        owner = await owned(server)
        for wrong in ("x", owner + "A", owner.swapcase()):
            status, problem = await tell(server, {"owner": wrong, "action": "abandon"})
            assert (status, problem["field"]) == (404, "owner")
        server.clock.now_ns += 86_401 * 10**9
        assert (await tell(server, {"owner": owner, "action": "abandon"}))[0] == 404


async def test_callers_need_their_token_here_too() -> None:
    async with serving(POLICY, tokens=CallerTokens(["t" * 20])) as server:
        async with server.client.post("/v1/idempotency", json={"owner": "x", "action": "abandon"}) as answer:
            assert answer.status == 401
        given = {"Shield-Authorization": "Bearer " + "t" * 20}
        assert (await tell(server, {"owner": "x", "action": "abandon"}, **given))[0] == 404


async def test_a_gateways_check_owns_the_key_and_a_stored_answer_is_a_conflict() -> None:
    headers = {
        "X-Forwarded-Method": "POST",
        "X-Forwarded-Uri": "/orders",
        "X-Tenant": "acme",
        "Idempotency-Key": '"k-1"',
    }
    async with serving(POLICY) as server:

        async def ask(**more: str) -> Any:
            async with server.client.get("/v1/authz", headers=headers | more) as answer:
                return answer.status, dict(answer.headers), await answer.read()

        status, fields, _ = await ask()
        assert status == 200
        owner = fields["Shield-Idempotency-Owner"]
        status, fields, _ = await ask()
        assert (status, fields["Shield-Reason"], fields["Retry-After"]) == (409, "idempotency_in_flight", "60")
        status, fields, _ = await ask(**{"X-Forwarded-Uri": "/orders?x=1"})
        assert (status, fields["Shield-Reason"]) == (422, "idempotency_mismatch")
        assert (await tell(server, {"owner": owner, "action": "complete", "response": ANSWER}))[0] == 200
        for key in ('"k-1"', "k-1"):
            status, fields, body = await ask(**{"Idempotency-Key": key})
            assert (status, fields["Shield-Reason"], fields["Shield-Status"]) == (409, "idempotency_replay", "409")
            assert json.loads(body)["response"] == ANSWER | {"retained": True}
        status, fields, _ = await ask(**{"Idempotency-Key": "a,b"})
        assert (status, fields["Shield-Reason"]) == (400, "idempotency_invalid")


async def test_a_batch_finds_its_own_key_in_flight() -> None:
    async with serving(POLICY) as server:
        decisions = await server.check([WRITE, WRITE, WRITE | {"tenant": "other"}])
        assert [one["reason"] for one in decisions] == ["ok", "idempotency_in_flight", "ok"]
