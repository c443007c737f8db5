"""Overrides over HTTP and on the command line."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from shield.cli import main
from tests.server.running import serving
from tests.server.test_blocks import ask

POLICY = """
[[limit]]
name = "user"
key = ["tenant", "user"]
rate = "1/h"
burst = 2
"""
KEY = {"tenant": "acme", "user": "ada"}


async def test_an_operator_gives_lists_and_lifts() -> None:
    async with serving(POLICY) as server:
        body = {"limit": "user", "key": KEY, "rate": "10/s", "burst": 50, "for": "1h", "why": "migration", "by": "ann"}
        status, one = await ask(server, "POST", "/v1/overrides", body)
        assert (status, one["key"], one["burst"], one["until"] - one["since"]) == (200, KEY, 50, 3_600)
        assert (await server.check(KEY))["limits"][0]["limit"] == 50
        assert (await server.check({"tenant": "acme", "user": "bob"}))["limits"][0]["limit"] == 2
        _, told = await ask(server, "GET", "/v1/overrides")
        assert (told["total"], told["overrides"][0]["by"]) == (1, "ann")
        async with server.admin.get("/metrics") as answer:
            assert "shield_overrides_in_force 1.0" in await answer.text()
        assert (await ask(server, "DELETE", "/v1/overrides", {"limit": "user", "key": KEY}))[0] == 200
        assert (await ask(server, "DELETE", "/v1/overrides", {"limit": "user", "key": KEY}))[0] == 404
        assert (await server.check(KEY))["limits"][0]["limit"] == 2
        assert [one["event"] for one in server.events() if "override" in one["event"]] == [
            "override set",
            "override lifted",
        ]


@pytest.mark.parametrize(
    ("body", "part"),
    [
        ({"limit": "user"}, "key"),
        ({"limit": "none", "key": KEY, "rate": "1/s"}, "limit: found 'none'"),
        ({"limit": "user", "key": {"user": "ada"}, "rate": "1/s"}, "key: found user"),
        ({"limit": "user", "key": KEY, "rate": "much"}, "rate: found 'much'"),
        ({"limit": "user", "key": KEY, "rate": "1/s", "for": "soon"}, "for: "),
        ({"limit": "user", "key": KEY, "rate": "1/s", "typo": 1}, "typo"),
        ({"limit": "user", "key": {"tenant": 5, "user": "a"}, "rate": "1/s"}, "key"),
    ],
)
async def test_wrong_overrides_are_said(body: Any, part: str) -> None:
    async with serving(POLICY) as server:
        status, problem = await ask(server, "POST", "/v1/overrides", body)
        assert status == 400
        assert part in problem["detail"]
        assert (await ask(server, "GET", "/v1/overrides"))[1]["total"] == 0
        assert (await ask(server, "POST", "/v1/overrides", body, Origin="http://evil.example"))[0] == 403


async def test_the_command_line(capsys: pytest.CaptureFixture[str]) -> None:
    async with serving(POLICY) as server:
        admin = f"unix:{server.path.parent / 'a'}"

        async def run(*arguments: str) -> tuple[int, str]:
            status = await asyncio.to_thread(main, ["override", *arguments, "--admin", admin])
            read = capsys.readouterr()
            return status, read.out + read.err

        key = ("user", "tenant=acme", "user=ada")
        status, told = await run(*key, "--rate", "10/s", "--burst", "50", "--for", "1h", "--why", "migration")
        assert status == 0
        assert "user tenant=acme user=ada rate 10/s burst 50 until" in told
        assert (await server.check(KEY))["limits"][0]["limit"] == 50
        assert "migration" in (await run("--list"))[1]
        assert (await run(*key, "--lift"))[0] == 0
        assert (await run(*key, "--lift"))[0] == 1
        assert (await run())[0] == 2
        assert (await run("user", "tenant", "--rate", "1/s"))[0] == 2
        assert (await run("user", "tenant=acme", "--rate", "1/s"))[0] == 2
    assert main(["override", "--list", "--admin", admin]) == 3
