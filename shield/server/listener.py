"""One HTTP server: routes, callers, and an RFC 9457 body for everything that goes wrong.

It sits on aiohttp's low-level server. A check request's path may be its client's own path, which no router
must normalise, decode or refuse, and a lookup in a dict is all that the fixed paths need. What is answered, and
how it is admitted, counted and logged, is decided here for both lanes of a connection.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from functools import partial
from typing import NamedTuple

from aiohttp import web

from shield.core.http_lane import Express, Head, Lane, PlainCheck
from shield.errors import ReceiptError, RequestError, StoreError
from shield.identity.callers import AllowedCallers
from shield.server import auth
from shield.server.aiohttp_lane import AiohttpAsk, response_of
from shield.server.auth import CallerTokens
from shield.server.bounds import HOLD_BYTES, MAX_CONNECTIONS, TURN_REQUESTS, WRITE_BYTES
from shield.server.connection import Connection
from shield.server.exchange import Answer, Ask, AtOnce, Handler
from shield.server.guarded import Guarded
from shield.server.logs import fault_fields
from shield.server.problem import Problem
from shield.server.rendering import SERVER_LINE
from shield.server.service import Service, field_for_log
from shield.server.wire import detail_of

POST_ONLY = frozenset({"POST"})


PlainOf = Callable[[object, Callable[[Exception], Answer], Callable[[Head], bool] | None], PlainCheck]
"""From a route, what makes an answer of an error, and what tells whose requests are answered."""


class Route(NamedTuple):
    """What answers a path."""

    name: str
    handler: Handler
    methods: frozenset[str] | None = None
    """None: any."""
    open: bool = False
    """Whether callers need no token here."""
    at_once: AtOnce | None = None
    """What answers in the express lane, where the store is in this process."""
    plain: PlainOf | None = None
    """Makes what answers before that where nothing is special."""


class Listener(web.Server):
    """Routes of one listener. `prefix` is a route for every target that starts with a text.

    With `tokens` every caller needs one of them, but on open routes. With `callers` nobody is answered whose
    certificate is not of somebody on that list. `express` opens the express lane to its
    routes, and sheds what comes while the process is saturated; without it aiohttp serves everything.
    """

    def __init__(
        self,
        service: Service,
        routes: Mapping[str, Route],
        *,
        prefix: tuple[str, Route] | None = None,
        tokens: CallerTokens | None = None,
        callers: AllowedCallers | None = None,
        express: bool = False,
        sheds: bool = False,
    ) -> None:
        super().__init__(self._serve)
        self._service = service
        self._routes = routes
        self._prefix = prefix
        self.tokens = tokens
        self.callers = callers
        self._sheds = sheds
        self.pressure = service.pressure
        self.express = self._opened(prefix) if express else None
        self._connected = 0
        self.in_flight = 0
        """Requests whose head is here and that are not answered yet."""
        self._idle: asyncio.Event | None = None

    def __call__(self) -> Guarded:
        return Guarded(self) if self.express is None else Connection(self, self.express)

    def connection_made(self, handler: web.RequestHandler, transport: asyncio.Transport) -> None:
        """Called by aiohttp. Past MAX_CONNECTIONS a connection is cut at once."""
        super().connection_made(handler, transport)
        # Once a connection, which has one certificate for all of its life.
        callers, certificate = self.callers, transport.get_extra_info("peercert") if self.callers is not None else None
        if callers is not None and isinstance(handler, Guarded) and not callers.allows(certificate):
            handler.turn_away()
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

    def begun(self) -> None:
        """One more request is in flight."""
        self.in_flight += 1

    def done(self) -> None:
        """One less is."""
        self.in_flight -= 1
        if self._idle is not None and self.in_flight == 0:
            self._idle.set()

    async def _serve(self, http: web.BaseRequest) -> web.Response:
        """aiohttp's lane."""
        self.begun()
        self.pressure.look(self._loop)
        try:
            if self.callers is not None and not (isinstance(http.protocol, Guarded) and not http.protocol.turned_away):
                refusal = Problem(403, "the certificate is not of a caller that may ask here", close=True)
                return response_of(self.problem(refusal, "unknown"), http)
            return response_of(await self.answer(AiohttpAsk(http)), http)
        finally:
            self.done()

    async def answer(self, ask: Ask) -> Answer:
        """The answer to a request, whichever lane it came by. ConnectionError where nobody is there to get it.

        Counting it as in flight, where it may wait, is the lane's.
        """
        route, rest = self._route(ask.target)
        try:
            answer = await self._admitted(ask, route).handler(ask, rest)
        except Exception as error:
            answer = self._explained(error, route)
        if self._service.draining:
            answer.close = True
        return answer

    def answer_at_once(self, head: Head) -> Answer | None:
        """The same without waiting, for a request of the express lane; None where its handler may wait."""
        route: Route = head.route
        if route.at_once is None or self.express is None or not self.express.at_once:
            return None
        try:
            # What `_admitted` asks, but for what the lane has seen to: there is a route, and it has this method.
            if self.tokens is not None and not route.open:
                self._refuse_strangers(head)
            if self._sheds and self.pressure.late:
                raise self.pressure.refusal()
            answer = route.at_once(head, head.rest)
        except Exception as error:
            answer = self._explained(error, route)
        if self._service.draining:
            answer.close = True
        return answer

    def _opened(self, prefix: tuple[str, Route] | None) -> Express:
        """The express lane."""
        at_once = self._service.shield.store.local
        plain = None
        for route in self._routes.values():
            if route.plain is not None:
                knows = None if route.open or self.tokens is None else self.knows
                plain = route.plain(route, partial(self._explained, route=route), knows)
        return Express(
            lane_of(self._routes, prefix),
            self.answer_at_once,
            plain,
            self._service,
            self.pressure,
            at_once=at_once,
            most=TURN_REQUESTS,
            most_bytes=WRITE_BYTES,
            server=SERVER_LINE,
        )

    def _explained(self, error: Exception, route: Route | None) -> Answer:
        """The answer where there is none. ConnectionError is nobody's to get."""
        name = "unknown" if route is None else route.name
        if isinstance(error, Problem):
            return self.problem(error, name)
        if isinstance(error, RequestError):
            return self.problem(_malformed(error), name, field_for_log(error))
        if isinstance(error, ReceiptError):
            return self.problem(Problem(400, str(error), members={"field": "receipt"}), name, "receipt")
        if isinstance(error, StoreError):
            detail = "the store did not answer; the same request may be sent again"
            return self.problem(Problem(503, detail, headers={"Retry-After": "1"}), name)
        if isinstance(error, ConnectionError):
            raise error
        return self.fault(error, name)

    def _route(self, target: str) -> tuple[Route | None, str]:
        route = self._routes.get(target)
        if route is not None:
            return route, ""
        path, _, query = target.partition("?")
        route = self._routes.get(path)
        if route is None and self._prefix is not None and target.startswith(self._prefix[0]):
            return self._prefix[1], target[len(self._prefix[0]) :]
        return route, query

    def _admitted(self, ask: Ask, route: Route | None) -> Route:
        """The route, for a caller who may use it. Problem 401, 404, 405, or 503 under pressure."""
        if self.tokens is not None and not (route is not None and route.open):
            self._refuse_strangers(ask)
        if route is None:
            raise Problem(404, "no endpoint has this path")
        if route.methods is not None and ask.method not in route.methods:
            allow = ", ".join(sorted(route.methods))
            raise Problem(405, f"this endpoint answers {allow}", headers={"Allow": allow})
        if self._sheds and self.pressure.too_high:
            raise self.pressure.refusal()
        return route

    def _refuse_strangers(self, ask: Ask) -> None:
        if not self.knows(ask):
            detail = f"callers of this server need a token: {auth.HEADER}: Bearer TOKEN"
            raise Problem(401, detail, headers={"WWW-Authenticate": auth.CHALLENGE}, close=True)

    def knows(self, ask: Ask) -> bool:
        """Whether the caller shows one of the tokens, or needs none."""
        if self.tokens is None:
            return True
        presented = ask.headers.getall(auth.HEADER, ())
        return len(presented) == 1 and self.tokens.accept(presented[0])

    def problem(self, problem: Problem, name: str, field: str | None = None) -> Answer:
        """The answer, counted and logged under an id that it shows."""
        request_id = self._service.next_request_id()
        self._service.metrics.problem(name, problem.status)
        self._service.lines.problem(request_id, name, problem.status, field)
        return problem.answer(request_id)

    def fault(self, error: Exception, name: str) -> Answer:
        """The answer for an error of our own, logged."""
        request_id = self._service.next_request_id()
        self._service.metrics.problem(name, 500)
        self._service.log.error("fault", request_id=request_id, endpoint=name, **fault_fields(error))
        detail = "Shield failed to answer; its log has more under this request id"
        return Problem(500, detail, close=True).answer(request_id)


def _malformed(error: RequestError) -> Problem:
    members = {"field": error.field} if error.field else {}
    return Problem(400, str(error) if error.field else detail_of(error), members=members)


def lane_of(routes: Mapping[str, Route], prefix: tuple[str, Route] | None, kind: type[Lane] = Lane) -> Lane:
    """Routes of POST alone, which need a body, and those of any method, which need none."""
    posts = [(path.encode(), route) for path, route in routes.items() if route.methods == POST_ONLY]
    anys = [(path.encode(), route) for path, route in routes.items() if route.methods is None]
    return kind(posts, anys, None if prefix is None else (prefix[0].encode(), prefix[1]), HOLD_BYTES)
