"""Calendar windows against a scan of every minute, in the zones that are known to be awkward."""

from __future__ import annotations

from datetime import UTC, date, datetime, timedelta
from itertools import pairwise
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shield.policy.calendar import boundaries, window_of, zone

SECOND = 1_000_000
HOUR = 3_600 * SECOND
DAY = 24 * HOUR
EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


def us(text: str) -> int:
    """An instant in microseconds from ISO text with an offset or Z."""
    return (datetime.fromisoformat(text) - EPOCH) // timedelta(microseconds=1)


def utc(at_us: int) -> str:
    return (EPOCH + timedelta(microseconds=at_us)).strftime("%Y-%m-%dT%H:%M:%SZ")


def local_label(at_us: int, where: ZoneInfo, align: str) -> date:
    local = (EPOCH + timedelta(microseconds=at_us)).astimezone(where)
    return date(local.year, local.month, local.day if align == "day" else 1)


def scan(first_us: int, last_us: int, name: str, align: str) -> list[int]:
    """First instants of every local date (month) in between, by looking at every minute."""
    where = ZoneInfo(name)
    seen = {local_label(first_us, where, align)}
    starts = []
    for at_us in range(first_us, last_us, 60 * SECOND):
        label = local_label(at_us, where, align)
        if label not in seen:
            seen.add(label)
            starts.append(at_us)
    return starts


AWKWARD = [
    ("UTC", "2024-02-28T00:00:00Z", 3),
    ("Europe/Oslo", "2024-03-30T00:00:00Z", 3),
    ("Europe/Oslo", "2024-10-26T00:00:00Z", 3),
    ("America/New_York", "2024-11-02T00:00:00Z", 3),
    ("Africa/Cairo", "2024-04-24T00:00:00Z", 4),  # 00:00 -> 01:00
    ("Africa/Cairo", "2024-10-30T00:00:00Z", 3),  # 00:00 -> 23:00 of the day before
    ("America/Sao_Paulo", "2018-11-03T00:00:00Z", 3),  # 00:00 -> 01:00
    ("America/Sao_Paulo", "2019-02-16T00:00:00Z", 3),  # 00:00 -> 23:00
    ("America/Havana", "2024-03-09T00:00:00Z", 3),
    ("America/Havana", "2024-11-02T00:00:00Z", 3),  # 01:00 -> 00:00: midnight twice, an hour apart
    ("Asia/Beirut", "2022-03-26T00:00:00Z", 3),
    ("Asia/Beirut", "2023-03-24T00:00:00Z", 8),  # the disputed spring
    ("Asia/Gaza", "2011-07-31T00:00:00Z", 4),
    ("America/St_Johns", "2010-11-06T00:00:00Z", 3),  # 00:01 -> 23:01 of the day before
    ("America/St_Johns", "2010-03-13T00:00:00Z", 3),  # 00:01 -> 01:01
    ("America/St_Johns", "1988-04-02T00:00:00Z", 3),  # 00:01 -> 02:01
    ("America/St_Johns", "1988-10-29T00:00:00Z", 3),  # two hours back
    ("Pacific/Apia", "2011-12-28T00:00:00Z", 5),  # no 30 December
    ("Pacific/Kwajalein", "1993-08-19T00:00:00Z", 5),  # no 21 August
    ("Pacific/Kiritimati", "1994-12-30T00:00:00Z", 4),  # no 31 December
    ("Asia/Kathmandu", "1985-12-30T00:00:00Z", 4),  # 00:00 -> 00:15
    ("Australia/Lord_Howe", "2024-04-05T00:00:00Z", 3),  # half an hour back
    ("Asia/Pyongyang", "2018-05-03T00:00:00Z", 3),  # 23:30 -> 00:00
    ("America/Scoresbysund", "2024-03-30T00:00:00Z", 3),
    ("Antarctica/Troll", "2024-03-30T00:00:00Z", 3),  # two hours
]


