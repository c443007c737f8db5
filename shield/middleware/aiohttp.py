"""Shield in front of an aiohttp application.

    setup(app, "policy.toml", store="redis://localhost:6379/0")

Its middleware stands outermost and sends the response itself, so that what a request holds ends with its response. The
fields are added when a response begins, whoever begins it: streams, WebSockets and errors have them too.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import suppress
from functools import partial
from inspect import isawaitable
from os import PathLike
from typing import Any, Final

from aiohttp import web
from multidict import CIMultiDict

from shield.errors import RequestError
from shield.guard.size import TOO_LARGE
from shield.middleware.body import MAX_RATIO, BodyRefused, Fault, inflates_too_much
from shield.middleware.capture import Capture
from shield.middleware.facts import Head, NonceFields, with_body
from shield.middleware.marks import mark_of
from shield.middleware.settings import Hook, Settings, faulty, most_read, unreadable
from shield.middleware.turn import CURRENT, Turn, caller_in
from shield.policy import Policy
from shield.problem import Refusal, refusal, refusal_of
from shield.shield import Shield

_TURN: Final = web.RequestKey("shield.turn", Turn)
_BEGUN: Final = web.RequestKey("shield.begun", bool)


def setup(
    app: web.Application,
    shield: Shield | Policy | str | PathLike[str],
    *,
    store: str = "memory://",
    facts: Hook | None = None,
    gateway: bool = False,
    max_ratio: int = MAX_RATIO,
    nonce: NonceFields | None = None,
) -> Shield:
    """Puts a shield in front of every handler of an application, opens it with the application and closes it. The
    arguments are those of the ASGI middleware; `facts` is given the aiohttp request. PolicyError.
    """
    settings = Settings(shield, store=store, facts=facts, gateway=gateway, max_ratio=max_ratio, nonce=nonce)
    front = _Front(settings)

    async def opened(app: web.Application) -> AsyncIterator[None]:
        await settings.shield.open()
        yield
        await front.close()

    @web.middleware
    async def middleware(request: web.Request, handler: Any) -> web.StreamResponse:
        return await front.handle(request, handler)

    app.middlewares.insert(0, middleware)
    app.on_response_prepare.append(_add_fields)
    app.cleanup_ctx.append(opened)
    return settings.shield


async def _add_fields(request: web.Request, response: web.StreamResponse) -> None:
    turn = request.get(_TURN)
    if turn is not None:
        request[_BEGUN] = True
        if turn.capture is not None and turn.capture.status is None:
            _capture_stream(turn.capture, response)
        response.headers.extend(turn.headers())


class _Front:
    """What stands in front of the handlers of one application."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._ending: set[asyncio.Task[Any]] = set()

    async def close(self) -> None:
        """After the last request."""
        if self._ending:
            await asyncio.gather(*self._ending, return_exceptions=True)
        await self._settings.shield.close()

    async def handle(self, request: web.Request, handler: Any) -> web.StreamResponse:
        """One request, through to the end of its response."""
        begun = await self._begin(request)
        if begun is None:
            response: web.StreamResponse = await handler(request)
            return response
        if isinstance(begun, Refusal):
            return _response(begun)
        turn, body = begun
        if not turn.decision.allowed:
            return _response(refusal_of(turn.decision))
        request[_TURN] = turn
        running = self._run(request, handler, turn, body)
        if turn.capture is None:
            return await running
        # What owns its key goes on when its client is gone: who comes again is to find an answer.
        task: asyncio.Task[web.StreamResponse] = asyncio.get_running_loop().create_task(running)
        self._ending.add(task)
        task.add_done_callback(self._ended)
        return await asyncio.shield(task)

    async def _run(
        self, request: web.Request, handler: Any, turn: Turn, body: MeteredStream | None
    ) -> web.StreamResponse:
        status: int | None = 500
        token = CURRENT.set(turn)
        keeping = None if turn.capture is None else asyncio.get_running_loop().create_task(turn.keep_lease())
        try:
            response = await self._answer(request, handler, turn, body)
            status = response.status
            if turn.capture is not None:
                await _keep(turn, response)
            with suppress(ConnectionError):  # the client is gone; aiohttp finds that out again, and closes
                await response.prepare(request)
                await response.write_eof()
            return response
        except web.HTTPException as answer:
            status = answer.status
            if turn.capture is not None:
                await _keep(turn, answer)
            raise
        except Exception:
            await turn.end_key("undone")
            raise
        finally:
            if keeping is not None:
                keeping.cancel()
            CURRENT.reset(token)
            await self._end(turn, body, status)

    def _ended(self, task: asyncio.Task[Any]) -> None:
        self._ending.discard(task)
        if not task.cancelled():
            task.exception()  # raised to aiohttp, or to nobody if that had gone

    async def _answer(
        self, request: web.Request, handler: Any, turn: Turn, body: MeteredStream | None
    ) -> web.StreamResponse:
        """The handler's response, or the refusal that stands in for it."""
        try:
            response: web.StreamResponse = await handler(request)
        except Exception:
            refused = _instead(turn, body)
            if refused is None or _BEGUN in request:
                raise  # a response that has begun is cut
        else:
            refused = _instead(turn, body)
            if refused is None or response.prepared:
                return response
        return _response(refused)

    async def _begin(self, request: web.Request) -> tuple[Turn, MeteredStream | None] | Refusal | None:
        """The decision; None for what is exempt, a refusal for what cannot be decided."""
        settings = self._settings
        mark = mark_of(request.match_info.handler)
        if mark is not None and mark.exempt:
            return None
        facts = settings.facts
        try:
            found, forwarded = facts.of_pairs((name.lower(), value) for name, value in request.raw_headers)
            head = facts.head(
                found, forwarded, peer=request.remote or None, method=request.method, path=request.raw_path, framed=True
            )
        except RequestError as error:
            return unreadable(error)
        stated = head.request if mark is None else mark.applied(head.request)
        if settings.hook is not None:
            told = settings.hook(request, stated)
            stated = await told if isawaitable(told) else told
            if stated is None:
                return None
        body = None
        if head.counted or head.encoding is not None:
            body = MeteredStream(request._payload, facts.max_body_bytes, settings.max_ratio)
            # What an outer middleware has looked at is remembered there.
            request._cache.pop("content", None)
            request._payload = body  # type: ignore[assignment]  # no public way; the version is pinned
        if settings.reads_body(stated):
            read = await _read(request, head, most_read(facts))
            if isinstance(read, Refusal):
                return read
            with_body(settings.shield, stated, read, request.rel_url.raw_query_string)
        shield = settings.shield
        decision = shield.check_nowait(stated) if shield.store.local else await shield.check(stated)
        return Turn(shield, stated, decision, caller_in(asyncio.get_running_loop())), body

    async def _end(self, turn: Turn, body: MeteredStream | None, status: int | None) -> None:
        if body is not None and turn.request.bytes is None:
            turn.received = body.received
        if turn.shield.store.local or not turn.owes:
            await turn.finish(status)  # never waits
            return
        task = asyncio.get_running_loop().create_task(turn.finish(status))
        self._ending.add(task)
        task.add_done_callback(self._ending.discard)
        await asyncio.shield(task)


