"""From options to a running server and back: start, reload, drain, end.

Here is the server of one process; that of several workers is in `shield.server.supervisor`.
"""

from __future__ import annotations

import asyncio
import sys
from contextlib import suppress
from typing import TextIO

from shield.errors import PolicyError
from shield.server.admin_server import AdminServer
from shield.server.logs import Log, fault_fields, open_log
from shield.server.node import Node, NodeOptions
from shield.server.options import ServeOptions, read_secret, read_tokens
from shield.server.sockets import Bound, UsageError, listen
from shield.server.source import PolicySource
from shield.server.startup import (
    Console,
    first_policy,
    foreign_records,
    new_runner,
    raise_file_limit,
    refuse_open_listeners,
    signals,
)


class Server:
    """One process that serves decisions. `run` returns after a drain, or raises what keeps it from starting:
    StartError or PolicyError.
    """

    def __init__(self, options: ServeOptions, *, out: TextIO = sys.stdout, err: TextIO = sys.stderr) -> None:
        self._options = options
        self._log: Log = open_log(err, options.log_format, options.log_level)
        self._console = Console(options, out, self._log)
        self._bound: list[Bound] = []
        self._admin: AdminServer | None = None
        self._stop = asyncio.Event()
        self._reload = asyncio.Event()

    async def run(self) -> None:
        """Serves until SIGTERM or SIGINT. SIGHUP reads the policy, the tokens and the certificate again."""
        refuse_open_listeners(self._options)
        node = self._node()
        try:
            for warning in await node.open():
                self._console.say(f"warning: {warning}")
            with signals(self._stop, self._reload), foreign_records(self._log):
                await self._start(node)
                await self._serve(node)
        finally:
            if self._admin is not None:
                await self._admin.close()
            await node.close()
            for bound in self._bound:
                bound.close()

    # ---- starting ------------------------------------------------------------------------------------------

    def _node(self) -> Node:
        options = self._options
        source, policy = first_policy(options)
        return Node(
            NodeOptions(
                version=options.version,
                store=options.store or "memory://",
                source=source,
                policy=policy,
                secret=read_secret(options.secret_file) if options.secret_file is not None else None,
                tokens=read_tokens(options.token_file) if options.token_file is not None else None,
                tls=options.tls,
                callers=options.callers,
                blocks=options.blocks,
                geo=options.geo,
                trace=options.trace,
            ),
            self._log,
        )

    async def _start(self, node: Node) -> None:
        options = self._options
        where = []
        for address in options.listen:
            for bound in listen(address):
                self._bound.append(bound)
                await node.accept(bound.socket)
                where.append(bound.reached_by(node.tls))
        admin_where: list[str] = []
        if options.admin is not None:
            self._admin = AdminServer(node.service, options.admin, node.tokens, node.tls, node.update, options.callers)
            admin_where = await self._admin.open()
        self._console.introduce(node.service.policy, node.store, where, admin_where)

    # ---- running -------------------------------------------------------------------------------------------

    async def _serve(self, node: Node) -> None:
        with node.settled():
            tasks = [asyncio.create_task(self._reloads(node)), asyncio.create_task(node.tick())]
            try:
                await self._stop.wait()
                await self._drain(node)
            finally:
                for task in tasks:
                    task.cancel()
                await asyncio.gather(*tasks, return_exceptions=True)

    async def _reloads(self, node: Node) -> None:
        while True:
            await self._reload.wait()
            self._reload.clear()
            try:
                await self._reload_once(node)
            except Exception as error:
                self._log.error("reload failed, what runs stays in force", **fault_fields(error))

    async def _reload_once(self, node: Node) -> None:
        """The policy, the tokens and the certificate, each by itself: what is wrong stays as it was."""
        options = self._options
        if options.policy is None:
            self._log.info("the starter policy has no file to read again")
        else:
            try:
                source, policy = PolicySource.read(options.policy)
                await node.service.replace_policy(source, policy, "SIGHUP")
            except PolicyError as error:
                node.service.policy_refused(error, "SIGHUP")
        if options.token_file is not None:
            try:
                tokens = read_tokens(options.token_file)
            except UsageError as error:
                self._log.error("tokens not reloaded, the old ones stay valid", why=str(error))
            else:
                node.renew_tokens(tokens)
                if self._admin is not None:
                    self._admin.renew_tokens(tokens)
                self._log.info("tokens reloaded", tokens=len(tokens))
        if options.tls is not None:
            try:
                node.renew_certificate()
            except UsageError as error:
                self._log.error("certificate not reloaded, the old one stays in use", why=str(error))
            else:
                self._log.info("certificate reloaded")

    # ---- ending --------------------------------------------------------------------------------------------

    async def _drain(self, node: Node) -> None:
        """Unready at once; stops accepting; lets what is in flight finish; the admin listener goes last."""
        options = self._options
        node.service.draining = True
        self._stop.clear()
        self._log.info("draining", grace_s=options.grace_s, delay_s=options.drain_delay_s)
        if options.drain_delay_s:
            # Balancers that poll /readyz notice in the meantime, and new connections still are served.
            with suppress(TimeoutError):
                await asyncio.wait_for(self._stop.wait(), options.drain_delay_s)
        await node.drain(options.grace_s, self._stop)
        if self._admin is not None:
            await self._admin.close()
        self._log.info("ended")


def serve(options: ServeOptions) -> None:
    """Runs a server to its end. ShieldError with a message for the user when it cannot start."""
    raise_file_limit()

    async def main() -> None:
        if options.workers == 1:
            await Server(options).run()
        else:
            from shield.server.supervisor import Supervisor

            await Supervisor(options).run()

    with new_runner() as runner:
        runner.run(main())
