"""Behind every gateway: refusals reach the client, facts are the gateway's, and faults permit nothing."""

from __future__ import annotations

import contextlib
import json
import re
import socket
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.gateway_processes import Change, Gateway, patient, run_shield, switched_on, unchanged
from tests.gateways.client import Answer, Client, ask
from tests.gateways.conftest import POLICY, need

JSON = ("Content-Type", "application/json")
NewClient = Callable[[], str]

# How each snippet says "let requests pass while Shield is away" and "this is the gateway".
_PASS: dict[str, Change] = {
    "envoy": lambda text: text.replace("failure_mode_allow: false", "failure_mode_allow: true"),
    "nginx": switched_on("error_page 500 502 504 = @shield_pass;"),
}
_TOKEN: dict[str, Change] = {
    "envoy": switched_on("authorization_request:", "  headers_to_add:"),
    "nginx": switched_on("proxy_set_header Shield-Authorization"),
}


def limits_in(answer: Answer) -> dict[str, int]:
    """Name -> remaining of the limits in the RateLimit field."""
    return {name: int(left) for name, left in re.findall(r'"([^"]+)";r=(\d+)', answer.headers.get("RateLimit", ""))}


def test_a_refusal_reaches_the_client(gateway: Gateway, new_client: NewClient) -> None:
    with Client(gateway.port, new_client()) as client:
        allowed = [client.ask("/things") for _ in range(3)]
        refused = client.ask("/things")
    assert [(answer.status, answer.body) for answer in allowed] == [(200, b"ok\n")] * 3
    assert [limits_in(answer) for answer in allowed] == [{"address": 2}, {"address": 1}, {"address": 0}]
    assert {answer.headers["RateLimit-Policy"] for answer in allowed} == {'"address";q=3;w=3600'}
    assert refused.status == 429
    assert refused.headers["RateLimit-Policy"] == '"address";q=3;w=3600'
    found = re.fullmatch(r'"address";r=0;t=(\d+)', refused.headers["RateLimit"])
    # One unit each 1,200 s, the first of which began to come back when it was taken.
    assert found is not None
    assert 1_100 < int(found[1]) <= 1_200
    assert refused.headers["Retry-After"] == found[1]
    assert refused.headers["Content-Type"].partition(";")[0] == "application/problem+json"
    body = refused.json()
    assert body["status"] == 429
    assert body["reason"] == "limit"


def test_method_and_path_are_the_requests_own(gateway: Gateway, new_client: NewClient) -> None:
    source = new_client()
    with Client(gateway.port, source) as client:
        assert limits_in(client.ask("/orders/7?x=1", "POST", [JSON], b"{}")) == {"address": 2, "orders": 0}
        # The same resource, however it is spelt.
        for path in ("/orders/8?x=2", "/orders/9", "/a/..//orders///9", "/%6Frders/9", "/orders/%39"):
            again = client.ask(path, "POST", [JSON], b"{}")
            assert (path, again.status, limits_in(again)) == (path, 429, {"orders": 0})
        # Another method, another path.
        assert limits_in(client.ask("/orders/7?x=1")) == {"address": 1}
        assert limits_in(client.ask("/orders", "POST", [JSON], b"{}")) == {"address": 0}


def test_a_client_cannot_state_another_method_or_path(gateway: Gateway, new_client: NewClient) -> None:
    claims = [
        (f"X-{family}-{fact}", value)
        for family in ("Original", "Forwarded")
        for fact, value in (("Method", "GET"), ("URI", "/elsewhere"), ("Host", "acme.example"))
    ]
    with Client(gateway.port, new_client()) as client:
        assert client.ask("/orders/7", "POST", [JSON, *claims], b"{}").status == 200
        assert limits_in(client.ask("/orders/7", "POST", [JSON, *claims], b"{}")) == {"orders": 0}


@pytest.mark.parametrize("claimed", ["203.0.113.9", "127.0.0.1", "203.0.113.9, 127.0.0.1", "nonsense", ",,"])
def test_a_claimed_address_does_not_change_who_is_counted(
    gateway: Gateway, new_client: NewClient, claimed: str
) -> None:
    fields = [("X-Forwarded-For", claimed), ("X-Real-IP", "203.0.113.9"), ("Forwarded", "for=203.0.113.9")]
    source = new_client()
    answers = [ask(gateway.port, source, fields=fields) for _ in range(4)]
    assert [limits_in(answer)["address"] for answer in answers] == [2, 1, 0, 0]
    assert answers[3].status == 429
    # Somebody else's claim to be this client does not cost it anything either.
    victim, liar = new_client(), new_client()
    for _ in range(4):
        ask(gateway.port, liar, fields=[("X-Forwarded-For", victim), ("X-Forwarded-For", victim)])
    assert limits_in(ask(gateway.port, victim)) == {"address": 2}


def test_the_tenant_is_what_the_gateway_says(kind: str, new_client: NewClient, tmp_path: Path) -> None:
    # A Shield of its own: the tenant of the snippets is one, and each gateway is to find its quota untouched.
    with run_shield(tmp_path, POLICY) as shield, need(kind)(tmp_path, shield.port, patient) as gateway:

        def asked(*fields: tuple[str, str]) -> Answer:
            return ask(gateway.port, new_client(), fields=fields)

        # A client cannot name a tenant where the gateway knows none ...
        for _ in range(3):
            assert limits_in(asked(("X-Tenant", "acme"))) == {"address": 2}
        # ... nor one other than the gateway's.
        assert limits_in(asked(("Host", "acme.example"))) == {"address": 2, "tenant": 1}
        assert limits_in(asked(("Host", "acme.example"), ("X-Tenant", "b"), ("X-Tenant", "c")))["tenant"] == 0
        refused = asked(("Host", "acme.example"), ("X-Tenant", "d"))
        assert (refused.status, limits_in(refused)) == (429, {"tenant": 0})


