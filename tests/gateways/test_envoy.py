"""What holds behind Envoy only."""

from __future__ import annotations

from collections.abc import Callable

from tests.gateway_processes import Gateway
from tests.gateways.client import Client


def test_the_refusal_is_shields_own_answer(envoy: Gateway, new_client: Callable[[], str]) -> None:
    with Client(envoy.port, new_client()) as client:
        answers = [client.ask("/things") for _ in range(4)]
    refused = answers[3]
    assert refused.status == 429
    assert refused.headers["Content-Type"].startswith("application/problem+json")
    body = refused.json()
    assert {"type", "title", "status", "detail"} <= body.keys()
    assert body["status"] == 429
    # One id for the client, the body and both logs.
    assert body["request_id"] == refused.headers["X-Request-Id"]
    assert all(answer.headers["X-Request-Id"] for answer in answers)


def test_handles_and_inner_fields_stay_inside(envoy: Gateway, new_client: Callable[[], str]) -> None:
    """On success the client sees its quota and nothing else of Shield's."""
    with Client(envoy.port, new_client()) as client:
        answer = client.ask("/things")
    assert not [name for name in answer.headers if name.lower().startswith("shield-")]
