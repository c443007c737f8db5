"""Shield in front of a WSGI application: Flask, Django and any other.

    app.wsgi_app = ShieldMiddleware(app.wsgi_app, "policy.toml", store="shared://orders")      # Flask
    application = ShieldMiddleware(get_wsgi_application(), "policy.toml", store="redis://...")  # Django

A request is decided before the application sees it. What was taken for it is given back or settled when the server
closes the response. Where the server has several processes, `shared://` or `redis://` makes them count together.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from os import PathLike
from types import TracebackType
from typing import Any, Final
from urllib.parse import quote

from shield.errors import Refused, RequestError
from shield.middleware.body import LINGER_BYTES, MAX_RATIO, BodyMeter, BodyRefused
from shield.middleware.bridge import Bridge
from shield.middleware.capture import Capture
from shield.middleware.endpoints import Endpoints, Finder
from shield.middleware.facts import Head, NonceFields, with_body
from shield.middleware.lease_thread import LeaseThread
from shield.middleware.settings import Hook, Settings, faulty, framed, most_read, unreadable
from shield.middleware.turn import CURRENT, Ended, Turn
from shield.middleware.wsgi_input import PIECE_BYTES, MeteredInput
from shield.policy import Policy
from shield.problem import Refusal, phrase, refusal_of
from shield.shield import Shield

Environ = dict[str, Any]
ExcInfo = tuple[type[BaseException], BaseException, TracebackType] | tuple[None, None, None]
Start = Callable[..., Callable[[bytes], object]]
App = Callable[[Environ, Start], Iterable[bytes]]

_WITHOUT_PREFIX: Final = ("content-type", "content-length")


class ShieldMiddleware:
    """A WSGI application around another. The arguments are those of the ASGI one; functions are plain ones, and are
    given the environ. `close` ends what it has opened.
    """

    def __init__(
        self,
        app: App,
        shield: Shield | Policy | str | PathLike[str],
        *,
        store: str = "memory://",
        facts: Hook | None = None,
        gateway: bool = False,
        max_ratio: int = MAX_RATIO,
        nonce: NonceFields | None = None,
        endpoint: Finder | None = None,
    ) -> None:
        self.app = app
        self._settings = Settings(shield, store=store, facts=facts, gateway=gateway, max_ratio=max_ratio, nonce=nonce)
        self.shield = self._settings.shield
        self._bridge = Bridge(self.shield)
        self._endpoints = Endpoints(app, endpoint)
        self._leases = LeaseThread(lambda turn: bool(self._bridge.call(turn.extend())))
        self._bridge.on_fork = self._leases.forget

    def close(self) -> None:
        """Closes the shield. A process that ends need not: it takes all with it."""
        self._bridge.close()

    def __call__(self, environ: Environ, start_response: Start) -> Iterable[bytes]:
        """The WSGI interface."""
        begun = self._begin(environ)
        if begun is None:
            return self.app(environ, start_response)
        if isinstance(begun, Refusal):
            return send_refusal(environ, start_response, begun)
        turn, meter = begun
        if not turn.decision.allowed:
            return send_refusal(environ, start_response, refusal_of(turn.decision))
        response = Response(self._bridge, environ, start_response, turn, meter)
        if turn.capture is not None:
            response = OwnersResponse(self._bridge, environ, start_response, turn, meter, self._leases)
        token = CURRENT.set(turn)
        try:
            response.began(self.app(environ, response.start))
        except Exception as error:
            response.ended("undone")
            if not response.answers(error):
                response.status = response.status or 500
                response.close()
                raise
        except BaseException:
            response.ended("unknown")
            response.close()
            raise
        finally:
            CURRENT.reset(token)
        return response

    def _begin(self, environ: Environ) -> tuple[Turn, BodyMeter | None] | Refusal | None:
        """The decision; None for what is exempt, a refusal for what cannot be decided."""
        settings = self._settings
        mark = self._endpoints.mark_of_environ(environ)
        if mark is not None and mark.exempt:
            return None
        facts = settings.facts
        # What the server decoded, encoded again: the application's own understanding of the path.
        path = quote((environ.get("SCRIPT_NAME", "") + environ.get("PATH_INFO", "")).encode("latin-1"))
        try:
            found, forwarded = _fields(environ, facts.wanted)
            head = facts.head(
                found,
                forwarded,
                peer=environ.get("REMOTE_ADDR") or None,
                method=environ["REQUEST_METHOD"],
                path=path,
                framed=environ.get("SERVER_PROTOCOL", "HTTP/1.1").startswith("HTTP/1"),
            )
        except RequestError as error:
            return unreadable(error)
        request = head.request if mark is None else mark.applied(head.request)
        if settings.hook is not None:
            request = settings.hook(environ, request)
            if request is None:
                return None
        meter = None
        if settings.reads_body(request):
            body = self._read(environ, head)
            if isinstance(body, Refusal):
                return body
            with_body(settings.shield, request, body, environ.get("QUERY_STRING", ""))
            environ["wsgi.input"] = io.BytesIO(body)
            environ["CONTENT_LENGTH"] = str(len(body))
        elif head.counted or head.encoding is not None:
            meter = BodyMeter(facts.max_body_bytes, head.encoding, settings.max_ratio)
            environ["wsgi.input"] = MeteredInput(environ["wsgi.input"], meter)
        return Turn(settings.shield, request, self._bridge.check(request), self._bridge.call), meter

    def _read(self, environ: Environ, head: Head) -> bytes | Refusal:
        """The whole body, where the decision needs it."""
        meter = BodyMeter(most_read(self._settings.facts), head.encoding, self._settings.max_ratio)
        source = MeteredInput(environ["wsgi.input"], meter)
        size = head.request.bytes
        try:
            # Without a length only a server that ends its input can be read to the end: PEP 3333 promises no such
            # thing. The application is given the same nothing.
            if size is None and not environ.get("wsgi.input_terminated"):
                return b""
            return source.read(-1 if size is None else size)
        except BodyRefused as refused:
            return faulty(refused.fault)


class Response:
    """What the server iterates over."""

    def __init__(
        self, bridge: Bridge, environ: Environ, start_response: Start, turn: Turn, meter: BodyMeter | None
    ) -> None:
        self.status: int | None = None
        self._bridge = bridge
        self._environ = environ
        self._start_response = start_response
        self._turn = turn
        self._meter = meter
        self._from_app: Iterable[bytes] = ()
        self._parts: Iterator[bytes] = iter(())
        self._pending: tuple[str, list[tuple[str, str]], ExcInfo | None] | None = None
        self._written: Callable[[bytes], object] | None = None
        self._started = False
        self._closed = False

    def start(
        self, status: str, headers: list[tuple[str, str]], exc_info: ExcInfo | None = None
    ) -> Callable[[bytes], object]:
        """`start_response` for the application. The server is told when the application has returned: until then the
        body may still turn out to be too large.
        """
        if self._started:
            if exc_info is None:
                raise AssertionError("start_response was called twice without exc_info")
            return self._start_response(status, headers, exc_info)
        self._pending = (status, headers, exc_info)
        return self._write

    def began(self, parts: Iterable[bytes]) -> None:
        """The application has returned."""
        self._from_app = parts
        if (refused := self._refusal()) is not None:
            self.answer(refused)
            return
        self._parts = iter(parts)
        if self._pending is not None:
            self._tell()

    def answers(self, error: Exception) -> bool:
        """Whether what the application raised is answered here."""
        if self._started:
            return False
        refused = self._refusal()
        if refused is not None and (isinstance(error, Refused) or self._meter is not None):
            self.answer(refused)
            return True
        return False

    def answer(self, refused: Refusal) -> None:
        """Answers in the application's place."""
        self.status, self._started = refused.status, True
        self._parts = iter(send_refusal(self._environ, self._start_response, refused))

    def __iter__(self) -> Iterator[bytes]:
        return self

    def __next__(self) -> bytes:
        part = next(self._parts, None)
        if not self._started and self._pending is not None:
            self._tell()
        if part is None:
            raise StopIteration
        return part

    def ended(self, how: Ended) -> None:
        """Says what became of a request that owns its key."""

    def close(self) -> None:
        """Called by the server when the response has ended, whether well or not."""
        if self._closed:
            return
        self._closed = True
        try:
            close = getattr(self._from_app, "close", None)
            if close is not None:
                close()
        finally:
            meter, turn = self._meter, self._turn
            if meter is not None and turn.request.bytes is None:
                turn.received = meter.received
            if turn.owes or turn.shield.abuse.active:
                self._bridge.call(turn.finish(self.status))

    def _refusal(self) -> Refusal | None:
        if self._turn.refusal is not None:
            return refusal_of(self._turn.refusal)
        if self._meter is not None and self._meter.fault is not None:
            return faulty(self._meter.fault, self._turn.headers())  # connections are the server's (PEP 3333)
        return None

    def _tell(self) -> Callable[[bytes], object]:
        assert self._pending is not None
        (status, headers, exc_info), self._pending = self._pending, None
        self._started = True
        self.status = int(status[:3])
        self._begins(headers)
        headers = [*headers, *self._turn.headers().items()]
        return self._start_response(status, headers, *(() if exc_info is None else (exc_info,)))

    def _begins(self, headers: list[tuple[str, str]]) -> None:
        """The application's own head."""

    def _write(self, data: bytes) -> object:
        """PEP 3333's other way to send, for applications from before it."""
        if self._written is None:
            self._written = self._tell()
        return self._written(data)


