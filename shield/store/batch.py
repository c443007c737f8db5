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
from collections.abc import Callable, Sequence
from typing import Any, Final

from shield.errors import StoreError, StoreProtocolError, StoreTimeout
from shield.store.key_wire import TOLD
from shield.store.lane import UNCONFIRMED, Call, Wait, translate
from shield.store.link import Link
from shield.store.lua import CHECK, KEYED
from shield.store.resp import bulk
from shield.store.steps import OUTCOME, Step

# Eight share most of what a command costs beside its work (reading, looking the script up, answering), and the first
# of them still waits for seven more steps of a few microseconds at most.
MAX_BATCH: Final = 8

_HEAD: Final = b"$7\r\nEVALSHA\r\n" + bulk(CHECK.sha)
_KEYED_HEAD: Final = b"$7\r\nEVALSHA\r\n" + bulk(KEYED.sha)

_AS_BEFORE: Final = (bulk(b""), bulk(b""))

TAKEN: Final = 1
Outcome = tuple[int, int, list[int], int]
"""Of one request: the instant, its status, five numbers for each of its charges, and after how many microseconds its
nonce is right, 0 where that is not a matter of waiting.
"""
Late = Callable[[Step, Outcome], None]


class Asked:
    """One request, and who waits for it."""

    __slots__ = ("around_us", "asking", "deadline", "future", "step")

    def __init__(
        self,
        step: Step,
        future: asyncio.Future[Outcome],
        deadline: float,
        around_us: int | None,
        asking: bool = False,
    ) -> None:
        self.asking = asking
        """Of a slot that is on its way to this server: the command has to say so."""
        self.step = step
        self.future = future
        self.deadline = deadline
        self.around_us = around_us


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


def _width(step: Step) -> int:
    """How many numbers of a reply speak of one request."""
    return 1 + (step.nonce is not None) + OUTCOME * len(step.shape)


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
            batch: list[Asked] = []
            while queue and len(batch) < max(room, 1):
                if batch and not _together(batch[0], queue[0]):
                    break
                asked = queue.popleft()
                if not asked.future.done():
                    batch.append(asked)
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

    def _encode(self, batch: Sequence[Asked]) -> bytes:
        keys: list[bytes] = []
        instant = self.instant()
        around_us = self._around_us(instant)
        arguments = [self._slack, bulk(instant)]
        shape: bytes | None = None
        costs: tuple[int, ...] = ()
        for asked in batch:
            step = asked.step
            keys += step.cells
            mine = step.shape.wire(around_us if asked.around_us is None else asked.around_us)
            if mine is shape and step.costs == costs:
                arguments += _AS_BEFORE
            else:
                arguments += (mine, step.packed_costs())
            shape, costs = mine, step.costs
            if step.nonce is not None:
                keys += step.nonce.keys
                arguments += (step.nonce.facts, bulk(step.nonce.owner))
            if step.lease_ids:
                arguments += [bulk(lease_id.encode()) for lease_id in step.lease_ids]
        head, claim = _HEAD, batch[0].step.claim
        if claim is not None:
            head = _KEYED_HEAD
            keys += claim.keys
            arguments.append(claim.packed)
        count = 3 + len(keys) + len(arguments)
        return b"".join((b"*%d\r\n" % count, head, bulk(b"%d" % len(keys)), *keys, *arguments))

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

    def answered(self, batch: Sequence[Asked], reply: Any, *, confirmed: bool = True) -> None:
        """One command's reply, for each of its requests. What was taken and is not `confirmed` is not known to last: it
        is given back, and whoever waits is told.
        """
        if (claim := batch[0].step.claim) is not None and type(reply) is list:
            reply, told = reply[:-TOLD], reply[-TOLD:]
            if len(told) != TOLD or not claim.hear(told):
                reply = None
        if isinstance(reply, Exception):
            self.failed(batch, translate(reply))
        elif type(reply) is not list or len(reply) != 1 + sum(_width(one.step) for one in batch):
            self.failed(batch, StoreProtocolError("the store answered a check with something else"))
        else:
            now_us, at = reply[0], 1
            for asked in batch:
                end = at + _width(asked.step)
                first = end - OUTCOME * len(asked.step.shape)
                outcome = (now_us, reply[at], reply[first:end], reply[at + 1] if first > at + 1 else 0)
                at = end
                if not confirmed and outcome[1] == TAKEN and not asked.future.done():
                    asked.future.set_exception(StoreError(UNCONFIRMED))
                if asked.future.done():
                    self._late(asked.step, outcome)
                else:
                    asked.future.set_result(outcome)
        if self._queue and not self._scheduled:
            self._flush()

    def failed(self, batch: Sequence[Asked], error: StoreError) -> None:
        """An error of its own for everybody who waits: a traceback belongs to one caller."""
        for asked in batch:
            if not asked.future.done():
                asked.future.set_exception(copy.copy(error))


def _together(first: Asked, other: Asked) -> bool:
    """Whether two requests may share a command: a script's keys all lie in one slot of a cluster, and one with an
    idempotency key has a script of its own.
    """
    one, two = first.step, other.step
    if one.claim is not None or two.claim is not None:
        return False
    return one.slot == two.slot and first.asking == other.asking and not (one.alone or two.alone)