def test_a_body_of_the_wrong_type_is_refused(gateway: Gateway, new_client: NewClient) -> None:
    """The gateway asks without the body, and must not seem to say that there is none."""
    source = new_client()
    refused = ask(gateway.port, source, "/things", "POST", [("Content-Type", "text/csv")], b"1,2\n")
    assert refused.status == 415
    assert refused.json()["reason"] == "content_type"
    chunked = [("Content-Type", "text/csv"), ("Transfer-Encoding", "chunked")]
    assert ask(gateway.port, source, "/things", "POST", chunked, b"1,2\n").status == 415
    # A refused request costs nothing.
    assert limits_in(ask(gateway.port, source, "/things", "POST", [JSON], b"[]")) == {"address": 2}


def test_a_body_that_is_too_large_is_refused(gateway: Gateway, new_client: NewClient) -> None:
    """The size is that of the client's body, though the check comes without it; the client has no say in it."""
    with Client(gateway.port, new_client()) as client:
        assert client.ask("/things", "POST", [JSON, ("X-Body-Bytes", "100001")], b"x" * 100_000).status == 200
    refused = ask(gateway.port, new_client(), "/things", "POST", [JSON, ("X-Body-Bytes", "7")], b"x" * 100_001)
    assert (refused.status, refused.json()["reason"]) == (413, "too_large")
    # A body without a stated length is unknown, and no header of the client's says otherwise.
    chunked = [JSON, ("Transfer-Encoding", "chunked"), ("X-Body-Bytes", "100001")]
    assert ask(gateway.port, new_client(), "/things", "POST", chunked, b"x").status == 200


def test_every_kind_of_request_passes_once(gateway: Gateway, new_client: NewClient) -> None:
    """A check without a body for requests with one: the next check on the connection still is understood."""
    requests: list[tuple[str, list[tuple[str, str]], bytes | None]] = [
        ("POST", [JSON], b"x" * 100_000),
        ("PUT", [JSON, ("Transfer-Encoding", "chunked")], b"y" * 1_000),
        ("DELETE", [], None),
        ("HEAD", [], None),
        ("OPTIONS", [], None),
        ("GET", [], None),
    ]
    statuses = [ask(gateway.port, new_client(), "/b", *request).status for request in requests for _ in range(2)]
    assert statuses == [200] * 12


@contextlib.contextmanager
def port_that_refuses() -> Iterator[int]:
    """A port that is taken but where nobody listens."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        yield taken.getsockname()[1]


@contextlib.contextmanager
def port_that_is_silent() -> Iterator[int]:
    """A port where connections are made and nothing is ever answered."""
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen(16)
        yield silent.getsockname()[1]


@pytest.mark.parametrize("away", [port_that_refuses, port_that_is_silent])
def test_shield_away(
    kind: str,
    away: Callable[[], contextlib.AbstractContextManager[int]],
    new_client: NewClient,
    tmp_path: Path,
) -> None:
    """The documented choice: refused with 503, or let pass. The client waits no longer than the timeout."""
    with away() as port, need(kind)(tmp_path / "closed", port, unchanged) as gateway:
        assert ask(gateway.port, new_client()).status == 503
    with away() as port, need(kind)(tmp_path / "open", port, _PASS[kind]) as gateway:
        assert ask(gateway.port, new_client()).status == 200


def test_only_the_gateway_with_the_token_is_answered(kind: str, new_client: NewClient, tmp_path: Path) -> None:
    token = "correct-horse-battery-staple"
    file = tmp_path / "tokens"
    file.write_text(f"{token}\n")

    def with_token(text: str) -> str:
        return _TOKEN[kind](patient(text)).replace("Bearer TOKEN", f"Bearer {token}")

    with run_shield(tmp_path / "shield", POLICY, "--auth-token-file", file) as shield:
        with need(kind)(tmp_path / "with", shield.port, with_token) as gateway:
            source = new_client()
            assert ask(gateway.port, source).status == 200
            # What a client sends under this name neither helps nor hurts.
            assert ask(gateway.port, source, fields=[("Shield-Authorization", "Bearer wrong")]).status == 200
        with need(kind)(tmp_path / "without", shield.port, patient) as gateway:
            claims = [("Shield-Authorization", f"Bearer {token}"), ("Authorization", f"Bearer {token}")]
            assert ask(gateway.port, new_client(), fields=claims).status in (401, 403, 503)


def test_the_request_id_is_in_shields_log(kind: str, new_client: NewClient, tmp_path: Path) -> None:
    # A Shield of its own, because lines about refusals are rationed.
    with run_shield(tmp_path, POLICY) as shield, need(kind)(tmp_path, shield.port, patient) as gateway:
        with Client(gateway.port, new_client()) as client:
            answers = [client.ask("/") for _ in range(4)]
        request_id = answers[3].headers["X-Request-Id"]
        events = [json.loads(line) for line in shield.process.output().splitlines() if line.startswith("{")]
    assert request_id
    assert [event["limits"] for event in events if event.get("request_id") == request_id] == [["address"]]
