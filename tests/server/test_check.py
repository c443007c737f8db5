"""POST /v1/check over real sockets: decisions, batches, and what is no request."""

from __future__ import annotations

import asyncio
import gzip
import io
import json
from typing import Any

import aiohttp
import pytest

from shield.server import bounds, connection, listener
from tests.server.running import serving


def problem_of(raw: bytes) -> tuple[int, dict[str, Any]]:
    """The status and RFC 9457 body of a raw answer."""
    head, _, body = raw.partition(b"\r\n\r\n")
    assert b"application/problem+json" in head, raw
    return int(head.split()[1]), json.loads(body)


async def test_a_decision_is_answered_200_whatever_it_is() -> None:
    async with serving() as server:
        asked = {"ip": "203.0.113.7", "request_id": "c0ffee"}
        decisions = [await server.check(asked) for _ in range(4)]
        assert [decision["allowed"] for decision in decisions] == [True, True, True, False]
        refused = decisions[-1]
        assert (refused["status"], refused["reason"], refused["violated"]) == (429, "limit", ["address"])
        assert refused["retry_after"] == 3600.0
        assert refused["headers"]["Retry-After"] == "3600"
        assert refused["request_id"] == "c0ffee"
        assert set(refused) >= {
            *("allowed", "status", "reason", "violated", "retry_after", "cost", "limits", "headers"),
            *("request_id", "degraded", "shadow", "receipt", "leases", "idempotency", "response"),
        }


async def test_a_request_without_an_id_is_given_one() -> None:
    async with serving() as server:
        ids = {(await server.check({"ip": "203.0.113.7"}))["request_id"] for _ in range(3)}
        assert len(ids) == 3
        assert None not in ids
        assert (await server.check({"request_id": ""}))["request_id"]


async def test_hostile_client_values_are_refusals() -> None:
    async with serving() as server:
        for asked in ({"ip": "999.1.1.1"}, {"bytes": -5}, {"bytes": 2**70}, {"ip": "a\0b"}):
            decision = await server.check(asked)
            assert (decision["allowed"], decision["status"], decision["reason"]) == (False, 400, "invalid")
        enormous = await server.check({"user": "x" * 1_000_000, "tenant": "t"})
        assert enormous["reason"] in ("ok", "invalid")


async def test_a_batch_is_decided_in_order() -> None:
    async with serving() as server:
        one = {"ip": "203.0.113.7"}
        answers = await server.check([one, one, {"ip": "198.51.100.1"}, one, one])
        assert [answer["allowed"] for answer in answers] == [True, True, True, True, False]
        assert await server.check([]) == []


async def test_a_batch_is_validated_whole_before_anything_is_taken() -> None:
    async with serving() as server:
        one = {"ip": "203.0.113.7"}
        for wrong, field in (({"tennant": "x"}, "[3].tennant"), ({"cost": -1}, "[3].cost"), (7, "[3]")):
            async with server.client.post("/v1/check", json=[one, one, one, wrong]) as answer:
                assert answer.status == 400
                assert (await answer.json(content_type=None))["field"] == field
        async with server.client.post("/v1/check", json=[one] * 257) as answer:
            assert answer.status == 400
        assert (await server.check(one))["limits"][0]["remaining"] == 2


async def test_problems_have_rfc_9457_bodies() -> None:
    async with serving() as server:
        for data in (b"", b"{", b'{"tennant":1}', b'{"cost":NaN}', b"[" * 10_000, b'{"user":"\xff"}'):
            async with server.client.post("/v1/check", data=data) as answer:
                assert answer.status == 400
                assert answer.headers["Content-Type"] == "application/problem+json"
                body = json.loads(await answer.text())
                assert set(body) >= {"type", "title", "status", "detail", "request_id"}
                assert body["status"] == 400
                assert body["title"] == "Bad Request"
                assert body["request_id"] == answer.headers["Shield-Request-Id"]
        for path, method, status in (
            ("/", "GET", 404), ("/v1/checks", "POST", 404), ("/v1/check/", "POST", 404),
            ("/v1/authz/other", "GET", 404), ("/v1/authz/envoys", "GET", 404), ("/metrics", "GET", 404),
            ("/v1/check", "GET", 405), ("/v1/report", "PUT", 405), ("/v1/release", "DELETE", 405),
        ):  # fmt: skip
            async with server.client.request(method, path) as answer:
                assert answer.status == status, path
                assert (await answer.json(content_type=None))["status"] == status
                assert answer.headers.get("Allow") == ("POST" if status == 405 else None)
                assert "aiohttp" not in answer.headers["Server"]


async def test_the_content_type_of_a_request_does_not_matter() -> None:
    async with serving() as server:
        for content_type in ("text/plain", "application/x-www-form-urlencoded", "multipart/form-data"):
            headers = {"Content-Type": content_type}
            async with server.client.post("/v1/check", data=b'{"ip":"203.0.113.7"}', headers=headers) as answer:
                assert answer.status == 200


async def test_a_body_past_its_bound_is_413_announced_or_not() -> None:
    body = b'{"user":"' + b"x" * 10_000_000 + b'"}'

    async def chunks() -> Any:
        for at in range(0, len(body), 100_000):
            yield body[at : at + 100_000]

    async with serving() as server:
        for data in (io.BytesIO(body), chunks()):
            try:
                async with server.client.post("/v1/check", data=data) as answer:
                    assert answer.status == 413
                    assert (await answer.json(content_type=None))["field"] == "body"
            except aiohttp.ClientConnectionError:
                pytest.fail("the connection was cut before the answer")
        head = b"POST /v1/check HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n" % len(body)
        status, _ = problem_of(await server.raw(head))
        assert status == 413
        exact = b'{"user":"' + b"x" * (bounds.MAX_BODY_BYTES - 11) + b'"}'
        async with server.client.post("/v1/check", data=io.BytesIO(exact)) as answer:
            assert answer.status == 200


