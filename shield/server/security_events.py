"""Security events on their way out: folded, queued, and written by a thread of their own.

Whoever decides only puts an object into a queue of QUEUE_BOUND; when that is full the event is dropped and counted,
and the next one that fits says how many were. Refusals of one subject for the same reason within `fold` are one event:
the first goes out at once, the others as one with their count when the time is over. Sinks: JSON lines to standard
output or a file, syslog by datagram, a Redis stream. A sink that fails loses its event, is counted, and is tried again
with the next.
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
from typing import IO, Any, Final, Protocol
from urllib.parse import parse_qsl, urlencode, urlsplit, urlunsplit

from shield.block.block import Block
from shield.decision import Decision
from shield.detect.detection import Detection
from shield.identity.paths import path_of
from shield.policy.abuse import Events
from shield.request import Request
from shield.server import ocsf

QUEUE_BOUND: Final = 10_000  # some seconds of a flood; 20 MB
MAX_FOLDED: Final = 4_096  # subjects whose repeats are being counted
MAX_FOLDED_CHARS: Final = 256
MAX_KEY_BYTES: Final = 64
SYSLOG_BYTES: Final = 8_192  # of one datagram
# Of a sink that does not answer; meanwhile the queue fills, and then events are dropped and counted.
SINK_TIMEOUT_S: Final = 2.0
DEFAULT_STREAM: Final = "shield:events"
STREAM_KEEPS: Final = 100_000  # 200 MB of the server
MAX_STREAM_KEEPS: Final = 100_000_000
_SYSLOG_PRIORITY: Final = 10 * 8 + 5  # authpriv, notice


class SinkError(ValueError):
    """A sink that cannot be used; the text says which and why."""


class Sink(Protocol):
    """Somewhere that lines go."""

    def write(self, line: bytes) -> None:
        """OSError where it does not get through."""

    def close(self) -> None: ...


class SecurityEvents:
    """One policy's events. `now_us` is the clock they are stamped and folded by; `key` hashes subjects where the policy
    names no other; `directory` is where names of files start.
    """

    def __init__(
        self,
        settings: Events,
        *,
        version: str,
        now_us: Callable[[], int],
        key: bytes | None = None,
        directory: str | None = None,
    ) -> None:
        """SinkError."""
        self._version = version
        self._now_us = now_us
        self._fold_us = settings.fold_us
        self._hide = _hider(settings, key or os.urandom(32), directory)
        self._sinks: list[Sink] = []
        try:
            for text in settings.to:
                self._sinks.append(_sink(text, directory))
        except SinkError:
            self._close_sinks()
            raise
        self._queue: queue.SimpleQueue[dict[str, Any] | None] = queue.SimpleQueue()
        self._folded: dict[tuple[object, ...], list[Any]] = {}  # key -> [ends_us, count, event]
        self._unsaid = 0
        self.written = self.dropped = self.folded = self.sink_faults = 0
        self._thread = threading.Thread(target=self._work, name="security-events", daemon=True)
        self._thread.start()

    # ---- what happens ------------------------------------------------------------------------------------------

    def detected(self, detection: Detection) -> None:
        """A detection; its repeats are counted by the detector already."""
        self._put(ocsf.detected(detection, self._hide, self._version))

    def refused(self, decision: Decision) -> None:
        """A refusal."""
        request = decision.charges.request
        key = (decision.reason, *decision.violated, *_who(request))
        self._fold(key, lambda now_us: ocsf.refused(decision, request, now_us, self._hide, self._version))

    def would_refuse(self, block: Block, request: Request) -> None:
        """A request that a block would have refused, were it not in shadow mode."""
        key = ("shadow", block.reason, *_who(request))
        self._fold(key, lambda now_us: ocsf.would_refuse(block, request, now_us, self._hide, self._version))

    def blocked(self, block: Block) -> None:
        """A block that was set or lifted."""
        self._put(ocsf.blocked(block, self._now_us(), self._hide, self._version))

    def replaced(self, name: str, owner: str | None, fingerprint: str, previous: str) -> None:
        """A policy that was put in force."""
        self._put(ocsf.replaced(name, owner, fingerprint, previous, self._now_us(), self._version))

    def kept(self, fingerprint: str, issues: list[str]) -> None:
        """A policy that was refused, and the one that stays in force."""
        self._put(ocsf.kept(fingerprint, issues, self._now_us(), self._version))

    def tick(self) -> None:
        """From time to time: what was counted until now is told."""
        self._end_folds(self._now_us())
        if self._unsaid and self._queue.qsize() < QUEUE_BOUND:
            self._queue.put(ocsf.lost(self._unsaid, self._now_us(), self._version))
            self._unsaid = 0

    def stats(self) -> dict[str, int]:
        """For metrics; `events_queued` is a gauge."""
        return {
            "events_written": self.written,
            "events_dropped": self.dropped,
            "events_folded": self.folded,
            "events_sink_faults": self.sink_faults,
            "events_queued": self._queue.qsize(),
        }

    def close(self) -> None:
        """Writes what is queued and counted, and ends. Waits at most two seconds for a sink that hangs."""
        for key in list(self._folded):
            self._end_fold(key)
        self._queue.put(None)
        self._thread.join(2)

    # ---- inside ------------------------------------------------------------------------------------------------

    def _fold(self, key: tuple[object, ...], event_at: Callable[[int], dict[str, Any]]) -> None:
        now_us = self._now_us()
        self._end_folds(now_us)
        known = self._folded.get(key)
        if known is not None:
            known[1] += 1
            self.folded += 1
            return
        event = event_at(now_us)
        if len(self._folded) >= MAX_FOLDED:
            self._end_fold(next(iter(self._folded)))
        self._folded[key] = [now_us + self._fold_us, 0, event]
        self._put(event)

    def _end_folds(self, now_us: int) -> None:
        # All folds are as long, so they end in the order they began.
        while self._folded:
            key = next(iter(self._folded))
            if self._folded[key][0] > now_us:
                return
            self._end_fold(key)

    def _end_fold(self, key: tuple[object, ...]) -> None:
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
        self._close_sinks()

    def _close_sinks(self) -> None:
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


class _RedisStream:
    """Entries of a Redis stream, which keeps about the last `maxlen` of them. It is connected with the first."""

    def __init__(self, url: str) -> None:
        parts = urlsplit(url)
        options = dict(parse_qsl(parts.query))
        stream, kept = options.pop("stream", DEFAULT_STREAM), options.pop("maxlen", str(STREAM_KEEPS))
        if not stream or not (kept.isascii() and kept.isdigit() and 0 < int(kept[:10]) <= MAX_STREAM_KEEPS):
            shown = url.partition("?")[0].rpartition("@")[2]
            raise SinkError(f"events.to: {shown}: allowed: ?stream=NAME&maxlen=1 to {MAX_STREAM_KEEPS:,}")
        self._url = urlunsplit(parts._replace(query=urlencode(options)))
        self._stream, self._keeps = stream, int(kept)
        self._client: Any = None

    def write(self, line: bytes) -> None:
        import redis

        try:
            if self._client is None:
                self._client = redis.Redis.from_url(
                    self._url, socket_timeout=SINK_TIMEOUT_S, socket_connect_timeout=SINK_TIMEOUT_S
                )
            self._client.xadd(self._stream, {"event": line}, maxlen=self._keeps, approximate=True)
        except (redis.RedisError, TypeError) as error:
            raise OSError(str(error)) from None

    def close(self) -> None:
        if self._client is not None:
            self._client.close()


def _sink(text: str, directory: str | None) -> Sink:
    kind, _, rest = text.partition(":")
    if text == "stdout":
        return _Lines(sys.stdout.buffer, owned=False)
    if kind == "file":
        path = path_of(text, directory)
        try:
            descriptor = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except OSError as error:
            raise SinkError(f"events.to: {path}: cannot be written: {error.strerror}") from None
        # Not buffered: processes that share the file write whole lines.
        return _Lines(os.fdopen(descriptor, "ab", buffering=0), owned=True)
    if kind in ("redis", "rediss"):
        return _RedisStream(text)
    if rest.startswith("unix:"):
        return _Syslog(socket.AF_UNIX, rest.removeprefix("unix:"))
    host, _, port = rest.rpartition(":")
    host = host.strip("[]")
    return _Syslog(socket.AF_INET6 if ":" in host else socket.AF_INET, (host, int(port)))


def _who(request: Request) -> tuple[object, ...]:
    """Whom repeats are counted by: long texts by their hash, or folds would hold megabytes."""
    stated = (ocsf.stated(request, name) for name in ("tenant", "user", "ip"))
    return tuple(text if len(text) <= MAX_FOLDED_CHARS else hash(text) for text in stated)


def _hider(settings: Events, key: bytes, directory: str | None) -> ocsf.Hide:
    if settings.subjects == "plain":
        return lambda value: value[:256]
    if settings.key_file is not None:
        path = path_of(settings.key_file, directory)
        try:
            key = path.read_bytes().strip()[:MAX_KEY_BYTES]
        except OSError as error:
            raise SinkError(f"events.key_file: {path}: cannot be read: {error.strerror}") from None
        if len(key) < 16:
            raise SinkError(f"events.key_file: {path}: found {len(key)} bytes; allowed: at least 16")

    def hide(value: str) -> str:
        if not value:
            return ""
        return hashlib.blake2b(value.encode("utf-8", "surrogatepass"), key=key, digest_size=16).hexdigest()

    return hide
