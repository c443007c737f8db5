"""Known answers: the tables of public suites and the project's own, in both dialects that have any."""

from __future__ import annotations

import math

import pytest
from vectors_of import cases, schema

from shield.graphql import GraphQLError, Pricer, price


def by_id(case):
    return case["id"]


@pytest.mark.parametrize("case", cases("ibm"), ids=by_id)
def test_ibm(case):
    found = price(
        schema("ibm", case["schema"]),
        case["query"],
        case.get("variables"),
        case.get("operation"),
        default_list_size=case.get("default_list_size"),
    )
    if "type_cost" in case:
        assert found.type_cost == case["type_cost"]
    if "field_cost" in case:
        assert found.field_cost == case["field_cost"]
        assert found.cost == math.ceil(case["field_cost"])


@pytest.mark.parametrize("case", cases("router"), ids=by_id)
def test_router(case):
    def ask():
        return price(
            schema("router", case["schema"]),
            case["query"],
            case.get("variables"),
            dialect="router",
            default_list_size=case.get("default_list_size"),
        )

    if "error" in case:
        with pytest.raises(GraphQLError) as refused:
            ask()
        assert refused.value.reason == "graphql_invalid"
        assert "exactly one slicing argument" in refused.value.detail
    else:
        assert ask().cost == case["cost"]


@pytest.mark.parametrize("dialect", ["ibm", "router"])
def test_a_compiled_document_answers_the_same(dialect):
    """From the cache, after other variables, as for the first time."""
    for case in cases(dialect):
        if "error" in case:
            continue
        pricer = Pricer(
            schema(dialect, case["schema"]), dialect=dialect, default_list_size=case.get("default_list_size")
        )
        first = pricer.price(case["query"], case.get("variables"), case.get("operation"))
        again = pricer.price(case["query"], case.get("variables"), case.get("operation"))
        assert (again.type_cost, again.field_cost) == (first.type_cost, first.field_cost)
        assert pricer.cached_entries == 1
