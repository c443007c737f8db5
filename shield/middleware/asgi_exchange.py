"""What passes between an ASGI server and an application whose request was admitted."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterable, Mapping, MutableMapping
from contextlib import suppress
from typing import TYPE_CHECKING, Any, Final

from shield.decision import Decision
from shield.middleware.body import LINGER_BYTES, BodyMeter, Fault
from shield.middleware.capture import Capture
from shield.middleware.settings import faulty, framed
from shield.middleware.turn import Turn
from shield.problem import Refusal, refusal_of

if TYPE_CHECKING:
    from shield.middleware.asgi import ShieldMiddleware

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]

SENT_ELSEWHERE: Final = ("http.response.pathsend", "http.response.zerocopysend")
"""Extensions by which a server is handed a file to send."""
POLICY_VIOLATION: Final = 1008
TOO_BIG: Final = 1009
LINGER_S: Final = 1.0
"""How long a client may go on sending a body that was refused, and LINGER_BYTES how much, before it is cut off."""
_MAX_REASON_BYTES: Final = 123  # RFC 6455, 5.5: what is left of a control frame


class Exchange:
    """One request and its response."""

    __slots__ = ("_held", "_meter", "_over", "_receive", "_send", "middleware", "refused", "scope", "started", "status",
                 "turn", "watches")  # fmt: skip

    def __init__(
        self, middleware: ShieldMiddleware, scope: MutableMapping[str, Any], receive: Receive, send: Send, turn: Turn
    ) -> None:
        self.middleware = middleware
        self.scope = scope
        self.turn = turn
        self.started = False
        self.refused = False
        """The client was answered by us; what the application still sends goes nowhere."""
        self.status: int | None = None
        self.watches = False
        """Whether the application has to receive through here."""
        self._receive = receive
        self._send = send
        self._over: asyncio.Event | None = None
        if turn.capture is not None:
            self._over = asyncio.Event()
            self.watches = True
        self._meter: BodyMeter | None = None
        self._held: bytes | None = None

    def hold(self, body: bytes) -> None:
        """The body was read before; the application gets it from here."""
        self._held = body
        self.watches = True

    def measure(self, meter: BodyMeter) -> None:
        """The body is measured while the application reads it."""
        self._meter = meter
        self.watches = True

    async def receive(self) -> Message:
        """For the application."""
        if self._held is not None:
            body, self._held = self._held, None
            return {"type": "http.request", "body": body, "more_body": False}
        if self.refused:
            return {"type": "http.disconnect"}
        message = await self._receive()
        if self._over is not None and message["type"] == "http.disconnect":
            # Whoever owns its key goes on: it is told when it has answered.
            await self._over.wait()
            return message
        meter = self._meter
        if meter is not None and message["type"] == "http.request":
            if fault := meter.feed(message.get("body", b"")):
                if not self.started:
                    await self._refuse_body(fault, message.get("more_body", False))
                return {"type": "http.disconnect"}
            if not message.get("more_body", False):
                self.turn.received = meter.received if self.turn.request.bytes is None else None
        return message

    async def send(self, message: Message) -> None:
        """For the application."""
        if self.refused:
            return
        kind = message["type"]
        if kind == "http.response.start":
            turn = self.turn
            if turn.refusal is not None:
                await turn.end_key("undone")
                await self.refuse(refusal_of(turn.refusal))
                return
            self.started = True
            self.status = message["status"]
            own = message.get("headers", ())
            if turn.capture is not None:
                turn.capture.began(
                    self.status, [(name.decode("latin-1"), value.decode("latin-1")) for name, value in own]
                )
            await self._pass({**message, "headers": [*own, *encoded(turn.headers())]})
            return
        last = kind == "http.response.body" and not message.get("more_body", False)
        if self.turn.capture is not None:
            await self._keep(self.turn.capture, message, last)
        await self._pass(message)
        if last:
            await self.finish()

    async def _keep(self, capture: Capture, message: Message, last: bool) -> None:
        """Keeps the next of a body, and before its end is sent the answer is there for whoever asks again."""
        if message["type"] == "http.response.body":
            capture.feed(message.get("body", b""))
        elif message["type"] in SENT_ELSEWHERE:
            capture.lose()
            last = not message.get("more_body", False)
        if last:
            capture.ended = True
            # A framework's own 500 may stand for what it is about to raise: `end_key` waits for that.
            if capture.status is not None and capture.status < 500:
                await self.turn.end_key("answered")

    async def _pass(self, message: Message) -> None:
        """Sends on. For whoever owns its key a client that is gone is no reason to stop."""
        if self._over is None:
            await self._send(message)
            return
        with suppress(OSError):
            await self._send(message)

    async def refuse(self, refused: Refusal) -> None:
        """Answers in the application's place."""
        self.refused = True
        self.status = refused.status
        await send_refusal(self.scope, self._send, refused)

    async def _refuse_body(self, fault: Fault, more: bool) -> None:
        """The answer is whole at once. Its end waits a little for the client, who is still sending: a connection that
        is closed on unread bytes is reset, and the answer may be lost with it.
        """
        close = self.scope.get("http_version", "1.1").startswith("1")
        refused = faulty(fault, self.turn.headers(), close=close)
        self.refused, self.status = True, refused.status
        await send_refusal(self.scope, self._send, refused, more=True)
        await self.finish()
        left = LINGER_BYTES
        with suppress(TimeoutError):
            async with asyncio.timeout(LINGER_S):
                while more and left > 0:
                    message = await self._receive()
                    more = message["type"] == "http.request" and message.get("more_body", False)
                    left -= len(message.get("body", b""))
        await self._send({"type": "http.response.body", "body": b"", "more_body": False})

    async def finish(self) -> None:
        """What is owed; again is nothing."""
        if self._over is not None:
            self._over.set()
        await self.middleware.end(self.turn, self.status)


