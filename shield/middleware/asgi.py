"""Shield in front of an ASGI application: Starlette, FastAPI, Django and any other.

    app.add_middleware(ShieldMiddleware, shield="policy.toml")       # Starlette, FastAPI
    app = ShieldMiddleware(app, shield="policy.toml", store="redis://localhost:6379/0")     # any

A request is decided when its head is there, before the application sees it; a WebSocket when it asks to be one. What
was taken for it is given back or settled when the response ends, however it ends. The application's exceptions pass
through.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, MutableMapping
from inspect import isawaitable
from os import PathLike
from typing import Any, Final
from urllib.parse import quote

from shield.decision import Decision
from shield.errors import Refused, RequestError
from shield.middleware.asgi_exchange import Exchange, Receive, Send, Socket, encoded_pairs, send_refusal
from shield.middleware.body import MAX_RATIO, BodyMeter
from shield.middleware.endpoints import Endpoints, Finder
from shield.middleware.facts import Head, NonceFields, with_body
from shield.middleware.settings import Hook, Settings, faulty, most_read, unreadable
from shield.middleware.turn import CURRENT, Caller, Turn, caller_in
from shield.policy import Policy
from shield.problem import Refusal, refusal_of
from shield.request import Request
from shield.shield import Shield

Scope = MutableMapping[str, Any]
App = Callable[[Scope, Receive, Send], Awaitable[None]]

DENIAL: Final = "websocket.http.response"
"""The extension by which a WebSocket is refused with a whole response; without it servers answer 403."""


class ShieldMiddleware:
    """An ASGI application around another.

    `shield`: a Shield, a Policy, or a policy's file; with the latter two `store` says where buckets live. It is opened
    when the application starts (or with its first request, where the server says nothing of that) and closed when it
    ends. `facts` adds facts of your own (see Hook). `gateway`: a gateway in front sets the headers of
    `[identity.headers]`. `messages`: messages of a WebSocket are charged to limits that name the method MESSAGE.
    `endpoint` finds the handler of a scope, for frameworks whose routes are not known here. PolicyError.
    """

    def __init__(
        self,
        app: App,
        shield: Shield | Policy | str | PathLike[str],
        *,
        store: str = "memory://",
        facts: Hook | None = None,
        gateway: bool = False,
        messages: bool = False,
        max_ratio: int = MAX_RATIO,
        nonce: NonceFields | None = None,
        endpoint: Finder | None = None,
    ) -> None:
        self.app = app
        self._settings = Settings(shield, store=store, facts=facts, gateway=gateway, max_ratio=max_ratio, nonce=nonce)
        self.shield = self._settings.shield
        self._messages = messages
        self._endpoints = Endpoints(app, endpoint)
        self._call: Caller | None = None
        self._opening: asyncio.Task[None] | None = None
        self._opened = False
        self._ending: set[asyncio.Task[None]] = set()

    def __getattr__(self, name: str) -> Any:
        # Whoever wraps `app = ShieldMiddleware(app)` goes on with `app.state` and `@app.get`.
        if name == "app":  # not yet set: copying asks before __init__ has run
            raise AttributeError(name)
        return getattr(self.app, name)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """The ASGI interface."""
        kind = scope["type"]
        if kind == "http":
            await self._http(scope, receive, send)
        elif kind == "websocket":
            await self._websocket(scope, receive, send)
        elif kind == "lifespan":
            await self._lifespan(scope, receive, send)
        else:
            await self.app(scope, receive, send)

    # ---- requests ------------------------------------------------------------------------------------------------

    async def _http(self, scope: Scope, receive: Receive, send: Send) -> None:
        begun = await self._begin(scope, receive)
        if begun is None:
            await self.app(scope, receive, send)
            return
        if isinstance(begun, Refusal):
            await send_refusal(scope, send, begun)
            return
        turn, head, body = begun
        if not turn.decision.allowed:
            await send_refusal(scope, send, refusal_of(turn.decision))
            return
        exchange = Exchange(self, scope, receive, send, turn)
        if body is not None:
            exchange.hold(body)
        elif head.counted or head.encoding is not None:
            exchange.measure(BodyMeter(self._settings.facts.max_body_bytes, head.encoding, self._settings.max_ratio))
        running = self._run(exchange, exchange.receive if exchange.watches else receive)
        if turn.capture is None:
            await running
            return
        # What owns its key goes on when its client is gone: who comes again is to find an answer.
        task = asyncio.get_running_loop().create_task(running)
        self._ending.add(task)
        task.add_done_callback(self._ended)
        await asyncio.shield(task)

    async def _run(self, exchange: Exchange, receive: Receive) -> None:
        """The application, and what is owed when it has returned."""
        turn = exchange.turn
        token = CURRENT.set(turn)
        keeping = None if turn.capture is None else asyncio.get_running_loop().create_task(turn.keep_lease())
        try:
            await self.app(exchange.scope, receive, exchange.send)
            await turn.end_key("answered" if turn.capture is not None and turn.capture.ended else "undone")
        except Refused:
            await turn.end_key("undone")
            if exchange.started or turn.refusal is None:
                raise
            await exchange.refuse(refusal_of(turn.refusal))
        except Exception:
            await turn.end_key("undone")
            if not exchange.refused:
                exchange.status = exchange.status or 500
                raise
            # The client has its answer; what was raised is what became of a body that was cut short.
        finally:
            if keeping is not None:
                keeping.cancel()
            CURRENT.reset(token)
            await exchange.finish()

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._ending.discard(task)
        if not task.cancelled():
            task.exception()  # raised to the server, or to nobody if that had gone

    async def _begin(self, scope: Scope, receive: Receive) -> tuple[Turn, Head, bytes | None] | Refusal | None:
        """The decision; None for what is exempt, a refusal for what cannot be decided."""
        if not self._opened:
            await self._open()
        settings = self._settings
        mark = self._endpoints.mark_of_scope(scope)
        if mark is not None and mark.exempt:
            return None
        facts = settings.facts
        raw = scope.get("raw_path")
        path = quote(scope["path"]) if raw is None else raw.decode("utf-8", "surrogateescape")
        peer = scope.get("client")
        http = scope["type"] == "http"
        try:
            found, forwarded = facts.of_pairs(scope["headers"])
            head = facts.head(
                found,
                forwarded,
                peer=peer[0] if peer else None,
                method=scope["method"] if http else "GET",
                path=path,
                framed=scope.get("http_version", "1.1").startswith("1"),
            )
        except RequestError as error:
            return unreadable(error)
        request = head.request
        if mark is not None:
            request = mark.applied(request)
        if settings.hook is not None:
            told = settings.hook(scope, request)
            request = await told if isawaitable(told) else told
            if request is None:
                return None
        body = None
        if http and settings.reads_body(request):
            read = await self._read(receive, head)
            if isinstance(read, Refusal):
                return read
            body = read
            with_body(settings.shield, request, body, scope.get("query_string", b"").decode("latin-1"))
        return Turn(settings.shield, request, await self._decide(request), self._call), head, body

    async def _decide(self, request: Request) -> Decision:
        shield = self._settings.shield
        return shield.check_nowait(request) if shield.store.local else await shield.check(request)

    async def _read(self, receive: Receive, head: Head) -> bytes | Refusal:
        """The whole body, where the decision needs it."""
        meter = BodyMeter(most_read(self._settings.facts), head.encoding, self._settings.max_ratio)
        parts = []
        more = True
        while more:
            message = await receive()
            if message["type"] != "http.request":
                break  # gone: what is decided now reaches nobody, and its handler is told
            data = message.get("body", b"")
            if fault := meter.feed(data):
                return faulty(fault)
            parts.append(data)
            more = message.get("more_body", False)
        return b"".join(parts)

    # ---- WebSockets ----------------------------------------------------------------------------------------------

    async def _websocket(self, scope: Scope, receive: Receive, send: Send) -> None:
        begun = await self._begin(scope, receive)
        if begun is None:
            await self.app(scope, receive, send)
            return
        refused = begun if isinstance(begun, Refusal) else None
        if not isinstance(begun, Refusal) and not begun[0].decision.allowed:
            refused = refusal_of(begun[0].decision)
        if refused is not None or isinstance(begun, Refusal):
            assert refused is not None
            await receive()  # websocket.connect
            await _turn_away(scope, send, refused)
            return
        turn = begun[0]
        socket = Socket(self, receive, send, turn, charged=self._messages)
        token = CURRENT.set(turn)
        try:
            await self.app(scope, socket.receive, socket.send)
        except Refused:
            if turn.refusal is None:
                raise
            if socket.accepted:
                await socket.close(turn.refusal)
            else:
                await _turn_away(scope, send, refusal_of(turn.refusal))
        except Exception:
            if not socket.closed:
                raise
        finally:
            CURRENT.reset(token)
            await self.end(turn, None)

    # ---- what is owed --------------------------------------------------------------------------------------------

    async def end(self, turn: Turn, status: int | None) -> None:
        """Ends a turn, and sees it through where whoever waits for it is cancelled."""
        if self._settings.shield.store.local or not turn.owes:
            await turn.finish(status)  # never waits
            return
        task = asyncio.get_running_loop().create_task(turn.finish(status))
        self._ending.add(task)
        task.add_done_callback(self._ending.discard)
        await asyncio.shield(task)

    # ---- the application's life ----------------------------------------------------------------------------------

    async def _open(self) -> None:
        """Opens the shield, once, whoever comes first."""
        if self._opening is None:
            self._call = caller_in(asyncio.get_running_loop())
            self._opening = asyncio.get_running_loop().create_task(self.shield.open())
        try:
            await asyncio.shield(self._opening)
        except Exception:
            self._opening = None  # the next request tries again
            raise
        self._opened = True

    async def close(self) -> None:
        """Closes the shield, after what is owed was given back. For servers that do not say when the end is."""
        if self._ending:
            await asyncio.gather(*self._ending, return_exceptions=True)
        self._opened, self._opening = False, None
        await self.shield.close()

    async def _lifespan(self, scope: Scope, receive: Receive, send: Send) -> None:
        said: set[str] = set()
        failed: list[BaseException] = []

        async def receive_and_open() -> MutableMapping[str, Any]:
            message = await receive()
            if message["type"] == "lifespan.startup":
                try:
                    await self._open()
                except Exception as error:
                    failed.append(error)
                    raise
            return message

        async def close_and_send(message: MutableMapping[str, Any]) -> None:
            said.add(message["type"])
            if message["type"] in ("lifespan.shutdown.complete", "lifespan.shutdown.failed"):
                await self.close()
            await send(message)

        try:
            await self.app(scope, receive_and_open, close_and_send)
        except Exception:
            if said:
                raise
        if said:
            return
        # An application that knows nothing of lifespans, Django for one. We do.
        try:
            if not self._opened and not failed:
                await receive_and_open()
        except Exception as error:
            failed.append(error)
        if failed:
            await send({"type": "lifespan.startup.failed", "message": f"Shield: {failed[0]}"})
            return
        await send({"type": "lifespan.startup.complete"})
        await receive()
        await self.close()
        await send({"type": "lifespan.shutdown.complete"})


async def _turn_away(scope: Scope, send: Send, refused: Refusal) -> None:
    """Refuses a WebSocket before it is one."""
    if DENIAL in (scope.get("extensions") or {}):
        start = {"type": f"{DENIAL}.start", "status": refused.status, "headers": encoded_pairs(refused.headers)}
        await send(start)
        await send({"type": f"{DENIAL}.body", "body": refused.body})
    else:
        await send({"type": "websocket.close", "code": 1008, "reason": ""})
