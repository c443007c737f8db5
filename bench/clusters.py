"""A real cluster of three primaries, each with a replica if wanted, and what an operator does to it."""

from __future__ import annotations

import contextlib
import random
import socket
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import redis

from shield.store.naming import SLOTS

from .servers import Server, binaries, run_server

PRIMARIES = 3
PATIENCE_S = 30.0
# Failures are noticed after the first; replicas are promoted even though a small cluster knows little of them.
OPTIONS = ("--cluster-enabled", "yes", "--cluster-node-timeout", "1000", "--cluster-replica-validity-factor", "0",
           "--repl-diskless-sync-delay", "0", "--repl-ping-replica-period", "1")  # fmt: skip


def wait_for(condition: Callable[[], object]) -> None:
    """Until the servers have got so far."""
    ends = time.monotonic() + PATIENCE_S
    while True:
        with contextlib.suppress(redis.RedisError, KeyError):
            if condition():
                return
        assert time.monotonic() < ends, "it never happened"
        time.sleep(0.01)


@dataclass
class ClusterOf:
    """Servers that know each other; the first PRIMARIES began as primaries, the others as their replicas, in order."""

    servers: list[Server]
    ids: dict[int, str] = field(default_factory=dict)
    """The name of the server at a port."""

    @property
    def url(self) -> str:
        return "redis+cluster://" + ",".join(f"127.0.0.1:{server.port}" for server in self.servers[:PRIMARIES])

    def server(self, port: int) -> Server:
        return next(server for server in self.servers if server.port == port)

    def holder(self, slot: int, *, by: Server | None = None) -> Server:
        """Who holds a slot, as one of them says."""
        for first, last, primary, *_ in _ask(by or self.servers[0], "CLUSTER", "SLOTS"):
            if first <= slot <= last:
                return self.server(int(primary[1]))
        raise AssertionError(f"nobody holds {slot}")

    def id(self, server: Server) -> str:
        assert server.port is not None
        if server.port not in self.ids:
            self.ids[server.port] = _ask(server, "CLUSTER", "MYID").decode()
        return self.ids[server.port]

    def begin_move(self, slot: int, source: Server, target: Server) -> None:
        """A slot is on its way: what is not there yet is made at the target."""
        _ask(target, "CLUSTER", "SETSLOT", slot, "IMPORTING", self.id(source))
        _ask(source, "CLUSTER", "SETSLOT", slot, "MIGRATING", self.id(target))

    def move_keys(self, slot: int, source: Server, target: Server, *, at_most: int = 1_000) -> int:
        """Some of its keys."""
        keys = _ask(source, "CLUSTER", "GETKEYSINSLOT", slot, at_most)
        if keys:
            _ask(source, "MIGRATE", "127.0.0.1", str(target.port), "", 0, 5_000, "KEYS", *keys)
        return len(keys)

    def end_move(self, slot: int, source: Server, target: Server) -> None:
        while self.move_keys(slot, source, target):
            pass
        for server in (target, source):
            _ask(server, "CLUSTER", "SETSLOT", slot, "NODE", self.id(target))

    def keys(self, pattern: str) -> set[bytes]:
        return {key for server in self.servers[:PRIMARIES] for key in server.client().keys(pattern)}


def _ask(server: Server, *command: object) -> object:  # type: ignore[no-untyped-def, unused-ignore]
    with redis.Redis(port=server.port or 0) as client:
        return client.execute_command(*command)


@contextlib.contextmanager
def run_cluster(*, replicas: bool = False) -> Iterator[ClusterOf]:
    """Starts a cluster, waits until all of it agrees, and ends it."""
    with contextlib.ExitStack() as stack:
        kind, binary = next(iter(binaries().items()))
        count = PRIMARIES * (2 if replicas else 1)
        servers = [
            stack.enter_context(run_server(kind, binary, tcp=True, port=_free_ports(), args=OPTIONS))
            for _ in range(count)
        ]
        made = ClusterOf(servers)
        for i, server in enumerate(servers[:PRIMARIES]):
            _ask(server, "CLUSTER", "ADDSLOTSRANGE", SLOTS * i // PRIMARIES, SLOTS * (i + 1) // PRIMARIES - 1)
            _ask(server, "CLUSTER", "SET-CONFIG-EPOCH", i + 1)
        for server in servers[1:]:
            _ask(servers[0], "CLUSTER", "MEET", "127.0.0.1", server.port)
        for server in servers:
            wait_for(lambda server=server: _knows(server) == count)  # type: ignore[misc]
        for i, server in enumerate(servers[PRIMARIES:]):
            _ask(server, "CLUSTER", "REPLICATE", made.id(servers[i]))
            wait_for(lambda server=server: server.client().info("replication")["master_link_status"] == "up")  # type: ignore[misc]
        for server in servers:
            wait_for(lambda server=server: b"cluster_state:ok" in _ask(server, "CLUSTER", "INFO"))  # type: ignore[misc, operator]
            wait_for(lambda server=server: len(_ask(server, "CLUSTER", "SLOTS")) == PRIMARIES)  # type: ignore[misc, arg-type]
        yield made


def _free_ports() -> int:
    """A port that is free, as is the one 10,000 above it, by which the servers of a cluster talk to each other."""
    source = random.SystemRandom()
    while True:
        port = source.randrange(12_000, 22_000)
        with contextlib.suppress(OSError), socket.socket() as one, socket.socket() as other:
            one.bind(("127.0.0.1", port))
            other.bind(("127.0.0.1", port + 10_000))
            return port


def _knows(server: Server) -> int:
    return len([line for line in _ask(server, "CLUSTER", "NODES").splitlines() if b"handshake" not in line])  # type: ignore[attr-defined]