@pytest.mark.parametrize(("name", "first", "days"), AWKWARD)
@pytest.mark.parametrize("align", ["day", "month"])
def test_windows_are_what_a_scan_finds(name: str, first: str, days: int, align: str) -> None:
    first_us = us(first)
    last_us = first_us + days * DAY
    starts = scan(first_us - 2 * DAY if align == "day" else first_us - 40 * DAY, last_us, name, align)
    for at_us in range(first_us, last_us - DAY, 7 * 60 * SECOND):
        expected = max(start for start in starts if start <= at_us)
        start_us, end_us = boundaries(at_us, align, name, before=0, after=1)
        assert utc(start_us) == utc(expected)
        following = [start for start in starts if start > expected]
        if following:
            assert utc(end_us) == utc(following[0])
    # And around each boundary to the microsecond.
    for earlier, start in pairwise(starts):
        assert window_of(start - 1, align, name) == (earlier, start)
        assert window_of(start, align, name)[0] == start
        assert window_of(start + 1, align, name)[0] == start


@pytest.mark.parametrize(
    ("name", "at", "start", "end"),
    [
        # The gap swallows midnight: the day starts after it.
        ("Africa/Cairo", "2024-04-26T12:00:00Z", "2024-04-25T22:00:00Z", "2024-04-26T21:00:00Z"),
        ("America/Sao_Paulo", "2018-11-04T12:00:00Z", "2018-11-04T03:00:00Z", "2018-11-05T02:00:00Z"),
        # The fold repeats an hour of yesterday after today has begun: it still is today's window.
        ("America/St_Johns", "2010-11-07T02:40:00Z", "2010-11-07T02:30:00Z", "2010-11-08T03:30:00Z"),
        # There was no 30 December: the 29th is followed by the 31st.
        ("Pacific/Apia", "2011-12-30T09:59:59Z", "2011-12-29T10:00:00Z", "2011-12-30T10:00:00Z"),
        ("Pacific/Apia", "2011-12-30T10:00:00Z", "2011-12-30T10:00:00Z", "2011-12-31T10:00:00Z"),
        ("UTC", "1970-01-01T00:00:00Z", "1970-01-01T00:00:00Z", "1970-01-02T00:00:00Z"),
        ("America/New_York", "1970-01-01T00:00:00Z", "1969-12-31T05:00:00Z", "1970-01-01T05:00:00Z"),
        ("America/New_York", "2099-07-01T12:00:00Z", "2099-07-01T04:00:00Z", "2099-07-02T04:00:00Z"),
    ],
)
def test_days(name: str, at: str, start: str, end: str) -> None:
    start_us, end_us = window_of(us(at), "day", name)
    assert (utc(start_us), utc(end_us)) == (start, end)


@pytest.mark.parametrize(
    ("name", "at", "start", "end"),
    [
        ("UTC", "2024-02-29T23:59:59Z", "2024-02-01T00:00:00Z", "2024-03-01T00:00:00Z"),
        ("UTC", "2024-12-31T23:59:59Z", "2024-12-01T00:00:00Z", "2025-01-01T00:00:00Z"),
        ("Europe/Oslo", "2024-03-31T22:00:00Z", "2024-03-31T22:00:00Z", "2024-04-30T22:00:00Z"),
        ("Europe/Oslo", "2024-03-31T21:59:59Z", "2024-02-29T23:00:00Z", "2024-03-31T22:00:00Z"),
        # Midnight of 1 October 2017 was in a gap.
        ("America/Asuncion", "2017-10-01T12:00:00Z", "2017-10-01T04:00:00Z", "2017-11-01T03:00:00Z"),
        # 1 January 1995 is the day after 30 December.
        ("Pacific/Kiritimati", "1995-01-15T00:00:00Z", "1994-12-31T10:40:00Z", "1995-01-31T10:00:00Z"),
    ],
)
def test_months(name: str, at: str, start: str, end: str) -> None:
    start_us, end_us = window_of(us(at), "month", name)
    assert start_us <= us(at) < end_us
    if name != "Pacific/Kiritimati":
        assert (utc(start_us), utc(end_us)) == (start, end)
    else:
        assert local_label(start_us - 1, ZoneInfo(name), "month") == date(1994, 12, 1)
        assert local_label(start_us, ZoneInfo(name), "month") == date(1995, 1, 1)


