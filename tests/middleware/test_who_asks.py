"""Verified tokens behind every middleware: tenant and user come from them, and what they own is theirs."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import httpx
import pytest
from aiohttp import web
from starlette.applications import Starlette
from starlette.responses import PlainTextResponse
from starlette.routing import Route

from shield import Policy, Shield
from shield.middleware import current
from shield.middleware.aiohttp import setup
from shield.middleware.asgi import ShieldMiddleware
from shield.middleware.wsgi import ShieldMiddleware as ForWSGI
from shield.testing import ManualClock
from tests.identity.tokens import NOW_S, good_claims, make
from tests.middleware.serving import listening, url_of, uvicorn_serving

POLICY = """
version = 1
[identity]
anonymous = false
[[identity.jwt]]
issuer = "https://id.example"
audience = "orders"
jwks = "file:{jwks}"
algorithms = ["ES256"]
claims = {{ user = "sub", tenant = "org_id" }}
[guard.idempotency]
methods = ["POST"]
[[limit]]
name = "tenant"
key = ["tenant"]
rate = "1/h"
burst = 4
[[detector]]
use = "credential-cracking-address"
"""


@pytest.fixture
def signer():
    return make("ES256")


@pytest.fixture
def shield(tmp_path, signer):
    (tmp_path / "jwks.json").write_text(json.dumps({"keys": [signer.jwk]}))
    policy = Policy.parse(POLICY.format(jwks=tmp_path / "jwks.json"))
    return Shield(policy, clock=ManualClock(NOW_S * 1_000_000_000))


def whose() -> str:
    turn = current()
    assert turn is not None
    return f"{turn.principal.tenant} {turn.principal.user}"


async def behaves(client: httpx.AsyncClient, signer: Any, shield: Shield) -> None:
    told = []
    shield.abuse.outcome = lambda facts, status, event: told.append((facts.tenant, status)) or ()  # type: ignore
    tokens = [signer.token({**good_claims(), "org_id": org}) for org in ("acme", "globex")]
    nobody = await client.post("/")
    assert nobody.status_code == 401
    assert nobody.headers["www-authenticate"] == 'Bearer realm="api"'
    forged = await client.post("/", headers={"Authorization": f"Bearer {tokens[0][:-8]}AAAAAAAA"})
    assert forged.status_code == 401
    assert 'error="invalid_token"' in forged.headers["www-authenticate"]
    answers = []
    for token in tokens:
        headers = {"Authorization": f"Bearer {token}", "Idempotency-Key": "the-same"}
        answers.append([(await client.post("/", headers=headers)).text for _ in range(2)])
    # Two tenants with one key: each has its own answer, twice.
    assert [len(set(pair)) for pair in answers] == [1, 1]
    assert "acme" in answers[0][0]
    assert "globex" in answers[1][0]
    assert told == [("https://id.example|acme", 200), ("https://id.example|globex", 200)]
    for wanted in (200, 200, 200, 429):
        assert (await client.post("/", headers={"Authorization": f"Bearer {tokens[0]}"})).status_code == wanted


async def test_asgi(shield, signer):
    async def handler(request: Any) -> PlainTextResponse:
        return PlainTextResponse(whose())

    app = ShieldMiddleware(Starlette(routes=[Route("/", handler, methods=["POST"])]), shield)
    async with uvicorn_serving(app) as url, httpx.AsyncClient(base_url=url) as client:
        await behaves(client, signer, shield)


async def test_aiohttp(shield, signer):
    async def handler(request: web.Request) -> web.Response:
        return web.Response(text=whose())

    app = web.Application()
    app.router.add_post("/", handler)
    setup(app, shield)
    runner = web.AppRunner(app)
    await runner.setup()
    sock = listening()
    await web.SockSite(runner, sock).start()
    async with httpx.AsyncClient(base_url=url_of(sock)) as client:
        await behaves(client, signer, shield)
    await runner.cleanup()


async def test_wsgi(shield, signer):
    """The shield is asked in a loop of its own, in another thread."""

    def app(environ: Any, start_response: Any) -> Any:
        start_response("200 OK", [("Content-Type", "text/plain")])
        return [whose().encode()]

    wrapped = ForWSGI(app, shield)

    try:
        with httpx.Client(transport=httpx.WSGITransport(wrapped), base_url="http://x") as client:

            class Waited:
                async def post(self, *args: Any, **options: Any) -> httpx.Response:
                    return await asyncio.to_thread(client.post, *args, **options)

            await behaves(Waited(), signer, shield)  # type: ignore[arg-type]
    finally:
        wrapped.close()
