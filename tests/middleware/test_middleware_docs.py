"""The examples of docs/middleware.md run as they stand there."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import httpx
import pytest
from aiohttp import web

from tests.middleware.serving import ASGI_SERVERS, gunicorn_serving, listening, url_of

PAGE = (Path(__file__).resolve().parents[2] / "docs" / "middleware.md").read_text()


def block(heading: str, language: str = "python") -> str:
    """The first block of code below a heading."""
    section = PAGE.split(f"\n## {heading}\n" if heading else "\n", 1)[1].split("\n## ", 1)[0]
    found = re.search(rf"```{language}\n(.*?)```", section, re.DOTALL)
    assert found is not None, heading
    return found[1]


@pytest.fixture
def here(tmp_path, monkeypatch):
    (tmp_path / "policy.toml").write_text(re.search(r"```toml\n(.*?)```", PAGE, re.DOTALL)[1])
    monkeypatch.chdir(tmp_path)
    return tmp_path


async def behaves(client: httpx.AsyncClient) -> None:
    """Every framework's example is the same service."""
    first = await client.get("/orders/7")
    assert first.json() == {"number": 7}
    assert first.headers["ratelimit-policy"] == '"address";q=5;w=60'
    assert first.headers["ratelimit"].startswith('"address";r=')
    for _ in range(7):
        assert (await client.get("/health")).json() == {"ok": True}
    report = await client.get("/report")
    assert report.json() == {"rows": []}
    assert '"units";r=60' in report.headers["ratelimit"]
    while (refused := await client.get("/orders/7")).status_code == 200:
        pass
    assert refused.status_code == 429
    assert refused.json()["violated-policies"] == ["address"]
    assert int(refused.headers["retry-after"]) <= 60


@pytest.mark.parametrize(("heading", "server"), [("FastAPI", "uvicorn"), ("Starlette", "hypercorn")])
async def test_asgi_examples(here, heading, server):
    module: dict[str, Any] = {"__name__": "app"}
    exec(block(heading), module)
    async with ASGI_SERVERS[server](module["app"]) as url, httpx.AsyncClient(base_url=url) as client:
        await behaves(client)


@pytest.mark.parametrize("heading", ["Flask", "Django"])
async def test_wsgi_examples(here, heading):
    (here / "app.py").write_text(block(heading))
    args = ("--chdir", str(here), "--worker-class", "gthread", "--threads", "4")
    with gunicorn_serving("app:app", args=args) as url:
        async with httpx.AsyncClient(base_url=url) as client:
            await behaves(client)


async def test_aiohttp_example(here):
    module: dict[str, Any] = {"__name__": "app"}
    exec(block("aiohttp"), module)
    runner = web.AppRunner(module["app"])
    await runner.setup()
    sock = listening()
    await web.SockSite(runner, sock).start()
    async with httpx.AsyncClient(base_url=url_of(sock)) as client:
        await behaves(client)
    await runner.cleanup()


def test_handlers_and_pacing(here):
    exec(block("Handlers"), {"__name__": "handlers"})
    subprocess.run([sys.executable, "-c", block("Places and turns")], check=True, timeout=30)
