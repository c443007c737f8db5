"""From a file or text to a policy: bounded, decoded, parsed by its syntax, then validated.

Whatever the text holds, the outcome is a policy or a PolicyError. What a syntax would let through silently is
refused: keys that are there twice, YAML aliases (they expand) and merge keys, JSON's NaN.
"""

from __future__ import annotations

import json
import re
import tomllib
from collections.abc import Callable
from functools import partial
from os import PathLike, fspath
from pathlib import Path
from typing import Any, NoReturn

from shield.errors import PolicyError, PolicyIssue
from shield.policy.model import Policy
from shield.policy.report import found
from shield.policy.validate import MAX_DEPTH, build

# A thousand limits with every key written out are a third of this; parsing time grows with it.
MAX_BYTES = 1_048_576
MAX_DOTS = 16

_SUFFIXES = {".toml": "toml", ".yaml": "yaml", ".yml": "yaml", ".json": "json"}
# tomllib takes quadratic time and memory for one key of many dotted parts.
_DOTTED = re.compile(rf"""(?<![\w-])(?:(?:[\w-]++|"[^"\n]*+"|'[^'\n]*+')[ \t]*+\.[ \t]*+){{{MAX_DOTS}}}(?:[\w"'-])""")


def load(path: str | PathLike[str]) -> Policy:
    """The policy in this file, by its suffix. Raises PolicyError, also when the file cannot be read."""
    source = str(fspath(path))
    format = _SUFFIXES.get(Path(source).suffix.lower())
    if format is None:
        _refuse(f"found the suffix {Path(source).suffix!r}; allowed: {', '.join(_SUFFIXES)}", source)
    try:
        with open(source, "rb") as file:
            data = file.read(MAX_BYTES + 1)
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
        _refuse(f"cannot be read: {reason}", source)
    return parse(data, format, source, str(Path(source).absolute().parent))


def parse(text: str | bytes, format: str = "toml", source: str | None = None, directory: str | None = None) -> Policy:
    """The policy in this "toml", "yaml" or "json". Raises PolicyError; ValueError for another `format`.

    Files that it names start in `directory`, by default where the process runs.
    """
    reader = _READERS.get(format)
    if reader is None:
        raise ValueError(f"format: found {format!r}; allowed: {', '.join(_READERS)}")
    readable = _bounded(text, source)
    try:
        tree = reader(readable)
    except RecursionError:
        _refuse(f"found tables or lists nested too deeply; allowed: at most {MAX_DEPTH} levels", source)
    except ValueError as error:
        _refuse(f"not readable as {format.upper()}: {_one_line(error)}", source)
    if tree == {}:
        # A file that was cut off or is being written must not switch every limit off; `version = 1` alone may.
        _refuse("found nothing; allowed: a policy, at least `version = 1`", source)
    return build(tree, source, directory, partial(_named_file, directory))


def _named_file(directory: str | None, name: str, max_bytes: int) -> str:
    """The text of a file that a policy names. ValueError says why there is none."""
    try:
        with open(Path(directory or ".") / name, "rb") as file:
            data = file.read(max_bytes + 1)
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
        raise ValueError(f"it cannot be read: {reason}") from None
    if len(data) > max_bytes:
        raise ValueError(f"it has more than {max_bytes:,} bytes")
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"it is not UTF-8 at byte {error.start}") from None


def _bounded(text: str | bytes, source: str | None) -> str:
    """The text without a byte order mark, at most MAX_BYTES of UTF-8 without NUL."""
    if len(text) > MAX_BYTES:
        _refuse(f"found more than {MAX_BYTES:,} bytes; allowed: at most {MAX_BYTES:,} bytes", source)
    try:
        if isinstance(text, str):
            size = len(text.encode())
        else:
            size = len(text)
            text = text.decode()
    except (UnicodeEncodeError, UnicodeDecodeError) as error:
        _refuse(f"found text that is not UTF-8 (at {error.start}); allowed: UTF-8", source)
    if size > MAX_BYTES:
        _refuse(f"found {size:,} bytes; allowed: at most {MAX_BYTES:,} bytes", source)
    if "\0" in text:
        _refuse("found a NUL character; allowed: text", source)
    return text.removeprefix("\ufeff")


def _toml(text: str) -> object:
    lines = (line for line in text.split("\n") if not line.lstrip().startswith("#"))
    if any(_DOTTED.search(line) for line in lines):
        raise ValueError(f"found a key of more than {MAX_DOTS} dotted parts; allowed: at most {MAX_DOTS}")
    return tomllib.loads(text)


def _json(text: str) -> object:
    return json.loads(text, object_pairs_hook=_unique, parse_constant=_no_constant)


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    table: dict[str, Any] = {}
    for name, value in pairs:
        if name in table:
            raise ValueError(f"found the key {found(name)} twice in one object; allowed: once")
        table[name] = value
    return table


def _no_constant(name: str) -> NoReturn:
    raise ValueError(f"found {name}; allowed: numbers that JSON has")


def _yaml(text: str) -> object:
    try:
        from shield.policy import yaml_reader
    except ImportError:
        raise ValueError(
            "PyYAML is not installed; install it with: pip install 'shield-limiter[yaml]', or write TOML or JSON"
        ) from None
    return yaml_reader.read(text, MAX_DEPTH)


_READERS: dict[str, Callable[[str], object]] = {"toml": _toml, "yaml": _yaml, "json": _json}


def _one_line(error: ValueError) -> str:
    message = " ".join(str(error).split())
    if "integer string conversion" in message:
        return "found a number of too many digits"
    return message[:300]


def _refuse(message: str, source: str | None) -> NoReturn:
    raise PolicyError([PolicyIssue("", message)], source)
