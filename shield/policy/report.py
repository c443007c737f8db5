"""What is wrong with a policy, collected and put into words.

Every message says what was found and what is allowed, is one line and short, and is safe to print whatever
the file held: huge integers, lone surrogates, a mebibyte of text.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Sequence
from datetime import date, time
from typing import Final

from shield.errors import PolicyIssue

# A file of a mebibyte can hold a hundred thousand mistakes; nobody reads more than the first thousand.
MAX_ISSUES = 1_000
_MAX_SHOWN = 60
_PLAIN_KEY = re.compile(r"[A-Za-z0-9_-]{1,64}")


class Refused:
    """The type of REFUSED."""

    __slots__ = ()


REFUSED: Final = Refused()


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
        """Everything found, grouped by what it belongs to, and a last line for what was only counted."""
        order: dict[str, int] = {}
        for issue in self._issues:
            order.setdefault(issue.path.partition(".")[0], len(order))
        grouped = sorted(self._issues, key=lambda issue: order[issue.path.partition(".")[0]])
        if self._left_off:
            grouped.append(PolicyIssue("", f"and {self._left_off} more errors"))
        return tuple(grouped)


def found(value: object) -> str:
    """What was found, in a few words that are safe to print whatever the value holds."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, str):
        if len(value) > _MAX_SHOWN:
            return f"{value[:_MAX_SHOWN]!r}... ({len(value)} characters)"
        return repr(value)
    if isinstance(value, int):
        # Python refuses to print integers of many thousand digits.
        return str(value) if value.bit_length() <= 128 else f"an integer of {value.bit_length()} bits"
    if isinstance(value, float):
        return f"the fraction {value!r}"
    if isinstance(value, (date, time)):
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
    """A comma and "did you mean 'rate'?", or nothing. Compares 64 characters: comparing is quadratic."""
    near = difflib.get_close_matches(str(name)[:64].lower(), known, n=1) if isinstance(name, str) else []
    return f", did you mean {near[0]!r}?" if near else ""
