"""An issuer's endpoint, a real HTTP server on loopback, that can be slow, wrong, large, rotating and dead."""

from __future__ import annotations

import asyncio
import gzip
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from aiohttp import web


class IssuerServer:
    """Serves a key set at /keys. `how` says how it behaves; `asked` counts the requests."""

    def __init__(self) -> None:
        self.keys: list[dict[str, Any]] = []
        self.how = "well"
        self.asked = 0
        self.held = asyncio.Event()
        """Set once a request is being held; `release` lets it go."""
        self.release = asyncio.Event()
        self.url = ""

    async def answer_well(self, request: web.Request) -> web.Response:
        return web.Response(body=json.dumps({"keys": self.keys}).encode())

    async def answer(self, request: web.Request) -> web.StreamResponse:
        self.asked += 1
        body = json.dumps({"keys": self.keys}).encode()
        if self.how == "slowly":
            self.held.set()
            await self.release.wait()
        if self.how == "endlessly":
            response = web.StreamResponse()
            await response.prepare(request)
            while True:
                try:
                    await response.write(b" " * 65_536)
                except ConnectionError:
                    return response
        if self.how == "cut":
            response = web.StreamResponse(headers={"Content-Length": str(len(body) + 100)})
            await response.prepare(request)
            await response.write(body)
            assert request.transport is not None
            request.transport.close()
            return response
        if self.how == "compressed":
            return web.Response(body=gzip.compress(body), headers={"Content-Encoding": "gzip"})
        if self.how.startswith("to "):
            return web.Response(status=302, headers={"Location": self.how[3:]})
        return {
            "well": lambda: web.Response(body=body, content_type="application/json"),
            "slowly": lambda: web.Response(body=body),
            "failing": lambda: web.Response(status=500, body=body),
            "as html": lambda: web.Response(text="<html>down for maintenance</html>", content_type="text/html"),
            "large": lambda: web.Response(body=b" " * 300_000),
            "empty": lambda: web.Response(body=b'{"keys":[]}'),
            "twice": lambda: web.Response(body=b'{"keys":[],"keys":' + json.dumps(self.keys).encode() + b"}"),
            "no content": lambda: web.Response(status=204),
        }[self.how]()


@asynccontextmanager
async def issuer_server() -> AsyncIterator[IssuerServer]:
    """One that runs until the block ends."""
    server = IssuerServer()
    app = web.Application()
    app.router.add_get("/keys", server.answer)
    app.router.add_get("/elsewhere", server.answer_well)
    runner = web.AppRunner(app, shutdown_timeout=0.1)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    host, port = runner.addresses[0][:2]
    server.url = f"http://{host}:{port}/keys"
    try:
        yield server
    finally:
        server.release.set()
        await runner.cleanup()
