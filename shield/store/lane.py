"""One connection: requests are written one behind the other, and replies come in that order.

The law of this file: a request is written at most once, and every caller is told what became of it: the
reply, or StoreError when the connection was lost first. The reply to a request whose caller has gone is
handed to its `late` callback.

Connecting, TLS, AUTH and SELECT are redis-py's; of its connections only the public methods are used, with
RESP2 and without redis-py's own timeouts and retries, which would tear down an idle connection or send a
command twice.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any, Final, NamedTuple, Protocol

from redis.exceptions import (
    AskError,
    AuthenticationError,
    ClusterDownError,
    MovedError,
    NoScriptError,
    OutOfMemoryError,
    ReadOnlyError,
    ResponseError,
    TryAgainError,
)

from shield.errors import StoreError, StoreProtocolError
from shield.store.resp import encode

# Where a server is busy, loading or in the middle of a failover, the same command may succeed later.
_PASSING: Final = (
    "BUSY",
    "LOADING",
    "MISCONF",
    "NOREPLICAS",
    "MASTERDOWN",
    "UNKILLABLE",
    "CLUSTERDOWN",
)
# Lets the next command use a slot that is on its way to the server.
ASKING: Final = encode((b"ASKING",))
UNCONFIRMED: Final = "the server took it, and not as many replicas as were asked for have confirmed it"
# A server that restarts is found again within milliseconds, one that stays away is asked once a second.
BACKOFF_S: Final = (0.01, 1.0)
# A healthy life of a connection after which its loss is an accident and the first new try needs no wait.
SETTLED_S: Final = 1.0

Late = Callable[[Any, Any], None]
Greeting = tuple[bytes | Callable[[], bytes], Callable[[Any], None]]
"""A command that is sent when a connection comes up, or what makes it then, and what judges its reply, by raising."""


class ScriptMissing(StoreError):
    """The server does not know the script, so nothing was done: loading it and asking again is safe."""


class OutOfMemory(StoreError):
    """The server is at its maxmemory and refused to write: nothing was done."""


class Unconfirmed(StoreError):
    """The server did it, and has said `reply`; not as many replicas as were asked for have confirmed it."""

    def __init__(self, reply: Any = None) -> None:
        super().__init__(UNCONFIRMED)
        self.reply = reply


class Moved(StoreError):
    """A cluster's slot is served elsewhere: nothing was done. `ask`: for this request alone, the slot is on its way."""

    def __init__(self, message: str, slot: int = -1, host: str = "", port: int = 0, *, ask: bool = False) -> None:
        super().__init__(message)
        self.slot, self.host, self.port, self.ask = slot, host, port, ask


class Unsettled(StoreError):
    """The keys of one request lie on two servers, because their slot is on its way: nothing was done."""


class Transport(Protocol):
    """What is used of redis.asyncio.connection.Connection and its siblings."""

    async def connect(self) -> None: ...

    async def disconnect(self, nowait: bool = False) -> None: ...

    async def send_packed_command(self, command: bytes, check_health: bool = True) -> None: ...

    async def read_response(self, *, disconnect_on_error: bool = True) -> Any: ...


class Owner(Protocol):
    """Who wants to know how a connection fares."""

    def came_up(self) -> None: ...

    def refused(self, lane: Lane, error: Exception) -> None: ...

    def lost(self, why: str) -> None: ...


class Wait(NamedTuple):
    """How many replicas have to have heard of a write before it counts, and what asks for that."""

    replicas: int
    command: bytes

    def heard(self, count: Any) -> bool:
        return type(count) is int and count >= self.replicas


def wait_for(replicas: int, timeout_ms: int) -> Wait | None:
    """None for no replicas. A server that waits in vain says so after `timeout_ms`; so long the connection rests."""
    if replicas == 0:
        return None
    return Wait(replicas, encode((b"WAIT", b"%d" % replicas, b"%d" % timeout_ms)))


