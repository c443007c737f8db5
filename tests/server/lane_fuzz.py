"""The express lane against plain aiohttp: the same bytes, cut at random places, must lead to the same answers.

    python -m tests.server.lane_fuzz --requests 10000000 --seed 1

Two listeners with the same policy, clock and request ids; one has the express lane, the other has not. Streams of
requests, good ones, mutated ones and those of the corpus, go to both through transports of memory. Statuses, header
fields (Date aside), bodies, their order and whether the connection closes are compared, byte for byte.

aiohttp's own behaviour depends on where reads end: of a read whose later bytes it refuses, it forgets the requests
that came before. So streams of good requests are cut independently for the two, and for all others aiohttp is given
the reads that the express lane made of them: each request that the lane took by itself, and every piece that the lane
left to the aiohttp beneath it.

Some streams of good requests reach the listener with the express lane over a real socket, so that it may read and write
it without a transport; aiohttp is told of the same kind of caller.
"""

from __future__ import annotations

import argparse
import asyncio
import fcntl
import io
import math
import random
import re
import socket
import termios
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import accumulate, pairwise
from typing import Any

import uvloop

from shield import Policy, Shield
from shield.core.http_lane import TAKE, Lane, RequestIds
from shield.server.auth import CallerTokens
from shield.server.connection import EXPRESS, Connection
from shield.server.guarded import Guarded
from shield.server.listener import lane_of
from shield.server.logs import open_log
from shield.server.metrics import Metrics
from shield.server.pressure import Pressure
from shield.server.routes import decision_listener
from shield.server.service import Service
from shield.server.source import PolicySource
from tests.server.lane_corpus import CORPUS

POLICY = """
name = "fuzz"

[identity]
trusted_proxies = ["127.0.0.0/8"]

[identity.headers]
tenant = "X-Tenant"

[[limit]]
name = "address"
key = ["ip"]
rate = "10/s"
burst = 20
"""
TOKEN = "alpha"
_DATE = re.compile(rb"\r\nDate: [^\r]*")
_STATUS = re.compile(rb"HTTP/1\.1 (\d{3})")
QUIET_TURNS = 6


class Clock:
    """Stands until it is moved."""

    now_ns = 1_763_900_000_000_000_000

    def __call__(self) -> int:
        return self.now_ns


class Transport(asyncio.Transport):
    """A socket of memory. With `moods` its other end sometimes reads nothing for a turn or two."""

    def __init__(
        self,
        protocol: asyncio.Protocol,
        loop: asyncio.AbstractEventLoop,
        moods: random.Random | None = None,
        peer: Any = ("127.0.0.1", 4711),
    ) -> None:
        super().__init__()
        self._peer = peer
        self._moods = moods
        self._full = False
        self._protocol = protocol
        self._loop = loop
        self.written: list[bytes] = []
        self.reads = True
        self.closed = False

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        return self._peer if name == "peername" else default

    def write(self, data: Any) -> None:
        if not self.closed:
            self.written.append(bytes(data))
            if self._moods is not None and not self._full and self._moods.random() < 0.4:
                self._full = True
                self._protocol.pause_writing()
                self._drain(self._moods.randrange(3))

    def _drain(self, turns: int) -> None:
        if turns:
            self._loop.call_soon(self._drain, turns - 1)
        else:
            self._full = False
            self._protocol.resume_writing()

    def get_write_buffer_size(self) -> int:
        return 0

    def is_closing(self) -> bool:
        return self.closed

    def close(self) -> None:
        if not self.closed:
            self.closed = True
            self._loop.call_soon(self._protocol.connection_lost, None)

    abort = close

    def pause_reading(self) -> None:
        self.reads = False

    def resume_reading(self) -> None:
        self.reads = True