class OwnersResponse(Response):
    """The response of a request that owns its idempotency key: kept as it goes by, and to its end even where the client
    has gone before.
    """

    def __init__(
        self,
        bridge: Bridge,
        environ: Environ,
        start_response: Start,
        turn: Turn,
        meter: BodyMeter | None,
        leases: LeaseThread,
    ) -> None:
        super().__init__(bridge, environ, start_response, turn, meter)
        assert turn.capture is not None
        self._capture: Capture = turn.capture
        self._leases = leases
        self._length: int | None = None
        self._told = False
        leases.add(turn)

    def ended(self, how: Ended) -> None:
        if self._told:
            return
        self._told = True
        self._leases.remove(self._turn)
        if self._turn.refusal is not None:
            how = "undone"
        self._bridge.call(self._turn.end_key(how))

    def __next__(self) -> bytes:
        try:
            part = super().__next__()
        except StopIteration:
            self._all()
            raise
        except Exception:
            self.ended("undone")
            raise
        self._feed(part)
        return part

    def close(self) -> None:
        if not self._closed:
            try:
                for part in self._parts:  # what the client did not wait for
                    self._feed(part)
            except Exception:
                self.ended("undone")
                raise
            finally:
                super().close()
            self._all()

    def _begins(self, headers: list[tuple[str, str]]) -> None:
        assert self.status is not None
        self._capture.began(self.status, headers)
        length = next((value for name, value in headers if name.lower() == "content-length"), "")
        self._length = int(length) if length.isdigit() else None

    def _write(self, data: bytes) -> object:
        if self._written is None:
            self._written = self._tell()
        self._feed(data)
        with suppress(OSError):
            self._written(data)
        return None

    def _feed(self, part: bytes) -> None:
        self._capture.feed(part)
        if self._capture.size == self._length:
            self._all()  # before its end is sent the answer is there for whoever asks again

    def _all(self) -> None:
        if self._capture.status is not None:
            self.ended("answered")
        else:
            self.ended("undone")


