"""The gateways' endpoints: what they read, what they ignore, and that no refusal is ever 2xx."""

from __future__ import annotations

import json
from collections.abc import Mapping
from types import SimpleNamespace
from typing import Any, NamedTuple, cast

import pytest

from shield.decision import Decision
from shield.server.authz import allowed, mode_of, refused
from shield.server.problem import Problem
from tests.server.running import Running, serving

POLICY = """
name = "gateway"

[identity]
trusted_proxies = ["127.0.0.0/8", "10.0.0.0/8"]

[identity.headers]
tenant = "X-Tenant"
cost = "X-Cost"
"attributes.country" = "X-Country"
request_id = "X-Request-Id"

[[limit]]
name = "address"
key = ["ip"]
rate = "1/h"
burst = 100

[[limit]]
name = "orders"
key = ["tenant", "ip"]
rate = "1/h"
burst = 2
match = { method = ["POST"], path = "/orders/{id}" }

[[limit]]
name = "by-cost"
key = ["attributes.country"]
rate = "1/h"
burst = 10
cost = "request"
"""


class Answer(NamedTuple):
    """What a gateway gets."""

    status: int
    headers: Mapping[str, str]
    body: bytes


async def ask(server: Running, path: str = "/v1/authz", method: str = "GET", **headers: str) -> Answer:
    """The answer for these headers, `_` standing for `-` in their names."""
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    async with server.client.request(method, path, headers=named) as answer:
        return Answer(answer.status, answer.headers, await answer.read())


async def seen(server: Running, path: str = "/v1/authz", method: str = "GET", **headers: str) -> Any:
    """The Request that the gateway's headers became."""
    with server.watched() as requests:
        await ask(server, path, method, **headers)
    return requests[0]


# ---- what is read ------------------------------------------------------------------------------------------


async def test_the_forwarded_family_is_read_and_the_other_ignored() -> None:
    both = {
        "X_Forwarded_Method": "POST", "X_Forwarded_Uri": "/orders/9?x=1", "X_Forwarded_Host": "api.example",
        "X_Original_Method": "DELETE", "X_Original_URI": "/other",
    }  # fmt: skip
    async with serving(POLICY) as server:
        for path in ("/v1/authz", "/v1/authz?from=forwarded"):
            request = await seen(server, path, **both)
            assert (request.method, request.path, request.host) == ("POST", "/orders/9?x=1", "api.example")
        request = await seen(server, "/v1/authz?from=original", **both)
        assert (request.method, request.path, request.host) == ("DELETE", "/other", None)


async def test_the_check_requests_own_method_is_not_the_clients() -> None:
    async with serving(POLICY) as server:
        for method in ("GET", "POST", "OPTIONS", "PROPFIND"):
            request = await seen(server, method=method, X_Forwarded_Method="PATCH")
            assert request.method == "PATCH"
            assert (await seen(server, method=method)).method is None


async def test_facts_are_taken_from_the_headers_that_mean_them() -> None:
    async with serving(POLICY) as server:
        request = await seen(
            server,
            Authorization="bearer eyJhbGciOi",
            Idempotency_Key='"8e03"',
            Content_Type="application/json",
            User_Agent="curl/8",
            X_Tenant="acme",
            X_Cost="3",
            X_Country="NO",
            X_Request_Id="r-1",
            X_User="mallory",
            X_Forwarded_For="203.0.113.7",
        )
        assert request.token == "eyJhbGciOi"
        assert request.idempotency.key == '"8e03"'  # in quotes or bare: the guard reads both
        assert (request.content_type, request.user_agent) == ("application/json", "curl/8")
        assert (request.tenant, request.cost, request.attributes) == ("acme", 3, {"country": "NO"})
        assert request.request_id == "r-1"
        assert request.user is None  # no header stands for it
        assert request.ip == "203.0.113.7"
        assert (await seen(server, Authorization="Basic dXNlcjpwYXNz")).token is None
        assert (await seen(server, Authorization="Bearer ")).token is None
        assert (await seen(server, Idempotency_Key="bare")).idempotency.key == "bare"


async def test_content_length_is_the_bodys_size() -> None:
    async with serving(POLICY) as server:
        head = b"POST /v1/authz HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\n"
        assert (await raw_seen(server, head, b"hello")).bytes == 5
        assert (await seen(server, method="POST", Content_Length="0")).bytes is None  # asked without the body


