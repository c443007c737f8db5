"""The log: JSON or console lines on standard error, one event each.

What never appears in it: addresses, keys, tokens, header values, paths. A line says what was decided and by
which limit; who it was about is known by the request id only. Lines about refusals are rationed, or an attack
would write the log.
"""

from __future__ import annotations

import logging
import traceback
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Final, TextIO

import structlog
from structlog.typing import FilteringBoundLogger

from shield.core import TokenBucket
from shield.server.bounds import MAX_REQUEST_ID_CHARS, REFUSAL_LINES, REFUSAL_LINES_BURST

if TYPE_CHECKING:
    from shield.decision import Decision
    from shield.detect.detection import Detection

FORMATS: Final = ("json", "console")
LEVELS: Final = ("debug", "info", "warning", "error")

Log = FilteringBoundLogger


def open_log(stream: TextIO, format: str, level: str, **fields: Any) -> Log:
    """A logger of its own: nothing global is configured. Every line has the `fields`."""
    renderer: Any
    if format == "json":
        renderer = structlog.processors.JSONRenderer()
    else:
        renderer = structlog.dev.ConsoleRenderer(colors=stream.isatty())
    log: Log = structlog.wrap_logger(
        structlog.WriteLogger(stream),
        processors=[
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            renderer,
        ],
        wrapper_class=structlog.make_filtering_bound_logger(getattr(logging, level.upper())),
    )
    return log.bind(**fields)


class ForeignRecords(logging.Handler):
    """Records of the libraries underneath, as events of ours.

    Only their template and the place of an exception are kept: arguments and exception texts may hold what a
    client sent.
    """

    def __init__(self, log: Log) -> None:
        super().__init__(logging.WARNING)
        self._log = log

    def emit(self, record: logging.LogRecord) -> None:
        """Called by the logging module."""
        fields: dict[str, Any] = {"logger": record.name, "template": str(record.msg)[:200]}
        if record.exc_info and record.exc_info[1] is not None:
            fields |= fault_fields(record.exc_info[1])
        self._log.log(record.levelno, "library", **fields)


def fault_fields(error: BaseException) -> dict[str, Any]:
    """Where an unforeseen exception comes from: its type and frames. Its text may quote a request."""
    frames = traceback.extract_tb(error.__traceback__)[-8:]
    return {
        "error": type(error).__name__,
        "at": [f"{'/'.join(frame.filename.split('/')[-2:])}:{frame.lineno} {frame.name}" for frame in frames],
    }


class DecisionLog:
    """Lines about refusals: REFUSAL_LINES of them, the rest is counted and told with the next line."""

    def __init__(
        self, log: Log, on_suppressed: Callable[[int], None], *, clock: Callable[[], int] | None = None
    ) -> None:
        self._log = log
        self._on_suppressed = on_suppressed
        self._ration = TokenBucket(REFUSAL_LINES, burst=REFUSAL_LINES_BURST, max_keys=3, clock=clock)
        self._left_out = 0

    def refused(self, decision: Decision, request_id: str, endpoint: str, elapsed_s: float) -> None:
        """One refusal."""
        if not self._allowed("refused"):
            return
        self._log.info(
            "refused",
            request_id=request_id,
            endpoint=endpoint,
            reason=decision.reason,
            status=decision.status,
            limits=decision.violated,
            degraded=decision.degraded,
            latency_ms=round(elapsed_s * 1000, 3),
            **self._told(),
        )

    def problem(self, request_id: str, endpoint: str, status: int, field: str | None) -> None:
        """One request that was not understood, or whose caller was not known."""
        if not self._allowed("problem"):
            return
        fields = {} if field is None else {"field": field}
        self._log.info("problem", request_id=request_id, endpoint=endpoint, status=status, **fields, **self._told())

    def detected(self, detection: Detection) -> None:
        """What a detector found; whom it found, no line tells."""
        if not self._allowed("detected"):
            return
        self._log.warning(
            "detected",
            request_id=shown_request_id(detection.request_id),
            detector=detection.name,
            severity=detection.detector.severity,
            value=round(detection.value, 3),
            threshold=round(detection.threshold, 3),
            events=detection.events,
            **self._told(),
        )

    def _allowed(self, kind: str) -> bool:
        if self._ration.allow(kind):
            return True
        self._left_out += 1
        self._on_suppressed(1)
        return False

    def _told(self) -> dict[str, int]:
        left_out, self._left_out = self._left_out, 0
        return {"left_out": left_out} if left_out else {}


def shown_request_id(request_id: str | None) -> str | None:
    """The id if it fits into a log line and a header field; None if it is absent, long or not plain."""
    if not request_id or len(request_id) > MAX_REQUEST_ID_CHARS:
        return None
    return request_id if request_id.isascii() and request_id.isprintable() else None
