"""`shield serve` for a benchmark: on cores of its own where there are any, with the processor time it used."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from .flood import processor_s
from .process import shield_of


class Endpoint:
    """A running server."""

    def __init__(self, process: subprocess.Popen[str], port: int, workers: Sequence[int]) -> None:
        self.process = process
        self.port = port
        self.workers = list(workers)
        """The processes that decide."""

    def cpu_s(self) -> list[float]:
        """Seconds of processor time of each worker until now; on Linux."""
        return [cpu_s(pid) for pid in self.workers]

    def waited_s(self) -> float:
        """Seconds that the workers were ready and somebody else had their cores, until now; on Linux."""
        return sum(waited_s(pid) for pid in self.workers)

    def resident_bytes(self) -> int:
        """Of all workers; on Linux."""
        pages = sum(int(Path(f"/proc/{pid}/statm").read_text().split()[1]) for pid in self.workers)
        return pages * os.sysconf("SC_PAGE_SIZE")


@contextmanager
def serving(policy: Path, *options: str, workers: int = 1, cores: Sequence[int] = ()) -> Iterator[Endpoint]:
    """A server, ready; each worker pinned to one of the cores, in turn. RuntimeError with its last words otherwise."""
    command = [sys.executable, "-m", "shield", "serve", "--policy", str(policy), "--listen", "127.0.0.1:0"]
    command += ["--admin", "none", "--workers", str(workers), "--log-format", "json", *options]
    process = subprocess.Popen(command, env=shield_of(), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    try:
        assert process.stdout is not None
        said = ""
        for line in process.stdout:
            said = line
            if found := re.search(r" on http://127\.0\.0\.1:(\d+)", line):
                break
        else:
            raise RuntimeError(f"the server did not start: {said.strip()}")
        pids = children(process.pid) if workers > 1 else [process.pid]
        for at, pid in enumerate(pids):
            if cores:
                pin_all(pid, cores[at % len(cores)])
        # Nobody may wait for a full pipe.
        threading.Thread(target=process.stdout.read, daemon=True).start()
        yield Endpoint(process, int(found[1]), pids)
    finally:
        process.terminate()
        try:
            process.wait(20)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def children(pid: int) -> list[int]:
    """The processes that this one has started; on Linux."""
    found = []
    for task in Path(f"/proc/{pid}/task").glob("*/children"):
        found += [int(word) for word in task.read_text().split()]
    return sorted(found)


def pin_all(pid: int, core: int) -> None:
    """Every thread of a process to one core; on Linux."""
    for thread in Path(f"/proc/{pid}/task").iterdir():
        os.sched_setaffinity(int(thread.name), {core})


def cpu_s(pid: int) -> float:
    """Seconds of processor time that a process has used; on Linux."""
    return processor_s(pid) or 0.0


def waited_s(pid: int) -> float:
    """Seconds that a process was ready and somebody else had its core; on Linux."""
    files = [thread / "schedstat" for thread in Path(f"/proc/{pid}/task").iterdir()]
    return sum(int(file.read_text().split()[1]) for file in files) / 1e9
