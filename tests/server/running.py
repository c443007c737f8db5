"""A server in this process, on a unix socket: the real listeners, a real Shield, a log that tests can read."""

from __future__ import annotations

import asyncio
import io
import json
import tempfile
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import aiohttp

from shield import Policy, Shield
from shield.server.auth import CallerTokens
from shield.server.listener import Listener
from shield.server.logs import open_log
from shield.server.metrics import Metrics
from shield.server.routes import admin_listener, decision_listener
from shield.server.service import Service
from shield.server.source import PolicySource

POLICY = """
name = "test"
owner = "the tests"

[[limit]]
name = "address"
key = ["ip"]
rate = "1/h"
burst = 3

[[limit]]
name = "user"
key = ["tenant", "user"]
rate = "1/h"
burst = 2
"""


class Clock:
    """Stands until it is moved."""

    def __init__(self) -> None:
        self.now_ns = 1_763_900_000_000_000_000

    def __call__(self) -> int:
        return self.now_ns


@dataclass
class Running:
    """A server and two clients, one of each listener."""

    service: Service
    decisions: Listener
    path: Path
    client: aiohttp.ClientSession
    admin: aiohttp.ClientSession
    clock: Clock
    _log: io.StringIO

    def log(self) -> str:
        return self._log.getvalue()

    def events(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self.log().splitlines()]

    async def check(self, asked: Any) -> Any:
        """The decision for a request, or those for a batch."""
        async with self.client.post("/v1/check", json=asked) as answer:
            assert answer.status == 200, await answer.text()
            return await answer.json()

    @contextmanager
    def watched(self) -> Iterator[list[Any]]:
        """Every Request that is decided meanwhile, whether it is waited for or not."""
        shield = self.service.shield
        check, check_nowait = shield.check, shield.check_nowait
        seen: list[Any] = []

        async def look(request: Any) -> Any:
            seen.append(request)
            return await check(request)

        def look_nowait(request: Any) -> Any:
            seen.append(request)
            return check_nowait(request)

        shield.check, shield.check_nowait = look, look_nowait  # type: ignore[method-assign]
        try:
            yield seen
        finally:
            shield.check, shield.check_nowait = check, check_nowait  # type: ignore[method-assign]

    async def raw(self, data: bytes, *, end: bool = True) -> bytes:
        """What comes back for bytes, until the server closes or, without `end`, after the first read."""
        reader, writer = await asyncio.open_unix_connection(str(self.path))
        try:
            writer.write(data)
            await writer.drain()
            return await asyncio.wait_for(reader.read(-1 if end else 65_536), 10)
        finally:
            writer.close()


@asynccontextmanager
async def serving(
    policy: str = POLICY,
    *,
    tokens: CallerTokens | None = None,
    store: str = "memory://",
    trace: Any = None,
    express: bool = True,
) -> AsyncIterator[Running]:
    """The two listeners on unix sockets, as `shield serve` puts them together."""
    clock = Clock()
    source = PolicySource(policy, "toml")
    shield = Shield(Policy.parse(policy), store, clock=clock, trace=trace)
    await shield.open()
    stream = io.StringIO()
    metrics = Metrics("0", shield.policy, shield.stats)
    service = Service(shield, source, metrics, open_log(stream, "json", "debug"))
    loop = asyncio.get_running_loop()
    decisions, admin = decision_listener(service, tokens, express=express), admin_listener(service, None)
    with tempfile.TemporaryDirectory(prefix="shield-") as directory:
        acceptors = []
        for listener, name in ((decisions, "d"), (admin, "a")):
            acceptors.append(await loop.create_unix_server(listener, f"{directory}/{name}"))
        async with (
            aiohttp.ClientSession("http://shield", connector=aiohttp.UnixConnector(f"{directory}/d")) as client,
            aiohttp.ClientSession("http://shield", connector=aiohttp.UnixConnector(f"{directory}/a")) as operator,
        ):
            try:
                yield Running(service, decisions, Path(directory, "d"), client, operator, clock, stream)
            finally:
                for acceptor in acceptors:
                    acceptor.close()
                for listener in (decisions, admin):
                    listener.pre_shutdown()
                    await listener.shutdown(0.2)
                await shield.close()
