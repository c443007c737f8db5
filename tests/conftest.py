"""Fixtures for every test: real servers, started once a session, on sockets of this machine."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.servers import Server, binaries, run_server

_BINARIES = binaries()


def _running(kind: str) -> Iterator[Server]:
    if kind not in _BINARIES:
        pytest.skip(f"no {kind} server on this machine")
    with run_server(kind, _BINARIES[kind]) as server:
        yield server


@pytest.fixture(scope="session")
def valkey() -> Iterator[Server]:
    """The Valkey that comes with the test dependencies."""
    yield from _running("valkey")


@pytest.fixture(scope="session")
def redis() -> Iterator[Server]:
    """The system's own redis-server."""
    yield from _running("redis")


@pytest.fixture(scope="session")
def redis_62() -> Iterator[Server]:
    """Redis 6.2, the oldest that is supported."""
    yield from _running("redis-6.2")


@pytest.fixture(scope="session", params=["valkey", "redis", "redis_62"])
def server(request: pytest.FixtureRequest) -> Server:
    """Each server there is, in turn. Tests share it, so they use keys of their own."""
    running: Server = request.getfixturevalue(request.param)
    return running


@pytest.fixture(scope="session")
def any_server() -> Iterator[Server]:
    """One server, on TCP, for what does not depend on its version."""
    for kind in ("valkey", "redis", "redis-6.2"):
        if kind in _BINARIES:
            with run_server(kind, _BINARIES[kind], tcp=True) as running:
                yield running
            return
    pytest.skip("no Redis or Valkey server on this machine")


@pytest.fixture(scope="session")
def tls_server() -> Iterator[Server]:
    """A server that speaks TLS and nothing else."""
    for kind, binary in _BINARIES.items():
        try:
            server = run_server(kind, binary, tls=True)
            running = server.__enter__()
        except (RuntimeError, FileNotFoundError):
            continue  # built without TLS, or no openssl to make a certificate with
        try:
            yield running
        finally:
            server.__exit__(None, None, None)
        return
    pytest.skip("no server with TLS, or no openssl, on this machine")
