"""POST /v1/report and /v1/release: settling what was charged, giving places back."""

from __future__ import annotations

import json
from typing import Any

import pytest

from shield.errors import StoreError
from tests.server.running import Running, serving

POLICY = """
[[limit]]
name = "tokens"
key = ["user"]
rate = "10/h"
cost = "request"

[[limit]]
name = "jobs"
key = ["tenant"]
algorithm = "concurrency"
limit = 2
"""


async def post(server: Running, path: str, body: Any) -> tuple[int, Any]:
    async with server.client.post(path, json=body) as answer:
        return answer.status, json.loads(await answer.text())


async def left(server: Running) -> int:
    decision = await server.check({"user": "u", "cost": 0})
    remaining: int = decision["limits"][0]["remaining"]
    return remaining


async def test_what_was_not_used_comes_back_once() -> None:
    async with serving(POLICY) as server:
        receipt = (await server.check({"user": "u", "cost": 8}))["receipt"]
        assert await left(server) == 2
        report = {"receipt": receipt, "cost": 3, "status": 200, "bytes": 100}
        assert await post(server, "/v1/report", report) == (202, {"settled": True})
        assert await left(server) == 7
        assert await post(server, "/v1/report", report) == (202, {"settled": False})
        assert await left(server) == 7


async def test_what_was_used_beyond_is_charged() -> None:
    async with serving(POLICY) as server:
        receipt = (await server.check({"user": "u", "cost": 1}))["receipt"]
        assert (await post(server, "/v1/report", {"receipt": receipt, "cost": 9}))[0] == 202
        assert await left(server) == 1


async def test_a_receipt_that_is_none_is_refused_by_name() -> None:
    async with serving(POLICY) as server:
        receipt = (await server.check({"user": "u", "cost": 1}))["receipt"]
        altered = receipt[:-2] + ("AA" if receipt[-2:] != "AA" else "BB")
        for wrong in ("", "x", altered, receipt * 2, "é", "x" * 100_000):
            status, body = await post(server, "/v1/report", {"receipt": wrong, "cost": 1, "user": "u"})
            assert status == 400, wrong
            assert body["field"] == "receipt"
            assert receipt not in server.log()


async def test_an_expired_receipt_is_refused() -> None:
    async with serving(POLICY) as server:
        receipt = (await server.check({"user": "u", "cost": 5}))["receipt"]
        server.clock.now_ns += 301 * 10**9
        status, body = await post(server, "/v1/report", {"receipt": receipt, "cost": 1})
        assert status == 400
        assert "expired" in body["detail"]


async def test_facts_alone_are_accepted_and_settle_nothing() -> None:
    async with serving(POLICY) as server:
        facts = {"user": "u", "ip": "203.0.113.7", "status": 401, "event": "login_failed"}
        assert await post(server, "/v1/report", facts) == (202, {"settled": False})
        wrongs: list[Any] = [{}, {"status": 200}, {"receipt": "r", "user": 1}, [], {"recipt": "r"}]
        for wrong in wrongs:
            assert (await post(server, "/v1/report", wrong))[0] == 400


async def test_a_store_that_is_away_is_503_and_no_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    async with serving(POLICY) as server:

        async def away(*args: Any, **figures: Any) -> bool:
            raise StoreError("redis at 10.0.0.1 is gone")

        monkeypatch.setattr(server.service.shield, "report", away)
        async with server.client.post("/v1/report", json={"receipt": "r", "cost": 1}) as answer:
            assert answer.status == 503
            assert answer.headers["Retry-After"] == "1"
            assert "10.0.0.1" not in await answer.text()


async def test_places_are_given_back() -> None:
    async with serving(POLICY) as server:
        first, second, third = [await server.check({"tenant": "t"}) for _ in range(3)]
        assert [len(one["leases"]) for one in (first, second, third)] == [1, 1, 0]
        assert third["reason"] == "concurrency"
        assert await post(server, "/v1/release", {"leases": first["leases"]}) == (200, {"released": 1})
        assert await post(server, "/v1/release", {"leases": first["leases"]}) == (200, {"released": 0})
        assert await post(server, "/v1/release", {"leases": ["unknown", ""]}) == (200, {"released": 0})
        assert (await server.check({"tenant": "t"}))["allowed"]
        for wrong in ({}, {"leases": "x"}, {"leases": [1]}, {"leases": ["x"] * 1025}):
            assert (await post(server, "/v1/release", wrong))[0] == 400
