"""Detectors and blocks over HTTP: reports feed detectors, operators block and lift, the command line does both."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest

from shield.cli import main
from tests.server.running import Running, serving

POLICY = """
[[limit]]
name = "address"
key = ["ip"]
rate = "1000/s"
[[detector]]
use = "credential-cracking-address"
action = "block"
[[detector]]
use = "probing"
"""


async def ask(server: Running, method: str, target: str, body: Any = None, **headers: str) -> tuple[int, Any]:
    data = None if body is None else json.dumps(body)
    async with server.admin.request(method, target, data=data, headers=headers) as answer:
        return answer.status, json.loads(await answer.text())


async def test_reported_failures_block_an_address() -> None:
    async with serving(POLICY) as server:
        for _ in range(6):
            assert (await server.check({"ip": "203.0.113.7"}))["allowed"]
            report = {"ip": "203.0.113.7", "method": "POST", "path": "/login", "status": 401, "user": "ada"}
            async with server.client.post("/v1/report", json=report) as answer:
                assert answer.status == 202
        refused = await server.check({"ip": "203.0.113.7"})
        assert (refused["allowed"], refused["status"], refused["reason"]) == (False, 403, "blocked")
        assert (await server.check({"ip": "203.0.113.8"}))["allowed"]
        _, told = await ask(server, "GET", "/v1/blocks")
        (block,) = told["blocks"]
        assert (block["value"], block["by"]) == ("203.0.113.7", "detector:credential-cracking-address")
        assert block["until"] - block["since"] == 60
        async with server.admin.get("/metrics") as answer:
            text = await answer.text()
        assert "shield_blocks_in_force 1.0" in text
        assert "shield_blocks_refused_requests_total 1.0" in text
        (event,) = [one for one in server.events() if one["event"] == "detected"]
        assert event["detector"] == "credential-cracking-address"
        assert "203.0.113.7" not in json.dumps(event), "whom it is about is not for this log"


async def test_an_operator_blocks_lists_and_lifts() -> None:
    async with serving(POLICY) as server:
        body = {"kind": "network", "value": "198.51.100.9/24", "for": "1h", "why": "spam", "by": "ann"}
        status, block = await ask(server, "POST", "/v1/blocks", body)
        assert (status, block["value"], block["until"] - block["since"]) == (200, "198.51.100.0/24", 3_600)
        assert (await server.check({"ip": "198.51.100.77"}))["reason"] == "blocked"
        status, _ = await ask(server, "DELETE", "/v1/blocks?kind=network&value=198.51.100.0/24")
        assert status == 200
        assert (await server.check({"ip": "198.51.100.77"}))["allowed"]
        assert (await ask(server, "DELETE", "/v1/blocks?kind=network&value=198.51.100.0/24"))[0] == 404
        lines = [one for one in server.events() if one["event"].startswith("block ")]
        assert [(one["event"], one["value"], one["by"]) for one in lines] == [
            ("block set", "198.51.100.0/24", "ann"),
            ("block lifted", "198.51.100.0/24", "operator"),
        ]


async def test_lists_come_in_pages() -> None:
    async with serving(POLICY) as server:
        for i in range(25):
            assert (await ask(server, "POST", "/v1/blocks", {"kind": "user", "value": f"u{i:02}"}))[0] == 200
        assert (await ask(server, "POST", "/v1/blocks", {"kind": "tenant", "value": "acme"}))[0] == 200
        seen: list[str] = []
        after = ""
        while True:
            _, page = await ask(server, "GET", f"/v1/blocks?kind=user&limit=10&after={after}")
            assert page["total"] == 25
            seen += [one["value"] for one in page["blocks"]]
            if page["next"] is None:
                break
            after = page["next"]
        assert seen == [f"u{i:02}" for i in range(25)]
        assert (await ask(server, "GET", "/v1/blocks?kind=user&value=u07"))[1]["by"] == "operator"
        assert (await ask(server, "GET", "/v1/blocks?kind=user&value=ada"))[0] == 404
        for wrong in ("limit=0", "limit=x", "kind=who", "page=1", "kind=ip&kind=ip", "value=u07", "limit=99999"):
            assert (await ask(server, "GET", f"/v1/blocks?{wrong}"))[0] == 400, wrong


@pytest.mark.parametrize(
    ("body", "part"),
    [
        ({"kind": "ip", "value": "x"}, "allowed: an address"),
        ({"kind": "who", "value": "x"}, "allowed: ip, network"),
        ({"kind": "ip"}, "value"),
        ({"kind": "ip", "value": "192.0.2.1", "for": "soon"}, "for: "),
        ({"kind": "ip", "value": "192.0.2.1", "for": "1h", "until": 5}, "one of them"),
        ({"kind": "ip", "value": "192.0.2.1", "until": 5}, "from now"),
        ({"kind": "ip", "value": "192.0.2.1", "until": 1e300}, "from now"),
        ({"kind": "ip", "value": "192.0.2.1", "reason": "nothing"}, "reason"),
        ({"kind": "ip", "value": "192.0.2.1", "typo": 1}, "typo"),
        ({"kind": "ip", "value": "192.0.2.1", "by": "detector:x"}, "by: "),
    ],
)
async def test_wrong_blocks_are_said(body: Any, part: str) -> None:
    async with serving(POLICY) as server:
        status, problem = await ask(server, "POST", "/v1/blocks", body)
        assert status == 400
        assert part in problem["detail"]


async def test_web_pages_cannot_block() -> None:
    async with serving(POLICY) as server:
        body = {"kind": "ip", "value": "192.0.2.1"}
        assert (await ask(server, "POST", "/v1/blocks", body, Origin="http://evil.example"))[0] == 403


async def test_the_command_line(capsys: pytest.CaptureFixture[str]) -> None:
    async with serving(POLICY) as server:
        admin = f"unix:{server.path.parent / 'a'}"

        async def run(*arguments: str) -> tuple[int, str]:
            status = await asyncio.to_thread(main, [*arguments, "--admin", admin])
            read = capsys.readouterr()
            return status, read.out + read.err

        status, told = await run("block", "203.0.113.7", "--for", "1h", "--why", "probes")
        assert status == 0
        assert "ip 203.0.113.7 blocked until" in told
        assert "probes" in (await run("block", "--list"))[1]
        assert (await server.check({"ip": "203.0.113.7"}))["reason"] == "blocked"
        assert (await run("block", "mallory", "--kind", "user", "--challenge"))[0] == 0
        assert (await server.check({"user": "mallory"}))["reason"] == "challenge"
        assert (await run("unblock", "203.0.113.7"))[0] == 0
        assert (await run("unblock", "203.0.113.7"))[0] == 1
        assert (await run("block", "mallory"))[0] == 2
        assert (await run("block"))[0] == 2
        assert (await run("block", "203.0.113.7", "--for", "soon"))[0] == 2
    assert main(["block", "--list", "--admin", admin]) == 3
