"""The part of a server that decides, by itself."""

from __future__ import annotations

import asyncio
import io
import socket
from pathlib import Path

import pytest

from shield.server.bounds import BACKLOG
from shield.server.logs import open_log
from shield.server.node import Node, NodeOptions
from shield.server.sockets import Address, listen
from shield.server.source import PolicySource

REQUEST = b"GET /v1/authz HTTP/1.1\r\nHost: x\r\n\r\n"


def node() -> Node:
    source = PolicySource.starter()
    options = NodeOptions(version="0", store="memory://", source=source, policy=source.parse())
    return Node(options, open_log(io.StringIO(), "json", "debug"))


def kernels_bound() -> int:
    try:
        return int(Path("/proc/sys/net/core/somaxconn").read_text())
    except OSError:
        return 128


@pytest.mark.parametrize("kind", ["tcp", "unix"])
async def test_who_has_connected_before_the_end_is_answered(tmp_path: Path, kind: str) -> None:
    """Nothing turns the loop between their requests and the drain: all of them wait in the kernel's queue."""
    address = Address.parse("127.0.0.1:0") if kind == "tcp" else Address(path=str(tmp_path / "s"))
    [bound] = listen(address)
    deciding = node()
    await deciding.open()
    await deciding.accept(bound.socket)
    clients = []
    for _ in range(50):
        client = socket.socket(bound.socket.family)
        client.connect(bound.address.path or ("127.0.0.1", bound.address.port))
        client.sendall(REQUEST)
        clients.append(client)
    cut_off = await deciding.drain(10.0, asyncio.Event())
    assert cut_off == 0
    for client in clients:
        with client:
            client.settimeout(10)
            answer = b"".join(iter(lambda: client.recv(10_000), b""))  # noqa: B023
            assert answer.startswith(b"HTTP/1.1 ")
            assert b"Connection: close" in answer
    late = socket.socket(bound.socket.family)
    with late, pytest.raises(ConnectionRefusedError):
        late.connect(bound.address.path or ("127.0.0.1", bound.address.port))
    await deciding.close()
    bound.close()


async def test_the_kernel_keeps_as_many_waiting_as_is_said() -> None:
    """`create_server` sets a backlog of its own, 100, unless it is told."""
    [bound] = listen(Address.parse("127.0.0.1:0"))
    deciding = node()
    await deciding.accept(bound.socket)
    clients = []
    for _ in range(min(BACKLOG, kernels_bound())):
        client = socket.socket()
        client.settimeout(5)
        client.connect(("127.0.0.1", bound.address.port))
        clients.append(client)
    for client in clients:
        client.close()
    assert await deciding.drain(10.0, asyncio.Event()) == 0
    await deciding.close()
    bound.close()