async def test_the_client_address_is_what_trusted_proxies_vouch_for() -> None:
    async with serving(POLICY) as server:
        for sent, address in (
            ("203.0.113.7", "203.0.113.7"),
            ("1.1.1.1, 203.0.113.7", "203.0.113.7"),  # what a client wrote itself stands left
            ("1.1.1.1, 203.0.113.7, 10.1.2.3", "203.0.113.7"),
            ("203.0.113.7:4711", "203.0.113.7"),
            ("2001:db8::1", "2001:db8::1"),
            ("1.1.1.1, nonsense", None),  # a unix socket vouches for nothing that is no address
            ("", None),
        ):
            for path in ("/v1/authz", "/v1/authz?from=original", "/v1/authz/envoy/x"):
                assert (await seen(server, path, X_Forwarded_For=sent)).ip == address, (sent, path)


async def test_several_x_forwarded_for_fields_are_one_list() -> None:
    async with serving(POLICY) as server:
        raw = await server.raw(
            b"GET /v1/authz HTTP/1.1\r\nHost: x\r\nConnection: close\r\n"
            b"X-Forwarded-For: 1.1.1.1\r\nX-Forwarded-For: 203.0.113.7\r\nX-Forwarded-For: 10.0.0.1\r\n\r\n"
        )
        assert raw.startswith(b"HTTP/1.1 200")
        # The third, spoofed in front or not, counts for the same address.
        for spoofed in ("", "8.8.8.8, ", "203.0.113.7, "):
            answer = await ask(server, X_Forwarded_For=f"{spoofed}203.0.113.7")
        assert "r=96" in answer.headers["RateLimit"]


async def test_one_client_cannot_have_two_addresses() -> None:
    """The classic bypass: a new first element for each request."""
    async with serving(POLICY.replace("burst = 100", "burst = 3")) as server:
        statuses = [(await ask(server, X_Forwarded_For=f"198.51.100.{i}, 203.0.113.7")).status for i in range(5)]
        assert statuses == [200, 200, 200, 429, 429]


async def test_a_field_that_must_be_single_and_is_not_is_a_refusal() -> None:
    async with serving(POLICY) as server:
        for field in (
            b"X-Forwarded-Uri",
            b"X-Forwarded-Method",
            b"Authorization",
            b"X-Tenant",
            b"Idempotency-Key",
        ):
            raw = await server.raw(
                b"GET /v1/authz?deny=403 HTTP/1.1\r\nHost: x\r\nConnection: close\r\n%b: /a\r\n%b: /b\r\n\r\n"
                % (field, field)
            )
            assert raw.startswith(b"HTTP/1.1 403"), raw
            assert b"Shield-Status: 400\r\nShield-Reason: invalid" in raw
        answer = await ask(server, X_Cost="three")
        assert (answer.status, answer.headers["Shield-Reason"]) == (400, "invalid")
        assert json.loads(answer.body)["field"] == "X-Cost"


async def test_bytes_that_are_no_utf8_neither_crash_nor_bypass() -> None:
    async with serving(POLICY) as server:
        for line in (
            b"X-Forwarded-Uri: /orders/\xff\xfe",
            b"User-Agent: \xe9\xe8",
            b"X-Tenant: \xff",
            b"X-Country: \xff",
        ):
            raw = await server.raw(b"GET /v1/authz HTTP/1.1\r\nHost: x\r\nConnection: close\r\n%b\r\n\r\n" % line)
            assert raw.split()[1] in (b"200", b"400"), raw
            assert b"Shield-Reason" in raw
        # A latin-1 user agent is no reason to refuse.
        raw = await server.raw(b"GET /v1/authz HTTP/1.1\r\nHost: x\r\nConnection: close\r\nUser-Agent: \xe9\r\n\r\n")
        assert raw.startswith(b"HTTP/1.1 200")


# ---- the query ---------------------------------------------------------------------------------------------


def test_an_unknown_query_is_refused_and_says_what_to_do() -> None:
    for query in (
        "dney=403",
        "from=forward",
        "deny=401",
        "from=original&from=forwarded",
        "x",
        "deny=403;from=original",
    ):
        with pytest.raises(Problem, match=r"allowed: from=forwarded, from=original and deny=403"):
            mode_of(query)
    assert mode_of("deny=403&from=original").deny == 403


