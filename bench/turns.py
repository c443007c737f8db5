"""Two processes that measure the same thing and take turns, block by block of some milliseconds.

What disturbs a machine for longer than a block disturbs both alike, so the ratio of two blocks side by side holds
where two runs one after the other differ by half. A process holds the turn while it works, preparations included, and
`next_turn` hands it on; where nobody takes turns it does nothing.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import IO

from .process import python, shield_of

BLOCKS = 9
"""Turns of each work in a process that shares its time: enough for a median, few enough for many processes."""

_hand_on: IO[bytes] | None = None


def shared() -> bool:
    """True in a process that takes turns with another."""
    return _hand_on is not None


def join() -> None:
    """Waits for the first turn. They come by standard input and leave by standard output, which is free no more."""
    global _hand_on
    _hand_on = os.fdopen(os.dup(1), "wb", buffering=0)
    os.dup2(2, 1)
    _wait()


def next_turn() -> None:
    """Lets the other work and waits until it hands the turn back."""
    if _hand_on is not None:
        _hand_on.write(b"+")
        _wait()


def _wait() -> None:
    if not os.read(0, 1):
        sys.exit("the process that shares out turns has gone")


def alternate(children: Sequence[tuple[Path | None, Sequence[str]]], cwd: str) -> None:
    """Runs one module each, (checkout, arguments of `python`), in turns until all have ended.

    RuntimeError with the last words of a child that failed.
    """
    running: list[subprocess.Popen[bytes]] = []
    pipe = subprocess.PIPE
    try:
        for tree, arguments in children:
            command, env = python(*arguments), shield_of(tree)
            running.append(subprocess.Popen(command, env=env, cwd=cwd, stdin=pipe, stdout=pipe, stderr=pipe))
        going = list(running)
        while going:
            for one in list(going):
                assert one.stdin is not None
                assert one.stdout is not None
                try:
                    one.stdin.write(b"+")
                    one.stdin.flush()
                except BrokenPipeError:
                    going.remove(one)
                    continue
                if not one.stdout.read(1):
                    going.remove(one)
        for one in running:
            said = one.communicate()[1].decode(errors="replace").strip().splitlines()
            if one.returncode:
                raise RuntimeError(f"a process that measured ended: {said[-1] if said else 'it said nothing'}")
    finally:
        for one in running:
            if one.poll() is None:
                one.kill()
                one.wait()
