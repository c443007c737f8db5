"""Rates and durations: what is read, what is refused and why, and that text and value correspond."""

from __future__ import annotations

from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shield.rate import MAX_PERIOD_US, Rate, format_duration, parse_duration

SECOND = 1_000_000
DAY = 86_400 * SECOND


@pytest.mark.parametrize(
    ("text", "count", "period_us"),
    [
        ("100/s", 100, SECOND),
        ("100 per minute", 100, 60 * SECOND),
        ("1_000_000/day", 1_000_000, DAY),
        ("10/30s", 10, 30 * SECOND),
        ("5000/h", 5_000, 3_600 * SECOND),
        ("5/200ms", 5, 200_000),
        ("5 / 200 ms", 5, 200_000),
        ("1/us", 1, 1),
        ("7/w", 7, 7 * DAY),
        ("7/2 weeks", 7, 14 * DAY),
        ("3/hr", 3, 3_600 * SECOND),
        ("3 per 10 min", 3, 600 * SECOND),
        ("3/10 Sec", 3, 10 * SECOND),
        ("\t3/minutes ", 3, 60 * SECOND),
        ("007/s", 7, SECOND),
        ("1/30d", 1, MAX_PERIOD_US),
        ("1000000/s", 1_000_000, SECOND),
        ("5000/month", 5_000, None),
        ("5_000 per Month", 5_000, None),
    ],
)
def test_reads(text: str, count: int, period_us: int | None) -> None:
    assert Rate.parse(text) == Rate(count, period_us)


# Restated from alisaifee/limits tests/test_ratelimit_parser.py (MIT). There, "; " and ", " separate several
# limits, a month is 30 days and a year 360: here one text is one rate, a month is the calendar's and there is
# no year.
@pytest.mark.parametrize(
    ("text", "period_s"),
    [
        ("1 per second", 1),
        ("1/SECOND", 1),
        ("1 / Second", 1),
        ("1 per 3 hour", 10_800),
        ("1/2 day", 172_800),
    ],
)
def test_reads_as_limits_does(text: str, period_s: int) -> None:
    assert Rate.parse(text) == Rate(1, period_s * SECOND)


@pytest.mark.parametrize(
    "text",
    ["1 per 3 hour; 1 per second", "1 per 3 hour, 1 per second", "1 per year", "1 per millenium", "meow"],
)
def test_refuses_what_limits_reads_otherwise(text: str) -> None:
    with pytest.raises(ValueError, match=r"found .*; allowed: a count per period"):
        Rate.parse(text)


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("0/s", "count of 0"),
        ("0/month", "count of 0"),
        ("5/0s", "period of 0"),
        ("-1/s", "without a sign"),
        ("+1/s", "without a sign"),
        ("1.5/s", "whole"),
        ("1/1.5s", "whole"),
        ("1e3/s", "whole"),
        ("nan/s", "whole"),
        ("inf/s", "whole"),
        ("", "empty"),
        ("  ", "empty"),
        ("100", "found '100'"),
        ("/s", "found '/s'"),
        ("100/", "found '100/'"),
        ("100 s", "found '100 s'"),
        ("1__0/s", "found '1__0/s'"),
        ("_1/s", "found '_1/s'"),
        ("1_/s", "found '1_/s'"),
        ("10 perm", "found '10 perm'"),
        ("5/s/m", "one rate only"),
        ("5/s, 10/m", "one rate only"),
        ("5/s\n10/m", "one rate only"),
        ("5/s\n", "one rate only"),
        ("5/fortnight", "no such unit as 'fortnight'"),
        ("5/year", "no such unit as 'year'"),
        ("1000001/s", "more than 1,000,000 per second"),
        ("2/us", "more than 1,000,000 per second"),
        ("1001/ms", "more than 1,000,000 per second"),
        ("1/31d", "longer than 30 days"),
        ("1/5w", "longer than 30 days"),
        ("5/2 month", "one at a time"),
        ("5/0 month", "one at a time"),
        ("1" * 30 + "/month", "more than 1,000,000 per second"),
        ("1" * 65, "65 characters"),
        ("1/" + "9" * 62, "found"),
        ("١/s", "ASCII"),
        ("\uff11/s", "ASCII"),
        ("1/ſ", "ASCII"),
        ("1/\u212a", "ASCII"),
        ("1\u00a0/s", "ASCII"),
        ("1/s\0", "found"),
        ("\ud800/s", "ASCII"),
    ],
)
def test_refuses(text: str, why: str) -> None:
    with pytest.raises(ValueError) as caught:
        Rate.parse(text)
    message = str(caught.value)
    assert why in message
    assert "found" in message
    assert "allowed" in message
    assert len(message) < 500
    message.encode()  # printable whatever was found


