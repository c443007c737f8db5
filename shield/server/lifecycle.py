"""From options to a running server and back: start, reload, drain, end."""

from __future__ import annotations

import asyncio
import gc
import logging
import resource
import signal
import ssl
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import TextIO

from shield.errors import PolicyError, StoreError
from shield.policy import Policy
from shield.server.auth import CallerTokens
from shield.server.bounds import MAX_CONNECTIONS, TICK_S
from shield.server.listener import Listener
from shield.server.logs import ForeignRecords, Log, fault_fields, open_log
from shield.server.metrics import Metrics
from shield.server.options import ServeOptions, read_secret, read_tokens
from shield.server.routes import admin_listener, decision_listener
from shield.server.service import Service
from shield.server.sockets import Address, Bound, UsageError, listen
from shield.server.source import PolicySource
from shield.server.trace import TraceWriter
from shield.shield import Shield
from shield.store.url import StoreURLError

# What callers sent before the listeners closed is on its way through the kernel for so long.
SETTLE_S = 0.02
# After the grace: what an answer that is being written gets to reach the kernel.
CLOSE_S = 0.2
# Listeners, connections to the store, the log, the trace, and what a library opens for a moment.
SPARE_FILES = 256


class Server:
    """One process that serves decisions. `run` returns after a drain, or raises what keeps it from starting:
    StartError or PolicyError.
    """

    def __init__(self, options: ServeOptions, *, out: TextIO = sys.stdout, err: TextIO = sys.stderr) -> None:
        self._options = options
        self._out = out
        self._log: Log = open_log(err, options.log_format, options.log_level)
        self._bound: list[Bound] = []
        self._decisions: list[asyncio.Server] = []
        self._admin: list[asyncio.Server] = []
        self._listeners: list[Listener] = []
        self._tls_context: ssl.SSLContext | None = None
        self._tokens: CallerTokens | None = None
        self._stop = asyncio.Event()
        self._reload = asyncio.Event()

    async def run(self) -> None:
        """Serves until SIGTERM or SIGINT. SIGHUP reads the policy, the tokens and the certificate again."""
        options = self._options
        self._refuse_open_listeners()
        source, policy = self._first_policy()
        if options.token_file is not None:
            self._tokens = read_tokens(options.token_file)
        self._tls_context = options.tls.context() if options.tls is not None else None
        trace = self._open_trace()
        try:
            shield = self._shield(policy, trace)
            metrics = Metrics(options.version, policy, shield.stats)
            service = Service(shield, source, metrics, self._log)
            try:
                await self._open_store(shield)
                with self._signals(), _foreign_records(self._log):
                    await self._start(service, trace)
                    await self._serve(service, trace)
            finally:
                await self._close_sockets()
                service.close()
                await shield.close()
        finally:
            if trace is not None:
                trace.close()

    # ---- starting ------------------------------------------------------------------------------------------

    def _refuse_open_listeners(self) -> None:
        options = self._options
        guarded = options.token_file is not None or (options.tls is not None and options.tls.client_ca is not None)
        addresses = [*options.listen, *([options.admin] if options.admin is not None else [])]
        for address in addresses:
            if not guarded and not address.is_local:
                raise UsageError(
                    f"{address} can be reached from other machines, so its callers must prove who they are: "
                    "give --auth-token-file, or --tls-cert, --tls-key and --tls-client-ca; "
                    "or listen on 127.0.0.1 or unix:PATH"
                )

    def _first_policy(self) -> tuple[PolicySource, Policy]:
        if self._options.policy is None:
            source = PolicySource.starter()
            return source, source.parse()
        return PolicySource.read(self._options.policy)

    def _open_trace(self) -> TraceWriter | None:
        path = self._options.trace
        if path is None:
            return None
        try:
            return TraceWriter(path, lambda why: self._log.error("decision trace ended", why=why))
        except OSError as error:
            raise UsageError(f"--trace-decisions {path}: {error.strerror or error}") from None

    def _shield(self, policy: Policy, trace: TraceWriter | None) -> Shield:
        options = self._options
        secret = read_secret(options.secret_file) if options.secret_file is not None else None
        try:
            return Shield(policy, options.store, secret=secret, trace=trace)
        except StoreURLError as error:
            raise UsageError(f"--store: {error}") from None

    async def _open_store(self, shield: Shield) -> None:
        """A store that is away is a reason to say so and not to end: the policy says what happens then."""
        why = "it does not answer"
        try:
            await shield.open()
        except StoreError as error:
            why = str(error)
        if not shield.ready:
            self._say(
                f"warning: the store, {_store_of(shield)}, cannot be used: {why}\n"
                "warning: starting degraded; until it can, each limit does what its when_store_fails says"
            )
            self._log.warning("store unusable, starting degraded", store=shield.store.name)
        for warning in getattr(shield.store, "warnings", ()):
            self._say(f"warning: {warning}")

    async def _start(self, service: Service, trace: TraceWriter | None) -> None:
        options = self._options
        decisions = decision_listener(service, self._tokens)
        self._listeners.append(decisions)
        where: list[str] = []
        for address in options.listen:
            where += await self._accept(decisions, address, self._tls_context, self._decisions)
        admin_where: list[str] = []
        if options.admin is not None:
            # Loopback is this machine's operator; from elsewhere it is guarded like the other listener.
            is_local = options.admin.is_local
            tokens = None if is_local else self._tokens
            admin = admin_listener(service, tokens, lambda: _update(service.metrics, decisions, trace))
            self._listeners.append(admin)
            tls = None if is_local else self._tls_context
            admin_where = await self._accept(admin, options.admin, tls, self._admin)
        self._introduce(service, where, admin_where)

    async def _accept(
        self,
        listener: Listener,
        address: Address,
        tls: ssl.SSLContext | None,
        acceptors: list[asyncio.Server],
    ) -> list[str]:
        """Serves on one address; returns how to reach it."""
        loop = asyncio.get_running_loop()
        bound = listen(address)
        self._bound += bound
        shown = []
        for one in bound:
            if one.address.path:
                acceptor = await loop.create_unix_server(listener, sock=one.socket)
                shown.append(str(one.address))
            else:
                acceptor = await loop.create_server(listener, sock=one.socket, ssl=tls)
                shown.append(f"{'https' if tls else 'http'}://{one.address}")
            acceptors.append(acceptor)
        return shown

    def _introduce(self, service: Service, where: list[str], admin_where: list[str]) -> None:
        policy = service.shield.policy
        count = f"{len(policy.limits)} limit" + ("" if len(policy.limits) == 1 else "s")
        origin = f" from {self._options.policy}" if self._options.policy is not None else " (the starter policy)"
        admin = f"; admin on {', '.join(admin_where)}" if admin_where else ""
        store = _store_of(service.shield)
        self._say(
            f"shield {self._options.version} serves policy {policy.name!r}{origin}, {count}, store {store}, "
            f"on {', '.join(where)}{admin}"
        )
        self._say(f"try: {self._example(where[0])}")
        for warning in policy.warnings():
            self._say(f"warning: {warning}")
        if self._options.log_format == "json":  # a person at a console has just read it
            self._log.info(
                "serving",
                listen=where,
                admin=admin_where,
                policy=policy.name,
                owner=policy.owner,
                fingerprint=policy.fingerprint,
                store=store,
            )

    def _example(self, where: str) -> str:
        target = f"{where}/v1/check"
        if where.startswith("unix:"):
            target = f"--unix-socket {where.removeprefix('unix:')} http://localhost/v1/check"
        secret = " -H 'Shield-Authorization: Bearer TOKEN'" if self._tokens is not None else ""
        ca = " --cacert CA.pem" if where.startswith("https") else ""
        cert = " --cert CLIENT.pem" if self._options.tls is not None and self._options.tls.client_ca and ca else ""
        return f'curl -s{ca}{cert}{secret} {target} -d \'{{"ip":"203.0.113.7"}}\''

    def _say(self, text: str) -> None:
        print(text, file=self._out, flush=True)

    # ---- running -------------------------------------------------------------------------------------------

    @contextmanager
    def _signals(self) -> Iterator[None]:
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._stop.set)
        loop.add_signal_handler(signal.SIGHUP, self._reload.set)
        try:
            yield
        finally:
            for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
                loop.remove_signal_handler(number)

    async def _serve(self, service: Service, trace: TraceWriter | None) -> None:
        # What was allocated so far stays for good, so the collector need not look at it on every pass.
        gc.collect()
        gc.freeze()
        tasks = [asyncio.create_task(self._reloads(service)), asyncio.create_task(self._tick(service, trace))]
        try:
            await self._stop.wait()
            await self._drain(service)
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            gc.unfreeze()

    async def _reloads(self, service: Service) -> None:
        while True:
            await self._reload.wait()
            self._reload.clear()
            try:
                await self._reload_once(service)
            except Exception as error:
                self._log.error("reload failed, what runs stays in force", **fault_fields(error))

    async def _reload_once(self, service: Service) -> None:
        """The policy, the tokens and the certificate, each by itself: what is wrong stays as it was."""
        options = self._options
        if options.policy is None:
            self._log.info("the starter policy has no file to read again")
        else:
            try:
                source, policy = PolicySource.read(options.policy)
                await service.replace_policy(source, policy, "SIGHUP")
            except PolicyError as error:
                service.policy_refused(error, "SIGHUP")
        if options.token_file is not None:
            try:
                self._tokens = read_tokens(options.token_file)
            except UsageError as error:
                self._log.error("tokens not reloaded, the old ones stay valid", why=str(error))
            else:
                for listener in self._listeners:
                    if listener.tokens is not None:
                        listener.tokens = self._tokens
                self._log.info("tokens reloaded", tokens=len(self._tokens))
        if options.tls is not None and self._tls_context is not None:
            try:
                options.tls.load_into(self._tls_context)
            except UsageError as error:
                self._log.error("certificate not reloaded, the old one stays in use", why=str(error))
            else:
                self._log.info("certificate reloaded")

    async def _tick(self, service: Service, trace: TraceWriter | None) -> None:
        """Every second: what was traced goes to the disk, and a store that went or came is told of."""
        ready = service.shield.ready
        while True:
            await asyncio.sleep(TICK_S)
            if trace is not None:
                trace.flush()
            if ready != service.shield.ready:
                ready = not ready
                if ready:
                    self._log.info("store usable again", store=service.shield.store.name)
                else:
                    self._log.warning("store unusable, decisions are degraded", store=service.shield.store.name)

    # ---- ending --------------------------------------------------------------------------------------------

    async def _drain(self, service: Service) -> None:
        """Unready at once; stops accepting; lets what is in flight finish; the admin listener goes last."""
        options = self._options
        service.draining = True
        self._stop.clear()
        self._log.info("draining", grace_s=options.grace_s, delay_s=options.drain_delay_s)
        if options.drain_delay_s:
            # Balancers that poll /readyz notice in the meantime, and new connections still are served.
            await self._stopped_again(options.drain_delay_s)
        for acceptor in self._decisions:
            acceptor.close()
        await asyncio.sleep(SETTLE_S)  # what was sent before is read by then, and so is in flight
        deciding = self._listeners[0]
        idle = asyncio.create_task(deciding.idle())
        stopped = asyncio.create_task(self._stop.wait())
        await asyncio.wait((idle, stopped), timeout=options.grace_s, return_when=asyncio.FIRST_COMPLETED)
        idle.cancel()
        stopped.cancel()
        if deciding.in_flight:
            self._log.warning("requests cut off", count=deciding.in_flight)
        for acceptor in self._admin:
            acceptor.close()
        for listener in self._listeners:
            listener.pre_shutdown()
            await listener.shutdown(timeout=CLOSE_S)
        self._log.info("ended")

    async def _close_sockets(self) -> None:
        """Whatever still listens, also after a start that failed half-way."""
        for acceptor in (*self._decisions, *self._admin):
            acceptor.close()
        # uvloop lets go of a socket in the next turn of the loop, and never ends when it is closed before.
        await asyncio.sleep(0)
        for bound in self._bound:
            bound.close()

    async def _stopped_again(self, timeout_s: float) -> None:
        """Waits for a second signal, at most so long."""
        with suppress(TimeoutError):
            await asyncio.wait_for(self._stop.wait(), timeout_s)


