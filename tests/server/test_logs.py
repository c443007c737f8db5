"""The log tells what happened and never who it was about; an attack does not flood it."""

from __future__ import annotations

import io
import json
import logging
import sys
from typing import Any

import pytest

from shield.server.logs import ForeignRecords, fault_fields, open_log, shown_request_id
from tests.server.running import serving

SECRETS = {
    "ip": "203.0.113.77",
    "user": "user-seventeen",
    "tenant": "tenant-acme",
    "api_key": "key-4711",
    "token": "eyJhbGciOiJub25lIn0",
    "session": "session-0815",
    "path": "/private/document-9?signature=abc",
    "user_agent": "agent-zero",
    "attributes": {"country": "NO-WAY"},
    "headers": {"cookie": "cookie-monster"},
}


async def test_no_line_holds_a_raw_key_or_token() -> None:
    policy = """
[[limit]]
name = "everything"
key = ["ip", "user", "tenant", "api_key", "session", "token", "path", "attributes.country"]
rate = "1/h"
"""
    async with serving(policy) as server:
        for _ in range(3):
            await server.check({**SECRETS, "request_id": "c0ffee"})
        await server.check({**SECRETS, "ip": "203.0.113.777"})
        bads: list[Any] = [{**SECRETS, "key-4711": 1}, {**SECRETS, "cost": -1}, {"attributes": {"key-4711": []}}]
        for bad in bads:
            async with server.client.post("/v1/check", json=bad) as answer:
                assert answer.status == 400
        headers = {"Authorization": "Bearer eyJhbGciOiJub25lIn0", "X-Forwarded-For": "203.0.113.77"}
        for uri in ("/private/document-9?signature=abc", "/x\udcff"):
            async with server.client.get("/v1/authz", headers={**headers, "X-Forwarded-Uri": uri}):
                pass
        log = server.log()
        assert len(server.events()) >= 5
        values = [v for v in SECRETS.values() if isinstance(v, str)]
        for secret in (*values, "NO-WAY", "cookie-monster", "203.0.113", "signature", "203.0.113.777"):
            assert secret not in log, secret


async def test_a_refusal_is_a_line_with_reason_limits_status_latency_and_id() -> None:
    async with serving() as server:
        for _ in range(4):
            await server.check({"ip": "203.0.113.7", "request_id": "c0ffee"})
        [event] = server.events()
        assert event["event"] == "refused"
        assert (event["request_id"], event["reason"], event["status"]) == ("c0ffee", "limit", 429)
        assert event["limits"] == ["address"]
        assert 0 <= event["latency_ms"] < 10_000
        assert event["timestamp"].endswith("Z")


async def test_every_line_about_a_request_has_an_id() -> None:
    async with serving() as server:
        for asked in ({"ip": "x"}, {"ip": "x", "request_id": "a\nb"}, {"ip": "x", "request_id": "y" * 5000}):
            await server.check(asked)
        async with server.client.post("/v1/check", data=b"{"):
            pass
        async with server.client.get("/nowhere"):
            pass
        await server.raw(b"nonsense\r\n\r\n")
        ids = [event["request_id"] for event in server.events()]
        assert len(ids) == 6
        assert len(set(ids)) == 6
        assert all(len(one) <= 128 and one.isprintable() for one in ids)


async def test_an_attack_does_not_flood_the_log() -> None:
    async with serving() as server:
        await server.check([{"ip": "nonsense"}] * 256)
        await server.check([{"ip": "nonsense"}] * 256)
        lines = len(server.events())
        assert 50 <= lines < 70
        async with server.admin.get("/metrics") as answer:
            left_out = next(
                line for line in (await answer.text()).splitlines() if line.startswith("shield_log_lines_supp")
            )
        assert float(left_out.split()[1]) == 512 - lines


async def test_allowed_requests_are_not_logged() -> None:
    async with serving() as server:
        await server.check({"user": "u"})
        assert server.log() == ""


def test_library_records_lose_their_arguments() -> None:
    stream = io.StringIO()
    logger = logging.getLogger("aiohttp.server.test")
    handler = ForeignRecords(open_log(stream, "json", "info"))
    logger.addHandler(handler)
    logger.propagate = False
    try:
        try:
            raise ValueError("user-seventeen")
        except ValueError:
            logger.exception("Error handling request from %s", "203.0.113.77")
        logger.info("not worth a line")
    finally:
        logger.removeHandler(handler)
    event = json.loads(stream.getvalue())
    assert event["template"] == "Error handling request from %s"
    assert event["error"] == "ValueError"
    assert "203.0.113.77" not in stream.getvalue()
    assert "user-seventeen" not in stream.getvalue()


def test_a_fault_says_where_and_not_what() -> None:
    try:
        raise KeyError("user-seventeen")
    except KeyError as error:
        fields = fault_fields(error)
    assert fields["error"] == "KeyError"
    assert fields["at"][0].startswith("server/test_logs.py:")
    assert "seventeen" not in repr(fields)


def test_console_lines_are_for_people() -> None:
    stream = io.StringIO()
    open_log(stream, "console", "info").info("refused", request_id="c0ffee", reason="limit")
    assert "refused" in stream.getvalue()
    assert "request_id=c0ffee" in stream.getvalue()
    with pytest.raises(AttributeError):
        open_log(sys.stderr, "json", "loud")


def test_only_plain_request_ids_are_shown() -> None:
    assert shown_request_id("c0ffee-1") == "c0ffee-1"
    for other in (None, "", "a\nb", "é", "\udcff", "x" * 129):
        assert shown_request_id(other) is None
