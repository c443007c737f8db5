"""Kinds of single values: text, whole numbers, durations, rates, time zones, networks and so on.

Each is made by a function that takes the bounds and answers a `Scalar`: the words for the type and its bound,
and how a value is read.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from shield.policy import calendar
from shield.policy.path import TEMPLATE_HELP, parse_template
from shield.policy.report import REFUSED, Report, suggestion
from shield.rate import DURATION_HELP, RATE_HELP, Rate, parse_duration


class Wrong(ValueError):
    """A value is not allowed; the text says why where the bound alone does not."""


@dataclass(frozen=True, slots=True)
class Scalar:
    """One value. `parse` raises Wrong, or ValueError with a message that already says found and allowed."""

    type_name: str
    allowed: str
    parse: Callable[[Any], Any]

    def read(self, value: Any, path: str, report: Report) -> Any:
        try:
            return self.parse(value)
        except Wrong as wrong:
            report.wrong(path, value, self.allowed, str(wrong))
        except ValueError as error:
            report.add(path, str(error))
        return REFUSED


def text(what: str, allowed: str, pattern: str, most: int) -> Scalar:
    """Printable text that matches the pattern as a whole."""
    whole = re.compile(pattern)

    def parse(value: Any) -> str:
        if not isinstance(value, str) or len(value) > most or not value.isprintable():
            raise Wrong
        if not whole.fullmatch(value):
            raise Wrong
        return value

    return Scalar(what, allowed, parse)


def integer(low: int, high: int) -> Scalar:
    """A whole number; true and false are none."""
    allowed = f"a whole number from {low:,} to {high:,}" if low < high else str(low)

    def parse(value: Any) -> int:
        if type(value) is not int or not low <= value <= high:
            raise Wrong
        return value

    return Scalar("whole number", allowed, parse)


def boolean() -> Scalar:
    def parse(value: Any) -> bool:
        if not isinstance(value, bool):
            raise Wrong
        return value

    return Scalar("boolean", "true or false", parse)


def choice(*values: str) -> Scalar:
    def parse(value: Any) -> str:
        if not isinstance(value, str) or value not in values:
            raise Wrong(suggestion(value, values).removeprefix(", "))
        return value

    return Scalar("text", ", ".join(f'"{value}"' for value in values), parse)


def duration(low: str, high: str) -> Scalar:
    """A duration read as microseconds."""
    low_us, high_us = parse_duration(low), parse_duration(high)

    def parse(value: Any) -> int:
        if not isinstance(value, str):
            raise Wrong
        duration_us = parse_duration(value)
        if not low_us <= duration_us <= high_us:
            raise Wrong
        return duration_us

    return Scalar("duration", f'{DURATION_HELP}, from "{low}" to "{high}"', parse)


def rate() -> Scalar:
    def parse(value: Any) -> Rate:
        if not isinstance(value, str):
            raise Wrong
        return Rate.parse(value)

    return Scalar("rate", RATE_HELP, parse)


def path_template() -> Scalar:
    def parse(value: Any) -> str:
        if not isinstance(value, str) or not value.isprintable():
            raise Wrong
        parse_template(value)
        return value

    return Scalar("path template", TEMPLATE_HELP, parse)


def method() -> Scalar:
    token = re.compile(r"[A-Za-z0-9!#$%&'*+.^_`|~-]{1,32}")

    def parse(value: Any) -> str:
        if not isinstance(value, str) or not token.fullmatch(value):
            raise Wrong
        return value.upper()

    return Scalar("method", 'an HTTP method such as "POST", of at most 32 characters', parse)


def timezone() -> Scalar:
    def parse(value: Any) -> str:
        if not isinstance(value, str):
            raise Wrong
        try:
            calendar.zone(value)
        except ValueError as error:
            raise Wrong(str(error)) from None
        return value

    return Scalar("time zone", 'an IANA name such as "UTC" or "Europe/Oslo"', parse)


def network() -> Scalar:
    def parse(value: Any) -> str:
        if not isinstance(value, str) or len(value) > 64:
            raise Wrong
        try:
            parsed = ipaddress.ip_network(value)
        except ValueError:
            raise Wrong(_why_no_network(value)) from None
        if parsed.version == 6 and (parsed.network_address.scope_id or parsed.network_address.ipv4_mapped):
            raise Wrong("write an IPv4 network as such, and no zone")
        return str(parsed)

    return Scalar("network", 'an address or network such as "10.0.0.0/8", "2001:db8::/32" or "192.0.2.7"', parse)


def _why_no_network(value: str) -> str:
    try:
        return f"did you mean {str(ipaddress.ip_network(value, strict=False))!r}?"
    except ValueError:
        return ""