def _store_of(shield: Shield) -> str:
    """The store's kind and, where it is elsewhere, where: without credentials."""
    where = getattr(shield.store, "where", None)
    return f"{shield.store.name} at {where}" if where else shield.store.name


def _update(metrics: Metrics, decisions: Listener, trace: TraceWriter | None) -> None:
    """What is read where it is kept, and not counted."""
    metrics.in_flight = decisions.in_flight
    metrics.trace_lost = trace.lost if trace is not None else 0


@contextmanager
def _foreign_records(log: Log) -> Iterator[None]:
    root = logging.getLogger()
    handler = ForeignRecords(log)
    root.addHandler(handler)
    try:
        yield
    finally:
        root.removeHandler(handler)


def _raise_file_limit() -> None:
    """Room for MAX_CONNECTIONS: the usual soft limit of 1,024 open files is for programs that use select."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = MAX_CONNECTIONS + SPARE_FILES
    if hard != resource.RLIM_INFINITY:
        wanted = min(wanted, hard)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        with suppress(ValueError, OSError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


def serve(options: ServeOptions) -> None:
    """Runs a server to its end. ShieldError with a message for the user when it cannot start."""
    _raise_file_limit()
    try:
        import uvloop
    except ImportError:  # where uvloop does not exist the standard loop does the same, more slowly
        runner = asyncio.Runner()
    else:
        runner = asyncio.Runner(loop_factory=uvloop.new_event_loop)

    async def main() -> None:
        await Server(options).run()

    with runner:
        runner.run(main())
