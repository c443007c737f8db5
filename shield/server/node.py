"""The part of a server that decides: a Shield behind a listener. One process has one, and so has each worker."""

from __future__ import annotations

import asyncio
import gc
import socket
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from shield.block.file import BlockFileError
from shield.errors import ShieldError, StoreError
from shield.identity.callers import AllowedCallers
from shield.policy import Policy
from shield.server.auth import CallerTokens
from shield.server.bounds import BACKLOG, CLOSE_S, SETTLE_S, TICK_S
from shield.server.counts import Counts
from shield.server.logs import Log
from shield.server.metrics import Metrics
from shield.server.options import read_places
from shield.server.routes import decision_listener
from shield.server.service import Service
from shield.server.sockets import TlsFiles, UsageError
from shield.server.source import PolicySource
from shield.server.trace import TraceWriter
from shield.shield import Shield
from shield.store.url import StoreURLError

# What is the same in all processes of a host is not added up: of files, and what a shared table tells of itself.
HOST_WIDE: Final = frozenset(
    {"identity_api_keys", "blocks_in_force", "blocks_max", "blocks_listed_networks", "blocks_lists_failing"}
    | {"overrides_in_force"}
)
TABLE_WIDE: Final = frozenset(
    {"keys", "max_keys", "size_bytes", "receipts", "max_receipts", "leases", "max_leases", "nonces", "max_nonces"}
) | {"idempotency_keys", "idempotency_bytes"}


@dataclass(frozen=True, slots=True)
class NodeOptions:
    """What a node is built from."""

    version: str
    store: str
    source: PolicySource
    policy: Policy
    secret: bytes | None = None
    tokens: CallerTokens | None = None
    tls: TlsFiles | None = None
    callers: AllowedCallers | None = None
    blocks: Path | None = None
    events_key: bytes | None = None
    """What subjects in security events are hashed with, unless the policy names a key."""
    geo: tuple[Path, ...] = ()
    trace: Path | None = None
    trace_anew: bool = True
    """Whether the trace starts anew, or a killed process's goes on."""


