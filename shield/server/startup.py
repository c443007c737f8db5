"""What a server does first, whether it decides in one process or in several: checks, the policy, what it says."""

from __future__ import annotations

import asyncio
import logging
import resource
import signal
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import TextIO

from shield.policy import Policy
from shield.server.bounds import MAX_CONNECTIONS
from shield.server.logs import ForeignRecords, Log
from shield.server.options import ServeOptions
from shield.server.sockets import UsageError
from shield.server.source import PolicySource

# Listeners, connections to the store, the log, the trace, and what a library opens for a moment.
SPARE_FILES = 256
# What the two signals that end a server and the one that reloads it are.
ENDING = (signal.SIGTERM, signal.SIGINT)
RELOADING = signal.SIGHUP


def refuse_open_listeners(options: ServeOptions) -> None:
    """UsageError when somebody on another machine could ask without proving who it is."""
    guarded = options.token_file is not None or (options.tls is not None and options.tls.client_ca is not None)
    addresses = [*options.listen, *([options.admin] if options.admin is not None else [])]
    for address in addresses:
        if not guarded and not address.is_local:
            raise UsageError(
                f"{address} can be reached from other machines, so its callers must prove who they are: "
                "give --auth-token-file, or --tls-cert, --tls-key and --tls-client-ca; "
                "or listen on 127.0.0.1 or unix:PATH"
            )


def first_policy(options: ServeOptions) -> tuple[PolicySource, Policy]:
    """The policy to begin with. PolicyError."""
    if options.policy is None:
        source = PolicySource.starter()
        return source, source.parse()
    return PolicySource.read(options.policy)


class Console:
    """What a person who started the server reads, on standard output."""

    def __init__(self, options: ServeOptions, out: TextIO, log: Log) -> None:
        self._options = options
        self._out = out
        self._log = log

    def say(self, text: str) -> None:
        """One line or more."""
        print(text, file=self._out, flush=True)

    def introduce(self, policy: Policy, store: str, where: Sequence[str], admin_where: Sequence[str]) -> None:
        """What is served, where, and how to try it."""
        options = self._options
        limits = f"{len(policy.limits)} limit" + ("" if len(policy.limits) == 1 else "s")
        origin = f" from {options.policy}" if options.policy is not None else " (the starter policy)"
        workers = f", with {options.workers} workers" if options.workers > 1 else ""
        admin = f"; admin on {', '.join(admin_where)}" if admin_where else ""
        self.say(
            f"shield {options.version} serves policy {policy.name!r}{origin}, {limits}, store {store}{workers}, "
            f"on {', '.join(where)}{admin}"
        )
        self.say(f"try: {self._example(where[0])}")
        for warning in policy.warnings():
            self.say(f"warning: {warning}")
        if options.log_format == "json":  # a person at a console has just read it
            self._log.info(
                "serving",
                listen=list(where),
                admin=list(admin_where),
                policy=policy.name,
                owner=policy.owner,
                fingerprint=policy.fingerprint,
                store=store,
                workers=options.workers,
            )

    def _example(self, where: str) -> str:
        options = self._options
        target = f"{where}/v1/check"
        if where.startswith("unix:"):
            target = f"--unix-socket {where.removeprefix('unix:')} http://localhost/v1/check"
        secret = " -H 'Shield-Authorization: Bearer TOKEN'" if options.token_file is not None else ""
        ca = " --cacert CA.pem" if where.startswith("https") else ""
        cert = " --cert CLIENT.pem" if options.tls is not None and options.tls.client_ca and ca else ""
        return f'curl -s{ca}{cert}{secret} {target} -d \'{{"ip":"203.0.113.7"}}\''


@contextmanager
def signals(stop: asyncio.Event, reload: asyncio.Event) -> Iterator[None]:
    """Sets the events when the signals come."""
    loop = asyncio.get_running_loop()
    for number in ENDING:
        loop.add_signal_handler(number, stop.set)
    loop.add_signal_handler(RELOADING, reload.set)
    try:
        yield
    finally:
        for number in (*ENDING, RELOADING):
            loop.remove_signal_handler(number)


@contextmanager
def foreign_records(log: Log) -> Iterator[None]:
    """What libraries log goes to our log."""
    root = logging.getLogger()
    handler = ForeignRecords(log)
    root.addHandler(handler)
    try:
        yield
    finally:
        root.removeHandler(handler)


def raise_file_limit() -> None:
    """Room for MAX_CONNECTIONS: the usual soft limit of 1,024 open files is for programs that use select."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = MAX_CONNECTIONS + SPARE_FILES
    if hard != resource.RLIM_INFINITY:
        wanted = min(wanted, hard)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        with suppress(ValueError, OSError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


def new_runner() -> asyncio.Runner:
    """uvloop's where it exists; the standard loop does the same, more slowly."""
    try:
        import uvloop
    except ImportError:
        return asyncio.Runner()
    return asyncio.Runner(loop_factory=uvloop.new_event_loop)
