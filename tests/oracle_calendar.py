"""Which window an instant lies in, for the oracle: by the clock from the epoch, or by a calendar and a time
zone.

A calendar window runs from the first instant with a local date (of a month: with its first date) to the next
such instant. Windows only ever follow each other, so a clock that is set back over midnight, and shows
yesterday's date once more, does not open yesterday's window again.
"""

from __future__ import annotations

from datetime import UTC, date, datetime, timedelta, tzinfo
from functools import lru_cache
from typing import Any
from zoneinfo import ZoneInfo

SECOND_US = 1_000_000
HOUR_S = 3_600
EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


def window_of(now_us: int, spec: Any) -> tuple[int, int]:
    """(start_us, end_us) of the window that holds `now_us`."""
    if spec.align is None:
        start_us = now_us - now_us % spec.window_us
        return start_us, start_us + spec.window_us
    return calendar_window(now_us, spec.align, spec.timezone or "UTC")


def calendar_window(now_us: int, align: str, timezone: str) -> tuple[int, int]:
    """(start_us, end_us) of the calendar "day" or "month" of an IANA time zone."""
    zone = ZoneInfo(timezone)
    now_s = now_us // SECOND_US
    day = local_date(now_s, zone)
    if align == "month":
        day = day.replace(day=1)
    # Begin one too late, because today's window may have begun although the clock shows yesterday once more.
    day = following(day, align)
    while first_instant(day, zone) > now_s:
        day = preceding(day, align)
    start_s = end_s = first_instant(day, zone)
    while end_s == start_s:  # a date the zone skipped begins where the one after it does: it has no window
        day = following(day, align)
        end_s = first_instant(day, zone)
    return start_s * SECOND_US, end_s * SECOND_US


@lru_cache(maxsize=4096)
def first_instant(day: date, zone: tzinfo) -> int:
    """The first second, in Unix time, whose local date is `day` or later.

    That is either a midnight, in some offset that the zone has around then, or the moment its offset changes.
    """
    midnight = int(datetime(day.year, day.month, day.day, tzinfo=UTC).timestamp())
    hours = range(midnight - 48 * HOUR_S, midnight + 48 * HOUR_S + 1, HOUR_S)
    offsets = [offset_of(at, zone) for at in hours]
    candidates = {midnight - offset for offset in offsets}
    for at, before, after in zip(hours, offsets, offsets[1:], strict=False):
        if before != after:
            candidates.add(change_of_offset(at, at + HOUR_S, zone))
    return min(at for at in candidates if local_date(at, zone) >= day)


def change_of_offset(low: int, high: int, zone: tzinfo) -> int:
    """The second in (low, high] from which the offset is no longer what it was at `low`."""
    while high - low > 1:
        middle = (low + high) // 2
        if offset_of(middle, zone) == offset_of(low, zone):
            low = middle
        else:
            high = middle
    return high


def local_date(at_s: int, zone: tzinfo) -> date:
    return (EPOCH + timedelta(seconds=at_s)).astimezone(zone).date()


def offset_of(at_s: int, zone: tzinfo) -> int:
    """Seconds that local time is ahead of UTC at an instant."""
    offset = (EPOCH + timedelta(seconds=at_s)).astimezone(zone).utcoffset()
    assert offset is not None
    return int(offset.total_seconds())


def following(day: date, align: str) -> date:
    if align == "day":
        return day + timedelta(days=1)
    return date(day.year + 1, 1, 1) if day.month == 12 else date(day.year, day.month + 1, 1)


def preceding(day: date, align: str) -> date:
    if align == "day":
        return day - timedelta(days=1)
    return date(day.year - 1, 12, 1) if day.month == 1 else date(day.year, day.month - 1, 1)
