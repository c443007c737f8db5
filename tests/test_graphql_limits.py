"""GraphQL operations under a policy: what limits are charged, what is refused, and what comes after."""

from __future__ import annotations

import base64
import json
from pathlib import Path
from typing import Any

import pytest

from shield import Policy, Request, Shield
from shield.request import GraphQL
from shield.testing import ManualClock
from tests.servers import Server

SDL = """
type Query { users(first: Int): [User] @listSize(slicingArguments: ["first"]) me: User }
type Mutation { login(password: String): User @cost(weight: "5") }
type User { age: Int @cost(weight: "2") name: String }
"""
GUARD = '[guard.graphql]\nschema = "api.graphql"\nmatch = { path = "/graphql" }\nmax_cost = 1000\n'
COST = '[[limit]]\nname = "cost"\nkey = ["ip"]\nrate = "1/s"\nburst = 500\ncost = "graphql"\n'
TYPES = '[[limit]]\nname = "types"\nkey = ["ip"]\nrate = "1/s"\nburst = 500\ncost = "graphql:type"\n'
COUNT = '[[limit]]\nname = "count"\nkey = ["ip"]\nrate = "1/s"\nburst = 10\ncost = 2\n'
PLACES = '[[limit]]\nname = "places"\nkey = ["ip"]\nalgorithm = "concurrency"\nlimit = 3\n'

FIVE = "{users(first:5){age}}"  # a call of 1, and five ages of 2; five users and the query itself


@pytest.fixture
def make(tmp_path: Path) -> Any:
    (tmp_path / "api.graphql").write_text(SDL)

    def make(policy: str, store: str = "memory://", **options: Any) -> Shield:
        parsed = Policy.parse(f"version = 1\n{policy}", directory=str(tmp_path))
        return Shield(parsed, store, clock=ManualClock(), **options)

    return make


def ask(query: str | None = FIVE, **facts: Any) -> Request:
    graphql = None if query is None else GraphQL(query, facts.pop("variables", None), facts.pop("name", None))
    return Request(ip="203.0.113.7", graphql=graphql, **facts)


def left(shield: Shield) -> dict[str, int]:
    """What was left of each limit before this looked, which takes the cost of a request without GraphQL itself."""
    decision = shield.check_nowait(Request(ip="203.0.113.7"))
    return {status.name: status.remaining + status.cost * decision.allowed for status in decision.limits}


def test_each_limit_is_charged_in_its_own_unit(make: Any) -> None:
    decision = make(GUARD + COST + TYPES + COUNT).check_nowait(ask())
    assert {status.name: status.cost for status in decision.limits} == {"cost": 11, "types": 6, "count": 2}
    assert decision.graphql == (1, 11, 6)
    assert decision.headers["X-Cost-Estimated"] == "11"
    assert decision.headers["X-Cost-Max"] == "1000"
    assert json.loads(decision.to_json()) == decision.as_dict()


def test_a_request_without_graphql_has_no_cost_and_no_fields(make: Any) -> None:
    decision = make(GUARD + COST + COUNT).check_nowait(ask(None, method="POST", path="/orders"))
    assert {status.name: status.cost for status in decision.limits} == {"cost": 0, "count": 2}
    assert decision.graphql is None
    assert not [name for name in decision.headers if name.startswith("X-Cost")]


def test_a_batch_of_logins_is_that_many_logins_but_one_request_in_flight(make: Any) -> None:
    shield = make(GUARD + COST + COUNT + PLACES)
    login = GraphQL('mutation { login(password: "x") { name } }')
    decision = shield.check_nowait(Request(ip="203.0.113.7", graphql=[login] * 5))
    assert {status.name: status.cost for status in decision.limits} == {"cost": 25, "count": 10, "places": 1}
    assert shield.check_nowait(Request(ip="203.0.113.7", graphql=[login])).violated == ["count"]


@pytest.mark.parametrize(
    ("request_", "reason", "status"),
    [
        (ask("{users(first:5000){age}}"), "graphql_cost", 422),
        (ask("{users(first:-1){age} more: users(first:999){age}}"), "graphql_cost", 422),
        (ask("query($n:Int){users(first:$n){age}}", variables={"n": 1e9}), "graphql_invalid", 400),
        (ask("{" + " ".join(f"a{i}:me{{age}}" for i in range(31)) + "}"), "graphql_aliases", 422),
        (ask("{users"), "graphql_invalid", 400),
        (ask("{users{age}} fragment A on User{...B} fragment B on User{...A}"), "graphql_fragments", 422),
        (Request(ip="203.0.113.7", graphql=[GraphQL("{me{age}}")] * 11), "graphql_batch", 422),
        (
            Request(ip="203.0.113.7", graphql=[GraphQL(f"{{users(first:{n}){{age}}}}") for n in (300, 300)]),
            "graphql_cost",
            422,
        ),
        (Request(ip="203.0.113.7", graphql=[]), "graphql_invalid", 400),
        (Request(ip="203.0.113.7", graphql=GraphQL(hash="ab" * 32)), "graphql_unknown_hash", 422),
        (Request(ip="203.0.113.7", method="POST", path="/graphql"), "graphql_invalid", 400),
        (Request(ip="203.0.113.7", graphql="{me}"), "invalid", 400),  # type: ignore[arg-type]
        (Request(ip="203.0.113.7", path=7), "invalid", 400),  # type: ignore[arg-type]
    ],
)
def test_what_is_refused_costs_nothing_and_says_why(make: Any, request_: Request, reason: str, status: int) -> None:
    shield = make(GUARD + COST + COUNT)
    decision = shield.check_nowait(request_)
    assert (decision.allowed, decision.reason, decision.status) == (False, reason, status)
    assert decision.detail
    assert decision.limits == []
    assert json.loads(decision.to_json()) == decision.as_dict()
    assert left(shield) == {"cost": 500, "count": 10}