class Socket:
    """One WebSocket."""

    __slots__ = ("_charged", "_receive", "_send", "accepted", "closed", "middleware", "turn")

    def __init__(
        self, middleware: ShieldMiddleware, receive: Receive, send: Send, turn: Turn, *, charged: bool
    ) -> None:
        self.middleware = middleware
        self.turn = turn
        self.accepted = False
        self.closed = False
        """By us; what the application still sends goes nowhere."""
        self._charged = charged
        self._receive = receive
        self._send = send

    async def receive(self) -> Message:
        """For the application."""
        if self.closed:
            return {"type": "websocket.disconnect", "code": POLICY_VIOLATION}
        message = await self._receive()
        if self._charged and message["type"] == "websocket.receive":
            size, guard = _size(message), self.turn.shield.policy.size
            if guard is not None and guard.max_body_bytes is not None and size > guard.max_body_bytes:
                return await self._shut(TOO_BIG, "too_large")
            decision = await self.turn.message(size)
            if decision is not None and not decision.allowed:
                return await self.close(decision)
        return message

    async def send(self, message: Message) -> None:
        """For the application."""
        if self.closed:
            return
        if message["type"] == "websocket.accept":
            self.accepted = True
            headers = [*message.get("headers", ()), *encoded(self.turn.headers())]
            message = {**message, "headers": headers}
        await self._send(message)

    async def close(self, decision: Decision) -> Message:
        """Ends the connection for what a decision says, and returns what the application is told."""
        wait_s = decision.retry_after
        return await self._shut(
            POLICY_VIOLATION, decision.reason if not wait_s else f"{decision.reason}; retry after {wait_s:.3f} s"
        )

    async def _shut(self, code: int, reason: str) -> Message:
        self.closed = True
        await self._send({"type": "websocket.close", "code": code, "reason": reason[:_MAX_REASON_BYTES]})
        return {"type": "websocket.disconnect", "code": code, "reason": reason}


def _size(message: Message) -> int:
    data = message.get("bytes")
    return len(data) if data is not None else len((message.get("text") or "").encode("utf-8", "surrogatepass"))


def encoded(headers: Mapping[str, str]) -> list[tuple[bytes, bytes]]:
    """As ASGI has them: names in lower case."""
    return encoded_pairs(headers.items())


def encoded_pairs(pairs: Iterable[tuple[str, str]]) -> list[tuple[bytes, bytes]]:
    """The same of pairs."""
    return [(name.lower().encode("latin-1"), value.encode("latin-1", "replace")) for name, value in pairs]


async def send_refusal(scope: MutableMapping[str, Any], send: Send, refused: Refusal, *, more: bool = False) -> None:
    """A whole response; `more`: its end is still to be said."""
    headers = encoded_pairs(framed(refused))
    await send({"type": "http.response.start", "status": refused.status, "headers": headers})
    body = b"" if scope.get("method") == "HEAD" else refused.body
    await send({"type": "http.response.body", "body": body, "more_body": more})
