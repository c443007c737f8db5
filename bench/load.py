"""Raw protocols that ask and listen, one request at a time on each connection. `open_loop` drives them."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

MAX_STEAL = 0.01
MAX_TRIES = 6


class Answer(NamedTuple):
    """What a generator wants to know of an answer."""

    ok: bool
    """Status 200."""
    refused: bool
    """A decision that says no."""
    size_bytes: int


class Client(asyncio.Protocol):
    """One connection with one request at a time on its way. The load is told of each answer."""

    def __init__(self, load: Load) -> None:
        self._load = load
        self._buffer = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport: Any = transport

    def send(self, request: bytes, since: float) -> None:
        self._transport.write(request)

    def data_received(self, data: bytes) -> None:
        if self._buffer:
            data = self._buffer + data
        head = data.find(b"\r\n\r\n")
        if head >= 0:
            at = data.find(b"Content-Length: ", 0, head) + 16
            end = head + 4 + int(data[at : data.find(b"\r", at)])
            if len(data) >= end:
                if len(data) > end:
                    raise RuntimeError(f"more than the answer that was asked for: {data[end : end + 200]!r}")
                self._buffer = b""
                ok = data.startswith(b"HTTP/1.1 200")
                self._load.answered(self, Answer(ok, data.startswith(b'{"allowed":false', head + 4), end))
                return
        self._buffer = data

    def connection_lost(self, exc: BaseException | None) -> None:
        self._load.lost(self, exc)

    def close(self) -> None:
        """The load does not mind."""
        self._load = _NOBODY
        self._transport.close()


class Load:
    """Who is told of answers."""

    def answered(self, client: Client, answer: Answer) -> None: ...

    def lost(self, client: Client, error: BaseException | None) -> None: ...


_NOBODY = Load()


def in_turn(requests: Sequence[bytes]) -> Callable[[], bytes]:
    """One after the other, without end."""
    at = -1

    def request() -> bytes:
        nonlocal at
        at += 1
        if at == len(requests):
            at = 0
        return requests[at]

    return request


async def connect(load: Load, port: int, connections: int) -> list[Client]:
    """The connections of a load, all of them open."""
    loop = asyncio.get_running_loop()
    made = [await loop.create_connection(lambda: Client(load), "127.0.0.1", port) for _ in range(connections)]
    return [client for _, client in made]


def close(clients: Sequence[Client]) -> None:
    for client in clients:
        client.close()


def stolen() -> tuple[int, int]:
    """Jiffies that the hypervisor kept from this machine, and all jiffies; (0, 0) where nobody counts them."""
    stat = Path("/proc/stat")
    if not stat.exists():
        return 0, 0
    figures = [int(figure) for figure in stat.read_text().split("\n", 1)[0].split()[1:9]]
    return figures[7], sum(figures)


def pin(core: int) -> None:
    """This process to one core, where the system can."""
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, {core})