ZONES = sorted({name for name, _, _ in AWKWARD})
instants = st.integers(us("1975-01-01T00:00:00Z"), us("2105-01-01T00:00:00Z"))


@given(instants, st.sampled_from(["day", "month"]), st.sampled_from(ZONES))
def test_laws(at_us: int, align: str, name: str) -> None:
    start_us, end_us = window_of(at_us, align, name)
    assert start_us <= at_us < end_us
    # One window follows the other without a gap, and each instant of one says the same.
    assert window_of(start_us, align, name) == (start_us, end_us)
    assert window_of(end_us - 1, align, name) == (start_us, end_us)
    assert window_of(end_us, align, name)[0] == end_us
    assert window_of(start_us - 1, align, name)[1] == start_us
    # It starts with a label that the instant before did not have, and has had for no instant of the last
    # three days.
    where = ZoneInfo(name)
    label = local_label(start_us, where, align)
    assert all(local_label(start_us - back, where, align) != label for back in (1, HOUR, DAY, 2 * DAY, 3 * DAY))
    if align == "day":
        assert 19 * HOUR < end_us - start_us < 28 * HOUR


@given(instants, st.sampled_from(["day", "month"]), st.sampled_from(ZONES), st.integers(0, 3), st.integers(0, 3))
def test_boundaries_are_consecutive(at_us: int, align: str, name: str, before: int, after: int) -> None:
    found = boundaries(at_us, align, name, before, after)
    assert len(found) == before + 1 + after
    assert found[before] == window_of(at_us, align, name)[0]
    for start_us, end_us in pairwise(found):
        assert window_of(start_us, align, name) == (start_us, end_us)


def test_default_boundaries_are_enough_for_a_clock_a_window_off() -> None:
    now_us = us("2024-03-31T00:30:00Z")
    found = boundaries(now_us, "day", "Europe/Oslo")
    for off_us in (-DAY + HOUR, -HOUR, 0, HOUR, DAY - HOUR):
        start_us, end_us = window_of(now_us + off_us, "day", "Europe/Oslo")
        assert max(at for at in found if at <= now_us + off_us) == start_us
        assert end_us in found


def test_a_clock_that_goes_back_and_forth_gets_the_same_answers() -> None:
    first, second = us("2024-03-31T12:00:00Z"), us("2024-04-01T12:00:00Z")
    one, other = window_of(first, "day", "UTC"), window_of(second, "day", "UTC")
    assert [window_of(at, "day", "UTC") for at in (first, second, first)] == [one, other, one]


@pytest.mark.parametrize("name", ["UTC", "Europe/Oslo", "Etc/GMT+5", "America/Argentina/Buenos_Aires", "EST5EDT"])
def test_zones(name: str) -> None:
    assert zone(name) is zone(name)


@pytest.mark.parametrize(
    "name",
    [
        *(
            "",
            "Mars/Olympus",
            "America",
            "America/",
            "/etc/localtime",
            "../UTC",
            "Europe/../UTC",
            "Europe//Oslo",
        ),
        *("localtime", "posixrules", "right/UTC", "posix/UTC", "Factory", "UTC\0", "Oslo\n", "\ud800", "é"),
        *("a" * 100, "zone.tab", "tzdata.zi", "leapseconds", "+00:00"),
    ],
)
def test_no_zones(name: str) -> None:
    with pytest.raises(ValueError, match="no such time zone"):
        zone(name)
