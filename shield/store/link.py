"""A few connections that many callers share, and the deadline that holds for every request.

The law of this file: every caller hears within the deadline, whatever the server does; and nothing grows
while it does nothing. Requests go to the connection with the fewest in flight.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any, Final

from shield.errors import StoreError, StoreTimeout
from shield.store.lane import Call, Greeting, Lane, Late, Single, Transport, Wait, is_for_good, reason

# A connection that owes a reply for this long is taken for dead: a network that swallows packets says
# nothing.
STALL_S: Final = 2.0
# Turns of the loop between a timer that fires and the verdict, so that what has arrived meanwhile is read
# first: asyncio needs one for that, uvloop, which looks at its timers before its sockets, three.
GRACE_TURNS: Final = 3


class Link:
    """All connections to one server. `open` and `close` it in the loop that uses it.

    `deadline_s` holds for every request. At most `max_in_flight` requests are owed a reply on each
    connection, timed-out ones included: that bounds memory when a server stops answering. `greeting` is sent
    whenever a connection comes up.
    """

    def __init__(
        self,
        make: Callable[[], Transport],
        *,
        connections: int,
        deadline_s: float,
        connect_timeout_s: float,
        max_in_flight: int,
        greeting: Sequence[Greeting] = (),
        stall_s: float | None = None,
    ) -> None:
        self._make = make
        self._connect_timeout_s = connect_timeout_s
        self._greeting = tuple(greeting)
        self._connections = connections
        self._deadline_s = deadline_s
        self._max_in_flight = max_in_flight
        self._stall_s = max(STALL_S, 2 * deadline_s) if stall_s is None else stall_s
        self._lanes: list[Lane] = []
        self._tasks: list[asyncio.Task[None]] = []
        self._waiting: deque[Call] = deque()
        self._timer: asyncio.TimerHandle | None = None
        self._timer_at = 0.0
        self.loop: asyncio.AbstractEventLoop | None = None
        self._first: asyncio.Future[None] | None = None
        self._untried: set[Lane] = set()
        self.last_error: str | None = None
        """Why the last connection could not be made or was lost."""
        self.timeouts = 0
        self.connects = 0
        self.losses = 0

    # ---- life ----------------------------------------------------------------------------------------------

    async def open(self) -> None:
        """Starts connecting and waits for the first connection, or until every first try has failed.

        An unreachable server is no error, it is tried again in the background. StoreError when the server was
        reached and refused us (a wrong password, no such database): that is a mistake somebody should hear
        about.
        """
        if self._tasks:
            return
        self.loop = asyncio.get_running_loop()
        self._first = self.loop.create_future()
        self._lanes = [
            Lane(self._make, self._greeting, self._connect_timeout_s, self) for _ in range(self._connections)
        ]
        self._untried = set(self._lanes)
        self._tasks = [self.loop.create_task(lane.run()) for lane in self._lanes]
        try:
            await self._first
        except BaseException:
            await self.close()
            raise

    async def close(self) -> None:
        tasks, self._tasks = self._tasks, []
        self._lanes = []
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        self._waiting.clear()

    def came_up(self) -> None:
        self.connects += 1
        if self._first is not None and not self._first.done():
            self._first.set_result(None)

    def refused(self, lane: Lane, error: Exception) -> None:
        self.last_error = reason(error)
        self._untried.discard(lane)
        if self._first is not None and not self._first.done():
            if is_for_good(error):
                self._first.set_exception(StoreError(f"the server refused the connection: {self.last_error}"))
            elif not self._untried:
                self._first.set_result(None)

    def lost(self, why: str) -> None:
        self.last_error = why
        self.losses += 1

    @property
    def up(self) -> int:
        """How many connections are up."""
        return sum(lane.up for lane in self._lanes)

    @property
    def in_flight(self) -> int:
        return sum(lane.in_flight for lane in self._lanes)

    # ---- requests ------------------------------------------------------------------------------------------

    @property
    def usable(self) -> bool:
        """Whether a connection is up."""
        for lane in self._lanes:  # noqa: SIM110 - a generator costs more than all else about asking every time
            if lane.up:
                return True
        return False

    def room(self) -> int:
        """How many requests may be sent now, on the connection that would take them."""
        return max((self._max_in_flight - lane.in_flight for lane in self._lanes if lane.up), default=0)

    def request(
        self,
        payload: bytes,
        late: Late | None = None,
        context: Any = None,
        *,
        asking: bool = False,
        wait: Wait | None = None,
    ) -> asyncio.Future[Any]:
        """Sends one encoded command; the future brings its reply or a StoreError, within the deadline.

        `late(reply, context)` is called instead when a reply comes after the future was done: timed out or cancelled.
        `asking`: the command is of a slot that is on its way to the server. `wait`: replicas have to
        confirm it, or the future brings a StoreError. Raises StoreError at once, having sent
        nothing, when no connection is up or all are full.
        """
        if self.loop is None:
            raise StoreError(self.why_not())
        deadline = self.loop.time() + self._deadline_s
        call = Single(self.loop.create_future(), payload, deadline, late, context, asking=asking, wait=wait)
        self.send(call)
        return call.future

    def send(self, call: Call) -> None:
        """Sends a command that hears by its deadline. StoreError as for `request`."""
        best: Lane | None = None
        fewest = self._max_in_flight
        for lane in self._lanes:
            if lane.up and lane.in_flight < fewest:
                best, fewest = lane, lane.in_flight
        if best is None:
            raise StoreError(self.why_not())
        best.send(call)
        waiting = self._waiting
        while waiting and waiting[0].done():
            waiting.popleft()
        if not waiting or waiting[-1].deadline <= call.deadline:
            waiting.append(call)
        else:
            # It has waited for its turn while others came that need not.
            at = len(waiting)
            while at and waiting[at - 1].deadline > call.deadline:
                at -= 1
            waiting.insert(at, call)
        if self._timer is None or self._timer_at > call.deadline:
            self._watch(call.deadline)

    def _watch(self, until: float) -> None:
        assert self.loop is not None
        if self._timer is not None:
            self._timer.cancel()
        self._timer_at = until
        self._timer = self.loop.call_at(until, self._expire)

    def why_not(self) -> str:
        """In words, why nothing can be sent."""
        if not self._tasks:
            return "the store is not open"
        if self.up:
            return f"{self.in_flight} requests are waiting for the store already"
        return f"not connected to the store: {self.last_error or 'still connecting'}"

    def _expire(self, turns: int = GRACE_TURNS) -> None:
        """The requests stand in the order in which their deadlines end: one timer watches them all."""
        assert self.loop is not None
        now = self.loop.time()
        waiting = self._waiting
        while waiting and waiting[0].done():
            waiting.popleft()
        if turns and waiting and waiting[0].deadline <= now:
            # Where it was this process that had no time, the replies are there and only need to be read.
            self.loop.call_soon(self._expire, turns - 1)
            return
        self._timer = None
        while waiting and (waiting[0].done() or waiting[0].deadline <= now):
            call = waiting.popleft()
            if not call.done():
                self.timeouts += call.size
                call.fail(StoreTimeout(f"no answer from the store within {self._deadline_s * 1000:g} ms"))
        ends = [waiting[0].deadline] if waiting else []
        for lane in self._lanes:
            if lane.owed:
                stalled_at = lane.owed[0].sent_at + self._stall_s
                if stalled_at <= now:
                    lane.break_off(f"no answer for {self._stall_s:g} s")
                else:
                    ends.append(stalled_at)
        if ends:
            self._watch(min(ends))
