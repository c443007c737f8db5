"""One HTTP server: routes, callers, bodies, and an RFC 9457 body for everything that goes wrong.

It sits on aiohttp's low-level server. A check request's path may be its client's own path, which no router
must normalise, decode or refuse, and a lookup in a dict is all that the fixed paths need.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from typing import Any, Final, NamedTuple

from aiohttp import web

from shield.errors import ReceiptError, RequestError, StoreError
from shield.server import auth
from shield.server.auth import CallerTokens
from shield.server.bounds import (
    BODY_TIMEOUT_S,
    KEEPALIVE_S,
    LINGER_S,
    MAX_CONNECTIONS,
    MAX_FIELD_BYTES,
    MAX_HEADER_FIELDS,
    MAX_LINE_BYTES,
)
from shield.server.logs import fault_fields
from shield.server.problem import Problem
from shield.server.service import Service, field_for_log
from shield.server.wire import detail_of

Handler = Callable[[web.BaseRequest, str], Awaitable[web.Response]]


class Route(NamedTuple):
    """What answers a path. The handler gets the query, or behind a prefix the rest of the target, as it was
    sent.
    """

    name: str
    handler: Handler
    methods: frozenset[str] | None = None
    """None: any."""
    open: bool = False
    """Whether callers need no token here."""


CONNECTION_OPTIONS: Final[Mapping[str, Any]] = {
    "keepalive_timeout": KEEPALIVE_S,
    "lingering_time": LINGER_S,
    "max_line_size": MAX_LINE_BYTES,
    "max_field_size": MAX_FIELD_BYTES,
    "max_headers": MAX_HEADER_FIELDS,
    "access_log": None,
    # A compressed body would be bounded only after it was inflated; nothing that talks to Shield compresses.
    "auto_decompress": False,
}


class Connection(web.RequestHandler):
    """aiohttp's connection, with our words for what is not even HTTP."""

    __slots__ = ("_listener",)

    def __init__(self, listener: Listener) -> None:
        super().__init__(listener, loop=asyncio.get_running_loop(), **CONNECTION_OPTIONS)
        self._listener = listener

    def handle_error(
        self,
        request: web.BaseRequest,
        status: int = 500,
        exc: BaseException | None = None,
        message: str | None = None,
    ) -> web.StreamResponse:
        """Called by aiohttp for what its parser refused. It closes the connection: framing is lost."""
        if request.writer.output_size > 0:
            raise ConnectionError("an answer has been started already")
        detail = "the request is not HTTP, or exceeds a bound of its head"
        return self._listener.problem(Problem(status, detail, close=True), "http")


