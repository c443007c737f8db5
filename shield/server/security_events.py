"""Security events on their way out: folded, queued, and written by a thread of their own.

Whoever decides only puts an object into a queue of QUEUE_BOUND; when that is full the event is dropped and counted,
and the next one that fits says how many were. Refusals of one subject for the same reason within `fold` are one event:
the first goes out at once, the others as one with their count when the time is over. Sinks: JSON lines to standard
output or a file, syslog by datagram. A sink that fails loses its event, is counted, and is tried again with the next.
"""

from __future__ import annotations

import hashlib
import json
import os
import queue
import socket
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any, Final, Protocol

from shield.block import Block
from shield.decision import Decision
from shield.detect.detection import Detection
from shield.policy.model import Events
from shield.request import Request
from shield.server import ocsf

QUEUE_BOUND: Final = 10_000  # some seconds of a flood; 20 MB
MAX_FOLDED: Final = 4_096  # subjects whose repeats are being counted
MAX_KEY_BYTES: Final = 64
SYSLOG_BYTES: Final = 8_192  # of one datagram
_SYSLOG_PRIORITY: Final = 10 * 8 + 5  # authpriv, notice


class SinkError(ValueError):
    """A sink that cannot be used; the text says which and why."""


class Sink(Protocol):
    """Somewhere that lines go."""

    def write(self, line: bytes) -> None:
        """OSError where it does not get through."""

    def close(self) -> None: ...


class SecurityEvents:
    """One policy's events. `now_us` is the clock they are stamped and folded by."""

    def __init__(self, settings: Events, *, version: str, now_us: Callable[[], int]) -> None:
        """SinkError."""
        self._version = version
        self._now_us = now_us
        self._fold_us = settings.fold_us
        self._hide = _hider(settings)
        self._sinks = [_sink(text) for text in settings.to]
        self._queue: queue.SimpleQueue[dict[str, Any] | None] = queue.SimpleQueue()
        self._folded: dict[tuple[str, ...], list[Any]] = {}  # key -> [ends_us, count, event]
        self._unsaid = 0
        self.written = self.dropped = self.folded = self.sink_faults = 0
        self._thread = threading.Thread(target=self._work, name="security-events", daemon=True)
        self._thread.start()

    # ---- what happens ------------------------------------------------------------------------------------------

    def detected(self, detection: Detection) -> None:
        """A detection; its repeats are counted by the detector already."""
        self._put(ocsf.detected(detection, self._hide, self._version))

    def refused(self, decision: Decision, request: Request) -> None:
        """A refusal."""
        now_us = self._now_us()
        self._end_folds(now_us)
        key = (decision.reason, *decision.violated, request.tenant or "", request.user or "", request.ip or "")
        known = self._folded.get(key)
        if known is not None:
            known[1] += 1
            self.folded += 1
            return
        event = ocsf.refused(decision, request, now_us, self._hide, self._version)
        if len(self._folded) >= MAX_FOLDED:
            self._end_fold(next(iter(self._folded)))
        self._folded[key] = [now_us + self._fold_us, 0, event]
        self._put(event)

    def blocked(self, block: Block, lifted: bool) -> None:
        """A block that was set or lifted."""
        self._put(ocsf.blocked(block, lifted, self._now_us(), self._hide, self._version))

    def replaced(self, name: str, owner: str | None, fingerprint: str, previous: str) -> None:
        """A policy that was put in force."""
        self._put(ocsf.replaced(name, owner, fingerprint, previous, self._now_us(), self._version))

    def close(self) -> None:
        """Writes what is queued and counted, and ends. Waits at most two seconds for a sink that hangs."""
        for key in list(self._folded):
            self._end_fold(key)
        self._queue.put(None)
        self._thread.join(2)

    # ---- inside ------------------------------------------------------------------------------------------------

    def _end_folds(self, now_us: int) -> None:
        # All folds are as long, so they end in the order they began.
        while self._folded:
            key = next(iter(self._folded))
            if self._folded[key][0] > now_us:
                return
            self._end_fold(key)

    def _end_fold(self, key: tuple[str, ...]) -> None:
        _, count, event = self._folded.pop(key)
        if count:
            now_ms = self._now_us() // 1000
            self._put({**event, "count": count, "start_time": event["time"], "time": now_ms})

    def _put(self, event: dict[str, Any]) -> None:
        if self._queue.qsize() >= QUEUE_BOUND:
            self.dropped += 1
            self._unsaid += 1
            return
        if self._unsaid:
            self._queue.put(ocsf.lost(self._unsaid, self._now_us(), self._version))
            self._unsaid = 0
        self._queue.put(event)

    def _work(self) -> None:
        while (event := self._queue.get()) is not None:
            line = json.dumps(event, separators=(",", ":")).encode()
            for sink in self._sinks:
                try:
                    sink.write(line)
                except (OSError, ValueError):
                    self.sink_faults += 1
            self.written += 1
        for sink in self._sinks:
            sink.close()


class _Lines:
    """JSON lines to a stream."""

    def __init__(self, stream: IO[bytes], owned: bool) -> None:
        self._stream, self._owned = stream, owned

    def write(self, line: bytes) -> None:
        self._stream.write(line + b"\n")
        self._stream.flush()

    def close(self) -> None:
        if self._owned:
            self._stream.close()


class _Syslog:
    """RFC 5424 datagrams."""

    def __init__(self, family: int, address: Any) -> None:
        self._address = address
        self._socket = socket.socket(family, socket.SOCK_DGRAM)
        self._socket.setblocking(False)
        self._head = f"<{_SYSLOG_PRIORITY}>1 - {socket.gethostname()} shield {os.getpid()} ocsf - ".encode()

    def write(self, line: bytes) -> None:
        self._socket.sendto((self._head + line)[:SYSLOG_BYTES], self._address)

    def close(self) -> None:
        self._socket.close()


def _sink(text: str) -> Sink:
    kind, _, rest = text.partition(":")
    if text == "stdout":
        return _Lines(sys.stdout.buffer, owned=False)
    if kind == "file":
        try:
            descriptor = os.open(rest, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
        except OSError as error:
            raise SinkError(f"events.to: {rest}: cannot be written: {error.strerror}") from None
        return _Lines(os.fdopen(descriptor, "ab"), owned=True)
    if rest.startswith("unix:"):
        return _Syslog(socket.AF_UNIX, rest.removeprefix("unix:"))
    host, _, port = rest.rpartition(":")
    if not host or not port.isdigit() or not 0 < int(port) <= 65_535:
        raise SinkError(f"events.to: found {text[:100]!r}; allowed: syslog:unix:PATH or syslog:HOST:PORT")
    host = host.strip("[]")
    return _Syslog(socket.AF_INET6 if ":" in host else socket.AF_INET, (host, int(port)))


def _hider(settings: Events) -> ocsf.Hide:
    if settings.subjects == "plain":
        return lambda value: value[:256]
    key = os.urandom(32)
    if settings.key_file is not None:
        try:
            key = Path(settings.key_file).read_bytes().strip()[:MAX_KEY_BYTES]
        except OSError as error:
            raise SinkError(f"events.key_file: {settings.key_file}: cannot be read: {error.strerror}") from None
        if len(key) < 16:
            raise SinkError(f"events.key_file: {settings.key_file}: found {len(key)} bytes; allowed: at least 16")

    def hide(value: str) -> str:
        if not value:
            return ""
        return hashlib.blake2b(value.encode("utf-8", "surrogatepass"), key=key, digest_size=16).hexdigest()

    return hide
