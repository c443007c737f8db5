"""Calendar windows: days and months of a time zone, as instants.

A window runs from the first instant with a local date (the first date of a month) to the next such. The
window of an instant is the one with the greatest start that is not later. So every instant lies in exactly
one window, windows only ever follow each other, and a clock that is set back across midnight does not open
yesterday's window again.

    a gap at midnight    the day starts at the instant after the gap (01:00 local time)
    a fold over midnight the day starts at its first midnight; what repeats of the day before belongs to it
    a skipped day        has no window; the day after starts where the day before ends

Instants are Unix microseconds; boundaries fall on whole seconds because every zone's offset does.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from datetime import UTC, date, datetime, timedelta, tzinfo
from functools import lru_cache
from zoneinfo import ZoneInfo, available_timezones

DAY = "day"
MONTH = "month"
ALIGNMENTS = (DAY, MONTH)

# Policies name few zones; a bound only so that a long-lived process that reloads often cannot grow.
_ZONES_KEPT = 256

_SECOND_US = 1_000_000
_DAY_S = 86_400
_EPOCH_DAY = date(1970, 1, 1).toordinal()
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_ZONE_NAME = re.compile(r"[A-Za-z0-9_+-]{1,32}(?:/[A-Za-z0-9_+-]{1,32}){0,2}")
# These differ from host to host, or count leap seconds, and would let two nodes disagree about a boundary.
_NOT_PORTABLE = ("localtime", "posixrules", "Factory", "right", "posix")


@lru_cache(maxsize=_ZONES_KEPT)
def zone(name: str) -> tzinfo:
    """The zone with this IANA name. Raises ValueError. UTC needs no time zone data on the machine."""
    if name == "UTC":
        return UTC
    if not _ZONE_NAME.fullmatch(name) or name.split("/")[0] in _NOT_PORTABLE:
        raise ValueError(f"no such time zone as {name[:64]!r}")
    try:
        return ZoneInfo(name)
    except (KeyError, ValueError, OSError):
        missing = "" if available_timezones() else " (this machine has no time zone data: install tzdata)"
        raise ValueError(f"no such time zone as {name!r}{missing}") from None


# The last answer by (align, timezone): almost every request falls into the window of the one before it.
# Bounded by the number of time zones there are.
_latest: dict[tuple[str, str], tuple[int, int]] = {}


def window_of(now_us: int, align: str, timezone: str) -> tuple[int, int]:
    """(start_us, end_us) of the window that holds `now_us`: start_us <= now_us < end_us.

    `align` is one of ALIGNMENTS, `timezone` an IANA name; ValueError for a zone that is none.
    """
    start_us, end_us = _latest.get((align, timezone), (0, 0))
    if not start_us <= now_us < end_us:
        start_us, end_us = boundaries(now_us, align, timezone, before=0, after=1)
        _latest[align, timezone] = (start_us, end_us)
    return start_us, end_us


def boundaries(now_us: int, align: str, timezone: str, before: int = 1, after: int = 2) -> tuple[int, ...]:
    """The start of the window that holds `now_us`, with `before` earlier and `after` later boundaries,
    ascending.

    For a store whose own clock decides: it takes the greatest boundary that is not later than its clock. With
    the defaults that answers for clocks that are up to a whole window behind or ahead.
    """
    where = zone(timezone)
    next_of, previous_of = _STEPS[align]
    # One date further than the clock says: a fold may have entered a day and left it again.
    label = next_of(_local_date(now_us // _SECOND_US, where))
    start = _start(label, where)
    while start * _SECOND_US > now_us:
        label = previous_of(label)
        start = _start(label, where)
    earlier = _collect(label, start, before, where, previous_of)
    later = _collect(label, start, after, where, next_of)
    return tuple(at * _SECOND_US for at in (*reversed(earlier), start, *later))


def _collect(label: date, start: int, count: int, where: tzinfo, step: Callable[[date], date]) -> list[int]:
    """The next `count` different starts one way; a skipped date has the start of the one beside it."""
    starts: list[int] = []
    last = start
    while len(starts) < count:
        label = step(label)
        at = _start(label, where)
        if at != last:
            starts.append(at)
            last = at
    return starts


def _start(label: date, where: tzinfo) -> int:
    """The first second at which local time is at or past the midnight that begins `label`."""
    midnight = datetime(label.year, label.month, label.day, tzinfo=where)
    local = (label.toordinal() - _EPOCH_DAY) * _DAY_S
    before = _offset(midnight.replace(fold=0))
    after = _offset(midnight.replace(fold=1))
    if before >= after:
        return local - before  # ordinary, or repeated: then the first of the two
    # Midnight is in a gap, which begins somewhere in (low, high]: find the second at which it does.
    low, high = local - after, local - before
    while high - low > 1:
        middle = (low + high) // 2
        if middle + _offset(_local(middle, where)) >= local:
            high = middle
        else:
            low = middle
    return high


def _local(at_s: int, where: tzinfo) -> datetime:
    return (_EPOCH + timedelta(seconds=at_s)).astimezone(where)


def _local_date(at_s: int, where: tzinfo) -> date:
    local = _local(at_s, where)
    return date(local.year, local.month, local.day)


def _offset(local: datetime) -> int:
    offset = local.utcoffset()
    if offset is None:
        raise ValueError("a zone without an offset")
    return offset.days * _DAY_S + offset.seconds


def _next_day(label: date) -> date:
    return date.fromordinal(label.toordinal() + 1)


def _previous_day(label: date) -> date:
    return date.fromordinal(label.toordinal() - 1)


def _next_month(label: date) -> date:
    return date(label.year + 1, 1, 1) if label.month == 12 else date(label.year, label.month + 1, 1)


def _previous_month(label: date) -> date:
    if label.day > 1:
        return label.replace(day=1)
    return date(label.year - 1, 12, 1) if label.month == 1 else date(label.year, label.month - 1, 1)


_STEPS = {DAY: (_next_day, _previous_day), MONTH: (_next_month, _previous_month)}