@pytest.mark.parametrize("value", [None, True, 5, 1.5, float("nan"), b"5/s", ["5/s"]])
def test_refuses_other_types(value: object) -> None:
    with pytest.raises(ValueError, match="found"):
        Rate.parse(value)


@pytest.mark.parametrize(
    ("count", "period_us"),
    [
        (0, 1),
        (-1, 1),
        (True, 1),
        (1.0, 1),
        (1, 0),
        (1, -1),
        (1, True),
        (2, 1),
        (1, MAX_PERIOD_US + 1),
        (10**13, None),
    ],
)
def test_a_rate_cannot_be_built_out_of_bounds(count: int, period_us: int | None) -> None:
    with pytest.raises(ValueError, match="allowed"):
        Rate(count, period_us)


def test_reduced_is_the_fraction_and_equality_is_not() -> None:
    assert Rate.parse("60/m").reduced == Rate.parse("1/s").reduced == (1, SECOND)
    assert Rate.parse("60/m") != Rate.parse("1/s")
    assert Rate.parse("1000/ms").reduced == (1, 1)
    assert Rate.parse("45/m").reduced == (3, 4 * SECOND)
    with pytest.raises(ValueError, match="month"):
        _ = Rate.parse("5/month").reduced


def test_frozen() -> None:
    rate = Rate(1, 1)
    with pytest.raises(AttributeError):
        rate.count = 2
    assert not hasattr(rate, "__dict__")


@pytest.mark.parametrize(
    ("text", "canonical"),
    [
        ("100 per second", "100/s"),
        ("100/60s", "100/m"),
        ("1/24h", "1/d"),
        ("1/w", "1/7d"),
        ("10/30 s", "10/30s"),
        ("5/1000us", "5/ms"),
        ("1/1500ms", "1/1500ms"),
        ("5 per month", "5/month"),
    ],
)
def test_canonical_text(text: str, canonical: str) -> None:
    assert str(Rate.parse(text)) == canonical


periods = st.one_of(
    st.integers(1, MAX_PERIOD_US),
    st.sampled_from([1, 1_000, SECOND, 60 * SECOND, 3_600 * SECOND, DAY, 7 * DAY]).flatmap(
        lambda unit: st.integers(1, min(10_000, MAX_PERIOD_US // unit)).map(lambda many: many * unit)
    ),
)


@given(periods, st.integers(1, 10**13))
def test_canonical_text_reads_back(period_us: int, count: int) -> None:
    rate = Rate(min(count, period_us), period_us)
    assert Rate.parse(str(rate)) == rate
    c, p = rate.reduced
    assert Fraction(c, p) == Fraction(rate.count, period_us)
    assert 1 <= c <= p <= MAX_PERIOD_US


@given(st.text(max_size=70) | st.from_regex(r"\A[0-9_]{1,9} ?(/|per) ?[0-9_]{0,9} ?[a-z]{1,7}\Z"))
def test_any_text_is_a_rate_or_a_value_error(text: str) -> None:
    try:
        rate = Rate.parse(text)
    except ValueError as error:
        str(error).encode()
    else:
        assert Rate.parse(str(rate)) == rate


@pytest.mark.parametrize(
    ("text", "duration_us"),
    [
        ("60s", 60 * SECOND),
        ("5m", 300 * SECOND),
        ("24h", DAY),
        ("1d", DAY),
        ("1 week", 7 * DAY),
        ("200ms", 200_000),
        ("1_500 us", 1_500),
        ("0s", 0),
        ("2 Hours", 7_200 * SECOND),
    ],
)
def test_durations(text: str, duration_us: int) -> None:
    assert parse_duration(text) == duration_us


@pytest.mark.parametrize(
    "text", ["", "60", "s", "-1s", "1.5s", "1 month", "5m 30s", "1e3s", "١s", "9" * 65 + "s", None, 60]
)
def test_refused_durations(text: object) -> None:
    with pytest.raises(ValueError, match=r"found[\s\S]*allowed"):
        parse_duration(text)


@given(st.integers(0, 10**15))
def test_durations_read_back(duration_us: int) -> None:
    assert parse_duration(format_duration(duration_us)) == duration_us


def test_duration_text() -> None:
    assert [format_duration(us) for us in (0, 1, 60 * SECOND, 90 * SECOND)] == ["0s", "1us", "1m", "90s"]
