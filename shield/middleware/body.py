"""What a body is measured by while it streams: its bytes, and what they inflate to.

    meter.feed(data) -> None, or (reason, detail): from here on the body is refused

A body that states no length cannot lie about it, because it is counted. A compressed one is inflated alongside, in
pieces that are thrown away, to know what reading it would cost; where that cannot be known the body is refused, because
a ceiling that some encodings slip past is none.
"""

from __future__ import annotations

import zlib
from typing import Final

from shield.guard.size import TOO_LARGE

UNSUPPORTED: Final = "content_type"
MALFORMED: Final = "invalid"
PIECE_BYTES: Final = 65_536
"""How much is inflated at once: a bomb costs no more memory than this."""
RATIO_FREE_BYTES: Final = 65_536
"""Below this a ratio means nothing: a short document of one letter shrinks a hundredfold and harms nobody."""
MAX_RATIO: Final = 100
"""Real documents shrink five- to twentyfold; only made-up ones reach a hundred."""
LINGER_BYTES: Final = 1_048_576
"""How much of a refused body is still taken from the client, so that it sees the answer: what is on its way already."""
ENCODINGS: Final = "gzip, deflate"

Fault = tuple[str, str]


class BodyRefused(OSError):
    """The body is past what it may be. An OSError, as servers raise when a client is gone: applications know those."""

    def __init__(self, fault: Fault) -> None:
        self.fault = fault
        super().__init__(fault[1])


class BodyMeter:
    """Counts one body. `encoding` is its Content-Encoding."""

    __slots__ = ("_inflater", "_max_bytes", "fault", "received")

    def __init__(self, max_bytes: int | None, encoding: str | None = None, max_ratio: int = MAX_RATIO) -> None:
        self.received = 0
        self.fault: Fault | None = None
        self._max_bytes = max_bytes
        self._inflater: _Inflater | None = None
        name = (encoding or "identity").strip(" \t").lower()
        if name in ("gzip", "x-gzip", "deflate"):
            self._inflater = _Inflater(name == "deflate", max_bytes, max_ratio)
        elif name != "identity":
            self.fault = (UNSUPPORTED, f"content-encoding: found {name[:64]!r}; allowed: {ENCODINGS}")

    def feed(self, data: bytes) -> Fault | None:
        """Counts the next bytes. Once there is a fault there is no other answer."""
        self.received += len(data)
        if self.fault is None:
            if self._max_bytes is not None and self.received > self._max_bytes:
                self.fault = (TOO_LARGE, f"bytes: more than {self._max_bytes} came; allowed: at most that")
            elif self._inflater is not None:
                self.fault = self._inflater.feed(data)
        return self.fault


class _Inflater:
    """Inflates and forgets."""

    __slots__ = ("_head", "_max_bytes", "_max_ratio", "_stream", "_taken", "inflated")

    def __init__(self, deflate: bool, max_bytes: int | None, max_ratio: int) -> None:
        self.inflated = 0
        self._taken = 0
        self._max_bytes = max_bytes
        self._max_ratio = max_ratio
        self._head: bytes | None = b"" if deflate else None  # until two bytes tell which kind of deflate it is
        self._stream = zlib.decompressobj(wbits=31)

    def feed(self, data: bytes) -> Fault | None:
        if self._head is not None:
            data = self._head + data
            if len(data) < 2:
                self._head = data
                return None
            # RFC 1950, 2.2. Some senders leave that header out.
            headed = data[0] & 15 == 8 and int.from_bytes(data[:2]) % 31 == 0
            self._head, self._stream = None, zlib.decompressobj(wbits=15 if headed else -15)
        while data:
            held = len(data)
            try:
                out = self._stream.decompress(data, PIECE_BYTES)
            except zlib.error:
                return MALFORMED, "content-encoding: the body is not what it says"
            self.inflated += len(out)
            data = self._stream.unconsumed_tail
            if self._stream.eof:
                # Whoever inflates the body goes on with what follows, so that is measured too.
                data = self._stream.unused_data
                self._stream = zlib.decompressobj(wbits=31)
            self._taken += held - len(data)
            if fault := self._judge():
                return fault
        return self._rest()

    def _rest(self) -> Fault | None:
        """What the stream holds back when its input is all taken."""
        while True:
            try:
                out = self._stream.decompress(b"", PIECE_BYTES)
            except zlib.error:
                return MALFORMED, "content-encoding: the body is not what it says"
            if not out:
                return None
            self.inflated += len(out)
            if fault := self._judge():
                return fault

    def _judge(self) -> Fault | None:
        return inflates_too_much(self.inflated, self._taken, self._max_bytes, self._max_ratio)


def inflates_too_much(inflated: int, taken: int, max_bytes: int | None, max_ratio: int) -> Fault | None:
    """What is wrong with a body of which so many bytes were taken and became so many."""
    if max_bytes is not None and inflated > max_bytes:
        return TOO_LARGE, f"bytes: inflates to more than {max_bytes}; allowed: at most that"
    if inflated > RATIO_FREE_BYTES and inflated > taken * max_ratio:
        return TOO_LARGE, f"bytes: inflates more than {max_ratio}-fold; allowed: at most that"
    return None