class Wire:
    """The client's end of a real connection. With `moods` it is in no hurry to read, and little fits in between."""

    reads = True

    def __init__(self, end: socket.socket, moods: random.Random | None) -> None:
        self._end, self._moods = end, moods
        self.written: list[bytes] = []
        self.closed = False

    @classmethod
    async def to(cls, connection: Guarded, moods: random.Random | None) -> Wire:
        """Connects."""
        end, other = socket.socketpair()
        end.setblocking(False)
        if moods is not None:
            other.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4_096)
        await asyncio.get_running_loop().connect_accepted_socket(lambda: connection, other)
        return cls(end, moods)

    async def send(self, data: bytes) -> None:
        """Until all of it is read, or the connection ends."""
        for _ in range(10_000):
            try:
                data = data[self._end.send(data) :] if data else data
            except BlockingIOError:
                pass
            except ConnectionError:
                data = b""
            await asyncio.sleep(0)
            self.receive()
            if self.closed or (not data and self._is_read):
                return
        raise AssertionError("nobody reads")

    @property
    def _is_read(self) -> bool:
        return int.from_bytes(fcntl.ioctl(self._end, termios.TIOCOUTQ, bytes(4)), "little") == 0

    def receive(self, *, at_last: bool = False) -> bool:
        """What is there, or some of it if it is in the mood; whether there was something."""
        lazy = self._moods is not None and not at_last
        if self.closed or (lazy and self._moods.random() < 0.8):  # type: ignore[union-attr]
            return False
        try:
            data = self._end.recv(300 if lazy else 1_000_000)
        except BlockingIOError:
            return False
        except ConnectionError:
            data = b""
        if data:
            self.written.append(data)
        else:
            self.closed = True
        return True

    async def settle(self, connection: Guarded) -> None:
        """Until all that can be answered is, and read here."""
        quiet = 0
        while quiet < 4 * QUIET_TURNS and not self.closed:
            busy = self.receive(at_last=True) or not at_rest(connection) or self._is_waited_for(connection)
            quiet = 0 if busy else quiet + 1
            await asyncio.sleep(0)

    @staticmethod
    def _is_waited_for(connection: Guarded) -> bool:
        transport = connection.transport
        return transport is not None and transport.get_write_buffer_size() > 0

    def close(self) -> None:
        self._end.close()


class Waits:
    """A local store that is asked as a remote one is: every step waits a turn of the loop."""

    local = False

    def __init__(self, shield: Shield) -> None:
        self._store = shield.store

    def __getattr__(self, name: str) -> Any:
        return getattr(self._store, name)

    async def apply(self, charges: Any) -> None:
        await asyncio.sleep(0)
        await self._store.apply(charges)


class Side:
    """One listener and its shield."""

    def __init__(self, *, express: bool, tokens: bool, waits: bool) -> None:
        self.waits = waits
        self.clock = Clock()
        policy = Policy.parse(POLICY)
        self.shield = Shield(policy, clock=self.clock)
        if waits:
            self.shield.store = Waits(self.shield)  # type: ignore[assignment]
        log = open_log(io.StringIO(), "json", "error")
        self.service = Service(self.shield, PolicySource(POLICY, "toml"), Metrics("0", policy, dict), log)
        self.service.pressure = Pressure(self.service.metrics.shed, clock=lambda: 0.0)  # no load is shed here
        self.service.ids = RequestIds("fuzz")
        self.listener = decision_listener(self.service, CallerTokens([TOKEN]) if tokens else None, express=express)
        if self.listener.express is not None:
            self.listener.express.lane = lane_of(self.listener._routes, self.listener._prefix, Looks)

    async def wire(self, moods: random.Random | None) -> tuple[Guarded, Wire]:
        """A real connection."""
        self.service.ids.number = 1
        connection = self.listener()
        return connection, await Wire.to(connection, moods)

    def connect(self, moods: random.Random | None, *, local: bool = False) -> tuple[Guarded, Transport]:
        """One of memory, to an address or a `local` one, which has none."""
        self.service.ids.number = 1
        connection = self.listener()
        peer = "" if local else ("127.0.0.1", 4711)
        transport = Transport(connection, asyncio.get_running_loop(), moods, peer)
        connection.connection_made(transport)
        return connection, transport


class Looks(Lane):
    """A lane that remembers what it saw."""

    reads: list[list[Any]]
    seen: Counter[str]

    def only(self, data: bytes, *rest: Any) -> bool:
        """The lane's own."""
        found = super().only(data, *rest)
        if found:
            self._took(data, self.look(data))
            self.seen["plain"] += 1
            self.seen["only"] += 1
        return found

    def serve(self, data: bytes, answer_of: Any, plain: Any, *rest: Any) -> Any:
        """The lane's own. What it served is what it would find once more: finding has no memory."""
        asked = 0

        def told(head: Any) -> Any:
            nonlocal asked
            asked += 1
            return answer_of(head)

        served = super().serve(data, told, plain, *rest)
        _, end, _, head = served
        at = taken = 0
        while at < end:
            found = self.look(data, at)
            assert found.verdict == TAKE
            self._took(data, found)
            at, taken = found.end, taken + 1
        if head is not None:
            assert not isinstance(head, Exception), head
            if head.verdict == TAKE:
                asked -= 1
                self._took(data, head)
            else:
                self.seen[head.why] += 1
        self.seen["plain"] += taken - asked
        return served

    def _took(self, data: bytes, head: Any) -> None:
        self.reads.append([data[head.start : head.end], -1])
        self.seen["take"] += 1


