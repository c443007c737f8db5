"""GraphQL through a real Envoy, which sends the body along with its check."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

from tests.gateway_processes import patient, run_shield, switched_on
from tests.gateways.client import Client
from tests.gateways.conftest import need

SDL = 'type Query { users(first: Int): [User] @listSize(slicingArguments: ["first"]) }\ntype User { age: Int }\n'
POLICY = """
version = 1
[identity]
trusted_proxies = ["127.0.0.1/32"]
[guard.graphql]
schema = "api.graphql"
match = { path = "/graphql" }
max_type_cost = 50
[[limit]]
name = "cost"
key = ["ip"]
rate = "1/h"
burst = 20
cost = "graphql:type"
"""


def test_operations_are_priced_before_they_reach_the_api(tmp_path: Path, new_client: Callable[[], str]) -> None:
    start = need("envoy")
    (tmp_path / "api.graphql").write_text(SDL)

    def change(text: str) -> str:
        return patient(switched_on("with_request_body:")(text))

    with (
        run_shield(tmp_path, POLICY) as shield,
        start(tmp_path / "envoy", shield.port, change) as envoy,
        Client(envoy.port, new_client()) as client,
    ):

        def ask(query: str) -> tuple[int, str | None]:
            body = json.dumps({"query": query}).encode()
            answer = client.ask("/graphql", "POST", [("Content-Type", "application/json")], body)
            return answer.status, answer.headers["X-Cost-Estimated"]

        assert ask("{users(first:9){age}}") == (200, "1")
        assert ask("{users(first:9){age}}") == (200, "1")
        assert ask("{users(first:9){age}}") == (429, "1")
        assert ask("{users(first:99){age}}")[0] == 422
        assert ask("{users(first:9")[0] == 400
