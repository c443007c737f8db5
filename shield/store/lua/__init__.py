"""The scripts that Redis runs, as package data. Each file's header states its keys, arguments, answer and
number budget.

A script's text is level.lua, which holds the algorithms, followed by its own file, with constants (`local NAMES =
literals`, in capitals) in place of their names and without comments; its name on the server is the SHA-1 of that text
(Redis' choice of hash; it guards nothing here). Every run of a script makes its functions anew and looks each outer
name up that they use, so a dozen named constants cost more than the arithmetic they serve. keyed.lua is check.lua with
something before and after it.
"""

from __future__ import annotations

import hashlib
import re
from importlib import resources
from typing import NamedTuple

_INCLUDE = "-- include check.lua\n"


class Script(NamedTuple):
    """A script: `text` is what SCRIPT LOAD takes, `sha` the 40 hexadecimal digits EVALSHA calls it by."""

    name: str
    text: bytes
    sha: bytes


def _compact(text: str) -> bytes:
    constants: dict[str, str] = {}

    def note(match: re.Match[str]) -> str:
        names, values = (part.split(", ") for part in match.groups())
        constants.update(zip(names, values, strict=True))
        return ""

    text = re.sub(r"^ *--.*\n", "", text, flags=re.MULTILINE)
    text = re.sub(r"^local ([A-Z][A-Z0-9_]*(?:, [A-Z][A-Z0-9_]*)*) = (.+)\n", note, text, flags=re.MULTILINE)
    return re.sub(r"\b[A-Z][A-Z0-9_]*\b", lambda match: constants.get(match[0], match[0]), text).encode()


def _load(name: str) -> Script:
    here = resources.files(__name__)
    source = (here / f"{name}.lua").read_text()
    if _INCLUDE in source:
        source = source.replace(_INCLUDE, f"local function check()\n{(here / 'check.lua').read_text()}end\n")
    text = _compact((here / "level.lua").read_text() + source)
    return Script(name, text, hashlib.sha1(text, usedforsecurity=False).hexdigest().encode())


CHECK = _load("check")
SETTLE = _load("settle")
RELEASE = _load("release")
BLOCKS = _load("blocks")
GREET = _load("greet")
KEYED = _load("keyed")
END = _load("end")
HOLDER = _load("holder")
LEASE = _load("lease")
SCRIPTS = (CHECK, SETTLE, RELEASE, BLOCKS, KEYED, END, HOLDER, LEASE)