def at_rest(connection: Guarded) -> bool:
    """Nothing is going on that would lead to an answer by itself."""
    if connection.transport is None:
        return True
    if isinstance(connection, Connection):
        return not connection._busy and (connection._mode == EXPRESS or connection.awaits_request)
    return connection.awaits_request


async def turn(made: list[list[Any]] | None = None) -> None:
    """One turn of the loop, which counts for the last read that was made."""
    await asyncio.sleep(0)
    if made and made[-1][1] >= 0:
        made[-1][1] += 1


async def settle(connection: Guarded, transport: Transport, made: list[list[Any]] | None = None) -> None:
    """Until all that can be answered is; at most QUIET_TURNS without a sign of life."""
    quiet, written = 0, -1
    while not at_rest(connection) and quiet < QUIET_TURNS:
        quiet = quiet + 1 if len(transport.written) == written else 0
        written = len(transport.written)
        await turn(made)


async def send(connection: Connection, wire: Wire, reads: Any, seen: Counter[str]) -> None:
    """Each read over a real connection, and so many turns of the loop."""
    for data, turns in reads:
        if wire.closed:
            return
        seen["without transport"] += connection._reader.polled
        await wire.send(data)
        for _ in range(turns):
            await asyncio.sleep(0)
    await wire.settle(connection)


async def feed(connection: Guarded, transport: Transport, reads: Any, made: list[list[Any]] | None = None) -> None:
    """Each read, and so many turns of the loop (-1: until it is at rest). `made`: the reads that came of it."""
    for data, turns in reads:
        for _ in range(10_000):
            if transport.reads or transport.closed:
                break
            await turn(made)
        if transport.closed:
            return
        connection.data_received(data)
        if isinstance(connection, Connection) and connection._reader.ready:
            in_the_way = (connection._held, connection._busy, connection._stopped, connection.ended, connection._mode)
            assert not any(in_the_way), in_the_way
            assert connection._deadline.at == math.inf
        if turns < 0:
            await settle(connection, transport)
        else:
            for _ in range(turns):
                await turn(made)
    await settle(connection, transport, made)


class Mismatch(AssertionError):
    """The lanes answered differently; the message holds all that is needed to see it again."""


