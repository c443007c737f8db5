"""What Shield needs of aiohttp's connection beyond its documented interface, all of it, with names of our own.

tests/server/test_aiohttp_internals.py pins each name and the methods that give it its meaning: where aiohttp
changes one, that test fails and says which.
"""

from __future__ import annotations

import asyncio
from typing import Final

from aiohttp import web

NAMES: Final = (
    "_buffer_paused",
    "_close",
    "_force_close",
    "_keepalive_timeout",
    "_loop",
    "_messages",
    "_next_keepalive_close_time",
    "_paused",
    "_payload_parser",
    "_reading_paused",
    "_request_count",
    "_upgraded",
    "_waiter",
    "transport",
)
"""The attributes read or set here."""

METHODS: Final = (
    "_process_keepalive",
    "close",
    "connection_lost",
    "connection_made",
    "data_received",
    "eof_received",
    "force_close",
    "pause_writing",
    "resume_writing",
    "shutdown",
    "start",
)
"""The methods whose workings are relied on: which attribute they set when, and what they do with bytes."""


class Beneath(web.RequestHandler):
    """aiohttp's connection as the lanes above it see it."""

    __slots__ = ()

    @property
    def ended(self) -> bool:
        """It takes no bytes any more: closed, or closing once what is being answered has been."""
        return self._force_close or self._close

    @property
    def awaits_request(self) -> bool:
        """Nothing is being read, handled or answered; the next byte begins a request, unless bytes of one that is
        not complete lie in the parser, which cannot be seen from here.
        """
        waiter = self._waiter
        return (
            waiter is not None
            and not waiter.done()
            and not self._messages
            and self._payload_parser is None
            and not self._upgraded
            and not self._reading_paused
            and not self._buffer_paused
        )

    @property
    def requests_read(self) -> int:
        """How many heads its parser has completed or refused."""
        return self._request_count

    @property
    def writing_is_paused(self) -> bool:
        """The transport holds more than its high-water mark of what the other end does not read."""
        return self._paused

    @property
    def loop(self) -> asyncio.AbstractEventLoop:
        return self._loop

    @property
    def used_s(self) -> float:
        """When a lane above last made use of the connection, by the loop's clock."""
        return 0.0

    def _process_keepalive(self) -> None:
        """Called by aiohttp's keep-alive timer, which by itself sees only requests that aiohttp answers."""
        used_until = self.used_s + self._keepalive_timeout
        self._next_keepalive_close_time = max(self._next_keepalive_close_time, used_until)
        super()._process_keepalive()
