"""Blocks where several workers decide: what one of them or an operator says, all know, also after a restart."""

from __future__ import annotations

import asyncio
import json
import signal
import sys
import urllib.request
from pathlib import Path
from typing import Any

import pytest

from shield import Policy, Request, Shield
from tests.server.process import Process, run
from tests.server.test_identity_workers import all_answer
from tests.server.test_lifecycle import ask
from tests.server.test_workers import put, total
from tests.servers import Server

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")

POLICY = """
[[limit]]
name = "address"
key = ["ip"]
rate = "1000/s"
[[detector]]
name = "busy"
on = { method = "TRACE" }
key = ["ip"]
measure = "count"
leak = "1/h"
capacity = 3
action = "block"
[blocks]
steps = ["1h"]
[events]
to = ["file:events.jsonl"]
"""
MALLORY = {"ip": "192.0.2.1", "user": "mallory"}


def admin(process: Process, method: str, target: str, body: Any = None) -> Any:
    data = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(f"{process.admin_url}{target}", data=data, method=method)
    with urllib.request.urlopen(request, timeout=20) as answer:
        return json.loads(answer.read())


def test_what_is_blocked_anywhere_is_blocked_everywhere_and_stays_so(tmp_path: Path) -> None:
    file = tmp_path / "policy.toml"
    file.write_text(POLICY)
    options = ("--workers", "2", "--policy", file, "--blocks", tmp_path / "blocks")
    with run(tmp_path / "1", *options) as process:
        admin(process, "POST", "/v1/blocks", {"kind": "user", "value": "mallory", "by": "ann", "why": "fraud"})
        all_answer(process, MALLORY, "blocked")

        def detected() -> bool:
            _, decision = ask(f"{process.url}/v1/check", {"ip": "203.0.113.7", "method": "TRACE"})
            return bool(decision["reason"] == "blocked")

        process.until("detect it", detected)
        all_answer(process, {"ip": "203.0.113.7"}, "blocked")
        process.until("hear of both", lambda: admin(process, "GET", "/v1/blocks")["total"] == 2)
        told = admin(process, "GET", "/v1/blocks")["blocks"]
        assert [(one["value"], one["by"]) for one in told] == [
            ("203.0.113.7", "detector:busy"),
            ("mallory", "ann"),
        ]
        assert total(process, "shield_blocks_in_force") == 2
        assert total(process, "shield_blocks_refused_requests_total") >= 4
        process.signal_group(signal.SIGKILL)
        process.wait()
    with run(tmp_path / "2", *options) as process:
        all_answer(process, MALLORY, "blocked")
        all_answer(process, {"ip": "203.0.113.7"}, "blocked")
        admin(process, "DELETE", "/v1/blocks?kind=user&value=mallory")
        all_answer(process, MALLORY, "ok")
        put(process, POLICY.replace("1000/s", "999/s"))
        all_answer(process, {"ip": "203.0.113.7"}, "blocked")
        process.signal(signal.SIGTERM)
        process.wait()
    events = [json.loads(line) for line in (tmp_path / "events.jsonl").read_text().splitlines()]
    assert [one["finding_info"]["title"] for one in events if one["class_uid"] == 2004 and not one["is_alert"]] == [
        "block set",
        "block set",
        "block lifted",
    ], "each was said by one process"
    assert len([one for one in events if one.get("api", {}).get("operation") == "policy.replace"]) == 1
    second = [one for one in events if one["class_uid"] == 4002 and one["src_endpoint"]]
    assert len({one["src_endpoint"]["ip"] for one in second}) <= 2 * 2, "workers of one server share a key"
    assert "mallory" not in json.dumps(events)


def test_workers_of_one_redis_tell_other_hosts(tmp_path: Path, any_server: Server) -> None:
    file = tmp_path / "policy.toml"
    file.write_text(POLICY)
    url = f"{any_server.url}?prefix=blockworkers"
    with run(tmp_path / "1", "--workers", "2", "--policy", file, "--store", url) as process:
        admin(process, "POST", "/v1/blocks", {"kind": "user", "value": "mallory"})
        all_answer(process, MALLORY, "blocked")

        async def elsewhere() -> str:
            async with Shield(Policy.load(file), url) as shield:
                return (await shield.check(Request(**MALLORY))).reason

        process.until("tell another host", lambda: asyncio.run(elsewhere()) == "blocked")
