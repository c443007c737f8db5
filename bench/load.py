"""Bare sockets that ask and listen, one request at a time on each connection. `open_loop` drives them.

An event loop and its protocols would take as long for a request as the server does, and so be late themselves.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple, TypeVar

MAX_STEAL = 0.01
MAX_TRIES = 6
_READ_BYTES = 65_536
"""Larger blocks would be asked of the system anew for each answer, which takes longer than the answer."""


class Answer(NamedTuple):
    """What a generator wants to know of an answer."""

    ok: bool
    """Status 200."""
    refused: bool
    """A decision that says no."""
    size_bytes: int


class Client:
    """One connection with one request at a time on its way. The load is told of each answer."""

    __slots__ = ("_buffer", "_load", "_receive", "_send", "end")

    def __init__(self, load: Load, end: socket.socket) -> None:
        self.end = end
        self._load = load
        self._buffer = b""
        self._send, self._receive = end.send, end.recv

    def send(self, request: bytes, since: float) -> None:
        """RuntimeError when the system does not take it whole: nothing else lies in its buffer."""
        try:
            sent = self._send(request)
        except ConnectionError as error:
            self._load.lost(self, error)
        else:
            if sent != len(request):
                raise RuntimeError(f"of a request of {len(request):,} bytes the system took {sent:,}")

    def readable(self) -> None:
        """There is something to read."""
        try:
            data = self._receive(_READ_BYTES)
        except ConnectionError as error:
            self._load.lost(self, error)
            return
        if data:
            self.received(data)
        else:
            self._load.lost(self, None)

    def received(self, data: bytes) -> None:
        """Bytes of the answer."""
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


class Load:
    """Who is told of answers."""

    def answered(self, client: Client, answer: Answer) -> None: ...

    def lost(self, client: Client, error: BaseException | None) -> None: ...


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


def connect(load: Load, port: int, connections: int) -> list[Client]:
    """The connections of a load, all of them open."""
    made = []
    for _ in range(connections):
        end = socket.create_connection(("127.0.0.1", port))
        end.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        end.setblocking(False)
        made.append(Client(load, end))
    return made


def close(clients: Sequence[Client]) -> None:
    for client in clients:
        client.end.close()


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


T = TypeVar("T")


def undisturbed(measure: Callable[[], T], doubt: Callable[[T], str] = lambda _: "") -> tuple[T, str]:
    """A figure of a window that is beyond doubt; after MAX_TRIES the last one, and what is wrong with it.

    In doubt is what `doubt` says, and a window of which the hypervisor kept more than MAX_STEAL for itself.
    """
    for _ in range(MAX_TRIES):
        stolen_before, all_before = stolen()
        figure = measure()
        stolen_after, all_after = stolen()
        part = (stolen_after - stolen_before) / max(1, all_after - all_before)
        wrong = doubt(figure)
        if not wrong and part > MAX_STEAL:
            wrong = f"the hypervisor kept {part:.0%} of the machine for itself"
        if not wrong:
            break
    return figure, wrong
