"""Idempotency keys where several workers decide: a key that one of them gave is known to all, and any can end it."""

from __future__ import annotations

import json
import sys
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

import pytest

from tests.server.process import Process, run
from tests.server.test_workers import ask_until_each_answered, total

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")

POLICY = """
[[limit]]
name = "writes"
key = ["tenant"]
rate = "1/h"
burst = 5
[guard.idempotency]
"""
WRITE = {"tenant": "acme", "method": "POST", "path": "/orders", "idempotency": {"key": "k-1"}}


def post(process: Process, path: str, body: Any) -> tuple[int, Any]:
    asked = urllib.request.Request(process.url + path, json.dumps(body).encode(), method="POST")
    try:
        with urllib.request.urlopen(asked, timeout=10) as answer:
            return answer.status, json.loads(answer.read())
    except urllib.error.HTTPError as error:
        return error.code, json.loads(error.read())


def test_all_workers_know_a_key_and_any_of_them_ends_it(tmp_path: Path) -> None:
    policy = tmp_path / "policy.toml"
    policy.write_text(POLICY)
    with run(tmp_path, "--workers", "2", "--policy", policy) as process:
        status, first = post(process, "/v1/check", WRITE)
        assert (status, first["reason"]) == (200, "ok")
        seen: list[str] = []
        ask_until_each_answered(process, lambda decision: seen.append(decision["reason"]), WRITE)
        assert set(seen) == {"idempotency_in_flight"}
        owner = first["idempotency"]["owner"]
        ended = {"owner": owner, "action": "complete", "response": {"status": 201, "body_b64": "eA=="}}
        assert post(process, "/v1/idempotency", ended) == (200, {"done": True})
        assert post(process, "/v1/idempotency", ended)[0] == 409
        answers: list[Any] = []
        ask_until_each_answered(process, lambda decision: answers.append(decision["response"]), WRITE)
        assert {answer["body_b64"] for answer in answers} == {"eA=="}
        assert post(process, "/v1/check", {"tenant": "acme"})[1]["limits"][0]["remaining"] == 3
        assert total(process, "shield_store_idempotency_keys") == 1
