"""Stops a process between two instructions of the compiled engine, any two: what happens when it is killed there, or
when another process comes in between?

`points(action)` runs `action` once in a forked process, an instruction at a time, and returns where it could be
stopped: before every access to shared memory, and at some of the other instructions. `stopped_at(point, action)` runs
it to there. It is ptrace(2), so Linux, and x86-64 for the names of registers.
"""

from __future__ import annotations

import contextlib
import ctypes
import gc
import mmap
import os
import platform
import signal
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import shield.core.engine

AVAILABLE = sys.platform == "linux" and platform.machine() == "x86_64"
TRACEME, PEEKTEXT, PEEKUSER, POKETEXT, POKEUSER, CONT, SINGLESTEP, GETREGS = 0, 1, 3, 4, 6, 7, 9, 12
# Where struct user_regs_struct has the registers that an instruction calls 0 to 15, and the instruction pointer.
REGISTERS = (10, 11, 12, 5, 19, 4, 13, 14, 9, 8, 7, 6, 3, 2, 1, 0)
RIP = 16
BREAKPOINT = 0xCC
LOCK = 0xF0
MOST_STEPS = 200_000
# A walk over a window of slots is much the same at each of them: of the reads these many are tried, spread evenly.
MOST_READS = 32
Action = Callable[[], bool]

_libc = ctypes.CDLL(None, use_errno=True)
_libc.ptrace.argtypes = [ctypes.c_long, ctypes.c_long, ctypes.c_void_p, ctypes.c_void_p]
_libc.ptrace.restype = ctypes.c_long


class Point(NamedTuple):
    """Before the instruction at `address`, when it is reached for the `nth` time."""

    address: int
    nth: int


def _ptrace(request: int, pid: int, address: int = 0, data: int = 0) -> int:
    ctypes.set_errno(0)
    got = _libc.ptrace(request, pid, address, data)
    if got == -1 and ctypes.get_errno():
        raise OSError(ctypes.get_errno(), f"ptrace {request}: {os.strerror(ctypes.get_errno())}")
    return int(got)


def _mapped(*words: str) -> list[range]:
    """The parts of memory whose lines in /proc/self/maps have all these words."""
    found = []
    for line in Path("/proc/self/maps").read_text().splitlines():
        if all(word in line for word in words):
            start, end = line.split()[0].split("-")
            found.append(range(int(start, 16), int(end, 16)))
    assert found, words
    return found


class Stopped:
    """A forked process that stands still before a point, or has come to its end."""

    def __init__(self, action: Action) -> None:
        self._answer = mmap.mmap(-1, 8)
        gc.collect()
        gc.disable()  # the same instructions every time
        self.pid = os.fork()
        if self.pid == 0:
            try:
                _ptrace(TRACEME, 0)
                os.kill(os.getpid(), signal.SIGSTOP)
                self._answer[0] = 1 + bool(action())
            finally:
                os._exit(0)
        gc.enable()
        self._wait()

    def _wait(self) -> bool:
        """True while it lives."""
        _, status = os.waitpid(self.pid, 0)
        self.alive = os.WIFSTOPPED(status)
        assert self.alive or not os.WIFSIGNALED(status) or os.WTERMSIG(status) == signal.SIGKILL, status
        return self.alive

    def rip(self) -> int:
        return _ptrace(PEEKUSER, self.pid, RIP * 8) & (2**64 - 1)

    def registers(self) -> list[int]:
        values = (ctypes.c_uint64 * 27)()
        _ptrace(GETREGS, self.pid, 0, ctypes.addressof(values))
        return list(values)

    def step(self) -> bool:
        _ptrace(SINGLESTEP, self.pid)
        return self._wait()

    def run_to(self, point: Point) -> None:
        code = _ptrace(PEEKTEXT, self.pid, point.address)
        trap = (code & ~0xFF) | BREAKPOINT
        for nth in range(point.nth):
            if nth:
                assert self.step()
            _ptrace(POKETEXT, self.pid, point.address, trap)
            _ptrace(CONT, self.pid)
            assert self._wait(), f"it ended before {point}"
            _ptrace(POKETEXT, self.pid, point.address, code)
            _ptrace(POKEUSER, self.pid, RIP * 8, point.address)
            assert self.rip() == point.address

    def finish(self) -> bool:
        """Lets it run to its end. What the action returned."""
        if self.alive:
            _ptrace(CONT, self.pid)
            assert not self._wait()
        assert self._answer[0], "the action raised"
        return self._answer[0] == 2

    def kill(self) -> None:
        if self.alive:
            os.kill(self.pid, signal.SIGKILL)
            with contextlib.suppress(ChildProcessError):
                while self._wait():
                    pass


def points(action: Action) -> list[Point]:
    """Where `action` is about to swap a word of a shared table (all of them), or to read one."""
    (code,) = _mapped(shield.core.engine.__file__, "r-xp")
    tables = _mapped("rw-s", "/dev/shm/")  # the first process has its table under no name
    seen: Counter[int] = Counter()
    swaps, reads = [], []
    process = Stopped(action)
    for _ in range(MOST_STEPS):
        if not process.step():
            break
        address = process.rip()
        if address in code:
            seen[address] += 1
            text = ctypes.string_at(address, 12)
            if text[0] == LOCK:
                swaps.append(Point(address, seen[address]))
            elif (operand := _read_by(text, process)) is not None and any(operand in table for table in tables):
                reads.append(Point(address, seen[address]))
    process.kill()
    assert swaps
    every = -(-len(reads) // MOST_READS)
    return swaps + reads[::every]


def _read_by(text: bytes, process: Stopped) -> int | None:
    """The address that `movdqa memory, xmm`, by which words are read, reads at; None for other instructions."""
    if text[0] != 0x66:
        return None
    rex = text[1] if text[1] & 0xF0 == 0x40 else 0
    text = text[2:] if rex else text[1:]
    if text[:2] != b"\x0f\x6f":
        return None
    mode, base, text = text[2] >> 6, text[2] & 7, text[3:]
    registers = process.registers()
    address = 0
    if mode == 3 or (mode == 0 and base == 5):
        return None
    if base == 4:
        scale, index, base, text = text[0] >> 6, text[0] >> 3 & 7 | (rex & 2) << 2, text[0] & 7, text[1:]
        if index != 4:
            address += registers[REGISTERS[index]] << scale
    address += registers[REGISTERS[base | (rex & 1) << 3]]
    size = {0: 0, 1: 1, 2: 4}[mode]
    return address + int.from_bytes(text[:size], "little", signed=True) & (2**64 - 1)


@contextlib.contextmanager
def stopped_at(point: Point, action: Action) -> Iterator[Stopped]:
    """The process, standing before the point. It is killed on leaving unless it has come to its end."""
    process = Stopped(action)
    try:
        process.run_to(point)
        yield process
    finally:
        process.kill()
