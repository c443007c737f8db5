"""How much does a server answer at most, and what does an answer cost it? A closed loop of bare sockets.

An event loop and its protocols would take longer for a request than the server does, and so be what is measured. And it
never sleeps, nor asks the system to be told of answers, but looks for them: a client on this host is woken and told by
whoever sends to it, which costs the server more than a microsecond an answer that clients elsewhere do not.
"""

from __future__ import annotations

import socket
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

_READ_BYTES = 32_768
_BRACE = ord("}")


class Flood(NamedTuple):
    """What came of it."""

    rate: float
    """Answers a second."""
    count: int


def flood(port: int, requests: Iterator[bytes], connections: int, seconds: float) -> Flood:
    """Each connection sends the next request when its answer, a whole object of JSON, is here. None may fail."""
    opened = [socket.create_connection(("127.0.0.1", port)) for _ in range(connections)]
    ends: list[tuple[Callable[[int], bytes], Callable[[bytes], int]]] = []
    try:
        for one in opened:
            one.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            one.setblocking(False)
            ends.append((one.recv, one.send))
        count, clock = 0, time.perf_counter
        started = clock()
        until = started + seconds
        for _, send in ends:
            send(next(requests))
        while clock() < until:
            for receive, send in ends:
                try:
                    answer = receive(_READ_BYTES)
                except BlockingIOError:
                    continue
                if answer[:12] != b"HTTP/1.1 200" or answer[-1] != _BRACE:
                    raise RuntimeError(f"not the answer that was asked for: {answer[:200]!r}")
                count += 1
                send(next(requests))
        return Flood(count / (clock() - started), count)
    finally:
        for one in opened:
            one.close()


def processor_s(pid: int) -> float | None:
    """Seconds of processor time that a process has had, all its threads and the kernel on its behalf; None where nobody
    counts them so finely.
    """
    try:
        threads = [path.read_text() for path in Path(f"/proc/{pid}/task").glob("*/schedstat")]
    except OSError:
        return None
    return sum(int(times.split()[0]) for times in threads) / 1e9 if threads else None
