"""How one value of a policy file is read: its type, its bound, and the words for both.

A `Kind` turns what the file's syntax gave (text, whole numbers, lists, tables) into what the model holds, or
reports what was found and what is allowed and answers REFUSED. It never raises, so one run finds everything
that is wrong."""

from __future__ import annotations

import difflib
import ipaddress
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import date, datetime, time
from types import MappingProxyType
from typing import Any, Final, Protocol

from shield.errors import PolicyIssue
from shield.policy import calendar
from shield.policy.path import TEMPLATE_HELP, parse_template
from shield.rate import DURATION_HELP, RATE_HELP, Rate, format_duration, parse_duration

# A file of a mebibyte can hold a hundred thousand mistakes; nobody reads more than the first thousand of
# them.
MAX_ISSUES = 1_000
_MAX_SHOWN = 60
_PLAIN_KEY = re.compile(r"[A-Za-z0-9_-]{1,64}")


class Refused:
    """The type of REFUSED."""

    __slots__ = ()


REFUSED: Final = Refused()


class Wrong(ValueError):
    """A value is not allowed; the text says why where the bound alone does not."""


class Report:
    """Collects what is wrong with one policy, in the order of the file's model."""

    def __init__(self) -> None:
        self._issues: list[PolicyIssue] = []
        self._left_off = 0

    def add(self, path: str, message: str) -> None:
        """One issue; past MAX_ISSUES they are only counted."""
        if len(self._issues) < MAX_ISSUES:
            self._issues.append(PolicyIssue(path, message))
        else:
            self._left_off += 1

    def wrong(self, path: str, value: object, allowed: str, why: str = "") -> None:
        """An issue in the usual words."""
        because = f" ({why})" if why else ""
        self.add(path, f"found {found(value)}{because}; allowed: {allowed}")

    @property
    def issues(self) -> tuple[PolicyIssue, ...]:
        """Everything found, what belongs together beside each other, and a last line for what was only
        counted.
        """
        order: dict[str, int] = {}
        found = sorted(
            self._issues, key=lambda issue: order.setdefault(issue.path.partition(".")[0], len(order))
        )
        if self._left_off:
            found.append(PolicyIssue("", f"and {self._left_off} more errors"))
        return tuple(found)


class Kind(Protocol):
    """Something that can read a value: `type_name` and `allowed` are its words in the reference and in
    errors.
    """

    @property
    def type_name(self) -> str: ...

    @property
    def allowed(self) -> str: ...

    def read(self, value: Any, path: str, report: Report) -> Any: ...


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


@dataclass(frozen=True, slots=True)
class ListOf:
    """A list of one kind without repetitions, read as a tuple; with `single`, one value alone stands for a
    list of it.
    """

    item: Kind
    most: int
    least: int = 0
    single: bool = False

    @property
    def type_name(self) -> str:
        return (
            f"{self.item.type_name}, or a list of them" if self.single else f"list of {self.item.type_name}"
        )

    @property
    def allowed(self) -> str:
        return f"{self.least} to {self.most} different values, each {self.item.allowed}"

    def read(self, value: Any, path: str, report: Report) -> Any:
        if self.single and isinstance(value, str):
            value = [value]
        if not isinstance(value, list):
            report.wrong(path, value, f"a list: {self.allowed}")
            return REFUSED
        if not self.least <= len(value) <= self.most:
            report.wrong(path, value, self.allowed)
            return REFUSED
        items = [self.item.read(one, f"{path}[{at}]", report) for at, one in enumerate(value)]
        for at, one in enumerate(items):
            if one is not REFUSED and one in items[:at]:
                report.wrong(f"{path}[{at}]", value[at], self.allowed, "it is there twice")
                items[at] = REFUSED
        return REFUSED if REFUSED in items else tuple(items)


@dataclass(frozen=True, slots=True)
class MapOf:
    """A table whose keys are chosen by whoever writes the policy."""

    key: Scalar
    value: Kind
    most: int

    @property
    def type_name(self) -> str:
        return f"table of {self.value.type_name} by {self.key.type_name}"

    @property
    def allowed(self) -> str:
        return f"up to {self.most} entries; key: {self.key.allowed}; value: {self.value.allowed}"

    def read(self, value: Any, path: str, report: Report) -> Any:
        if not isinstance(value, dict):
            report.wrong(path, value, f"a table: {self.allowed}")
            return REFUSED
        if len(value) > self.most:
            report.wrong(path, value, f"at most {self.most} entries")
            return REFUSED
        entries: dict[str, Any] = {}
        for name, item in value.items():
            at = join(path, name)
            read_name = self.key.read(name, at, report)
            read_item = self.value.read(item, at, report)
            if read_name is not REFUSED and read_item is not REFUSED:
                entries[read_name] = read_item
        return MappingProxyType(entries) if len(entries) == len(value) else REFUSED