class Fuzz:
    """Pairs of listeners, streams for them and what was seen."""

    def __init__(self, seed: int) -> None:
        self.seed = seed
        self.random = random.Random(seed)
        self.pairs = [
            (Side(express=True, tokens=tokens, waits=waits), Side(express=False, tokens=tokens, waits=waits))
            for tokens, waits in ((False, False), (True, False), (False, True))
        ]
        self.seen: Counter[str] = Counter()
        self.statuses: Counter[bytes] = Counter()
        self.streams: Counter[str] = Counter()
        self.requests = 0
        self._reads: list[list[Any]] | None = None
        self._corpus = list(CORPUS.values())

    # ---- streams -------------------------------------------------------------------------------------------

    def good(self) -> tuple[bytes, bool]:
        """A well-formed request, and whether its body must arrive in one turn: aiohttp answers before, and closes,
        where a handler does not need it.
        """
        pick = self.random.random
        choose = self.random.choice
        fields = [choose((b"Host: shield", b"host: a", b"HOST:b.example:80", b"Host: \t[::1] "))]
        if pick() < 0.3:
            fields.append(choose(EXTRA))
        if pick() < 0.15:
            more = choose(EXTRA)
            if more.startswith(b"X-Forwarded") or not fields[-1].startswith(more[:8]):
                fields.append(more)
        if pick() < 0.8:
            fields.append(choose(AUTHORIZED))
        kind = pick()
        body = b""
        if kind < 0.55:
            method, target = b"POST", choose((b"/v1/check", b"/v1/check", b"/v1/check", b"/v1/check?x=1"))
            body = choose(BODIES)
            if pick() < 0.3:
                body = b'{"ip":"203.0.113.%d","user":"%b"}' % (pick() * 40, b"u" * int(pick() * 300))
        elif kind < 0.9:
            method, target = choose((b"GET", b"GET", b"HEAD", b"DELETE", b"OPTIONS", b"POST", b"PUT")), choose(TARGETS)
            fields.append(b"X-Forwarded-For: 203.0.113.%d" % (pick() * 40))
            if pick() < 0.1:
                body = b"x" * int(pick() * 50)
        elif kind < 0.95:
            method, target = b"POST", choose((b"/v1/report", b"/v1/release"))
            body = choose((b'{"user":"u"}', b'{"receipt":"x"}', b'{"leases":["a","b"]}', b"{}"))
        else:
            method, target = choose((b"GET", b"POST", b"PUT")), choose((b"/", b"/v1/check", b"/v1/nothing", b"//v1"))
            body = choose((b"", b"{}"))
        if body or method in (b"POST", b"PUT"):
            length = b"Content-Length: %d" % len(body)
            fields.append(length if pick() < 0.9 else length.lower())
            if not body and pick() < 0.1:
                fields.pop()
        if pick() < 0.03:
            fields.append(choose((b"Connection: close", b"connection: Close", b"Connection: keep-alive")))
        if pick() < 0.5:
            self.random.shuffle(fields)
        head = b"%b %b HTTP/1.1\r\n%b\r\n\r\n" % (method, target, b"\r\n".join(fields))
        needed = method == b"POST" and target.startswith((b"/v1/check", b"/v1/report", b"/v1/release"))
        return head + body, bool(body) and not needed

    def mutated(self) -> bytes:
        """A request that has been tampered with."""
        message = bytearray(self.good()[0])
        below = self.random.randrange
        for _ in range(1 + below(3)):
            at = below(len(message) + 1)
            how = below(6)
            if how == 0:
                message[at:at] = self.random.choice(NASTY)
            elif how == 1:
                del message[at : at + 1 + below(3)]
            elif how == 2:
                message[at : at + 1] = self.random.choice(NASTY)
            elif how == 3:
                lines = bytes(message).split(b"\r\n")
                lines.insert(below(len(lines)), self.random.choice(lines))
                message = bytearray(b"\r\n".join(lines))
            elif how == 4:
                message[at : at + 1] = bytes((below(256),))
            else:
                at = message.find(b"\r\n") + 2
                message[at:at] = self.random.choice(FRAMING)
            if not message:
                break
        return bytes(message)

    def cuts(self, length: int, few: bool, borders: Sequence[int] = ()) -> list[int]:
        """Where to cut so many bytes; sometimes between the messages that lie in them."""
        kind = self.random.random()
        if borders and self.random.random() < 0.3:
            return [border for border in borders if border < length and self.random.random() < 0.9]
        if kind < 0.4:
            return []
        if kind < 0.42 and length < 400 and not few:
            return list(range(1, length))
        return sorted(self.random.randrange(length + 1) for _ in range(1 + int(kind * 5)))

    # ---- comparing -----------------------------------------------------------------------------------------

    async def once(self) -> None:
        """One connection."""
        pick = self.random.random
        express, plain = self.pairs[0 if pick() < 0.7 else 1 if pick() < 0.6 else 2]
        if pick() < 0.05:
            express.clock.now_ns += 100_000_000
            plain.clock.now_ns = express.clock.now_ns
        messages = [self.good() for _ in range(1 + int(pick() * 12))]
        odd = pick()
        stream = b"".join(message for message, _ in messages)
        together = any(flag for _, flag in messages)
        self.requests += len(messages)
        if odd < 0.25:
            stream += self.mutated() + (self.good()[0] if pick() < 0.5 else b"")
            self.requests += 1
            self.streams["mutated"] += 1
        elif odd < 0.28:
            stream += self.random.choice(self._corpus)
            self.requests += 1
            self.streams["corpus"] += 1
        elif odd < 0.33:
            stream = stream[: int(pick() * len(stream))]
            self.streams["truncated"] += 1
        else:
            self.streams["good"] += 1
        borders = list(accumulate(len(message) for message, _ in messages))
        await self.compare(stream, express, plain, good=odd >= 0.33, together=together, borders=borders)

    async def compare(
        self, stream: bytes, express: Side, plain: Side, *, good: bool, together: bool, borders: Sequence[int] = ()
    ) -> None:
        """Mismatch where the answers to a stream differ."""
        moods = self.random if self.random.random() < 0.1 else None
        # Where a handler does not need the body, aiohttp's answer depends on whether it is here in the handler's turn:
        # bytes that the lane holds for a while must then not come later than they would have.
        waits = express.waits or b"/v1/re" in stream  # reports and releases are awaited whatever the store
        together = together or (not good and (moods is not None or waits))
        independent = good and b"close" not in stream.lower()
        local = independent and not together and self.random.random() < 0.2
        inner = self.cuts(len(stream), len(stream) > 5_000, borders)
        if local and self.random.random() < 0.5:
            inner = list(borders[:-1])
        cut = [0, *inner, len(stream)]
        turns = [0 if together else self.random.choice((0, 0, 1, 3)) for _ in cut]
        pieces = [(stream[a:b], turn) for a, b, turn in zip(cut, cut[1:], turns, strict=False) if a < b]
        reads: list[list[Any]] = []
        transport: Transport | Wire
        connection, transport = await express.wire(moods) if local else express.connect(moods)
        assert isinstance(connection, Connection)
        lane = express.listener.express.lane  # type: ignore[union-attr]
        assert isinstance(lane, Looks)
        lane.reads, lane.seen = reads, self.seen
        self._reads = reads
        if isinstance(transport, Wire):
            await send(connection, transport, pieces, self.seen)
        else:
            await feed(connection, transport, pieces, reads)
        self._reads = None
        found, closed = b"".join(transport.written), transport.closed

        if independent:
            cut = [0, *self.cuts(len(stream), True), len(stream)]
            replay = [(stream[a:b], 0 if together else -1) for a, b in pairwise(cut) if a < b]
        else:
            replay = reads
            if not closed and b"".join(read for read, _ in reads) + bytes(connection._held) != stream:
                raise Mismatch(f"seed {self.seed}: bytes were read twice or by nobody: {pieces!r}")
        other, other_transport = plain.connect(None if moods is None else random.Random(self.requests), local=local)
        await feed(other, other_transport, replay)
        wanted, also_closed = b"".join(other_transport.written), other_transport.closed
        if _DATE.sub(b"", found) != _DATE.sub(b"", wanted) or closed != also_closed:
            raise Mismatch(
                f"seed {self.seed}, request {self.requests}:\npieces {pieces!r}\nreads {reads!r}\n"
                f"express, closed {closed}: {found!r}\naiohttp, closed {also_closed}: {wanted!r}"
            )
        self.statuses.update(_STATUS.findall(found))
        quiet = at_rest(connection) and at_rest(other)
        transport.close()
        other_transport.close()
        for _ in range(1_000 if local else 0):
            if connection.transport is None:
                break
            await asyncio.sleep(0)
        for _ in range(1 if quiet else QUIET_TURNS):  # handlers that waited for more draw request ids as they end
            await asyncio.sleep(0)

    async def run(self, requests: int, tell: Any = None) -> None:
        """At least so many requests."""
        with self._recorded():
            for data in self._corpus:
                for _ in range(3):
                    for express, plain in self.pairs:
                        message, together = self.good()
                        await self.compare(message + data, express, plain, good=False, together=together)
                        self.requests += 2
            told = time.monotonic()
            while self.requests < requests:
                await self.once()
                if tell is not None and time.monotonic() - told > 30:
                    told = time.monotonic()
                    tell(self)

    @contextmanager
    def _recorded(self) -> Iterator[None]:
        original = Guarded.data_received

        def data_received(connection: Guarded, data: bytes) -> None:
            if self._reads is not None and data:
                self._reads.append([data, 0])
            original(connection, data)

        Guarded.data_received = data_received  # type: ignore[method-assign]
        try:
            yield
        finally:
            Guarded.data_received = original  # type: ignore[method-assign]

    def coverage(self) -> str:
        """What was reached."""
        return (
            f"seed {self.seed}, {self.requests:,} requests\n"
            f"streams: {dict(sorted(self.streams.items()))}\n"
            f"the lane's looks: {dict(sorted(self.seen.items()))}\n"
            f"answers by status: {dict(sorted((key.decode(), value) for key, value in self.statuses.items()))}"
        )


