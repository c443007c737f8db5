"""`shield serve` as a process of its own: what signals do, and what a user reads."""

from __future__ import annotations

import ctypes
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
BOOT_S = 30.0  # a second on an idle machine; a busy one must not make a test fail
END_S = 15.0
_PR_SET_PDEATHSIG = 1
_LIBC = ctypes.CDLL(None)


def _die_with_parent() -> None:
    if sys.platform == "linux":
        _LIBC.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


def children_of(pid: int) -> list[int]:
    found = []
    for entry in Path("/proc").glob("[0-9]*/stat"):
        with suppress(OSError):
            state, parent = entry.read_text().rpartition(")")[2].split()[:2]
            if int(parent) == pid and state != "Z":
                found.append(int(entry.parent.name))
    return found


def _command_of(pid: int) -> bytes:
    with suppress(OSError):
        return Path(f"/proc/{pid}/cmdline").read_bytes()
    return b""


class Process:
    """One process; its standard output and error go to files."""

    def __init__(self, directory: Path, *arguments: str | Path) -> None:
        directory.mkdir(parents=True, exist_ok=True)
        self._out, self._err = directory / "out", directory / "err"
        command = [sys.executable, "-m", "shield", "serve", *map(str, arguments)]
        environment = {**os.environ, "PYTHONPATH": str(ROOT)}
        with self._out.open("wb") as out, self._err.open("wb") as err:
            self._process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=err,
                env=environment,
                preexec_fn=_die_with_parent,
                start_new_session=True,
            )

    def out(self) -> str:
        return self._out.read_text()

    def err(self) -> str:
        return self._err.read_text()

    def events(self, name: str) -> list[dict[str, Any]]:
        """The log events of this name, so far."""
        events = [json.loads(line) for line in self.err().splitlines() if line.startswith("{")]
        return [event for event in events if event["event"] == name]

    def until(self, what: str, seen: Any) -> Any:
        """The first true answer of `seen`, asked again and again."""
        ends = time.monotonic() + BOOT_S
        while not (answer := seen()):
            if self.ended or time.monotonic() > ends:
                raise AssertionError(f"did not come to {what}:\n{self.out()}\n{self.err()}")
            time.sleep(0.01)
        return answer

    def address(self, pattern: str) -> str:
        """What the line of what is served says: a URL or unix socket."""
        self.until("serve", lambda: "try: curl" in self.out())
        found = re.search(pattern, self.out())
        assert found is not None, self.out()
        return found[1]

    def signal(self, number: signal.Signals) -> None:
        self._process.send_signal(number)

    def signal_group(self, number: signal.Signals) -> None:
        """As a terminal does: to the process and all that it has started."""
        os.killpg(self.pid, number)

    @property
    def pid(self) -> int:
        return self._process.pid

    def children(self) -> list[int]:
        """The processes that it has started and that have not ended: workers, for example.

        Only once they are programs of their own: until then their parent stands still when they do.
        """
        return [pid for pid in children_of(self.pid) if _command_of(pid) not in (b"", _command_of(self.pid))]

    @property
    def ended(self) -> bool:
        return self._process.poll() is not None

    def wait(self) -> int:
        """The exit status."""
        return self._process.wait(END_S)

    def kill(self) -> None:
        if self._process.poll() is None:
            self._process.kill()
        self._process.wait()

    @property
    def url(self) -> str:
        return self.address(r" on (https?://[^\s,;]+)")

    @property
    def admin_url(self) -> str:
        return self.address(r"admin on (https?://\S+)")


@contextmanager
def run(directory: Path, *arguments: str | Path) -> Iterator[Process]:
    """Serves on ports that the kernel chooses unless told otherwise, and ends with the `with`."""
    given = [str(argument) for argument in arguments]
    where = [] if "--listen" in given else ["--listen", "127.0.0.1:0"]
    admin = [] if "--admin" in given else ["--admin", "127.0.0.1:0"]
    process = Process(directory, *where, *admin, *arguments)
    try:
        yield process
    finally:
        process.kill()
