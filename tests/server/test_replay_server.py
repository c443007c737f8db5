"""Nonces over HTTP: stated to the endpoint, and signed in the fields that a gateway hands on."""

from __future__ import annotations

import base64
from pathlib import Path

import pytest

from tests.identity.test_replay_schemes import NOW_S, mac
from tests.server.running import serving

STATED = """
[[limit]]
name = "few"
key = ["tenant"]
rate = "100/h"
[guard.replay]
"""


async def test_a_stated_nonce_counts_once() -> None:
    async with serving(STATED) as server:
        server.clock.now_ns += 31 * 10**9
        asked = {"tenant": "t", "nonce": {"value": "n", "timestamp": NOW_S + 31}}
        found = await server.check([asked, asked, asked | {"nonce": {"value": "m", "timestamp": "1e9"}}])
        assert [(one["status"], one["reason"]) for one in found] == [(200, "ok"), (409, "replay"), (400, "invalid")]
        early = await server.check(asked | {"nonce": {"value": "o", "timestamp": NOW_S + 100}})
        assert (early["reason"], early["retry_after"], early["headers"]) == ("stale", 39.0, {"Retry-After": "39"})
        async with server.admin.get("/metrics") as answer:
            told = await answer.text()
        assert "shield_store_nonces 1.0" in told
        assert 'reason="replay"' in told


def signed(now_s: int, path: str, nonce: str) -> dict[str, str]:
    params = f'("@method" "@authority" "@path");created={now_s};keyid="mac";nonce="{nonce}"'
    base = f'"@method": GET\n"@authority": api.example\n"@path": {path}\n"@signature-params": {params}'
    value = base64.b64encode(mac(b"x" * 32, base.encode())).decode()
    return {
        "Signature-Input": f"sig={params}",
        "Signature": f"sig=:{value}:",
        "X-Forwarded-Method": "GET",
        "X-Forwarded-Uri": path,
        "X-Forwarded-Host": "api.example",
        "X-Forwarded-For": "203.0.113.7",
    }


@pytest.mark.parametrize("express", [True, False])
async def test_a_gateway_hands_signatures_on(tmp_path: Path, express: bool) -> None:
    (tmp_path / "secret").write_bytes(b"x" * 32)
    keys = f'[[guard.replay.scheme]]\nuse = "http-signature"\nkeys = {{ mac = "file:{tmp_path}/secret" }}\n'
    async with serving(STATED + "required = true\n" + keys, express=express) as server:
        server.clock.now_ns += 31 * 10**9
        first = signed(NOW_S + 31, "/orders", "n1")
        wrong = first | {"X-Forwarded-Uri": "/other"}
        for headers, status, reason in (
            (first, 200, None),
            (first, 409, "replay"),
            (wrong, 401, "identity"),
            ({"X-Forwarded-For": "203.0.113.7"}, 401, "nonce_missing"),
            (signed(NOW_S - 600, "/orders", "n2"), 401, "stale"),
        ):
            async with server.client.get("/v1/authz", headers=headers) as answer:
                assert answer.status == status, await answer.text()
                assert status == 200 or (await answer.json())["reason"] == reason