@dataclass(frozen=True, slots=True)
class Key:
    """One key of a table. `default` is written as in a file; `only` names the algorithms that know the key."""

    name: str
    kind: Kind
    doc: str
    default: Any = None
    required: bool = False
    only: tuple[str, ...] = ()
    default_doc: str = ""


@dataclass(frozen=True, slots=True)
class Table:
    """A table with known keys, read as a dict that holds every one of them: its value, its default or
    REFUSED.
    """

    title: str
    doc: str
    keys: tuple[Key, ...]
    later: tuple[str, ...] = ()  # keys that a later version will know
    type_name: str = "table"
    _by_name: dict[str, Key] = field(init=False, compare=False, repr=False, default_factory=dict)

    def __post_init__(self) -> None:
        self._by_name.update((key.name, key) for key in self.keys)

    @property
    def allowed(self) -> str:
        return "keys: " + ", ".join(key.name for key in self.keys)

    def read(self, value: Any, path: str, report: Report) -> Any:
        if not isinstance(value, dict):
            report.wrong(path, value, f"a table with {self.allowed}")
            return REFUSED
        for name in value:
            if name not in self._by_name:
                self._unknown(name, path, report)
        values: dict[str, Any] = {}
        for key in self.keys:
            at = join(path, key.name)
            if key.name in value:
                values[key.name] = key.kind.read(value[key.name], at, report)
            elif key.required:
                report.add(at, f"missing; allowed: {key.kind.allowed}")
                values[key.name] = REFUSED
            else:
                values[key.name] = self.default(key)
        return values

    @staticmethod
    def default(key: Key) -> Any:
        """What an absent key reads as: its default through its own kind, so that both are checked alike."""
        if key.default is None:
            return None
        return key.kind.read(key.default, key.name, Report())

    def _unknown(self, name: object, path: str, report: Report) -> None:
        at = join(path, name)
        if name in self.later:
            report.add(at, "this version of Shield does not have it yet; allowed: leave it out")
            return
        near = suggestion(name, [key.name for key in self.keys])
        report.add(at, f"unknown key{near}; allowed: {', '.join(key.name for key in self.keys)}")


@dataclass(frozen=True, slots=True)
class TableList:
    """A list of tables ([[name]]), read as a list of dicts; a refused entry stands in it as REFUSED."""

    table: Table
    most: int

    @property
    def type_name(self) -> str:
        return "list of tables"

    @property
    def allowed(self) -> str:
        return f"at most {self.most} tables"

    def read(self, value: Any, path: str, report: Report) -> Any:
        if not isinstance(value, list):
            report.wrong(path, value, f"a list of tables, [[{path}]]")
            return REFUSED
        if len(value) > self.most:
            report.add(path, f"found {len(value)} entries; allowed: at most {self.most}")
        return [self.table.read(one, f"{path}[{at}]", report) for at, one in enumerate(value[: self.most])]


def found(value: object) -> str:
    """What was found, in a few words that are safe to print whatever the value holds."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, str):
        return (
            repr(value)
            if len(value) <= _MAX_SHOWN
            else f"{value[:_MAX_SHOWN]!r}... ({len(value)} characters)"
        )
    if isinstance(value, int):
        # Python refuses to print integers of many thousand digits.
        return str(value) if value.bit_length() <= 128 else f"an integer of {value.bit_length()} bits"
    if isinstance(value, float):
        return f"the fraction {value!r}"
    if isinstance(value, (datetime, date, time)):
        return "a date or time"
    if isinstance(value, (list, tuple)):
        return f"a list of {len(value)}"
    if isinstance(value, dict):
        return f"a table of {len(value)}"
    return f"a value of type {type(value).__name__}"


def join(path: str, name: object) -> str:
    """The path of a key inside a table; keys that are not plain words are quoted."""
    shown = name if isinstance(name, str) and _PLAIN_KEY.fullmatch(name) else found(name)
    return f"{path}.{shown}" if path else str(shown)


def suggestion(name: object, known: Sequence[str]) -> str:
    """ ", did you mean 'rate'?" or nothing. Only the first 64 characters are compared: the comparison is
    quadratic.
    """
    near = difflib.get_close_matches(str(name)[:64].lower(), known, n=1) if isinstance(name, str) else []
    return f", did you mean {near[0]!r}?" if near else ""


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

    def parse(value: Any) -> int:
        if type(value) is not int or not low <= value <= high:
            raise Wrong
        return value

    return Scalar("whole number", f"a whole number from {low:,} to {high:,}", parse)


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
            shown = "" if len(value) <= _MAX_SHOWN else format_duration(duration_us)
            raise Wrong(shown)
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

    return Scalar(
        "network", 'an address or network such as "10.0.0.0/8", "2001:db8::/32" or "192.0.2.7"', parse
    )


def _why_no_network(value: str) -> str:
    try:
        return f"did you mean {str(ipaddress.ip_network(value, strict=False))!r}?"
    except ValueError:
        return ""
