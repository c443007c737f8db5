"""One connection of a listener and its two lanes.

Bytes are read in order and belong to one lane at a time. The express lane looks first. Requests whose framing is
beyond doubt and that are whole it answers itself, in order, and joins the answers of one read into one write. A
request that it does not serve but whose end is certain goes to aiohttp alone, and once that is answered the express
lane looks again. All else goes to aiohttp with everything that follows, for good: from then on nobody but aiohttp
can say where a request begins. So no byte is read twice or by nobody, and no answer overtakes another.

A connection that keeps sending whole requests of the express lane is read and written by its `Reader`, past aiohttp
and the transport, whose reading is paused meanwhile; with the first bytes that are anything else it is theirs again.

What it holds is bounded: HOLD_BYTES and one read of requests that are cut off or wait for an earlier answer; the
transport's high-water mark and one write of answers that nobody fetches. Beyond that it stops reading.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable, Coroutine
from typing import TYPE_CHECKING, Any, Final, cast

from shield.core.http_lane import BODY, MORE, PASS, TAKE, Express, Head, Reader
from shield.server.body import too_slow
from shield.server.bounds import (
    BODY_TIMEOUT_S,
    HEAD_TIMEOUT_S,
    HOLD_BYTES,
    STRANGER_IDLE_S,
)
from shield.server.exchange import Answer
from shield.server.guarded import HEAD, REST, SILENCE, Guarded, head_too_slow
from shield.server.rendering import bytes_of

if TYPE_CHECKING:
    from shield.server.listener import Listener

Left = tuple[int, bool, Head | Exception | None]
"""Of a read: up to where it is answered, whether to close, the head that is not served or an error."""

# Whose the next byte is.
EXPRESS: Final = 0  # it begins a request, or continues what is held
THROUGH: Final = 1  # aiohttp's, for a request whose end is known
RETURNING: Final = 2  # it begins a request; once aiohttp has answered the one before, the express lane's
BENEATH: Final = 3  # aiohttp's, and all that follow


class Connection(Guarded):
    """aiohttp's connection with the express lane on top."""

    __slots__ = ("_held", "_left", "_mode", "_needed", "_reader", "_stopped", "_task", "_turning")

    def __init__(self, listener: Listener, express: Express) -> None:
        super().__init__(listener)
        self._reader = Reader(express, self.loop, self._received, self._left_over)
        self._mode = EXPRESS
        self._held = bytearray()
        self._needed = 0  # there is nothing to look at before so many bytes are held
        self._left = 0  # bytes of the request that goes through
        self._task: asyncio.Task[None] | None = None  # a handler of this lane that waits
        self._turning = False  # what is held goes on in the next turn of the loop
        self._stopped = False  # reading is, by us

    def turn_away(self) -> None:
        """Whoever connected may not ask: aiohttp says so, and the express lane sees none of it."""
        super().turn_away()
        self._mode = BENEATH

    # ---- bytes in ------------------------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Called by the loop."""
        self._reader.begin(cast(asyncio.Transport, transport))
        super().connection_made(transport)

    @property
    def data_received(self) -> Callable[[bytes], None]:
        """Called by the loop, and with nothing by aiohttp when it goes on with what it has. Compiled: where nothing
        stands in the way, what comes is answered without a frame of ours.
        """
        return self._reader.data_received

    @property
    def used_s(self) -> float:
        """When the express lane last made use of the connection."""
        return self._reader.used_s

    def _received(self, data: bytes) -> None:
        """Where something may stand in the way."""
        mode = self._mode
        if mode == RETURNING and data:
            mode = self._mode = EXPRESS if self.awaits_request else BENEATH
        if mode != EXPRESS:
            self._beneath(data)
        elif data and not self.ended:
            if self._held or self._task is not None or self._turning or self.writing_is_paused:
                self._held += data
                if self._busy:
                    if len(self._held) > HOLD_BYTES:
                        self._stop_reading()
                    return
                if len(self._held) < self._needed:
                    return
                data = bytes(self._held)
                self._held.clear()
            elif type(data) is not bytes:
                data = bytes(data)
            self._look(data)

    @property
    def _busy(self) -> bool:
        """What comes must wait: for an answer, for its turn, or for answers to be fetched."""
        return self._task is not None or self._turning or self.writing_is_paused

    def _look(self, data: bytes) -> None:
        """Answers the requests of `data` and sees to what is left."""
        waited, due = self._what, self._deadline.at
        self._what = SILENCE
        self._deadline.at = math.inf
        self._needed = 0
        left = self._reader.look(data)
        if left is not None:
            self._left_over(data, left, due if waited == HEAD else None)
        elif self._stopped and not self.writing_is_paused:
            self._go_on_reading()
        if waited == REST:
            self.listener.done()  # counted since its head was here
        self._reader.ready = left is None and not self._stopped and not self._busy and not self.ended

    def _left_over(self, data: bytes, left: Left, due: float | None = None) -> None:
        """What could not be answered at once. `due`: the deadline that the head at the start of `data` has already."""
        self._reader.ready = False
        at, close, other = left
        if other is None:
            if close:
                self.force_close()
            else:
                self._later(data, at)
        elif isinstance(other, Exception):
            self._fail(other)
        elif other.verdict == TAKE:
            self._await(self.listener.answer(other), other, data)
        else:
            self._incomplete(data, at, other, due if at == 0 else None)

    def _incomplete(self, data: bytes, at: int, head: Head, due: float | None) -> None:
        """What begins at `at` is not for this lane, or not yet. `due`: the deadline that its head has already."""
        verdict = head.verdict
        if verdict == BODY and not self.listener.knows(head):
            verdict = PASS  # to be refused now, and not after its body
        if self._stopped and not self.writing_is_paused:
            self._go_on_reading()
        if verdict == MORE:
            self._held += data[at:]
            self._needed = len(self._held) + 1
            self._expect(HEAD, HEAD_TIMEOUT_S)
            if due is not None:
                self._deadline.set(due)
        elif verdict == BODY:
            self._held += data[at:]
            self._needed = head.end - at
            self.listener.begun()
            self._expect(REST, BODY_TIMEOUT_S)
        else:
            self._mode = BENEATH
            if self._stopped:
                self._go_on_reading()  # aiohttp stops it by rules of its own
            if verdict == PASS:
                self._mode = THROUGH
                self._left = head.end - at
                self._expect(SILENCE, STRANGER_IDLE_S)
            self._beneath(data[at:])

    def _later(self, data: bytes, at: int) -> None:
        """The rest waits for the next turn, so that others get theirs. The end of what comes is not seen before."""
        self._held += data[at:]
        self._stop_reading()
        self._turning = True
        self.loop.call_soon(self._turn)

    def _turn(self) -> None:
        self._turning = False
        self._go_on()

    def _go_on(self) -> None:
        """Looks at what is held, unless there is a reason to wait again."""
        if self.ended or self._mode != EXPRESS or self._busy:
            return
        if self._held and len(self._held) >= self._needed:
            data = bytes(self._held)
            self._held.clear()
            self._look(data)
        elif self._stopped:
            self._go_on_reading()

    def _beneath(self, data: bytes) -> None:
        """For aiohttp."""
        if self._mode == THROUGH and data:
            through = data[: self._left]
            self._left -= len(through)
            super().data_received(through)
            if self._left:
                return
            self._mode = RETURNING
            if len(through) == len(data):
                return
            # More, while the one before is being answered.
            self._mode = BENEATH
            data = data[len(through) :]
        super().data_received(data)

    def _watch(self, before: int, data: bytes) -> None:
        """Where it is known what aiohttp was given, its own deadlines and that of its handlers are enough."""
        if self._mode == BENEATH:
            super()._watch(before, data)

    # ---- bytes out -----------------------------------------------------------------------------------------

    def _await(self, handler: Coroutine[Any, Any, Answer], head: Head, data: bytes) -> None:
        """Lets a handler wait, and all that comes behind it."""
        self._held += data[head.end :]
        if len(self._held) > HOLD_BYTES:
            self._stop_reading()
        self.listener.begun()
        self._task = self.loop.create_task(self._finish(handler, head))

    async def _finish(self, handler: Coroutine[Any, Any, Answer], head: Head) -> None:
        """Waits for an answer, sends it and goes on."""
        try:
            answer = await handler
            transport = self.transport
            if transport is None or transport.is_closing():
                return
            close = answer.close or head.close or self.ended
            self._write([bytes_of(answer, close, head.method)])
        except Exception as error:
            self._fail(error)
            return
        finally:
            self._task = None
            self.listener.done()
        self._reader.used()
        if close:
            self.force_close()
        else:
            self._go_on()

    def _fail(self, error: Exception) -> None:
        """No answer can be sent: nobody is there to get it, or it is of no form that can be sent."""
        if not isinstance(error, ConnectionError):
            self.listener.fault(error, "http")
        self.force_close()

    def _stop_reading(self) -> None:
        if not self._stopped and self.transport is not None:
            self._stopped = True
            self.transport.pause_reading()

    def _go_on_reading(self) -> None:
        self._stopped = False
        if self.transport is not None and not self.transport.is_closing():
            self.transport.resume_reading()

    def pause_writing(self) -> None:
        """Called by the transport when its buffer is full."""
        self._reader.ready = False
        super().pause_writing()

    def resume_writing(self) -> None:
        """Called by the transport when it is not full any more."""
        super().resume_writing()
        if self._mode == EXPRESS:
            if self._what == SILENCE:
                self._deadline.at = math.inf
            self._go_on()

    # ---- the end -------------------------------------------------------------------------------------------

    def close(self) -> None:
        """Called by aiohttp: what is being answered is the last."""
        self._reader.ready = False
        super().close()

    def force_close(self) -> None:
        """Sends what is written and closes."""
        self._reader.ready = False
        super().force_close()

    def connection_lost(self, exc: BaseException | None) -> None:
        """Called by the loop. A handler that waits is not cancelled: what it took is taken."""
        self._reader.end()
        super().connection_lost(exc)
        if self._what == REST:
            self._what = SILENCE
            self.listener.done()
        self._held.clear()

    async def shutdown(self, timeout: float | None = 15.0) -> None:
        """Called when the listener ends."""
        self._reader.ready = False
        if self._task is not None:
            task = self._task
            await asyncio.wait((task,), timeout=timeout)
            task.cancel()
        await super().shutdown(timeout)

    def _overdue(self) -> None:
        if self._mode == BENEATH or (self._mode != EXPRESS and not self.awaits_request):
            super()._overdue()
        elif self._mode != EXPRESS:
            pass  # a caller between two requests
        elif self._what == HEAD:
            self._time_out(head_too_slow())
        elif self._what == REST:
            self._time_out(too_slow(BODY_TIMEOUT_S))
        else:
            self.force_close()