def send_refusal(environ: Environ, start_response: Start, refused: Refusal) -> Iterable[bytes]:
    """A whole response."""
    start_response(f"{refused.status} {phrase(refused.status)}", list(framed(refused)))
    return () if environ["REQUEST_METHOD"] == "HEAD" else _and_drain(environ, refused.body)


def _and_drain(environ: Environ, body: bytes) -> Iterator[bytes]:
    """The answer, and then what the client is still sending, up to a bound: a connection that is closed on unread bytes
    is reset, and the answer may be lost with it.
    """
    yield body
    source = environ["wsgi.input"]
    taken = 0
    if isinstance(source, MeteredInput):
        source, taken = source.source, source.received
    length = environ.get("CONTENT_LENGTH") or "0"
    if environ.get("wsgi.input_terminated"):
        left = LINGER_BYTES
    else:
        left = min(LINGER_BYTES, max(0, int(length) - taken)) if length.isdigit() else 0
    with suppress(OSError, ValueError):
        while left > 0 and (data := source.read(min(left, PIECE_BYTES))):
            left -= len(data)


def _fields(environ: Environ, wanted: Iterable[str]) -> tuple[dict[str, str], list[str]]:
    """The wanted header fields, and X-Forwarded-For. Servers join fields that are there twice with a comma."""
    found = {}
    for name in wanted:
        key = name.upper().replace("-", "_")
        value = environ.get(key if name in _WITHOUT_PREFIX else "HTTP_" + key)
        if value:
            found[name] = value
    forwarded = environ.get("HTTP_X_FORWARDED_FOR")
    return found, [forwarded] if forwarded else []
