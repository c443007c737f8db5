"""Recorded traffic: from files, gzip or not, to requests with their instants and outcomes.

Lines of access logs (common and combined, nginx, Traefik, with a virtual host or syslog prefix) are read by the
compiled reader; lines that are JSON objects by the names that Traefik, nginx, Caddy, Envoy and Shield itself give to
facts. What cannot be read is counted by its reason with a few samples, and never fatal.
"""

from __future__ import annotations

import gzip
import io
import sys
import time
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, BinaryIO, Final

import msgspec

from shield.core.logline import LineReader
from shield.request import Request

# A line that is longer is no request of a server that bounds its headers.
MAX_LINE_BYTES: Final = 65_536
CHUNK_BYTES: Final = 1 << 20
SAMPLES_KEPT: Final = 5
# Clocks of different machines differ; a line from further ahead would move virtual time for all others.
FUTURE_SKEW_US: Final = 86_400_000_000

Record = tuple[int, Request, int | None, str | None]
"""(microseconds since 1970, request, status, event)."""


@dataclass(slots=True)
class Unread:
    """Lines that were no records, by reason."""

    counts: dict[str, int] = field(default_factory=dict)
    samples: dict[str, list[str]] = field(default_factory=dict)

    @property
    def total(self) -> int:
        return sum(self.counts.values())

    def add(self, why: str, line: bytes) -> None:
        """One line, shown in the first few cases: printable and no longer than a line of a screen."""
        self.counts[why] = self.counts.get(why, 0) + 1
        shown = self.samples.setdefault(why, [])
        if len(shown) < SAMPLES_KEPT:
            text = line[:160].decode("utf-8", "replace")
            shown.append("".join(c if c.isprintable() else "?" for c in text)[:120])


NOT_A_LOG_LINE: Final = "not a line of an access log"
TOO_LONG: Final = f"longer than {MAX_LINE_BYTES:,} bytes"
FROM_THE_FUTURE: Final = "from the future"
NOT_JSON: Final = "not readable as JSON"
NO_TIME: Final = "JSON without a time"
NO_REQUEST: Final = "JSON without an address, method or path"
CUT: Final = "the file ends within its compression"


