"""One worker of several: a node that does what its supervisor says.

Signals are the supervisor's business: a terminal's Ctrl-C and a service manager's SIGTERM reach the workers as
well, and are ignored here. A worker ends when it is told to, or when its supervisor is gone.
"""

from __future__ import annotations

import asyncio
import signal
import socket
import sys
from pathlib import Path
from typing import Any, Final

from shield.errors import PolicyError, ShieldError
from shield.identity.callers import AllowedCallers
from shield.policy import Policy
from shield.server.auth import CallerTokens, TokenFileError
from shield.server.bounds import ORPHAN_S, TICK_S, WORKER_END_S
from shield.server.control import (
    Abort,
    Accept,
    Certificate,
    Channel,
    Claimed,
    Commit,
    Count,
    Counted,
    Done,
    Drain,
    Ended,
    Heard,
    Hurry,
    Leave,
    Prepare,
    Prepared,
    Ready,
    Start,
    Tokens,
    ToWorker,
    Unable,
)
from shield.server.logs import Log, fault_fields, open_log
from shield.server.measures import WorkerExchange
from shield.server.node import Node, NodeOptions
from shield.server.sockets import TlsFiles, UsageError
from shield.server.source import PolicySource
from shield.server.startup import ENDING, RELOADING, foreign_records, new_runner

IGNORED: Final = (*ENDING, RELOADING)
# The arguments are the control socket's number and the supervisor's own path to modules.
PROGRAM: Final = "import sys; sys.path[:] = sys.argv[2:]; from shield.server.worker import main; main(int(sys.argv[1]))"


class Worker:
    """Obeys its supervisor, from Ready to Ended."""

    def __init__(self, channel: Channel, start: Start, node: Node, exchange: WorkerExchange, log: Log) -> None:
        self._channel = channel
        self._exchange = exchange
        self._start = start
        self._node = node
        self._log = log
        self._listening: dict[int, socket.socket] = {}
        self._prepared: tuple[PolicySource, Policy] | None = None
        self._grace_s = 0.0
        self._stop = asyncio.Event()
        self._hurry = asyncio.Event()

    async def run(self) -> None:
        """Until the drain is over, or the supervisor gone."""
        tasks = [asyncio.create_task(each) for each in (self._obey(), self._tell(), self._node.tick())]
        try:
            await self._stop.wait()
            await self._node.drain(self._grace_s, self._hurry)
            self._channel.send(Ended(self._node.counts()))
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def _tell(self) -> None:
        while True:
            self._channel.send(self._counted(0))
            await asyncio.sleep(TICK_S)

    def _counted(self, id: int) -> Counted:
        return Counted(id, self._node.counts(), self._node.degraded)

    async def _obey(self) -> None:
        try:
            while (message := await self._channel.receive()) is not None:
                await self._do(message)
        except Exception as error:
            self._log.error("worker cannot go on", **fault_fields(error))
        # Nobody is there to tell it anything more, and its listeners are somebody else's by now.
        signal.alarm(ORPHAN_S)
        self._hurry.set()
        self._stop.set()

    async def _do(self, message: Any) -> None:
        match message:
            case Accept(key):
                self._listening[key] = listening = self._channel.socket_beside()
                await self._node.accept(listening)
            case Leave(key):
                if (left := self._listening.pop(key, None)) is not None:
                    self._node.leave(left)
            case Prepare(id, written):
                self._channel.send(Prepared(id, await self._prepare(PolicySource.of(written))))
            case Commit(id):
                assert self._prepared is not None, "the supervisor commits what was prepared"
                await self._node.service.adopt(*self._prepared)
                self._prepared = None
                self._channel.send(Done(id))
            case Abort(id):
                self._prepared = None
                await self._node.service.shield.replace_policy(self._node.service.policy)
                self._channel.send(Done(id))
            case Tokens(id, data):
                self._node.renew_tokens(CallerTokens.parse(data, Path(self._start.token_file or "")))
                self._channel.send(Done(id))
            case Certificate(id):
                self._channel.send(Done(id, self._renew_certificate()))
            case Count(id):
                self._channel.send(self._counted(id))
            case Heard() | Claimed():
                self._exchange.received(message)
            case Drain(grace_s):
                self._grace_s = grace_s
                self._stop.set()
            case Hurry():
                self._hurry.set()

    async def _prepare(self, source: PolicySource) -> list[tuple[str, str]]:
        try:
            policy = source.parse()
            await self._node.service.make_room(policy)
        except PolicyError as error:
            return [(issue.path, issue.message) for issue in error.issues]
        self._prepared = source, policy
        return []

    def _renew_certificate(self) -> str:
        try:
            self._node.renew_certificate()
        except UsageError as error:
            return str(error)
        return ""


def _node(start: Start, log: Log) -> Node:
    """PolicyError, TokenFileError or UsageError."""
    source = PolicySource.of(start.policy)
    tls = None
    if start.tls is not None:
        cert, key, client_ca = start.tls
        tls = TlsFiles(Path(cert), Path(key), Path(client_ca) if client_ca is not None else None)
    tokens = None
    if start.tokens is not None:
        tokens = CallerTokens.parse(start.tokens, Path(start.token_file or ""))
    options = NodeOptions(
        version=start.version,
        store=start.store,
        source=source,
        policy=source.parse(),
        secret=start.secret,
        tokens=tokens,
        tls=tls,
        callers=AllowedCallers(start.callers) if start.callers is not None else None,
        blocks=Path(start.blocks),
        events_key=start.events_key,
        geo=tuple(map(Path, start.geo)),
        trace=Path(start.trace) if start.trace is not None else None,
        trace_anew=start.trace_anew,
    )
    return Node(options, log)


async def _main(end: socket.socket) -> None:
    channel = Channel(end, ToWorker)
    start = await channel.receive()
    if start is None:
        return
    assert isinstance(start, Start)
    log = open_log(sys.stderr, start.log_format, start.log_level, worker=start.number)
    node: Node | None = None
    exchange = WorkerExchange(channel)
    try:
        try:
            node = _node(start, log)
            if node.service.shield.store.local:  # else they meet at the store, with the workers of other hosts
                node.service.shield.share_through(exchange)
            warnings = await node.open()
        except (PolicyError, TokenFileError, UsageError) as error:
            channel.send(Unable(str(error), misuse=True))
        except ShieldError as error:
            channel.send(Unable(str(error), misuse=False))
        except Exception as error:
            log.error("worker cannot start", **fault_fields(error))
            channel.send(Unable(f"an unforeseen fault, {type(error).__name__}; its log line says where", misuse=False))
        else:
            with node.settled(), foreign_records(log):
                channel.send(Ready(node.store, node.service.shield.store.name, warnings))
                await Worker(channel, start, node, exchange, log).run()
    finally:
        if node is not None:
            await node.close()
        await channel.flush(WORKER_END_S)
        channel.close()


def main(control_fd: int) -> None:
    """A worker process, from its supervisor's first word to its own last."""
    # They were blocked until now, so that none could come between.
    for number in IGNORED:
        signal.signal(number, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, IGNORED)
    with new_runner() as runner:
        runner.run(_main(socket.socket(fileno=control_fd)))
