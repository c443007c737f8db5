"""Requests that leave at their intended instants, whatever became of earlier ones; latency counts from those instants.

So a server that stops for a while is charged for every request that it kept from leaving, and one that is asked for
more than it can do shows a queue that grows. What the generator itself was late by is kept apart: a request is late
by its own fault when it was due, a connection was free, and it left later; an answer when it may have been there since
the generator last looked. And one that had something to do all the time is not to be trusted, however short its turns.

The bookkeeping takes the time as an argument; `run` is the loop around it.
"""

from __future__ import annotations

import select
import time
from array import array
from collections import deque
from collections.abc import Callable, Sequence
from typing import Protocol

from .load import Answer, Client, Load

DRAIN_S = 2.0
"""How long after the last intended instant answers are waited for; those that have not come count as late as that."""
_SPIN_S = 0.002
"""Sleep ends by milliseconds and would send in bursts: nearer to an instant than this the loop does not sleep."""
_EPOLL = hasattr(select, "epoll")
_OF_A_SECOND = 1 if _EPOLL else 1000
"""`epoll` is told seconds, `poll` milliseconds."""


class Sender(Protocol):
    """A connection that takes one request at a time."""

    def send(self, request: bytes, since: float) -> None: ...


class OpenLoop(Load):
    """One process's part of a load."""

    def __init__(self, request: Callable[[], bytes], instants: Sequence[float]) -> None:
        """`instants`: seconds from the start, ascending."""
        self._request = request
        self._instants = instants
        self.intended = len(instants)
        self._next = 0
        self._free: deque[tuple[Sender, float]] = deque()
        self._under_way: dict[int, float] = {}
        self._leaves: Callable[[int], object] = lambda end: None
        self.latencies_s = array("d")
        self.lags_s = array("d")
        self.idle_s = 0.0
        """How long it had nothing to do while requests were meant to leave."""
        self.looked = 0.0
        """When it last saw that no answer was there but those that it has read."""
        self.answers = self.refused = self.failed = self.in_time = 0
        self.sent_bytes = self.received_bytes = 0
        self.unanswered = 0

    # ---- bookkeeping: seconds on one clock, `started` is the instant that the intended ones count from ----------

    def begin(self, senders: Sequence[Sender], started: float) -> None:
        self._started = started
        self._last = started + (self._instants[-1] if self._instants else 0.0)
        self.looked = started
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
        self.lags_s.append(now - self.looked)
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

    @property
    def busy(self) -> float:
        """The part of the time in which it had something to do; it should be well below 1."""
        return 1.0 - self.idle_s / self._instants[-1] if self._instants else 0.0

    # ---- the loop around it --------------------------------------------------------------------------------

    def answered(self, client: Client, answer: Answer) -> None:
        self.done(client, time.perf_counter(), answer)

    def lost(self, client: Client, error: BaseException | None) -> None:
        """A connection that breaks takes its request with it: a failure, as late as it is then."""
        self._leaves(client.end.fileno())
        due = self._under_way.pop(id(client), None)
        if due is not None:
            self.latencies_s.append(time.perf_counter() - due)
            self.failed += 1
        kept = [pair for pair in self._free if pair[0] is not client]
        self._free.clear()
        self._free.extend(kept)

    def run(self, clients: Sequence[Client], started: float) -> None:
        """From the instant `started` of `time.perf_counter` until all is answered or given up."""
        clock = time.perf_counter
        poller = select.epoll() if _EPOLL else select.poll()
        readable = {}
        for client in clients:
            poller.register(client.end.fileno(), select.POLLIN)
            readable[client.end.fileno()] = client.readable
        self._leaves = poller.unregister
        self.begin(clients, started)
        now = looked = started
        sleep_s = 0.0
        while True:
            found = poller.poll(sleep_s * _OF_A_SECOND)
            before, now = now, clock()
            self.looked, looked = now if sleep_s else looked, now
            if found:
                for end, _ in found:
                    readable[end]()
                now = clock()
            at = self._next
            self.send_due(now)
            if not found and self._next == at and now <= self._last:
                self.idle_s += now - before
            if self.over or now > self._last + DRAIN_S:
                break
            due = self.next_due()
            if due is not None:
                sleep_s = max(0.0, due - now - _SPIN_S)
            else:
                sleep_s = 0.0 if self._next < len(self._instants) else _SPIN_S / 2  # answers alone are waited for
        self.give_up(now)
