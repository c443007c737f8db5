"""aiohttp's own way: a web.Application with one route that makes the same decision and prints it.

`python -m bench.peers.web_application POLICY` serves on a port of its choice and says which.
"""

from __future__ import annotations

import asyncio
import sys

import msgspec
import uvloop
from aiohttp import web

from shield import Policy, Request, Shield

NAME = "aiohttp web.Application"


async def main(policy: str) -> None:
    shield = Shield(Policy.load(policy))
    decode = msgspec.json.Decoder(Request).decode

    async def check(request: web.Request) -> web.Response:
        decision = shield.check_nowait(decode(await request.read()))
        return web.Response(body=decision.to_json(), content_type="application/json")

    application = web.Application()
    application.router.add_post("/v1/check", check)
    runner = web.AppRunner(application, access_log=None)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    assert site._server is not None
    print("port", site._server.sockets[0].getsockname()[1], flush=True)
    await asyncio.Event().wait()


if __name__ == "__main__":
    uvloop.run(main(sys.argv[1]))