class Source:
    """Files (or "-", standard input), in the order of their first instants."""

    def __init__(self, paths: list[Path | str], *, now_us: int | None = None) -> None:
        """OSError for a file that cannot be opened. `now_us`: what is the future; by default this instant."""
        self.unread = Unread()
        self.lines = 0
        self.read_bytes = 0
        self.total_bytes = sum(Path(path).stat().st_size for path in paths if path != "-")
        self._not_after_us = (time.time_ns() // 1000 if now_us is None else now_us) + FUTURE_SKEW_US
        self._reader = LineReader()
        self._paths = self._in_order(paths) if len(paths) > 1 else list(paths)

    def _in_order(self, paths: list[Path | str]) -> list[Path | str]:
        """Rotated logs come in the order of their names, the wrong one. Standard input cannot be looked into."""
        if "-" in paths:
            return list(paths)
        first: dict[int, int] = {}
        for at, path in enumerate(paths):
            first[at] = 0
            for line in self._lines(path, lambda _: None, most=1_000):
                record = self.record(line)
                if isinstance(record, tuple):
                    first[at] = record[0]
                    break
        return [paths[at] for at in sorted(first, key=lambda at: first[at])]

    def records(self, progress: Callable[[], None] | None = None) -> Iterator[Record]:
        """Every record; what was none is in `unread`."""
        read, record_of, unread, not_after_us = self._reader.read, self.record, self.unread, self._not_after_us
        for path in self._paths:
            for line in self._lines(path, lambda why: unread.add(why, b"")):
                self.lines += 1
                if progress is not None and not self.lines & 0x3FFF:
                    progress()
                parsed = read(line)
                if parsed is None:
                    record = record_of(line)
                    if isinstance(record, str):
                        if record:
                            unread.add(record, line)
                        else:
                            self.lines -= 1
                        continue
                else:
                    at_us, ip, user, method, target, status, _, host, agent, referer = parsed
                    headers = None if referer is None else {"referer": referer}
                    request = Request(
                        ip=ip, user=user, method=method, path=target, host=host, user_agent=agent, headers=headers
                    )
                    record = (at_us, request, status or None, None)
                if record[0] > not_after_us:
                    unread.add(FROM_THE_FUTURE, line)
                    continue
                yield record

    def record(self, line: bytes) -> Record | str:
        """One line by itself: a record, or why it is none ("" for an empty one)."""
        parsed = self._reader.read(line)
        if parsed is not None:
            at_us, ip, user, method, target, status, _, host, agent, _ = parsed
            request = Request(ip=ip, user=user, method=method, path=target, host=host, user_agent=agent)
            return at_us, request, status or None, None
        if not line.strip():
            return ""
        if len(line) > MAX_LINE_BYTES:
            return TOO_LONG
        # Container runtimes put a time and a stream in front.
        start = line.find(b"{")
        if start == 0 or (0 < start < 80 and line.rstrip()[-1:] == b"}" and b'"' not in line[:start]):
            return json_record(line[start:])
        return NOT_A_LOG_LINE

    def _lines(self, path: Path | str, wrong: Callable[[str], None], most: int | None = None) -> Iterator[bytes]:
        """The lines of one file, each bounded; a longer one is cut to just over the bound, so that it is refused."""
        raw: BinaryIO = sys.stdin.buffer if path == "-" else open(path, "rb", buffering=CHUNK_BYTES)  # noqa: SIM115
        try:
            begin = raw.peek(2)[:2] if isinstance(raw, io.BufferedReader) else b""
            file: Any = gzip.GzipFile(fileobj=raw) if begin == b"\x1f\x8b" else raw
            rest = b""
            seen = 0
            while True:
                try:
                    chunk = file.read1(CHUNK_BYTES) if hasattr(file, "read1") else file.read(CHUNK_BYTES)
                except (EOFError, zlib.error, gzip.BadGzipFile):
                    wrong(CUT)
                    break
                if not chunk:
                    break
                if most is None and path != "-":
                    self.read_bytes += raw.tell() - seen
                    seen = raw.tell()
                lines = (rest + chunk).split(b"\n")
                rest = lines.pop()[: MAX_LINE_BYTES + 1]
                for line in lines:
                    yield line
                    if most is not None:
                        most -= 1
                        if most <= 0:
                            return
            if rest:
                yield rest
        finally:
            if path != "-":
                raw.close()


# ---- JSON ------------------------------------------------------------------------------------------------------

_TIME = ("StartUTC", "time", "@timestamp", "timestamp", "time_iso8601", "start_time", "ts", "at", "time_local", "msec")
_IP = (
    "ClientHost",
    "ip",
    "remote_addr",
    "client_ip",
    "remote_ip",
    "clientip",
    "downstream_remote_address",
    "remote_host",
)
_METHOD = ("RequestMethod", "method", "request_method", "verb", "http_method")
_PATH = ("RequestPath", "path", "request_uri", "uri", "x-envoy-origin-path", "url", "target")
_STATUS = ("DownstreamStatus", "status", "response_code", "status_code", "http_status")
_AGENT = ("request_User-Agent", "user_agent", "http_user_agent", "user-agent", "agent", "userAgent")
_HOST = ("RequestHost", "host", "http_host", "server_name", ":authority", "authority", "vhost")
_USER = ("ClientUsername", "user", "remote_user", "user_id")
_OWN = frozenset(Request.__struct_fields__) - {"ip", "user", "method", "path", "host", "user_agent", "bytes", "headers"}


def json_record(line: bytes) -> Record | str:
    """One JSON object; or why it is no record."""
    try:
        facts = msgspec.json.decode(line)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return NOT_JSON
    if not isinstance(facts, dict):
        return NOT_JSON
    at_us = _instant(_first(facts, _TIME))
    if at_us is None:
        return NO_TIME
    nested = facts.get("request")
    if isinstance(nested, dict):  # Caddy
        facts = {**facts, **nested}
        headers = nested.get("headers")
        agents = headers.get("User-Agent") if isinstance(headers, dict) else None
        if isinstance(agents, list) and agents:
            facts["user_agent"] = agents[0]
    ip, method, path = _text(_first(facts, _IP)), _text(_first(facts, _METHOD)), _text(_first(facts, _PATH))
    if path is None and isinstance(nested, str):  # nginx's "$request"
        parts = nested.split(" ")
        if len(parts) >= 2:
            method, path = parts[0], " ".join(parts[1:-1] if parts[-1].startswith("HTTP/") else parts[1:])
    if ip is None and method is None and path is None:
        return NO_REQUEST
    own = {name: facts[name] for name in _OWN if name in facts}
    try:
        request = msgspec.convert(
            {
                **own,
                "ip": _address(ip),
                "user": _text(_first(facts, _USER)),
                "method": method,
                "path": path,
                "host": _text(_first(facts, _HOST)),
                "user_agent": _text(_first(facts, _AGENT)),
            },
            Request,
        )
    except msgspec.ValidationError:
        return NO_REQUEST
    status = _first(facts, _STATUS)
    if isinstance(status, str) and status.isascii() and status.isdigit():
        status = int(status)
    event = facts.get("event")
    if event is None and status == 401 and _asks_for_password(facts.get("resp_headers")):
        event = "login_failed"
    return (
        at_us,
        request,
        status if isinstance(status, int) and 100 <= status <= 599 else None,
        event if isinstance(event, str) else None,
    )


def _asks_for_password(headers: Any) -> bool:
    """Caddy: the answer to a wrong password, or to none, for HTTP's own Basic login."""
    asked = headers.get("Www-Authenticate") if isinstance(headers, dict) else None
    return isinstance(asked, list) and any(isinstance(one, str) and one.startswith("Basic") for one in asked)


def _first(facts: dict[str, Any], names: tuple[str, ...]) -> Any:
    return next((facts[name] for name in names if facts.get(name) not in (None, "", "-")), None)


def _text(value: Any) -> str | None:
    return value if isinstance(value, str) else None


def _address(ip: str | None) -> str | None:
    """Without a port; of a list that proxies wrote the last, who is certain."""
    if ip is None:
        return None
    ip = ip.rpartition(",")[2].strip()
    if ip.count(":") == 1:
        return ip.partition(":")[0]
    return ip[1:].partition("]")[0] if ip.startswith("[") else ip


def _instant(value: Any) -> int | None:
    """Microseconds of a Unix time in seconds or milliseconds, or of a time in words."""
    if isinstance(value, str):
        if value.replace(".", "", 1).isdigit() and value.isascii() and len(value) <= 20:
            value = float(value)
        else:
            for read in (datetime.fromisoformat, lambda text: datetime.strptime(text, "%d/%b/%Y:%H:%M:%S %z")):
                try:
                    moment = read(value[:64])
                except ValueError:
                    continue
                if moment.tzinfo is None:
                    moment = moment.replace(tzinfo=UTC)
                return max(0, int(moment.timestamp() * 1_000_000))
            return None
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 <= value < 1e18:
        return None
    for scale, below in ((1_000_000, 1e11), (1_000, 1e14), (1, 1e17)):
        if value < below:
            return int(value * scale)
    return int(value) // 1_000
