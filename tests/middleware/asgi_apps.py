"""One application in three frameworks: the same paths do the same."""

from __future__ import annotations

import asyncio
import json
from typing import Any

from fastapi import APIRouter, FastAPI
from starlette.applications import Starlette
from starlette.background import BackgroundTask
from starlette.requests import Request
from starlette.responses import PlainTextResponse, StreamingResponse
from starlette.routing import Mount, Route, WebSocketRoute
from starlette.websockets import WebSocket

from shield.middleware import attributes, cost, current, exempt, limit

POLICY = """
version = 1
[guard.size]
max_body_bytes = 100_000

[[limit]]
name = "address"
key = ["ip"]
rate = "1/h"
burst = 5

[[limit]]
name = "units"
key = ["ip"]
rate = "1/h"
burst = 100
cost = "request"
match = { path = "/costly" }

[[limit]]
name = "kind"
key = ["attributes.kind"]
rate = "1/h"
burst = 1
"""


class Seen:
    """What handlers saw, for tests."""

    def __init__(self) -> None:
        self.bodies: list[bytes] = []
        self.turns: list[Any] = []
        self.gone = asyncio.Event()
        self.go_on = asyncio.Event()
        self.after = asyncio.Event()


def handlers(seen: Seen) -> dict[str, Any]:
    async def plain(request: Request) -> PlainTextResponse:
        seen.turns.append(current())
        return PlainTextResponse("hello")

    async def echo(request: Request) -> PlainTextResponse:
        body = await request.body()
        seen.bodies.append(body)
        return PlainTextResponse(str(len(body)))

    async def stream(request: Request) -> StreamingResponse:
        async def parts() -> Any:
            for _ in range(3):
                yield b"x" * 1000

        return StreamingResponse(parts(), background=BackgroundTask(seen.after.set))

    async def fails(request: Request) -> PlainTextResponse:
        raise RuntimeError("the handler's own")

    async def waits(request: Request) -> PlainTextResponse:
        seen.gone.set()
        await seen.go_on.wait()
        return PlainTextResponse("waited")

    @exempt
    async def health(request: Request) -> PlainTextResponse:
        return PlainTextResponse("ok")

    @cost(40)
    async def costly(request: Request) -> PlainTextResponse:
        return PlainTextResponse("dear")

    @attributes(kind="export")
    async def export(request: Request) -> PlainTextResponse:
        return PlainTextResponse("exported")

    @limit("2/h", key="ip")
    async def limited(request: Request) -> PlainTextResponse:
        return PlainTextResponse("limited")

    return {
        "/": plain, "/echo": echo, "/stream": stream, "/fails": fails, "/waits": waits, "/health": health,
        "/costly": costly, "/export": export, "/limited": limited,
    }  # fmt: skip


async def talk(socket: WebSocket) -> None:
    await socket.accept()
    while True:
        message = await socket.receive()
        if message["type"] == "websocket.disconnect":
            return
        await socket.send_text(f"heard {message.get('text')}")


def starlette_app(seen: Seen) -> Starlette:
    routes = [Route(path, handler, methods=["GET", "POST"]) for path, handler in handlers(seen).items()]
    return Starlette(routes=[*routes, Mount("/sub", routes=routes[5:6]), WebSocketRoute("/talk", talk)])


def fastapi_app(seen: Seen) -> FastAPI:
    app = FastAPI()
    router = APIRouter()
    for path, handler in handlers(seen).items():
        # Annotations that are text cannot be resolved here, where the handlers' names are not known.
        handler.__annotations__ = {"request": Request}
        where = router if path in ("/health", "/costly") else app
        where.add_api_route(path, handler, methods=["GET", "POST"], response_model=None)
    app.include_router(router)
    app.add_api_websocket_route("/talk", _fastapi_talk)
    return app


async def _fastapi_talk(websocket: WebSocket) -> None:
    await talk(websocket)


_fastapi_talk.__annotations__ = {"websocket": WebSocket}


async def bare_app(scope: Any, receive: Any, send: Any) -> None:
    """No framework, and no lifespan: it echoes what it was sent, as it comes."""
    if scope["type"] != "http":
        raise ValueError("only HTTP is spoken here")
    parts = []
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            return
        parts.append(message.get("body", b""))
        if not message.get("more_body"):
            break
    body = json.dumps({"bytes": sum(map(len, parts))}).encode()
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-type", b"application/json")]})
    await send({"type": "http.response.body", "body": body})


APPS = {"starlette": starlette_app, "fastapi": fastapi_app}
__all__ = ["APPS", "POLICY", "Seen", "bare_app", "fastapi_app", "starlette_app"]