class Call:
    """One command on its way, and who waits for its reply."""

    __slots__ = ("before", "deadline", "held", "payload", "sent_at", "size", "wait")

    def __init__(self, payload: bytes, deadline: float, *, asking: bool = False, wait: Wait | None = None) -> None:
        payload = ASKING + payload if asking else payload
        self.payload = payload if wait is None else payload + wait.command
        self.wait = wait
        """Whose confirmation the reply needs."""
        self.held: Any = None
        """The reply, until it is confirmed."""
        self.deadline = deadline
        self.sent_at = 0.0
        self.before = int(asking)
        """How many replies come before the one that counts."""
        self.size = 1
        """How many requests it decides."""

    def done(self) -> bool:
        """Whether nobody waits for it any more."""
        raise NotImplementedError

    def answer(self, reply: Any) -> None:
        """Hands the reply on, an exception where the server said so."""
        raise NotImplementedError

    def fail(self, error: StoreError) -> None:
        """Tells whoever still waits."""
        raise NotImplementedError


class Single(Call):
    """A command of one caller."""

    __slots__ = ("context", "future", "late")

    def __init__(
        self,
        future: asyncio.Future[Any],
        payload: bytes,
        deadline: float,
        late: Late | None,
        context: Any,
        *,
        asking: bool = False,
        wait: Wait | None = None,
    ) -> None:
        super().__init__(payload, deadline, asking=asking, wait=wait)
        self.future = future
        self.late = late
        self.context = context

    def done(self) -> bool:
        return self.future.done()

    def answer(self, reply: Any) -> None:
        if self.wait is not None:
            count, reply = reply, self.held
            if not isinstance(reply, Exception) and not self.wait.heard(count):
                self.fail(Unconfirmed(reply))
        if self.future.done():
            if self.late is not None and not isinstance(reply, Exception):
                self.late(reply, self.context)
        elif isinstance(reply, Exception):
            self.future.set_exception(translate(reply))
        else:
            self.future.set_result(reply)

    def fail(self, error: StoreError) -> None:
        if not self.future.done():
            self.future.set_exception(error)


def translate(error: Exception) -> StoreError:
    """A server's error reply in Shield's words."""
    if isinstance(error, NoScriptError):
        return ScriptMissing("the server does not know the script")
    if isinstance(error, OutOfMemoryError) or "OOM command not allowed" in str(error):
        return OutOfMemory(f"the server is out of memory: {error}")
    if isinstance(error, AskError):  # a MovedError is one, too
        ask = not isinstance(error, MovedError)
        return Moved(f"slot {error.slot_id} is elsewhere", error.slot_id, error.host, int(error.port), ask=ask)
    if isinstance(error, TryAgainError):
        return Unsettled(f"the server cannot answer now: {error}")
    passing = isinstance(error, ClusterDownError) or _is_read_only(error)
    if passing or str(error).startswith(_PASSING):
        return StoreError(f"the server cannot answer now: {error}")
    return StoreProtocolError(f"the server refused: {error}")


def _is_read_only(reply: Any) -> bool:
    """Whether the server has become a replica. Redis 6 wraps what a script met into an error of its own."""
    return isinstance(reply, ReadOnlyError) or (
        isinstance(reply, ResponseError) and "READONLY You can't write" in str(reply)
    )