def test_the_refusal_of_a_costly_query_names_its_paths(make: Any) -> None:
    decision = make(GUARD).check_nowait(ask("{users(first:5000){age}}"))
    assert "found 10001; allowed: at most 1000" in decision.detail
    assert "users[5000].age" in decision.detail
    assert decision.headers == {"X-Cost-Estimated": "10001", "X-Cost-Max": "1000"}


def test_only_the_named_operation_is_priced(make: Any) -> None:
    document = "query A { users(first: 500) { age } } query B { me { age } }"
    shield = make(GUARD)
    assert shield.check_nowait(ask(document, name="B")).graphql == (1, 3, 2)
    assert shield.check_nowait(ask(document, name="A")).reason == "graphql_cost"
    assert shield.check_nowait(ask(document)).reason == "graphql_invalid"


def test_the_size_guard_comes_first(make: Any) -> None:
    shield = make(GUARD + "[guard.size]\nmax_body_bytes = 10")
    assert shield.check_nowait(ask("{", bytes=11)).reason == "too_large"


def test_a_limit_that_counts_refusals_is_charged_what_is_known(make: Any) -> None:
    shield = make(GUARD + COST + COUNT.replace("cost = 2", "count_denied = true"))
    shield.check_nowait(ask("{users"))
    assert left(shield)["count"] == 9
    shield.check_nowait(Request(ip="203.0.113.7", graphql=[GraphQL("{me{age}}")] * 11))
    assert left(shield)["count"] == 0, "eleven operations are more than were left: never beyond empty"


def test_operations_are_read_from_the_body_of_matching_requests_alone(make: Any) -> None:
    shield = make(GUARD + COST)
    body = base64.b64encode(json.dumps({"query": FIVE}).encode()).decode()
    facts = {"method": "POST", "content_type": "application/json", "body": body}
    assert shield.check_nowait(ask(None, path="/graphql", **facts)).graphql == (1, 11, 6)
    assert shield.check_nowait(ask(None, path="/other", **facts)).graphql is None
    assert shield.check_nowait(ask(None, path="/graphql?query={me{age}}", method="GET")).graphql == (1, 3, 2)
    twice = shield.check_nowait(ask(None, path="/graphql?query={me{age}}", **facts))
    assert (twice.reason, twice.status) == ("graphql_invalid", 400)


def test_a_document_is_known_by_its_hash_once_it_was_sent_with_it(make: Any) -> None:
    from hashlib import sha256

    shield = make(GUARD)
    digest = sha256(FIVE.encode()).hexdigest()
    asked = GraphQL(hash=digest)
    assert shield.check_nowait(Request(graphql=asked)).reason == "graphql_unknown_hash"
    assert shield.check_nowait(Request(graphql=GraphQL(FIVE, hash=digest))).allowed
    assert shield.check_nowait(Request(graphql=asked)).graphql == (1, 11, 6)
    assert shield.check_nowait(Request(graphql=GraphQL("{me{age}}", hash=digest))).reason == "graphql_invalid"


async def test_the_actual_cost_settles_the_difference_once(make: Any) -> None:
    shield = make(GUARD + COST + TYPES)
    receipt = shield.check_nowait(ask()).receipt
    assert await shield.report(receipt, cost=4, type_cost=9)
    assert left(shield) == {"cost": 496, "types": 491}
    assert not await shield.report(receipt, cost=4)
    assert left(shield) == {"cost": 496, "types": 491}


async def test_a_remote_store_charges_the_same(make: Any, server: Server) -> None:
    local, remote = (
        make(GUARD + COST + TYPES + COUNT),
        make(GUARD + COST + TYPES + COUNT, f"{server.url}?prefix=graphql"),
    )
    batch = Request(ip="203.0.113.7", graphql=[GraphQL(FIVE), GraphQL("{me{age}}")])
    async with remote:
        answers = [await remote.check(batch), await remote.check(ask("{users(first:5000){age}}"))]
    for far, near in zip(
        answers, (local.check_nowait(batch), local.check_nowait(ask("{users(first:5000){age}}"))), strict=True
    ):
        assert [(s.name, s.cost, s.remaining) for s in far.limits] == [
            (s.name, s.cost, s.remaining) for s in near.limits
        ]
        assert (far.reason, far.graphql, far.detail) == (near.reason, near.graphql, near.detail)


def test_reload_takes_the_new_ceilings(make: Any) -> None:
    assert make(GUARD).check_nowait(ask("{users(first:400){age}}")).allowed
    assert not make(GUARD.replace("1000", "700")).check_nowait(ask("{users(first:400){age}}")).allowed
