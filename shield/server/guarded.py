"""aiohttp's connection with deadlines, and with our words for what is not even HTTP.

aiohttp bounds how long a connection is silent between requests and leaves the rest to its handlers. Here a head that
was begun must come to its end, answers must be fetched, and a connection that is not known to be a caller's may not
be silent for long: each would otherwise keep one of MAX_CONNECTIONS for as long as it likes.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any, Final

from aiohttp import web

from shield.server.aiohttp_internals import Beneath
from shield.server.aiohttp_lane import response_of
from shield.server.bounds import (
    BODY_TIMEOUT_S,
    HEAD_TIMEOUT_S,
    KEEPALIVE_S,
    LINGER_S,
    MAX_FIELD_BYTES,
    MAX_HEADER_FIELDS,
    MAX_LINE_BYTES,
    STALL_S,
    STRANGER_IDLE_S,
)
from shield.server.deadline import Deadline
from shield.server.problem import Problem
from shield.server.rendering import bytes_of

if TYPE_CHECKING:
    from shield.server.listener import Listener

CONNECTION_OPTIONS: Final[dict[str, Any]] = {
    "keepalive_timeout": KEEPALIVE_S,
    "lingering_time": LINGER_S,
    "max_line_size": MAX_LINE_BYTES,
    "max_field_size": MAX_FIELD_BYTES,
    "max_headers": MAX_HEADER_FIELDS,
    "access_log": None,
    # A compressed body would be bounded only after it was inflated; nothing that talks to Shield compresses.
    "auto_decompress": False,
}

# What a connection's deadline is for.
SILENCE: Final = 0  # no request has begun, as far as can be told
HEAD: Final = 1
REST: Final = 2  # of a body that the express lane waits for
_WITHIN_S: Final = {SILENCE: STRANGER_IDLE_S, HEAD: HEAD_TIMEOUT_S, REST: BODY_TIMEOUT_S}


class Guarded(Beneath):
    """One connection of a listener, served by aiohttp."""

    __slots__ = ("_deadline", "_read_before", "_stalled_at", "_what", "listener", "turned_away")

    def turn_away(self) -> None:
        """Whoever connected may not ask."""
        self.turned_away = True

    def __init__(self, listener: Listener) -> None:
        super().__init__(listener, loop=asyncio.get_running_loop(), **CONNECTION_OPTIONS)
        self.listener = listener
        self.turned_away = False
        """Whether whoever holds the connection may not ask here at all; every request is answered 403 then."""
        self._deadline = Deadline(self.loop, self._late)
        self._what = SILENCE
        self._read_before = 0  # requests that aiohttp had read before it was given the head that is waited for
        self._stalled_at = 0.0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Called by the loop."""
        super().connection_made(transport)
        self._expect(SILENCE, STRANGER_IDLE_S)

    def data_received(self, data: bytes) -> None:
        """Called by the loop, and with nothing by aiohttp when it goes on with what it has."""
        before = self.requests_read
        super().data_received(data)
        if data and not self.ended:
            self._watch(before, data)

    def _watch(self, before: int, data: bytes) -> None:
        """Sets the deadline for what aiohttp was given."""
        read = self.requests_read
        if read == before and self.awaits_request and data.strip(b"\r\n"):
            if self._what != HEAD:
                self._read_before = read
                self._expect(HEAD, HEAD_TIMEOUT_S)
        elif self._what != HEAD or read != self._read_before:
            # Behind a request there may be the beginning of another, which cannot be seen. It counts as silence,
            # which is given less time here than where it certainly is.
            self._expect(SILENCE, STRANGER_IDLE_S)

    def pause_writing(self) -> None:
        """Called by the transport when its buffer is full."""
        super().pause_writing()
        self._stalled_at = self.loop.time()
        if self._stalled_at + STALL_S < self._deadline.at:
            self._deadline.set(self._stalled_at + STALL_S)

    def resume_writing(self) -> None:
        """Called by the transport when it is not full any more."""
        super().resume_writing()
        if self._deadline.at == self._stalled_at + STALL_S:
            self._expect(self._what, _WITHIN_S[self._what])

    def force_close(self) -> None:
        """Sends what is written and closes. Whoever does not fetch it is cut in the end."""
        transport = self.transport
        super().force_close()
        if transport is not None and transport.get_write_buffer_size():
            self.loop.call_later(STALL_S, transport.abort)

    def connection_lost(self, exc: BaseException | None) -> None:
        """Called by the loop."""
        super().connection_lost(exc)
        self._deadline.end()

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
        return response_of(self.listener.problem(Problem(status, detail, close=True), "http"), request)

    def _expect(self, what: int, within_s: float) -> None:
        """This must have come by then."""
        self._what = what
        self._deadline.set(self.loop.time() + within_s)

    def _late(self) -> None:
        """Something that was due has not come."""
        if self.transport is None:
            return
        if self.transport.is_closing():
            self.transport.abort()  # its last answers are not fetched
        elif not self.writing_is_paused:
            self._overdue()
        elif self.loop.time() < self._stalled_at + STALL_S:
            self._deadline.set(self._stalled_at + STALL_S)
        else:
            self.transport.abort()

    def _overdue(self) -> None:
        """What was expected has not come, of somebody who fetches answers."""
        if not self.awaits_request:
            self._expect(SILENCE, STRANGER_IDLE_S)  # aiohttp is at work
        elif self._what == HEAD and self.requests_read == self._read_before:
            self._time_out(head_too_slow())
        else:
            self.force_close()

    def _time_out(self, problem: Problem) -> None:
        answer = self.listener.problem(problem, "http")
        self._write([bytes_of(answer, True, "POST")])
        self.force_close()

    def _write(self, answers: list[bytes]) -> None:
        if answers and self.transport is not None:
            self.transport.write(answers[0] if len(answers) == 1 else b"".join(answers))


def head_too_slow() -> Problem:
    """For a head that did not come in time."""
    return Problem(408, f"the head did not arrive within {HEAD_TIMEOUT_S:.0f} s", close=True)
