"""As much of Structured Fields (RFC 9651) as signed requests are written in: dictionaries of inner lists and of byte
sequences, parsed strictly and written canonically.

ValueError for anything else. Every number, text and list is bounded by the length of the field, which the caller
bounds.
"""

from __future__ import annotations

import re
from base64 import b64decode, b64encode
from binascii import Error
from typing import Final, NamedTuple

Bare = str | int | bytes | bool
"""A String, an Integer, a Byte Sequence or a Boolean."""
Params = dict[str, Bare]

_KEY: Final = re.compile(r"[a-z*][a-z0-9_.*-]*")
_INTEGER: Final = re.compile(r"-?[0-9]{1,15}(?![0-9.])")
_STRING: Final = re.compile(r'"((?:[ !#-\[\]-~]|\\["\\])*)"')
_BYTES: Final = re.compile(r":([A-Za-z0-9+/]*={0,2}):")
_SPACES: Final = re.compile(r" *")
_COMMA: Final = re.compile(r"[ \t]*,[ \t]*")


class Item(NamedTuple):
    """A value and what is said of it."""

    value: Bare
    params: Params


class InnerList(NamedTuple):
    """A list of items and what is said of it as a whole."""

    items: tuple[Item, ...]
    params: Params


class Parser:
    """Reads one field from left to right."""

    def __init__(self, text: str) -> None:
        self._text = text
        self._at = 0

    def dictionary(self) -> dict[str, Item | InnerList]:
        """The whole field. A name that is there twice is refused: RFC 9651 would take the last, others the first."""
        members: dict[str, Item | InnerList] = {}
        self._at = len(self._text) - len(self._text.lstrip(" "))
        while self._at < len(self._text):
            name = self._take(_KEY, "a name")
            if name in members:
                raise ValueError("a name is there twice")
            members[name] = self._member()
            if self._text[self._at :].strip(" ") == "":
                return members
            self._take(_COMMA, "a comma")
            if self._at == len(self._text):
                raise ValueError("it ends with a comma")
        return members

    def _member(self) -> Item | InnerList:
        if not self._skip("="):
            return Item(True, self._params())
        if self._skip("("):
            return self._inner_list()
        return Item(self._bare(), self._params())

    def _inner_list(self) -> InnerList:
        items: list[Item] = []
        while True:
            self._take(_SPACES, "")
            if self._skip(")"):
                return InnerList(tuple(items), self._params())
            items.append(Item(self._bare(), self._params()))
            if self._peek() not in (" ", ")"):
                raise ValueError("items stand apart")

    def _params(self) -> Params:
        params: Params = {}
        while self._skip(";"):
            self._take(_SPACES, "")
            name = self._take(_KEY, "a name")
            if name in params:
                raise ValueError("a parameter is there twice")
            params[name] = self._bare() if self._skip("=") else True
        return params

    def _bare(self) -> Bare:
        first = self._peek()
        if first == '"':
            return re.sub(r"\\(.)", r"\1", self._take(_STRING, "text in quotes", 1))
        if first == ":":
            text = self._take(_BYTES, "bytes between colons", 1)
            try:
                raw = b64decode(text, validate=True)
            except Error:
                raise ValueError("bytes that are no base64") from None
            if b64encode(raw).decode() != text:
                raise ValueError("bytes that are no base64")
            return raw
        if first == "?":
            flag = self._text[self._at : self._at + 2]
            if flag not in ("?0", "?1"):
                raise ValueError("a boolean that is none")
            self._at += 2
            return flag == "?1"
        return int(self._take(_INTEGER, "a whole number"))

    def _peek(self) -> str:
        return self._text[self._at : self._at + 1]

    def _skip(self, character: str) -> bool:
        found = self._peek() == character
        self._at += found
        return found

    def _take(self, pattern: re.Pattern[str], what: str, group: int = 0) -> str:
        match = pattern.match(self._text, self._at)
        if match is None:
            raise ValueError(f"expected {what} at {self._at}")
        self._at = match.end()
        return match[group]


def write_list(inner: InnerList) -> str:
    """The canonical form."""
    items = " ".join(_write(item.value) + _write_params(item.params) for item in inner.items)
    return f"({items}){_write_params(inner.params)}"


def write_item(item: Item) -> str:
    """The canonical form."""
    return _write(item.value) + _write_params(item.params)


def _write_params(params: Params) -> str:
    return "".join(f";{name}" if value is True else f";{name}={_write(value)}" for name, value in params.items())


def _write(value: Bare) -> str:
    if isinstance(value, bool):
        return "?1" if value else "?0"
    if isinstance(value, int):
        return str(value)
    if isinstance(value, bytes):
        return f":{b64encode(value).decode()}:"
    escaped = value.replace("\\", "\\\\").replace('"', '\\"')
    return f'"{escaped}"'
