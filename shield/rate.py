"""Rates and durations as people write them: "100/s", "10/30s", "1_000_000 per day", "60s".

A rate is a count of units per period. Periods are whole microseconds, so a rate is an exact fraction and
nothing here is ever a float. One rate has no length in microseconds: "5000/month" counts by the calendar, and
`period_us` is None.

Bounds, with their reasons. A rate lies between 1 per 30 days and 1,000,000 per second: below one unit a
microsecond every store can tell one unit from the next by its clock, and within 30 days the products of a
count and a period stay where the stores' wide arithmetic is exact. Text is at most 64 characters: the longest
sensible rate has fewer than 40.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from math import gcd

MAX_TEXT = 64
MAX_PERIOD_US = 30 * 86_400_000_000

_S = 1_000_000
_UNITS_US: dict[str, int] = {
    "us": 1,
    "ms": 1_000,
    **dict.fromkeys(("s", "sec", "second", "seconds"), _S),
    **dict.fromkeys(("m", "min", "minute", "minutes"), 60 * _S),
    **dict.fromkeys(("h", "hr", "hour", "hours"), 3_600 * _S),
    **dict.fromkeys(("d", "day", "days"), 86_400 * _S),
    **dict.fromkeys(("w", "week", "weeks"), 7 * 86_400 * _S),
}
_CANONICAL = ("d", "h", "m", "s", "ms", "us")
_UNIT_HELP = "us, ms, s/sec/second, m/min/minute, h/hr/hour, d/day or w/week"

RATE_HELP = (
    'a count per period such as "100/s", "100 per minute", "10/30s", "5/200ms", "1_000_000/day" or '
    '"5000/month", from 1 per 30 days to 1,000,000 per second'
)
DURATION_HELP = f'a whole number and a unit such as "60s", "5m" or "24h" (units: {_UNIT_HELP})'

_NUMBER = r"[0-9]+(?:_[0-9]+)*"
_RATE = re.compile(rf"(?P<count>{_NUMBER})[ \t]*(?:/|per\b)[ \t]*(?P<many>{_NUMBER})?[ \t]*(?P<unit>[a-z]+)")
_DURATION = re.compile(rf"(?P<many>{_NUMBER})[ \t]*(?P<unit>[a-z]+)")
_SIGNED_OR_FRACTION = re.compile(r"[-+][0-9.]|[0-9]\.|\.[0-9]|[0-9]e[-+]?[0-9]|\bnan\b|\binf(?:inity)?\b")


@dataclass(frozen=True, slots=True)
class Rate:
    """`count` units per `period_us` microseconds; `period_us` is None for a calendar month.

    Equal rates are written the same way: 60 per minute is not 1 per second, because the count is also the
    size of a window and the default burst. `reduced` is the fraction itself. Raises ValueError when out of
    bounds.
    """

    count: int
    period_us: int | None

    def __post_init__(self) -> None:
        if type(self.count) is not int or self.count < 1:
            raise ValueError(f"count: found {self.count!r}; allowed: a whole number of at least 1")
        if self.period_us is None:
            # A month has at least 28 days; up to 30 days' worth keeps the count a number every store can
            # hold.
            if self.count > MAX_PERIOD_US:
                raise ValueError(f"found a rate of more than 1,000,000 per second; allowed: {RATE_HELP}")
            return
        if type(self.period_us) is not int or not 1 <= self.period_us <= MAX_PERIOD_US:
            raise ValueError(
                f"period: found {self.period_us!r} microseconds; allowed: 1 microsecond to 30 days "
                f"({MAX_PERIOD_US} microseconds)"
            )
        if self.count > self.period_us:
            raise ValueError(f"found a rate of more than 1,000,000 per second; allowed: {RATE_HELP}")

    @classmethod
    def parse(cls, text: str) -> Rate:
        """Reads a rate; raises ValueError saying what was found and what is allowed."""
        lowered = _readable(text, RATE_HELP)
        match = _RATE.fullmatch(lowered)
        if match is None:
            raise _refusal(text, _why_no_rate(lowered), RATE_HELP)
        count = int(match["count"])
        many = int(match["many"] or 1)
        unit = match["unit"]
        if count == 0:
            raise _refusal(text, "a count of 0 would refuse everything", RATE_HELP)
        if unit == "month":
            if many != 1:
                raise _refusal(text, "a calendar month is counted one at a time", RATE_HELP)
            return cls(count, None)
        period_us = _units_us(unit, text, RATE_HELP) * many
        if period_us == 0:
            raise _refusal(text, "a period of 0", RATE_HELP)
        if period_us > MAX_PERIOD_US:
            raise _refusal(text, "a period longer than 30 days", RATE_HELP)
        if count > period_us:
            raise _refusal(text, "more than 1,000,000 per second", RATE_HELP)
        return cls(count, period_us)

    @property
    def reduced(self) -> tuple[int, int]:
        """(c, p): c units per p microseconds in lowest terms. Raises ValueError for a calendar month."""
        if self.period_us is None:
            raise ValueError("a rate per calendar month has no fixed length and so no reduced form")
        divisor = gcd(self.count, self.period_us)
        return self.count // divisor, self.period_us // divisor

    def __str__(self) -> str:
        """Canonical text, in the largest unit that divides the period: "100/s", "10/30s", "1/2d"."""
        if self.period_us is None:
            return f"{self.count}/month"
        return f"{self.count}/{_canonical_period(self.period_us)}"


def parse_duration(text: str) -> int:
    """Reads "60s", "5m", "24h", "200ms" and the like as whole microseconds, 0 or more.

    Raises ValueError saying what was found and what is allowed. How long is too long is for the caller to
    say.
    """
    lowered = _readable(text, DURATION_HELP)
    match = _DURATION.fullmatch(lowered)
    if match is None:
        raise _refusal(text, _why_no_number(lowered), DURATION_HELP)
    return int(match["many"]) * _units_us(match["unit"], text, DURATION_HELP)


def format_duration(duration_us: int) -> str:
    """The shortest exact text of whole microseconds: 60_000_000 is "1m". The inverse of `parse_duration`."""
    if duration_us == 0:
        return "0s"
    period = _canonical_period(duration_us)
    return period if period[0].isdigit() else f"1{period}"


def _canonical_period(period_us: int) -> str:
    unit = next(unit for unit in _CANONICAL if period_us % _UNITS_US[unit] == 0)
    many = period_us // _UNITS_US[unit]
    return unit if many == 1 else f"{many}{unit}"


def _readable(text: object, allowed: str) -> str:
    """The text trimmed and in lower case, or ValueError for what no rate or duration can be."""
    if not isinstance(text, str):
        raise ValueError(f"found {_kind(text)}; allowed: {allowed}")
    if len(text) > MAX_TEXT:
        raise ValueError(f"found text of {len(text)} characters; allowed: at most {MAX_TEXT}, {allowed}")
    trimmed = text.strip(" \t")
    if not trimmed:
        raise ValueError(f"found empty text; allowed: {allowed}")
    if not trimmed.isascii():
        raise _refusal(text, "only ASCII digits and letters count", allowed)
    return trimmed.lower()


def _kind(value: object) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    return f"a value of type {type(value).__name__}"


def _units_us(unit: str, text: str, allowed: str) -> int:
    units_us = _UNITS_US.get(unit)
    if units_us is None:
        if unit == "month":
            raise _refusal(text, "a month has no fixed length", allowed)
        raise _refusal(text, f"no such unit as {unit!r} (units: {_UNIT_HELP})", allowed)
    return units_us


def _why_no_number(lowered: str) -> str:
    return "numbers are whole and without a sign" if _SIGNED_OR_FRACTION.search(lowered) else ""


def _why_no_rate(lowered: str) -> str:
    if re.search(r"[;,|\n]", lowered) or len(re.findall(r"/|\bper\b", lowered)) > 1:
        return "one rate only; write a second limit for a second rate"
    return _why_no_number(lowered)


def _refusal(text: str, why: str, allowed: str) -> ValueError:
    because = f" ({why})" if why else ""
    return ValueError(f"found {text!r}{because}; allowed: {allowed}")
