"""Store URLs: where the store is, and options as query parameters. Errors name the option and never show a
secret.

A password with unescaped special characters lands in other parts of a URL, so no part of the URL but an
option's own name and value is ever echoed, and of options only those that are Shield's own.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final
from urllib.parse import SplitResult, parse_qsl, urlsplit

from shield.errors import ShieldError
from shield.rate import format_duration, parse_duration

MAX_URL_CHARS: Final = 4096
_PREFIX: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.:-]{0,63}")

Parser = Callable[[str], Any]


class StoreURLError(ShieldError, ValueError):
    """A store URL that cannot be used. The message never contains credentials."""


class Options:
    """The query parameters of a store URL. What nobody takes is an error that names it."""

    def __init__(self, scheme: str, given: Mapping[str, str]) -> None:
        self._scheme = scheme
        self._given = dict(given)

    def says(self, name: str) -> bool:
        """Whether an option is given and true: others may then be given, too."""
        return self._given.get(name, "").lower() == "true"

    def take(self, **parsers: Parser) -> dict[str, Any]:
        """The options that were given, parsed; StoreURLError when one is unknown or wrong."""
        unknown = [name for name in self._given if name not in parsers]
        if unknown:
            known = ", ".join(sorted(parsers))
            raise StoreURLError(f"{self._scheme}://: unknown option {unknown[0]!r}; known are {known}")
        found = {}
        for name, text in self._given.items():
            try:
                found[name] = parsers[name](text)
            except ValueError as error:
                raise StoreURLError(f"{self._scheme}://: {name}: {error}") from None
        return found

    @staticmethod
    def whole(least: int, most: int) -> Parser:
        """A whole number between two bounds."""

        def parse(text: str) -> int:
            if not re.fullmatch(r"[0-9]+(?:_[0-9]+)*", text) or len(text) > 20:
                raise ValueError(f"expected a whole number from {least} to {most}")
            number = int(text)
            if not least <= number <= most:
                raise ValueError(f"found {number}; allowed: {least} to {most}")
            return number

        return parse

    @staticmethod
    def duration(least_us: int, most_us: int) -> Parser:
        """A duration between two bounds, in microseconds."""

        def parse(text: str) -> int:
            us = parse_duration(text)
            if not least_us <= us <= most_us:
                allowed = f"{format_duration(least_us)} to {format_duration(most_us)}"
                raise ValueError(f"found {text}; allowed: {allowed}")
            return us

        return parse

    @staticmethod
    def prefix(text: str) -> str:
        """What all keys of one deployment begin with."""
        if not _PREFIX.fullmatch(text):
            raise ValueError("expected 1 to 64 letters, digits, '_', '.', ':' or '-', a letter or digit first")
        return text

    @staticmethod
    def secret(text: str) -> str:
        """Text that is passed on as it is and never shown."""
        return text


@dataclass(frozen=True, slots=True)
class StoreURL:
    """A URL taken apart."""

    scheme: str
    bare: SplitResult
    """Without its query."""
    options: Options

    def must_be_bare(self) -> None:
        """For stores that are nowhere in particular."""
        if self.bare.netloc or self.bare.path not in ("", "/"):
            raise StoreURLError(f"{self.scheme}:// takes no address, only options such as ?name=value")


def split_url(url: str) -> StoreURL:
    """Takes a store URL apart. StoreURLError when it is none."""
    if not isinstance(url, str):
        raise StoreURLError(f"a store URL is text, not {type(url).__name__}")
    if len(url) > MAX_URL_CHARS:
        raise StoreURLError(f"a store URL has at most {MAX_URL_CHARS} characters")
    try:
        parts = urlsplit(url)
        given = parse_qsl(parts.query, keep_blank_values=True, strict_parsing=bool(parts.query), max_num_fields=32)
    except ValueError:
        raise StoreURLError(
            "the store URL cannot be read; special characters in a password are percent-encoded"
        ) from None
    if not parts.scheme or "://" not in url:
        raise StoreURLError("a store URL begins with its scheme, such as memory:// or redis://")
    if parts.fragment:
        raise StoreURLError(f"{parts.scheme}://: a '#' in the password or path is written %23")
    names = [name for name, _ in given]
    for name in names:
        if names.count(name) > 1:
            raise StoreURLError(f"{parts.scheme}://: option {name!r} is given twice")
    return StoreURL(parts.scheme, parts._replace(query=""), Options(parts.scheme, dict(given)))
