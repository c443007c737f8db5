"""Requests on their way to the store: those of one turn of the loop share commands, and no command waits for another.

The law of this file: every request is written at most once and hears within its deadline: its own part of the reply,
or StoreError. What a command took for a request that nobody waits for any more is handed to `late`.

A command decides at most `MAX_BATCH` requests. Under load the next ones are written while the server works on the
last, and the replies of one command wake the callers that fill the next: a handful of commands is always under way,
and neither side waits for the other. At most `max_in_flight` requests for each connection are written and not
answered, timed-out ones included; as many again wait for their turn, within their deadline. Whoever comes then is told
at once: a queue that is longer than the deadline serves nobody.
"""

from __future__ import annotations

import asyncio
import copy
import struct
from collections import deque
from collections.abc import Callable, Iterable
from typing import Any, Final

from shield.core import Asked, Outcome, Step, check_command, next_batch, outcomes_in
from shield.errors import StoreError, StoreProtocolError, StoreTimeout
from shield.store.lane import UNCONFIRMED, Call, Wait, translate
from shield.store.link import Link
from shield.store.lua import CHECK, KEYED
from shield.store.resp import bulk

# Sixteen share most of what a command costs beside its work (reading, looking the script up, answering, waking the
# other side), and the first of them still waits for fifteen more steps of ten microseconds at most.
MAX_BATCH: Final = 16

_HEAD: Final = b"$7\r\nEVALSHA\r\n" + bulk(CHECK.sha)
_KEYED_HEAD: Final = b"$7\r\nEVALSHA\r\n" + bulk(KEYED.sha)

TAKEN: Final = 1
Late = Callable[[Step, Outcome], None]


class Batch(Call):
    """Requests that one command decides, in their order."""

    __slots__ = ("_owner", "asked")

    def __init__(self, asked: list[Asked], payload: bytes, owner: Batcher) -> None:
        super().__init__(payload, asked[0].deadline, asking=asked[0].asking, wait=owner.wait)
        self.asked = asked
        self.size = len(asked)
        self._owner = owner

    def done(self) -> bool:
        return all(one.future.done() for one in self.asked)

    def answer(self, reply: Any) -> None:
        if self.wait is None:
            self._owner.answered(self.asked, reply)
        else:
            self._owner.answered(self.asked, self.held, confirmed=self.wait.heard(reply))

    def fail(self, error: StoreError) -> None:
        self._owner.failed(self.asked, error)


class Batcher:
    """What waits to be written, and what its answers mean. It belongs to one event loop."""

    def __init__(
        self,
        link: Link,
        *,
        slack_ms: int,
        max_waiting: int,
        late: Late,
        around_us: Callable[[bytes], int],
    ) -> None:
        self._link = link
        self._slack = bulk(struct.pack("<d", slack_ms))
        self._max_waiting = max_waiting
        self._late = late
        self._around_us = around_us
        self._queue: deque[Asked] = deque()
        self._scheduled = False
        self._timer: asyncio.TimerHandle | None = None
        self.wait: Wait | None = None
        """Whose confirmation counts, where what was taken must outlive the server."""
        self.instant: Callable[[], bytes] = bytes
        """Tests only: what time the scripts are told it is."""
        self.expired = 0
        """Requests whose deadline passed before they were written."""

    @property
    def waiting(self) -> int:
        return len(self._queue)

    def submit(
        self, step: Step, deadline: float, around_us: int | None = None, *, asking: bool = False
    ) -> asyncio.Future[Outcome]:
        """The future brings what became of the step, or a StoreError. Raises StoreError at once, having sent
        nothing, when no connection is up or too many wait already.
        """
        loop = self._link.loop
        if loop is None or not self._link.usable:
            raise StoreError(self._link.why_not())
        waiting = len(self._queue)
        if waiting >= self._max_waiting and waiting + self._link.in_flight >= 2 * self._max_waiting:
            raise StoreError(f"{waiting + self._link.in_flight} requests are waiting for the store already")
        future: asyncio.Future[Outcome] = loop.create_future()
        self._queue.append(Asked(step, future, deadline, around_us, asking))
        if not self._scheduled:
            self._scheduled = True
            loop.call_soon(self._flush)
        return future

    def close(self) -> None:
        """Whoever still waits to be written never will be."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        queue, self._queue = self._queue, deque()
        self.failed(queue, StoreError("the connection to the store was closed"))

    # ---- writing -------------------------------------------------------------------------------------------

    def _flush(self) -> None:
        self._scheduled = False
        queue, link = self._queue, self._link
        while queue:
            room = min(link.room(), MAX_BATCH)
            if room <= 0 and link.usable:
                break
            batch = next_batch(queue, max(room, 1))
            if batch:
                try:
                    link.send(Batch(batch, self._encode(batch), self))
                except StoreError as error:
                    self.failed(batch, error)
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if queue and link.loop is not None:
            self._timer = link.loop.call_at(queue[0].deadline, self._expire)

    def _encode(self, batch: list[Asked]) -> bytes:
        instant = self.instant()
        head = _HEAD if batch[0].step.claim is None else _KEYED_HEAD
        return check_command(head, self._slack + bulk(instant), batch, self._around_us(instant))

    def _expire(self) -> None:
        """Requests wait in the order of their deadlines, which are all equally long."""
        self._timer = None
        queue = self._queue
        now = self._link.loop.time() if self._link.loop is not None else 0.0
        late: list[Asked] = []
        while queue and (queue[0].future.done() or queue[0].deadline <= now):
            late.append(queue.popleft())
        self.expired += sum(not asked.future.done() for asked in late)
        self.failed(late, StoreTimeout("the store was too busy to be asked within the deadline"))
        if queue:
            self._flush()

    # ---- answers -------------------------------------------------------------------------------------------

    def answered(self, batch: list[Asked], reply: Any, *, confirmed: bool = True) -> None:
        """One command's reply, for each of its requests. What was taken and is not `confirmed` is not known to last: it
        is given back, and whoever waits is told.
        """
        told = reply
        if (claim := batch[0].step.claim) is not None:
            told = reply[0] if type(reply) is list and claim.hear(reply[1:]) else None
        outcomes = outcomes_in(told, batch) if type(told) is bytes else None
        if isinstance(reply, Exception):
            self.failed(batch, translate(reply))
        elif outcomes is None:
            self.failed(batch, StoreProtocolError("the store answered a check with something else"))
        else:
            for asked, outcome in zip(batch, outcomes, strict=True):
                future = asked.future
                if not confirmed and outcome.status == TAKEN and not future.done():
                    future.set_exception(StoreError(UNCONFIRMED))
                if future.done():
                    self._late(asked.step, outcome)
                else:
                    future.set_result(outcome)
        if self._queue and not self._scheduled:
            self._flush()

    def failed(self, batch: Iterable[Asked], error: StoreError) -> None:
        """An error of its own for everybody who waits: a traceback belongs to one caller."""
        for asked in batch:
            if not asked.future.done():
                asked.future.set_exception(copy.copy(error))