class Node:
    """Decides what comes in on the sockets that it is told to accept on."""

    def __init__(self, options: NodeOptions, log: Log) -> None:
        """UsageError says which option cannot be right."""
        self._tls_files = options.tls
        self._log = log
        self.tls = options.tls.context() if options.tls is not None else None
        self.tokens = options.tokens
        locate = read_places(options.geo, lambda why: log.error("database of places not read again", why=why))
        self._trace = self._open_trace(options)
        try:
            shield = Shield(
                options.policy,
                options.store,
                secret=options.secret,
                trace=self._trace,
                locate=locate,
                blocks=options.blocks,
            )
        except ShieldError as error:
            self._close_trace()
            if isinstance(error, StoreURLError):
                raise UsageError(f"--store: {error}") from None
            if isinstance(error, BlockFileError):
                raise UsageError(f"--blocks: {error}") from None
            raise
        host_wide = HOST_WIDE | TABLE_WIDE if shield.store.name == "shared" else HOST_WIDE
        metrics = Metrics(options.version, options.policy, shield.stats, host_wide)
        self.service = Service(shield, options.source, metrics, log, events_key=options.events_key)
        self.listener = decision_listener(self.service, options.tokens, options.callers)
        self._acceptors: dict[socket.socket, asyncio.Server] = {}
        self._late: set[asyncio.Task[object]] = set()

    def _open_trace(self, options: NodeOptions) -> TraceWriter | None:
        path = options.trace
        if path is None:
            return None
        try:
            return TraceWriter(
                path, lambda why: self._log.error("decision trace ended", why=why), anew=options.trace_anew
            )
        except OSError as error:
            raise UsageError(f"--trace-decisions {path}: {error.strerror or error}") from None

    def _close_trace(self) -> None:
        if self._trace is not None:
            self._trace.close()

    @property
    def store(self) -> str:
        """The store's kind and, where it is elsewhere, where: without credentials."""
        store = self.service.shield.store
        where = getattr(store, "where", None) or getattr(store, "path", None)
        return f"{store.name} at {where}" if where else store.name

    @property
    def degraded(self) -> bool:
        return not self.service.shield.ready

    def counts(self) -> Counts:
        """All that was counted until now."""
        self.update()
        return self.service.metrics.counts()

    def update(self) -> None:
        """What is read where it is kept, and not counted."""
        metrics = self.service.metrics
        metrics.in_flight = self.listener.in_flight
        metrics.trace_lost = self._trace.lost if self._trace is not None else 0

    # ---- starting ------------------------------------------------------------------------------------------

    async def open(self) -> list[str]:
        """Opens the store, and returns warnings for the operator. A store that is away is a reason to say so
        and not to end: the policy says what happens then.
        """
        shield = self.service.shield
        why = "it does not answer"
        warnings = []
        try:
            await shield.open()
        except StoreError as error:
            why = str(error)
        if not shield.ready:
            warnings += [
                f"the store, {self.store}, cannot be used: {why}",
                "starting degraded; until it can, each limit does what its when_store_fails says",
            ]
            self._log.warning("store unusable, starting degraded", store=shield.store.name)
        return [
            *warnings,
            *getattr(shield.store, "warnings", ()),
            *self.service.tell_of_keys(),
            *self.service.tell_of_blocks(),
        ]

    async def accept(self, listening: socket.socket) -> None:
        """Serves what connects to a socket, which is the node's from now on."""
        loop = asyncio.get_running_loop()
        if listening.family == socket.AF_UNIX:
            # The file is removed by who made it, and not with the first acceptor that closes.
            keep: dict[str, Any] = {"cleanup_socket": False} if sys.version_info >= (3, 13) else {}
            acceptor = await loop.create_unix_server(self.listener, sock=listening, backlog=BACKLOG, **keep)
        else:
            acceptor = await loop.create_server(self.listener, sock=listening, ssl=self.tls, backlog=BACKLOG)
        self._acceptors[listening] = acceptor

    def leave(self, listening: socket.socket) -> None:
        """Accepts no more from a socket, whose queue somebody else goes on to serve."""
        acceptor = self._acceptors.pop(listening, None)
        if acceptor is not None:
            acceptor.close()

    # ---- running -------------------------------------------------------------------------------------------

    @contextmanager
    def settled(self) -> Iterator[None]:
        """What was allocated so far stays for good, so the collector need not look at it on every pass."""
        gc.collect()
        gc.freeze()
        try:
            yield
        finally:
            gc.unfreeze()

    async def tick(self) -> None:
        """Every second: what was traced goes to the disk; a store that went or came is told of; and what the service
        has to tell.
        """
        store = self.service.shield.store.name
        degraded = self.degraded
        while True:
            await asyncio.sleep(TICK_S)
            if self._trace is not None:
                self._trace.flush()
            self.service.tick()
            if degraded != self.degraded:
                degraded = not degraded
                if degraded:
                    self._log.warning("store unusable, decisions are degraded", store=store)
                else:
                    self._log.info("store usable again", store=store)

    def renew_tokens(self, tokens: CallerTokens) -> None:
        """From the next request on."""
        self.tokens = self.listener.tokens = tokens

    def renew_certificate(self) -> None:
        """For connections from now on. UsageError when the files do not do; the old one stays in use."""
        if self._tls_files is not None and self.tls is not None:
            self._tls_files.load_into(self.tls)

    # ---- ending --------------------------------------------------------------------------------------------

    async def drain(self, grace_s: float, hurry: asyncio.Event) -> int:
        """Stops accepting, lets what is in flight finish, and closes all connections; at most `grace_s`, or
        until `hurry` is set. How many requests were cut off.
        """
        self.service.draining = True
        self._last_call()
        await asyncio.sleep(SETTLE_S)  # what was sent before is read by then, and so is in flight
        idle = asyncio.create_task(self.listener.idle())
        hurried = asyncio.create_task(hurry.wait())
        await asyncio.wait((idle, hurried), timeout=grace_s, return_when=asyncio.FIRST_COMPLETED)
        idle.cancel()
        hurried.cancel()
        cut_off = self.listener.in_flight
        if cut_off:
            self._log.warning("requests cut off", count=cut_off)
        self.listener.pre_shutdown()
        await self.listener.shutdown(timeout=CLOSE_S)
        return cut_off

    def _last_call(self) -> None:
        """Stops accepting. Who has connected and waits in the kernel's queue is taken in, not reset."""
        loop = asyncio.get_running_loop()
        waiting: list[socket.socket] = []
        for listening, acceptor in self._acceptors.items():
            with suppress(OSError):  # an empty queue, or no file descriptor left
                for _ in range(BACKLOG):
                    waiting.append(listening.accept()[0])
            acceptor.close()
        self._acceptors.clear()
        for connection in waiting:
            connection.setblocking(False)
            tls = self.tls if connection.family != socket.AF_UNIX else None
            task = loop.create_task(loop.connect_accepted_socket(self.listener, connection, ssl=tls))
            self._late.add(task)
            task.add_done_callback(self._taken_in)

    def _taken_in(self, task: asyncio.Task[object]) -> None:
        self._late.discard(task)
        if not task.cancelled() and task.exception() is not None:  # its TLS handshake failed, or it has gone
            self._log.debug("late connection lost", error=type(task.exception()).__name__)

    async def close(self) -> None:
        """Whatever is still open, also after a start that failed half-way."""
        for acceptor in self._acceptors.values():
            acceptor.close()
        # uvloop lets go of a socket in the next turn of the loop, and never ends when it is closed before.
        await asyncio.sleep(0)
        self.service.close()
        await self.service.shield.close()
        self._close_trace()