EXTRA = (
    b"User-Agent: curl/8", b"Accept: */*", b"X-A:", b"X-A: \t b \t", b"X-Bytes: \xe9\xff", b"Content-Type: text/plain",
    b"Authorization: Bearer abc", b"authorization: Basic x", b"X-Tenant: acme", b"x-tenant: \xff", b"Idempotency-Key: k",
    b"X-Forwarded-Method: PATCH", b"X-Forwarded-Uri: /a?b", b"X-Forwarded-For: 1.1.1.1", b"X-Original-URI: /a",
    b"Cookie: a=b; c=d", b"Content-Encoding: gzip", b"Keep-Alive: timeout=5", b"TE: trailers", b"!#$%&'*+-.^_`|~: 1",
    b"Connection: keep-alive", b"X-Long: " + b"l" * 3_000, b"Range: bytes=0-", b"Content-Length-X: 5", b"X-Forwarded-Host: h",
)  # fmt: skip
AUTHORIZED = (
    b"Shield-Authorization: Bearer alpha", b"shield-authorization:bearer alpha", b"Shield-Authorization: Bearer alpha",
    b"Shield-Authorization: Bearer beta",
)  # fmt: skip
BODIES = (
    b'{"ip":"203.0.113.7"}', b'{"ip":"203.0.113.7"}', b'{"ip":"203.0.113.8","request_id":"r-1"}', b"{}", b"[]", b"", b"{",
    b'[{"ip":"203.0.113.7"},{"user":"u"}]', b'{"ip":"nonsense"}', b'{"tennant":"x"}', b'{"cost":-1}', b'{"cost":3}',
    b'{"ip":"203.0.113.7","ip":"203.0.113.8"}', b'{"user":"\\u0061"}', b'{"user":"\xff"}', b" {} ", b'{"user":"\r\n\r\n"}',
    b'{"path":"GET /v1/authz HTTP/1.1\\r\\n\\r\\n"}', b"GET /v1/authz HTTP/1.1\r\nHost: x\r\n\r\n",
)  # fmt: skip
TARGETS = (
    b"/v1/authz", b"/v1/authz", b"/v1/authz?from=original", b"/v1/authz?deny=403", b"/v1/authz?dney=403", b"/v1/authz?",
    b"/v1/authz/envoy", b"/v1/authz/envoy/orders/9?x=1", b"/v1/authz/envoy//a/../b/%2e;c", b"/v1/authz/envoyx",
    b'/v1/authz/envoy/"<>[]\\^`{|}', b"/v1/authz/envoy?q=?", b"/v1/authz/envoy/" + b"p" * 2_000, b"/v1/authz/",
)  # fmt: skip
NASTY = (
    b"\0", b"\r", b"\n", b"\r\n", b"\r\n\r\n", b" ", b"\t", b":", b",", b";", b"\x7f", b"\xff", b"\x0b", b"#", b"\r\n ", b"\n\n",
    b"0", b"1", b"+", b"-", b"HTTP/1.0", b"close", b"chunked", b"GET / HTTP/1.1\r\n\r\n", b"\\", b"%00", b"/", b"?",
)  # fmt: skip
FRAMING = (
    b"Transfer-Encoding: chunked\r\n", b"Transfer-Encoding: identity\r\n", b"Content-Length: 0\r\n", b"Content-Length: 5\r\n",
    b"Content-Length: +5\r\n", b"Content-Length : 5\r\n", b"content-length: 5, 5\r\n", b"Transfer-Encoding:chunked\r\n",
    b"Connection: close\r\n", b"Connection: upgrade\r\n", b"Connection: keep-alive, close\r\n", b"Upgrade: websocket\r\n",
    b"Expect: 100-continue\r\n", b"Host: other\r\n", b"Content-Length: 00\r\n", b"Content-Length:\t5\r\n", b" folded: 1\r\n",
    b"Proxy-Connection: close\r\n", b"Trailer: x\r\n", b"Content-Length: 99999999999999999999\r\n", b"TE: chunked\r\n",
    b"Transfer-Encoding: chunked, identity\r\n", b"X: y\rContent-Length: 1\r\n", b"X: y\nContent-Length: 1\r\n", b"\r\n",
    b"Sec-WebSocket-Key1: x\r\n", b"Server: x\r\nServer: y\r\n", b"Content-Range: bytes 0-1/2\r\n", b"Max-Forwards: 0\r\n",
)  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.server.lane_fuzz", description=__doc__)
    parser.add_argument("--requests", type=int, default=100_000)
    parser.add_argument("--seed", type=int, default=1)
    args = parser.parse_args()
    started = time.monotonic()

    def tell(so_far: Fuzz) -> None:
        print(f"{time.monotonic() - started:.0f} s: {so_far.requests:,} requests", flush=True)

    async def run() -> None:
        fuzz = Fuzz(args.seed)
        loop = asyncio.get_running_loop()
        loop.set_exception_handler(lambda _, context: print("loop:", context, flush=True))
        await fuzz.run(args.requests, tell)
        print(fuzz.coverage())

    uvloop.run(run())
    print(f"no mismatch in {time.monotonic() - started:.0f} s")


if __name__ == "__main__":
    main()
