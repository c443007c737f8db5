"""The admin listener where it accepts: one in a server, whether that decides in one process or in several."""

from __future__ import annotations

import asyncio
import ssl
import sys
from collections.abc import Callable
from typing import Any

from shield.identity.callers import AllowedCallers
from shield.server.auth import CallerTokens
from shield.server.bounds import BACKLOG, CLOSE_S
from shield.server.routes import admin_listener
from shield.server.service import Front
from shield.server.sockets import Address, Bound, listen


class AdminServer:
    """Loopback is this machine's operator; from elsewhere it is guarded like the decision listener."""

    def __init__(
        self,
        front: Front,
        address: Address,
        tokens: CallerTokens | None,
        tls: ssl.SSLContext | None,
        before_scrape: Callable[[], None] = lambda: None,
        callers: AllowedCallers | None = None,
    ) -> None:
        self._address = address
        guarded = not address.is_local
        self._tls = tls if guarded else None
        self._listener = admin_listener(front, tokens if guarded else None, before_scrape, callers if guarded else None)
        self._bound: list[Bound] = []
        self._acceptors: list[asyncio.Server] = []

    async def open(self) -> list[str]:
        """Accepts from now on; returns how to reach it. StartError."""
        loop = asyncio.get_running_loop()
        where = []
        self._bound = listen(self._address)
        for bound in self._bound:
            if bound.address.path:
                keep: dict[str, Any] = {"cleanup_socket": False} if sys.version_info >= (3, 13) else {}
                acceptor = await loop.create_unix_server(self._listener, sock=bound.socket, backlog=BACKLOG, **keep)
            else:
                acceptor = await loop.create_server(self._listener, sock=bound.socket, ssl=self._tls, backlog=BACKLOG)
            self._acceptors.append(acceptor)
            where.append(bound.reached_by(self._tls))
        return where

    def renew_tokens(self, tokens: CallerTokens) -> None:
        """From the next request on, if they are asked for here."""
        if self._listener.tokens is not None:
            self._listener.tokens = tokens

    async def close(self) -> None:
        """Ends it, also after an `open` that failed half-way."""
        for acceptor in self._acceptors:
            acceptor.close()
        # uvloop lets go of a socket in the next turn of the loop, and never ends when it is closed before.
        await asyncio.sleep(0)
        for bound in self._bound:
            bound.close()
        self._listener.pre_shutdown()
        await self._listener.shutdown(timeout=CLOSE_S)