async def test_a_clients_query_behind_an_unpinned_path_is_refused() -> None:
    """Caddy keeps the client's query when the check path has none: then the client would choose the family."""
    async with serving(POLICY) as server:
        answer = await ask(server, "/v1/authz?page=2", X_Forwarded_Uri="/?page=2")
        assert answer.status == 400
        assert "?from=forwarded" in json.loads(answer.body)["detail"]
        assert (await ask(server, "/v1/authz?" + "&".join(f"a{i}=1" for i in range(100)))).status == 400


async def test_deny_403_answers_every_refusal_with_403() -> None:
    async with serving(POLICY) as server:
        headers = {"X_Forwarded_For": "203.0.113.7", "X_Country": "SE", "X_Cost": "10"}
        assert (await ask(server, "/v1/authz?from=original&deny=403", **headers)).status == 200
        answer = await ask(server, "/v1/authz?from=original&deny=403", **headers)
        assert answer.status == 403
        assert answer.headers["Shield-Status"] == "429"
        assert answer.headers["Shield-Reason"] == "limit"
        assert answer.headers["Retry-After"] == "36000"
        body = json.loads(answer.body)
        assert body["status"] == 403
        assert body["violated-policies"] == ["by-cost"]
        assert (await ask(server, **headers)).status == 429


# ---- the answer --------------------------------------------------------------------------------------------


async def test_an_allowed_answer_carries_the_rate_limit_fields() -> None:
    async with serving(POLICY) as server:
        answer = await ask(server, X_Forwarded_For="203.0.113.7", X_Request_Id="c0ffee")
        assert answer.status == 200
        assert answer.body == b""
        assert answer.headers["RateLimit-Policy"] == '"address";q=100;w=360000'
        assert answer.headers["RateLimit"] == '"address";r=99;t=3600'
        assert answer.headers["Shield-Request-Id"] == "c0ffee"
        assert (answer.headers["Shield-Status"], answer.headers["Shield-Reason"]) == ("200", "ok")


async def test_a_refusal_is_the_response() -> None:
    async with serving(POLICY) as server:
        order = {"X_Forwarded_For": "203.0.113.7", "X_Forwarded_Method": "POST", "X_Tenant": "acme"}
        for path in ("/orders/1", "//orders/./2?x=y"):
            assert (await ask(server, X_Forwarded_Uri=path, **order)).status == 200
        answer = await ask(server, X_Forwarded_Uri="/orders/%33", **order)
        assert answer.status == 429
        assert answer.headers["Content-Type"] == "application/problem+json"
        assert answer.headers["RateLimit"] == '"orders";r=0;t=3600'
        assert answer.headers["Retry-After"] == "3600"
        assert answer.headers["Cache-Control"] == "no-store"
        body = json.loads(answer.body)
        assert body["type"].endswith("#quota-exceeded")
        assert (body["status"], body["reason"], body["violated-policies"]) == (429, "limit", ["orders"])
        assert body["request_id"] == answer.headers["Shield-Request-Id"]


async def test_head_gets_no_body() -> None:
    async with serving(POLICY.replace("burst = 100", "burst = 1")) as server:
        for _ in range(2):
            answer = await ask(server, method="HEAD", X_Forwarded_For="203.0.113.7")
        assert answer.status == 429
        assert answer.body == b""


REASONS = {
    "limit": 429, "concurrency": 429, "blocked": 403, "challenge": 403, "invalid": 400, "missing": 400,
    "identity": 401, "unregistered": 404, "too_large": 413, "content_type": 415, "graphql_invalid": 400,
    "graphql_cost": 422, "nonce_missing": 401, "stale": 401, "replay": 409, "idempotency_missing": 400,
    "idempotency_in_flight": 409, "idempotency_mismatch": 422, "store_full": 503, "store_unavailable": 503,
}  # fmt: skip


def fake(**fields: Any) -> Decision:
    defaults: dict[str, Any] = {
        "allowed": False, "reason": "limit", "status": 429, "violated": [], "headers": {}, "detail": None,
        "receipt": None, "leases": [], "idempotency": None, "response": None,
    }  # fmt: skip
    return cast(Decision, SimpleNamespace(**(defaults | fields)))


@pytest.mark.parametrize("reason", REASONS)
def test_a_refusal_has_its_reasons_status(reason: str) -> None:
    status = REASONS[reason]
    answer = refused(fake(reason=reason, status=status), "id", None)
    assert answer.status == status
    assert answer.headers["Shield-Status"] == str(status)
    assert answer.headers["Shield-Reason"] == reason
    denied = refused(fake(reason=reason, status=status), "id", 403)
    assert denied.status == 403
    assert denied.headers["Shield-Status"] == str(status)


