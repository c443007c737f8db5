"""What does one exact table for all processes of a host cost, and what does a second process add?

Decisions of one limit by `check_nowait`, Requests made before. Each process is pinned to a core and tells its decisions
for each second of CPU time that it got, so a neighbour on the same core does not count; what the processes cost each
other, the cache lines that both write, does. One process alone and two at once take turns.
"""

from __future__ import annotations

import contextlib
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator

from shield import Policy, Request, Shield
from shield.store.shared import PrivateTable

from .load import pin
from .machine import cores
from .process import python, shield_of
from .record import Row, interleaved

KEYS = 5_000
POLICY = Policy.parse(
    'version = 1\nname = "bench"\n[[limit]]\nname = "b"\nkey = ["user"]\nrate = "1000000/s"\nburst = 1_000_000_000\n'
)


class asks:
    """`asks(shield, keys)(calls)`: so many decisions over so many keys in turn."""

    def __init__(self, shield: Shield, keys: int) -> None:
        self._check = shield.check_nowait
        self._requests = [Request(user=f"user:{i}") for i in range(keys)]

    def __call__(self, calls: int) -> None:
        check, requests = self._check, self._requests
        for start in range(0, calls, len(requests)):
            for request in requests[: calls - start]:
                check(request)


@contextlib.contextmanager
def _workers(url: str, keys: int) -> Iterator[list[subprocess.Popen[str]]]:
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True, "bufsize": 1}
    running = [
        subprocess.Popen(python("shared", url, str(keys), str(core)), env=shield_of(), **pipes)  # type: ignore[call-overload]
        for core in cores()[:2]
    ]
    try:
        for worker in running:
            assert worker.stdout.readline().strip() == "ready"
        yield running
    finally:
        for worker in running:
            worker.stdin.close()
            worker.wait()


def _rate(workers: list[subprocess.Popen[str]], seconds: float) -> float:
    for worker in workers:
        assert worker.stdin is not None
        worker.stdin.write(f"{seconds}\n")
        worker.stdin.flush()
    return sum(float(worker.stdout.readline()) for worker in workers if worker.stdout is not None)


def two_against_one(url: str, keys: int, seconds: float) -> tuple[float, float]:
    """Decisions of one process in a second, and how many times that two make."""
    ones, ratios = [], []
    with _workers(url, keys) as workers:
        for i in range(max(5, int(seconds * 2))):
            one = _rate([workers[i % 2]], 0.2)
            ratios.append(_rate(workers, 0.2) / one)
            ones.append(one)
    return statistics.median(ones), statistics.median(ratios)


def run(seconds: float) -> list[Row]:
    if sys.platform != "linux" or len(cores()) < 2:
        return [Row("shared (needs Linux and two cores)", 0.0, "times")]
    with PrivateTable() as table:
        memory, shared = asks(Shield(POLICY), KEYS), asks(Shield(POLICY, table.url), KEYS)
        private, mapped = interleaved([memory, shared], [KEYS, KEYS], seconds)
        _, spread = two_against_one(table.url, KEYS, seconds)
        one, hot = two_against_one(table.url, 1, seconds)
        bytes_a_key = table.path.stat().st_size / 1_000_000
    cost = mapped / private
    return [
        Row("one limit, memory store, 5,000 keys", private, "ns"),
        Row("one limit, shared table, 5,000 keys", mapped, "ns"),
        Row("shared table against memory store", cost, "times", "at most 1.25", cost <= 1.25),
        Row("two processes against one, 5,000 keys", spread, "times", "at least 1.8", spread >= 1.8),
        Row("two processes against one, one hot key, admitted", hot, "times", "at least 1.2", hot >= 1.2),
        Row("one process, one hot key, admitted", one, "decisions/s"),
        Row(
            "shared table of a million keys, all regions, a key", bytes_a_key, "bytes", "at most 67", bytes_a_key <= 67
        ),
    ]


def work(url: str, keys: int, core: int) -> None:
    """A process that decides for as long as each line of standard input says, and tells its decisions a second."""
    pin(core)
    ask = asks(Shield(POLICY, url), keys)
    ask(20_000)
    print("ready", flush=True)
    for line in sys.stdin:
        until = time.perf_counter() + float(line)
        calls, cpu = 0, time.process_time()
        while time.perf_counter() < until:
            ask(2_000)
            calls += 2_000
        print(calls / (time.process_time() - cpu), flush=True)


if __name__ == "__main__":
    work(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]))