async def _keep(turn: Turn, response: web.StreamResponse) -> None:
    """Before its end is sent the answer is there for whoever asks again."""
    capture = turn.capture
    assert capture is not None
    if turn.refusal is not None:
        await turn.end_key("undone")
        return
    if capture.status is None:
        capture.began(response.status, response.headers.items())
        content = getattr(response, "body", None)
        if isinstance(content, bytes | bytearray):
            capture.feed(bytes(content))
        elif content is not None or not isinstance(response, web.Response):
            capture.lose()  # a file, or something else that aiohttp reads while it sends
    await turn.end_key("answered")


def _capture_stream(capture: Capture, response: web.StreamResponse) -> None:
    """Has what a handler writes go by, and go on when the client is gone."""
    capture.began(response.status, response.headers.items())
    write, write_eof = response.write, response.write_eof

    async def captured(data: Any) -> None:
        capture.feed(bytes(data))
        with suppress(ConnectionError):
            await write(data)

    async def captured_eof(data: bytes = b"") -> None:
        if data:
            capture.feed(data)
        with suppress(ConnectionError):
            await write_eof(data)

    response.write = captured  # type: ignore[method-assign]
    response.write_eof = captured_eof  # type: ignore[method-assign]


class MeteredStream:
    """`request.content`, measured by what came and by what aiohttp inflated it to. Raises BodyRefused from where it is
    too much.
    """

    def __init__(self, source: Any, max_bytes: int | None, max_ratio: int) -> None:
        self._source = source
        self._max_bytes = max_bytes
        self._max_ratio = max_ratio
        self.fault: Fault | None = None

    def __getattr__(self, name: str) -> Any:
        return getattr(self._source, name)

    def __aiter__(self) -> AsyncIterator[bytes]:
        return self._until_end(self.readline)

    def iter_chunked(self, n: int) -> AsyncIterator[bytes]:
        return self._until_end(partial(self.read, n))

    def iter_any(self) -> AsyncIterator[bytes]:
        return self._until_end(self.readany)

    async def iter_chunks(self) -> AsyncIterator[tuple[bytes, bool]]:
        while (chunk := await self.readchunk()) != (b"", False):
            yield chunk

    async def _until_end(self, read: Callable[[], Awaitable[bytes]]) -> AsyncIterator[bytes]:
        while part := await read():
            yield part

    @property
    def received(self) -> int:
        """Bytes that came."""
        return getattr(self._source, "total_raw_bytes", 0)

    async def readline(self, **options: Any) -> bytes:
        return self._judged(await self._source.readline(**options))

    async def readuntil(self, *args: Any, **options: Any) -> bytes:
        return self._judged(await self._source.readuntil(*args, **options))

    async def read(self, n: int = -1) -> bytes:
        if n >= 0:
            return self._judged(await self._source.read(n))
        parts = []
        while part := await self.readany():
            parts.append(part)
        return b"".join(parts)

    async def readany(self) -> bytes:
        return self._judged(await self._source.readany())

    async def readchunk(self) -> tuple[bytes, bool]:
        data, ends = await self._source.readchunk()
        return self._judged(data), ends

    async def readexactly(self, n: int) -> bytes:
        return self._judged(await self._source.readexactly(n))

    def read_nowait(self, n: int = -1) -> bytes:
        return self._judged(self._source.read_nowait(n))

    def _judged(self, data: bytes) -> bytes:
        if self.fault is None:
            came, inflated = self.received, getattr(self._source, "total_bytes", 0)
            if self._max_bytes is not None and came > self._max_bytes:
                self.fault = TOO_LARGE, f"bytes: more than {self._max_bytes} came; allowed: at most that"
            elif came != inflated:
                self.fault = inflates_too_much(inflated, came, self._max_bytes, self._max_ratio)
        if self.fault is not None:
            raise BodyRefused(self.fault)
        return data


def _instead(turn: Turn, body: MeteredStream | None) -> Refusal | None:
    """What is answered in the handler's place."""
    if turn.refusal is not None:
        return refusal_of(turn.refusal)
    return None if body is None or body.fault is None else faulty(body.fault)


async def _read(request: web.Request, head: Head, max_bytes: int) -> bytes | Refusal:
    """The whole body, where the decision needs it."""
    size = head.request.bytes or 0
    if size > max_bytes:
        return faulty((TOO_LARGE, f"bytes: found {size}; allowed: at most {max_bytes}"))
    try:
        body = await request.read()
    except BodyRefused as refused:
        return faulty(refused.fault)
    except web.HTTPRequestEntityTooLarge as error:
        return refusal(413, error.text or "", {"reason": TOO_LARGE}, {})
    if len(body) > max_bytes:
        return faulty((TOO_LARGE, f"bytes: found {len(body)}; allowed: at most {max_bytes}"))
    return body


def _response(refused: Refusal) -> web.Response:
    return web.Response(status=refused.status, headers=CIMultiDict(refused.headers), body=refused.body)