async def test_a_compressed_body_is_not_inflated() -> None:
    async with serving() as server:
        bomb = gzip.compress(b'{"user":"' + b"x" * 1_000_000 + b'"}')
        headers = {"Content-Encoding": "gzip", "Content-Type": "application/json"}
        async with server.client.post("/v1/check", data=bomb, headers=headers) as answer:
            assert answer.status == 400


async def test_a_body_that_never_arrives_is_408(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connection, "BODY_TIMEOUT_S", 0.02)
    async with serving() as server:
        raw = await server.raw(b'POST /v1/check HTTP/1.1\r\nHost: x\r\nContent-Length: 99\r\n\r\n{"ip"')
        status, body = problem_of(raw)
        assert status == 408
        assert "did not arrive" in body["detail"]


async def test_expect_continue_is_answered() -> None:
    async with serving() as server:
        reader, writer = await asyncio.open_unix_connection(str(server.path))
        body = b'{"ip":"203.0.113.7"}'
        writer.write(
            b"POST /v1/check HTTP/1.1\r\nHost: x\r\nExpect: 100-continue\r\nConnection: close\r\n"
            b"Content-Length: %d\r\n\r\n" % len(body)
        )
        assert await reader.readuntil(b"\r\n\r\n") == b"HTTP/1.1 100 Continue\r\n\r\n"
        writer.write(body)
        assert (await reader.read()).startswith(b"HTTP/1.1 200 OK")
        writer.close()


@pytest.mark.parametrize(
    "data",
    [
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
        b"nonsense\r\n\r\n",
        b"GET /v1/authz HTTP/1.1\r\nHost: x\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\n",
        b"POST /v1/check HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\nContent-Length: 5\r\n\r\n0\r\n\r\n",
        b"GET /v1/authz HTTP/1.1\r\nHost: x\r\nX-A: " + b"a" * 20_000 + b"\r\n\r\n",
        b"GET /" + b"a" * 20_000 + b" HTTP/1.1\r\nHost: x\r\n\r\n",
        b"GET /v1/authz HTTP/1.1\r\nHost: x\r\n" + b"X-A: 1\r\n" * 500 + b"\r\n",
        b"GET /v1/authz HTTP/1.1\r\nHost: x\r\nX-A: a\0b\r\n\r\n",
        b"GET /v1/authz HTTP/1.1\r\nHost : x\r\n\r\n",
    ],
    ids=["tls", "nonsense", "two-lengths", "length-and-chunks", "long-field", "long-line", "fields", "nul", "space"],
)  # fmt: skip
async def test_what_is_no_http_is_400_and_closed(data: bytes) -> None:
    async with serving() as server:
        status, body = problem_of(await server.raw(data))
        assert status == 400
        assert body["title"] == "Bad Request"
        # The connection's end is all that a broken chunk may cost.
        assert (await server.check({"ip": "203.0.113.7"}))["allowed"]
        assert "Traceback" not in server.log()


async def test_broken_chunks_are_400() -> None:
    async with serving() as server:
        head = b"POST /v1/check HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n"
        status, _ = problem_of(await server.raw(head + b"zz\r\nhello\r\n"))
        assert status == 400


async def test_pipelined_requests_are_answered_in_order() -> None:
    async with serving() as server:

        def one(request_id: str, close: bool) -> bytes:
            body = json.dumps({"ip": "203.0.113.7", "request_id": request_id}).encode()
            connection = b"Connection: close\r\n" if close else b""
            return b"POST /v1/check HTTP/1.1\r\nHost: x\r\n%bContent-Length: %d\r\n\r\n%b" % (
                connection,
                len(body),
                body,
            )

        raw = await server.raw(one("first", False) + one("second", False) + one("third", True))
        assert raw.index(b'"first"') < raw.index(b'"second"') < raw.index(b'"third"')


async def test_connections_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(listener, "MAX_CONNECTIONS", 2)
    async with serving() as server:
        kept = [await asyncio.open_unix_connection(str(server.path)) for _ in range(2)]
        await asyncio.sleep(0.01)
        reader, writer = await asyncio.open_unix_connection(str(server.path))
        assert await reader.read() == b""
        for _, other in [*kept, (reader, writer)]:
            other.close()
        await asyncio.sleep(0.01)
        assert (await server.check({"ip": "203.0.113.7"}))["allowed"]


@pytest.mark.parametrize("express", [True, False])
async def test_a_fault_is_500_without_its_text(monkeypatch: pytest.MonkeyPatch, express: bool) -> None:
    async with serving(express=express) as server:

        def broken(request: Any) -> None:
            raise KeyError("the-key-of-user-17")

        monkeypatch.setattr(server.service.shield, "check_nowait", broken)
        async with server.client.post("/v1/check", json={"user": "u"}) as answer:
            assert answer.status == 500
            text = await answer.text()
        assert "user-17" not in text + server.log()
        [event] = [event for event in server.events() if event["event"] == "fault"]
        assert event["error"] == "KeyError"
        assert event["request_id"] == json.loads(text)["request_id"]


async def test_policies_of_many_limits_and_of_none_answer() -> None:
    many = "\n".join(f'[[limit]]\nname = "l{i}"\nkey = ["user"]\nrate = "{i + 1}/s"' for i in range(300))
    async with serving(many) as server:
        decision = await server.check({"user": "u"})
        assert len(decision["limits"]) == 300
    async with serving('name = "empty"') as server:
        assert (await server.check({"user": "u"}))["allowed"]