class Lane:
    """One connection: what is to be written, what is owed, and the tasks that serve both until it breaks."""

    def __init__(
        self,
        make: Callable[[], Transport],
        greeting: Sequence[Greeting],
        connect_timeout_s: float,
        owner: Owner,
    ) -> None:
        self._make = make
        self._greeting = tuple(greeting)
        self._connect_timeout_s = connect_timeout_s
        self._owner = owner
        self.up = False
        self.outgoing: list[Call] = []
        self.owed: deque[Call] = deque()
        self._idle: asyncio.Future[None] | None = None
        self._broken: asyncio.Future[str] | None = None
        self.in_flight = 0
        """Requests that are to be written or owed a reply."""

    def send(self, call: Call) -> None:
        self.in_flight += call.size
        self.outgoing.append(call)
        if self._idle is not None and not self._idle.done():
            self._idle.set_result(None)

    def break_off(self, why: str) -> None:
        if self._broken is not None and not self._broken.done():
            self._broken.set_result(why)

    async def run(self) -> None:
        """Connects, serves, and connects again, until cancelled."""
        loop = asyncio.get_running_loop()
        shortest, longest = BACKOFF_S
        wait = shortest
        while True:
            connection = None
            since = None
            try:
                connection = self._make()
                async with asyncio.timeout(self._connect_timeout_s):
                    await self._greet(connection)
                since = loop.time()
                self._owner.lost(await self._serve(connection))
            except Exception as error:
                # Whatever a server or a name service comes up with, the next try may do better.
                self._owner.refused(self, error)
            finally:
                if connection is not None:
                    await _hang_up(connection)
            if since is not None and loop.time() - since >= SETTLED_S:
                wait = shortest
                continue
            await asyncio.sleep(wait * random.uniform(0.5, 1.0))
            wait = min(2 * wait, longest)

    async def _greet(self, connection: Transport) -> None:
        await connection.connect()
        for payload, _ in self._greeting:
            command = payload if isinstance(payload, bytes) else payload()
            await connection.send_packed_command(command, check_health=False)
        for _, accept in self._greeting:
            try:
                reply = await connection.read_response(disconnect_on_error=False)
            except ResponseError as error:
                reply = error
            accept(reply)

    async def _serve(self, connection: Transport) -> str:
        """Until the connection is of no more use; says why."""
        loop = asyncio.get_running_loop()
        self._broken = broken = loop.create_future()
        reader = loop.create_task(self._read(connection))
        writer = loop.create_task(self._write(connection))
        self.up = True
        self._owner.came_up()
        try:
            done, _ = await asyncio.wait((reader, writer, broken), return_when=asyncio.FIRST_COMPLETED)
            first = done.pop()
            return first.result() if first is broken else reason(first.exception())
        finally:
            self.up = False
            self._broken = None
            self._abandon()
            reader.cancel()
            writer.cancel()
            broken.cancel()
            await asyncio.gather(reader, writer, return_exceptions=True)
            self._abandon()

    def _abandon(self) -> None:
        """Whoever waits is told. What was written may have been done; what was not never will be."""
        owed, self.owed = self.owed, deque()
        for call in owed:
            call.fail(StoreError("the connection to the store was lost before it answered"))
        outgoing, self.outgoing = self.outgoing, []
        for call in outgoing:
            call.fail(StoreError("the connection to the store was lost"))
        self.in_flight = 0

    async def _read(self, connection: Transport) -> None:
        read = connection.read_response
        while True:
            reply: Any
            try:
                reply = await read(disconnect_on_error=False)
            except ResponseError as error:
                reply = error
            if not self.owed:
                raise StoreProtocolError("the server sent something that nobody had asked for")
            if self.owed[0].before:
                self.owed[0].before -= 1
                continue
            if self.owed[0].wait is not None and self.owed[0].held is None:
                self.owed[0].held = reply
                continue
            call = self.owed.popleft()
            self.in_flight -= call.size
            call.answer(reply)
            if _is_read_only(reply):
                # After a failover the same name leads to the new primary.
                raise StoreError("the server has become read-only")

    async def _write(self, connection: Transport) -> None:
        """One write for all that was asked since the last: under load system calls become fewer, not more."""
        loop = asyncio.get_running_loop()
        while True:
            if not self.outgoing:
                self._idle = loop.create_future()
                await self._idle
            calls, self.outgoing = self.outgoing, []
            now = loop.time()
            payloads = []
            for call in calls:
                if call.done():
                    self.in_flight -= call.size
                    continue  # its caller has gone and nothing was written: nothing needs to be
                call.sent_at = now
                self.owed.append(call)
                payloads.append(call.payload)
            if payloads:
                await connection.send_packed_command(b"".join(payloads), check_health=False)


def reason(error: BaseException | None) -> str:
    """An error in words, for an operator; redis-py's messages name host and port, never a password."""
    if isinstance(error, TimeoutError) and not str(error):
        return "no connection in time"
    return f"{error}" or type(error).__name__


def is_for_good(error: Exception) -> bool:
    """Whether the server was reached and would refuse us again."""
    if isinstance(error, ResponseError):
        return isinstance(translate(error), StoreProtocolError)
    return isinstance(error, (AuthenticationError, StoreProtocolError))


async def _hang_up(connection: Transport) -> None:
    with contextlib.suppress(Exception):
        await connection.disconnect(nowait=True)