@pytest.mark.parametrize("stored", [200, 201, 204, 301, 404, 500])
def test_a_stored_answer_is_a_conflict(stored: int) -> None:
    answer = refused(fake(reason="idempotency_replay", status=stored), "id", None)
    assert answer.status == 409
    assert answer.headers["Shield-Reason"] == "idempotency_replay"
    assert answer.headers["Shield-Status"] == "409"


@pytest.mark.parametrize("status", [100, 200, 204, 302, 399, 600])
def test_no_refusal_is_ever_anything_but_an_error(status: int) -> None:
    assert refused(fake(status=status), "id", None).status == 403


def test_handles_go_back_to_the_gateway_as_far_as_they_fit_into_its_buffers() -> None:
    answer = allowed(fake(allowed=True, reason="ok", receipt="r" * 100, leases=["a", "b"]), "id")
    assert answer.headers["Shield-Receipt"] == "r" * 100
    assert answer.headers["Shield-Lease"] == "a, b"
    answer = allowed(fake(allowed=True, reason="ok", receipt="r" * 5_000), "id")
    assert "Shield-Receipt" not in answer.headers


# ---- Envoy -------------------------------------------------------------------------------------------------


async def test_behind_envoys_prefix_method_and_path_are_the_requests_own() -> None:
    async with serving(POLICY) as server:
        async with server.client.put("/v1/authz/envoy/orders/9?deny=403&from=original") as answer:
            assert answer.status == 200
        for target, path in (
            (b"/v1/authz/envoy/orders/9?deny=403&x=1", "/orders/9?deny=403&x=1"),
            (b"/v1/authz/envoy//a/../b/%2e%2E/%2F;c", "//a/../b/%2e%2E/%2F;c"),
            (b"/v1/authz/envoy", "/"),
            (b"/v1/authz/envoy/", "/"),
            (b"/v1/authz/envoy?q=1", "/?q=1"),
            (b"http://shield/v1/authz/envoy/orders/9", "/orders/9"),
        ):
            request = await raw_seen(server, b"POST %b HTTP/1.1\r\nHost: api.example\r\n" % target)
            assert (request.method, request.path, request.host) == ("POST", path, "api.example"), target


async def raw_seen(server: Running, head: bytes, body: bytes = b"") -> Any:
    """The Request that a raw head became."""
    with server.watched() as requests:
        await server.raw(head + b"Connection: close\r\n\r\n" + body)
    return requests[0]


async def test_what_the_client_sends_to_envoy_changes_nothing_but_its_own_request() -> None:
    """A query of deny=403 is the client's; forwarding headers of either family are only claims."""
    async with serving(POLICY.replace("burst = 100", "burst = 1")) as server:
        headers = {
            "X_Forwarded_For": "203.0.113.7", "X_Forwarded_Method": "GET", "X_Forwarded_Uri": "/free",
            "X_Original_URI": "/free", "X_Original_Method": "GET",
        }  # fmt: skip
        assert (await ask(server, "/v1/authz/envoy/a?deny=403", "POST", **headers)).status == 200
        assert (await ask(server, "/v1/authz/envoy/b?deny=403", "POST", **headers)).status == 429


async def test_paths_beside_the_prefix_are_unknown() -> None:
    async with serving(POLICY) as server:
        for path in ("/v1/authz/envoyx", "/v1/authz/envoy*", "/v1/authz/", "/v1/authz/x"):
            assert (await ask(server, path)).status == 404, path
        raw = await server.raw(b"OPTIONS * HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
        assert raw.startswith(b"HTTP/1.1 404")
        raw = await server.raw(b"CONNECT api.example:443 HTTP/1.1\r\nHost: x\r\n\r\n", end=False)
        assert raw.split()[1] in (b"404", b"400")


async def test_a_body_that_was_announced_and_never_sent_ends_the_connection() -> None:
    """nginx's auth_request does that when Content-Length is not cleared; keeping the connection would
    smuggle.
    """
    async with serving(POLICY) as server:
        raw = await server.raw(
            b"POST /v1/authz?from=original HTTP/1.1\r\nHost: x\r\nContent-Length: 60\r\n"
            b"X-Original-URI: /a\r\nX-Original-Method: POST\r\n\r\n",
            end=False,
        )
        assert raw.startswith(b"HTTP/1.1 200")
        assert b"Connection: close" in raw
