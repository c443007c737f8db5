"""What a supervisor and its workers say to each other, and how: over a socketpair of their own.

Each message is a msgpack object behind its length. A listening socket travels beside the one message that is
about it. Whatever the supervisor asks for an answer to has an `id`, and the answer has the same.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections import deque
from typing import Any, Final

import msgspec

from shield.server.bounds import MAX_MESSAGE_BYTES, MAX_UNSENT_BYTES
from shield.server.counts import Counts
from shield.server.source import Written

_READ_BYTES: Final = 262_144
_LENGTH_BYTES: Final = 4


class ControlError(Exception):
    """The other end said what is no message, or does not read; there is no more to be had from it."""


class Message(msgspec.Struct, tag=True, tag_field="m", omit_defaults=True, forbid_unknown_fields=True):
    """One of either side."""


# ---- the supervisor's --------------------------------------------------------------------------------------


class Start(Message):
    """The first message: all that the worker needs to decide."""

    number: int
    version: str
    store: str
    policy: Written
    secret: bytes | None
    tokens: bytes | None
    """The token file, as it was read."""
    token_file: str | None
    tls: tuple[str, str, str | None] | None
    callers: tuple[str, ...] | None
    """Whose certificates may ask, as AllowedCallers reads it."""
    blocks: str
    """The file of the host's blocks."""
    events_key: bytes
    geo: list[str]
    """Databases of places, countries and networks."""
    trace: str | None
    trace_anew: bool
    log_format: str
    log_level: str


class Accept(Message):
    """Accept on the socket beside this message, which is the listener `key`."""

    key: int


class Leave(Message):
    """Accept no more on this listener."""

    key: int


class Prepare(Message):
    """Read a policy, make room for it, and say whether it could be put in force. Answer: Prepared."""

    id: int
    policy: Written


class Commit(Message):
    """Put the prepared policy in force. Answer: Done."""

    id: int


class Abort(Message):
    """Forget the prepared policy. Answer: Done."""

    id: int


class Tokens(Message):
    """The token file as it is now. Answer: Done."""

    id: int
    data: bytes


class Certificate(Message):
    """Read the certificate again. Answer: Done, with what is wrong with it."""

    id: int


class Count(Message):
    """Answer: Counted."""

    id: int


class Heard(Message):
    """What another worker has counted, as it said it."""

    node: bytes
    number: int
    held_us: int
    data: bytes


class Claimed(Message):
    """Which detections of a Told are this worker's to tell."""

    id: int
    won: list[bool]


class Drain(Message):
    """Finish what is in flight, say Ended, and end."""

    grace_s: float


class Hurry(Message):
    """Wait for nothing any more."""


# ---- the worker's ------------------------------------------------------------------------------------------


class Ready(Message):
    """It can decide, and waits for sockets."""

    store: str
    """Its kind and where it is."""
    store_name: str
    warnings: list[str]


class Unable(Message):
    """It cannot start, and why. `misuse`: it was told something that cannot be right."""

    why: str
    misuse: bool


class Prepared(Message):
    """`issues`, path and message, are what keeps the policy from being put in force."""

    id: int
    issues: list[tuple[str, str]]


class Done(Message):
    """`why` is what was wrong, else empty."""

    id: int
    why: str = ""


class Counted(Message):
    """Every second with id 0, and when asked. It is a sign of life as well."""

    id: int
    counts: Counts
    degraded: bool


class Told(Message):
    """What this worker has counted, for the others, and the detections it would tell: (mark, owner, for how long).
    Answer, where there are any: Claimed.
    """

    id: int
    node: bytes = b""
    number: int = 0
    held_us: int = 0
    data: bytes = b""
    claims: list[tuple[bytes, bytes, int]] = []


class Ended(Message):
    """The last: the drain is over."""

    counts: Counts


ToWorker = (
    Start | Accept | Leave | Prepare | Commit | Abort | Tokens | Certificate | Count | Heard | Claimed | Drain | Hurry
)
ToSupervisor = Ready | Unable | Prepared | Done | Counted | Told | Ended


