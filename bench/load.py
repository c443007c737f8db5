"""A load generator of raw protocols on one core: how many requests a second, and how late answers are.

Closed loop: each connection sends its next request when the answer is here. Open loop: requests leave at intended
instants, whatever became of earlier ones, and latency counts from those instants, so that a server which stops for a
while is charged for every request that it kept from leaving.
"""

from __future__ import annotations

import asyncio
import os
import time
from collections import deque
from collections.abc import Sequence
from pathlib import Path

MAX_STEAL = 0.01
MAX_TRIES = 6


class Client(asyncio.Protocol):
    """One connection with one request at a time on its way. `answered` is told of each answer."""

    def __init__(self, load: _Load) -> None:
        self._load = load
        self._buffer = b""
        self.since = 0.0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = transport

    def send(self, request: bytes, since: float) -> None:
        self.since = since
        self._transport.write(request)

    def data_received(self, data: bytes) -> None:
        if self._buffer:
            data = self._buffer + data
        head = data.find(b"\r\n\r\n")
        if head >= 0:
            at = data.find(b"Content-Length: ", 0, head) + 16
            end = head + 4 + int(data[at : data.find(b"\r", at)])
            if len(data) >= end:
                if not data.startswith(b"HTTP/1.1 200") or len(data) > end:
                    raise RuntimeError(f"not the answer that was asked for: {data[:200]!r}")
                self._buffer = b""
                self._load.answered(self)
                return
        self._buffer = data

    def connection_lost(self, exc: BaseException | None) -> None:
        self._load.lost(exc)


class _Load:
    def __init__(self, requests: Sequence[bytes], seconds: float) -> None:
        self._requests = requests
        self._next = 0
        self._loop = asyncio.get_running_loop()
        self._seconds = seconds
        self._done = self._loop.create_future()
        self.count = 0

    def request(self) -> bytes:
        self._next += 1
        return self._requests[self._next % len(self._requests)]

    def answered(self, client: Client) -> None:
        raise NotImplementedError

    def lost(self, exc: BaseException | None) -> None:
        if not self._done.done():
            self._done.set_exception(exc or ConnectionError("the server closed a connection"))


class Closed(_Load):
    """As many requests as are answered."""

    def answered(self, client: Client) -> None:
        self.count += 1
        if not self._done.done():
            client.send(self.request(), 0.0)

    async def run(self, clients: Sequence[Client]) -> float:
        """Requests a second."""
        started = time.perf_counter()
        for client in clients:
            client.send(self.request(), 0.0)
        self._loop.call_later(self._seconds, lambda: self._done.done() or self._done.set_result(None))
        await self._done
        rate = self.count / (time.perf_counter() - started)
        await asyncio.sleep(0.05)  # for the answers that are still on their way
        return rate


class Open(_Load):
    """So many requests a second, evenly. The loop never sleeps: timers of a millisecond would send in bursts."""

    def __init__(self, requests: Sequence[bytes], seconds: float, rate: float) -> None:
        super().__init__(requests, seconds)
        self._rate = rate
        self._free: deque[Client] = deque()
        self._sent = 0
        self.latencies_s: list[float] = []

    def answered(self, client: Client) -> None:
        self.latencies_s.append(time.perf_counter() - client.since)
        self._free.append(client)

    def _turn(self) -> None:
        now = time.perf_counter()
        due = int((now - self._started) * self._rate)
        free = self._free
        while self._sent < due and free:
            free.popleft().send(self.request(), self._started + (self._sent + 1) / self._rate)
            self._sent += 1
        if now - self._started >= self._seconds:
            if not self._done.done():
                self._done.set_result(None)
        else:
            self._loop.call_soon(self._turn)

    async def run(self, clients: Sequence[Client]) -> list[float]:
        """Latencies in seconds, sorted."""
        self._free.extend(clients)
        self._started = time.perf_counter()
        self._turn()
        await self._done
        await asyncio.sleep(0.05)
        return sorted(self.latencies_s)


async def connect(load: _Load, port: int, connections: int) -> list[Client]:
    """The connections of a load, all of them open."""
    loop = asyncio.get_running_loop()
    made = [await loop.create_connection(lambda: Client(load), "127.0.0.1", port) for _ in range(connections)]
    return [client for _, client in made]


def close(clients: Sequence[Client]) -> None:
    """Closes them; the load does not mind any more."""
    for client in clients:
        client._load.lost = lambda exc: None  # type: ignore[method-assign]
        client._transport.close()


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
