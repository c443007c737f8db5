"""The scripts that Redis runs, as package data. Each file's header states its keys, arguments, answer and
number budget.

A script's text is level.lua, which holds the algorithms, followed by its own file; its name on the server is
the SHA-1 of that text (Redis' choice of hash; it guards nothing here).
"""

from __future__ import annotations

import hashlib
from importlib import resources
from typing import NamedTuple


class Script(NamedTuple):
    """A script: `text` is what SCRIPT LOAD takes, `sha` the 40 hexadecimal digits EVALSHA calls it by."""

    name: str
    text: bytes
    sha: bytes


def _load(name: str) -> Script:
    here = resources.files(__name__)
    text = (here / "level.lua").read_bytes() + (here / f"{name}.lua").read_bytes()
    return Script(name, text, hashlib.sha1(text, usedforsecurity=False).hexdigest().encode())


CHECK = _load("check")
SETTLE = _load("settle")
RELEASE = _load("release")
SCRIPTS = (CHECK, SETTLE, RELEASE)