class Channel:
    """One end. What is sent is queued and never waited for; what is received comes in order."""

    def __init__(self, end: socket.socket, expected: Any) -> None:
        """`expected` is the union of the messages that the other end sends. To be called in a running loop."""
        end.setblocking(False)
        self._socket = end
        self._loop = asyncio.get_running_loop()
        self._decoder = msgspec.msgpack.Decoder(expected)
        self._encoder = msgspec.msgpack.Encoder()
        self._unsent: deque[tuple[memoryview, socket.socket | None]] = deque()
        self._unsent_bytes = 0
        self._received = bytearray()
        self._sockets: deque[socket.socket] = deque()
        self._arrived = asyncio.Event()
        self._ended = False
        self._flushed = asyncio.Event()
        self._loop.add_reader(end, self._read)

    # ---- sending -------------------------------------------------------------------------------------------

    def send(self, message: Message, beside: socket.socket | None = None) -> None:
        """Queues a message, and a duplicate of the socket beside it. Nothing happens when the other end has gone.

        ControlError when it does not read: more than MAX_UNSENT_BYTES wait for it.
        """
        if self._ended:
            return
        body = self._encoder.encode(message)
        data = len(body).to_bytes(_LENGTH_BYTES, "big") + body
        if self._unsent_bytes + len(data) > MAX_UNSENT_BYTES:
            raise ControlError("it does not read what it is told")
        self._unsent.append((memoryview(data), beside.dup() if beside is not None else None))
        self._unsent_bytes += len(data)
        if len(self._unsent) == 1:
            self._write()

    def _write(self) -> None:
        try:
            while self._unsent:
                data, beside = self._unsent[0]
                if beside is not None:
                    sent = socket.send_fds(self._socket, [data], [beside.fileno()])
                    beside.close()
                else:
                    sent = self._socket.send(data)
                self._unsent_bytes -= sent
                if sent < len(data):
                    self._unsent[0] = data[sent:], None
                else:
                    self._unsent.popleft()
        except BlockingIOError:
            self._loop.add_writer(self._socket, self._write)
            return
        except OSError:  # the reader sees the end
            self._forget_unsent()
        self._loop.remove_writer(self._socket)
        self._flushed.set()

    def _forget_unsent(self) -> None:
        for _, beside in self._unsent:
            if beside is not None:
                beside.close()
        self._unsent.clear()
        self._unsent_bytes = 0

    async def flush(self, timeout_s: float) -> None:
        """Waits until the other end's kernel has everything, at most so long."""
        if self._unsent and not self._ended:
            self._flushed = asyncio.Event()
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._flushed.wait(), timeout_s)

    # ---- receiving -----------------------------------------------------------------------------------------

    def _read(self) -> None:
        try:
            data, fds, _, _ = socket.recv_fds(self._socket, _READ_BYTES, 16)
        except BlockingIOError:
            return
        except OSError:
            data, fds = b"", []
        self._sockets.extend(socket.socket(fileno=fd) for fd in fds)
        if data:
            self._received += data
        else:
            self._stop_reading()
        self._arrived.set()

    def _stop_reading(self) -> None:
        if not self._ended:
            self._ended = True
            self._loop.remove_reader(self._socket)
            self._loop.remove_writer(self._socket)
            self._forget_unsent()
            self._flushed.set()

    async def receive(self) -> Any:
        """The next message; None when the other end has gone. ControlError for what is no message."""
        while (message := self._next()) is None:
            if self._ended:
                return None
            self._arrived.clear()
            await self._arrived.wait()
        return message

    def _next(self) -> Any:
        if len(self._received) < _LENGTH_BYTES:
            return None
        length = int.from_bytes(self._received[:_LENGTH_BYTES], "big")
        if length > MAX_MESSAGE_BYTES:
            raise ControlError(f"a message of {length:,} bytes")
        end = _LENGTH_BYTES + length
        if len(self._received) < end:
            return None
        body = bytes(self._received[_LENGTH_BYTES:end])
        del self._received[:end]
        try:
            return self._decoder.decode(body)
        except msgspec.MsgspecError as error:
            raise ControlError(f"what is no message: {error}") from None

    def socket_beside(self) -> socket.socket:
        """The socket that came beside the message that was received last. ControlError when there was none."""
        if not self._sockets:
            raise ControlError("a message about a socket without the socket")
        return self._sockets.popleft()

    def close(self) -> None:
        """Ends it. The other end sees that."""
        self._stop_reading()
        self._socket.close()
        for each in self._sockets:
            each.close()
        self._sockets.clear()
        self._arrived.set()
