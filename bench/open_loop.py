"""Requests that leave at their intended instants, whatever became of earlier ones; latency counts from those instants.

So a server that stops for a while is charged for every request that it kept from leaving, and one that is asked for
more than it can do shows a queue that grows. What the generator itself was late by is kept apart: a request is late
by its own fault when it was due, a connection was free, and it left later.

The bookkeeping takes the time as an argument; `run` is the loop around it.
"""

from __future__ import annotations

import asyncio
import time
from array import array
from collections import deque
from collections.abc import Callable, Sequence
from typing import Protocol

from .load import Answer, Client, Load

DRAIN_S = 2.0
"""How long after the last intended instant answers are waited for; those that have not come count as late as that."""
_SPIN_S = 0.002
"""Timers come in milliseconds and would send in bursts: nearer to an instant than this the loop does not sleep."""


class Sender(Protocol):
    """A connection that takes one request at a time."""

    def send(self, request: bytes, since: float) -> None: ...


class OpenLoop(Load):
    """One process's part of a load."""

    def __init__(self, request: Callable[[], bytes], instants: Sequence[float]) -> None:
        """`instants`: seconds from the start, ascending."""
        self._request = request
        self._instants = instants
        self._next = 0
        self._free: deque[tuple[Sender, float]] = deque()
        self._under_way: dict[int, float] = {}
        self._ended: asyncio.Future[None] | None = None
        self.latencies_s = array("d")
        self.lags_s = array("d")
        self.answers = self.refused = self.failed = self.in_time = 0
        self.sent_bytes = self.received_bytes = 0
        self.unanswered = 0

    # ---- bookkeeping: seconds on one clock, `started` is the instant that the intended ones count from ----------

    def begin(self, senders: Sequence[Sender], started: float) -> None:
        self._started = started
        self._last = started + (self._instants[-1] if self._instants else 0.0)
        self._free.extend((sender, started) for sender in senders)

    def send_due(self, now: float) -> None:
        """Sends what is due by now, as far as connections are free."""
        instants, free = self._instants, self._free
        while self._next < len(instants) and free:
            due = self._started + instants[self._next]
            if due > now:
                return
            sender, free_since = free.popleft()
            self._next += 1
            self.lags_s.append(now - max(due, free_since))
            self._under_way[id(sender)] = due
            request = self._request()
            self.sent_bytes += len(request)
            sender.send(request, due)

    def done(self, sender: Sender, now: float, answer: Answer) -> None:
        """An answer came, whole. One that was given up says nothing more."""
        due = self._under_way.pop(id(sender), None)
        if due is None:
            return
        self.latencies_s.append(now - due)
        self.answers += 1
        self.refused += answer.refused
        self.failed += not answer.ok
        self.received_bytes += answer.size_bytes
        self.in_time += now <= self._last
        self._free.append((sender, now))

    def give_up(self, now: float) -> None:
        """No more answers are waited for: what is open is at least as late as this."""
        for due in (*self._under_way.values(), *(self._started + at for at in self._instants[self._next :])):
            self.latencies_s.append(now - due)
            self.unanswered += 1
        self._under_way.clear()
        self._next = len(self._instants)

    def next_due(self) -> float | None:
        """When the next request is meant to leave; None when all have left or no connection is free."""
        if self._next >= len(self._instants) or not self._free:
            return None
        return self._started + self._instants[self._next]

    @property
    def over(self) -> bool:
        return self._next >= len(self._instants) and not self._under_way

    # ---- the loop around it --------------------------------------------------------------------------------

    def answered(self, client: Client, answer: Answer) -> None:
        self.done(client, time.perf_counter(), answer)

    def lost(self, client: Client, error: BaseException | None) -> None:
        """A connection that breaks takes its request with it: a failure, as late as it is then."""
        due = self._under_way.pop(id(client), None)
        if due is not None:
            self.latencies_s.append(time.perf_counter() - due)
            self.failed += 1
        kept = [pair for pair in self._free if pair[0] is not client]
        self._free.clear()
        self._free.extend(kept)

    async def run(self, clients: Sequence[Client], started: float) -> None:
        """From the instant `started` of `time.perf_counter` until all is answered or given up."""
        loop = asyncio.get_running_loop()
        self._ended = ended = loop.create_future()
        self.begin(clients, started)

        def turn() -> None:
            now = time.perf_counter()
            self.send_due(now)
            if self.over or now > self._last + DRAIN_S:
                self.give_up(now)
                ended.set_result(None)
                return
            if self._next >= len(self._instants):
                loop.call_later(_SPIN_S / 2, turn)  # answers alone are waited for, and they wake the loop
            elif (due := self.next_due()) is not None and due - now > _SPIN_S:
                loop.call_later(due - now - _SPIN_S, turn)
            else:
                loop.call_soon(turn)

        turn()
        await ended