class Listener(web.Server):
    """Routes of one listener. `prefix` is a route for every target that starts with a text.

    With `tokens` every caller needs one of them, but on open routes.
    """

    def __init__(
        self,
        service: Service,
        routes: Mapping[str, Route],
        *,
        prefix: tuple[str, Route] | None = None,
        tokens: CallerTokens | None = None,
    ) -> None:
        super().__init__(self._answer)
        self._service = service
        self._routes = routes
        self._prefix = prefix
        self.tokens = tokens
        self._connected = 0
        self.in_flight = 0
        """Requests whose handler has not returned."""
        self._idle: asyncio.Event | None = None

    def __call__(self) -> Connection:
        return Connection(self)

    def connection_made(self, handler: web.RequestHandler, transport: asyncio.Transport) -> None:
        """Called by aiohttp. Past MAX_CONNECTIONS a connection is cut at once."""
        super().connection_made(handler, transport)
        self._connected += 1
        if self._connected > MAX_CONNECTIONS:
            transport.abort()

    def connection_lost(self, handler: web.RequestHandler, exc: BaseException | None = None) -> None:
        """Called by aiohttp."""
        self._connected -= 1
        super().connection_lost(handler, exc)

    async def idle(self) -> None:
        """Waits until no request is in flight."""
        if self.in_flight:
            self._idle = asyncio.Event()
            await self._idle.wait()

    async def _answer(self, request: web.BaseRequest) -> web.Response:
        self.in_flight += 1
        name = "unknown"
        try:
            target = request.raw_path
            route, rest = self._route(target if target.startswith("/") else request.rel_url.raw_path_qs)
            if route is not None:
                name = route.name
            self._admit(request, route)
            if route is None:
                raise Problem(404, "no endpoint has this path")
            if route.methods is not None and request.method not in route.methods:
                allow = ", ".join(sorted(route.methods))
                raise Problem(405, f"this endpoint answers {allow}", headers={"Allow": allow})
            response = await route.handler(request, rest)
        except Problem as problem:
            response = self.problem(problem, name)
        except RequestError as error:
            response = self.problem(_malformed(error), name, field_for_log(error))
        except ReceiptError as error:
            response = self.problem(Problem(400, str(error), members={"field": "receipt"}), name, "receipt")
        except StoreError:
            detail = "the store did not answer; the same request may be sent again"
            response = self.problem(Problem(503, detail, headers={"Retry-After": "1"}), name)
        except ConnectionError:
            raise
        except Exception as error:
            response = self._fault(error, name)
        finally:
            self.in_flight -= 1
            if self._idle is not None and self.in_flight == 0:
                self._idle.set()
        # Bytes of a body that did not arrive would be taken for the next request's head, or the other way
        # round: an auth_request of nginx announces a body that it never sends.
        if self._service.draining or not request.content.is_eof():
            response.force_close()
        # Gateways hand a refusal on with all its fields; what we are built from is nobody's business.
        response.headers["Server"] = "shield"
        return response

    def _route(self, target: str) -> tuple[Route | None, str]:
        path, _, query = target.partition("?")
        route = self._routes.get(path)
        if route is None and self._prefix is not None and target.startswith(self._prefix[0]):
            return self._prefix[1], target[len(self._prefix[0]) :]
        return route, query

    def _admit(self, request: web.BaseRequest, route: Route | None) -> None:
        if self.tokens is None or (route is not None and route.open):
            return
        presented = request.headers.getall(auth.HEADER, ())
        if len(presented) != 1 or not self.tokens.accept(presented[0]):
            detail = f"callers of this server need a token: {auth.HEADER}: Bearer TOKEN"
            raise Problem(401, detail, headers={"WWW-Authenticate": auth.CHALLENGE}, close=True)

    def problem(self, problem: Problem, name: str, field: str | None = None) -> web.Response:
        """The answer, counted and logged under an id that it shows."""
        request_id = self._service.next_request_id()
        self._service.metrics.problem(name, problem.status)
        self._service.lines.problem(request_id, name, problem.status, field)
        return problem.response(request_id)

    def _fault(self, error: Exception, name: str) -> web.Response:
        request_id = self._service.next_request_id()
        self._service.metrics.problem(name, 500)
        self._service.log.error("fault", request_id=request_id, endpoint=name, **fault_fields(error))
        detail = "Shield failed to answer; its log has more under this request id"
        return Problem(500, detail, close=True).response(request_id)


def _malformed(error: RequestError) -> Problem:
    members = {"field": error.field} if error.field else {}
    return Problem(400, str(error) if error.field else detail_of(error), members=members)


async def read_body(request: web.BaseRequest, max_bytes: int) -> bytes:
    """The whole body. Problem: 413 past the bound, announced or not; 408 when it does not come in time."""
    content = request.content
    length = request.content_length
    if length is not None and length > max_bytes:
        raise _too_large(max_bytes)
    if content.is_eof():
        body = content.read_nowait()
        if len(body) > max_bytes:
            raise _too_large(max_bytes)
        return body
    if request.headers.get("Expect", "").lower() == "100-continue":
        await request.writer.write(b"HTTP/1.1 100 Continue\r\n\r\n")
        request.writer.output_size = 0  # it counts as no answer yet
    received = bytearray()
    try:
        async with asyncio.timeout(BODY_TIMEOUT_S):
            while chunk := await content.readany():
                received += chunk
                if len(received) > max_bytes:
                    raise _too_large(max_bytes)
    except TimeoutError:
        raise Problem(408, f"the body did not arrive within {BODY_TIMEOUT_S:.0f} s", close=True) from None
    except web.RequestPayloadError:
        raise Problem(400, "the body's framing is broken", close=True) from None
    return bytes(received)


def _too_large(max_bytes: int) -> Problem:
    detail = f"the body is larger than {max_bytes} bytes"
    return Problem(413, detail, members={"field": "body"}, close=True)
