"""GraphQL over both kinds of endpoints: operations as callers state them, and as their clients sent them."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from pathlib import Path
from urllib.parse import quote

import pytest

from tests.server.running import Running, serving

SDL = 'type Query { users(first: Int): [User] @listSize(slicingArguments: ["first"]) }\ntype User { age: Int }\n'
FIVE = "{users(first:5){age}}"
POLICY = """
version = 1
[guard.graphql]
schema = "{schema}"
match = {{ path = "/graphql" }}
max_cost = 100
max_type_cost = 50
default_list_size = "unbounded"
[[limit]]
name = "cost"
key = ["ip"]
rate = "1/h"
burst = 10
cost = "graphql:type"
"""


@pytest.fixture(params=[True, False], ids=["express", "aiohttp"])
async def running(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Running]:
    (tmp_path / "api.graphql").write_text(SDL)
    policy = POLICY.format(schema=tmp_path / "api.graphql")
    async with serving(policy, express=request.param) as server:
        yield server


async def test_stated_operations_are_priced_and_settled(running: Running) -> None:
    asked = {"ip": "203.0.113.7", "graphql": {"query": FIVE}}
    decision = await running.check(asked)
    status = decision["limits"][0]
    assert (status["cost"], status["remaining"], status["reset_after"]) == (6, 4, 21600.0)
    assert decision["headers"]["X-Cost-Estimated"] == "1"
    assert decision["headers"]["X-Cost-Max"] == "100"
    assert (await running.check(asked))["violated"] == ["cost"]
    async with running.client.post("/v1/report", json={"receipt": decision["receipt"], "type_cost": 2}) as answer:
        assert (answer.status, await answer.json()) == (202, {"settled": True})
    assert (await running.check(asked))["allowed"]


@pytest.mark.parametrize("target", ["/v1/authz?from=original", "/v1/authz/envoy/graphql"])
async def test_a_gateway_hands_the_body_on(running: Running, target: str) -> None:
    facts = {"X-Original-Method": "POST", "X-Original-URI": "/graphql", "Content-Type": "application/json"}
    for query, status, cost in ((FIVE, 200, "1"), ("{users{age}}", 422, None), ("{users", 400, None)):
        async with running.client.post(target, headers=facts, data=json.dumps({"query": query})) as answer:
            assert answer.status == status, await answer.text()
            assert answer.headers.get("X-Cost-Estimated") == cost
    async with running.client.post(target, headers=facts) as answer:
        assert (answer.status, answer.headers["Shield-Reason"]) == (400, "graphql_invalid")


async def test_operations_in_a_query_string_need_no_body(running: Running) -> None:
    async with running.client.get(f"/v1/authz/envoy/graphql?query={quote(FIVE)}") as answer:
        assert (answer.status, answer.headers["X-Cost-Estimated"]) == (200, "1")
    async with running.client.get("/v1/authz/envoy/graphql") as answer:
        assert (answer.status, "X-Cost-Estimated" in answer.headers) == (200, False)


async def test_bodies_of_other_paths_are_nobodys_business(running: Running) -> None:
    async with running.client.post("/v1/authz/envoy/orders", data=b"\xff" * 100) as answer:
        assert answer.status == 200


async def test_a_wrong_figure_is_named(running: Running) -> None:
    decision = await running.check({"ip": "203.0.113.8", "graphql": {"query": FIVE}})
    async with running.client.post("/v1/report", json={"receipt": decision["receipt"], "type_cost": -1}) as answer:
        assert (answer.status, (await answer.json())["field"]) == (400, "type_cost")
