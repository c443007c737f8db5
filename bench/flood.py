"""How much does a server answer at most, and what does an answer cost it? A closed loop of bare sockets.

An event loop and its protocols would take longer for a request than the server does, and so be what is measured. And it
never sleeps: a client on this host that sleeps is woken by whoever sends to it, which costs the server more than a
microsecond an answer that clients elsewhere do not.
"""

from __future__ import annotations

import select
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
    poller = select.epoll() if hasattr(select, "epoll") else select.poll()
    # An answer is read whole, so there is nothing to be told of it twice.
    readable = select.EPOLLIN | select.EPOLLET if hasattr(select, "epoll") else select.POLLIN
    opened = [socket.create_connection(("127.0.0.1", port)) for _ in range(connections)]
    ends: dict[int, tuple[Callable[[int], bytes], Callable[[bytes], int]]] = {}
    try:
        for one in opened:
            one.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            one.setblocking(False)
            poller.register(one.fileno(), readable)
            ends[one.fileno()] = one.recv, one.send
        count = 0
        clock, poll = time.perf_counter, poller.poll
        at_once = (0, connections) if hasattr(select, "epoll") else (0,)
        started = clock()
        until = started + seconds
        for _, send in ends.values():
            send(next(requests))
        while clock() < until:
            for end, _ in poll(*at_once):  # never asleep: waking it would be work of the server's core
                receive, send = ends[end]
                answer = receive(_READ_BYTES)
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
