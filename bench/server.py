"""How many decisions does the endpoint answer on one core, and how late are they at half of that?

`shield serve` and aiohttp's own web.Application with the same decision (six limits, memory store) run in processes of
their own on one core and are asked in turns, over 32 kept connections, by a generator on another core. A window in
which the hypervisor kept more than one percent of the machine for itself is measured again, a few times.

Beside the rates stands what one answer costs the server of its processor, the kernel's part included: at saturation
one is the other's inverse, and it hardly depends on what else the machine does meanwhile.
"""

from __future__ import annotations

import re
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple, TypeVar

import uvloop

from .arrivals import instants
from .decision import SIX_LIMITS_TOML
from .flood import flood, processor_s
from .load import MAX_STEAL, MAX_TRIES, close, connect, in_turn, pin, stolen
from .machine import cores
from .open_loop import OpenLoop
from .peers import web_application
from .process import python, shield_of
from .record import Measured, Row

CONNECTIONS = 32
WINDOWS = 5
SERVER_CORE, LOAD_CORE = cores()[0], cores()[-1]


def requests() -> list[bytes]:
    """Of 5,000 users and 250 addresses."""
    made = []
    for i in range(5_000):
        body = b'{"tenant":"acme","user":"user:%d","ip":"203.0.113.%d"}' % (i, i % 250)
        head = (
            b"POST /v1/check HTTP/1.1\r\nHost: shield\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n"
        )
        made.append(head % len(body) + body)
    return made


class Server(NamedTuple):
    """A running server."""

    port: int
    pid: int


@contextmanager
def serving(command: list[str], port: str) -> Iterator[Server]:
    """A server on its core, which prints its port."""
    process = subprocess.Popen(
        command,
        env=shield_of(),
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        preexec_fn=lambda: pin(SERVER_CORE),
    )
    try:
        assert process.stdout is not None
        for line in process.stdout:
            if found := re.search(port, line):
                yield Server(int(found[1]), process.pid)
                return
        raise RuntimeError(f"{command[0]} did not start")
    finally:
        process.terminate()
        process.wait(20)


T = TypeVar("T")


def undisturbed(measure: Callable[[], T]) -> T:
    """A figure of a window that was not stolen from; after MAX_TRIES the last one, whatever it was."""
    for _ in range(MAX_TRIES):
        stolen_before, all_before = stolen()
        figure = measure()
        stolen_after, all_after = stolen()
        if stolen_after - stolen_before <= MAX_STEAL * (all_after - all_before):
            break
    return figure


def saturation(server: Server, asked: list[bytes], seconds: float) -> tuple[float, float]:
    """Answers a second, and microseconds of the server's processor for each; 0 where nobody counts those."""
    before = processor_s(server.pid)
    load = flood(server.port, asked, CONNECTIONS, seconds)
    after = processor_s(server.pid)
    return load.rate, (after - before) / load.count * 1e6 if before is not None and after is not None else 0.0


async def _latencies(port: int, asked: list[bytes], seconds: float, rate: float) -> list[float]:
    load = OpenLoop(in_turn(asked), instants(rate, seconds))
    clients = await connect(load, port, CONNECTIONS)
    await load.run(clients, time.perf_counter())
    close(clients)
    return sorted(load.latencies_s)


def percentile(server: Server, asked: list[bytes], seconds: float, rate: float, part: float) -> float:
    """Milliseconds within which this part of the answers came."""
    latencies = uvloop.run(_latencies(server.port, asked, seconds, rate))
    return latencies[min(len(latencies) - 1, int(part * len(latencies)))] * 1_000


class Figures(NamedTuple):
    """What was measured; of each window one sample."""

    ours: Measured
    theirs: Measured
    our_cpu_us: Measured
    their_cpu_us: Measured
    p50_ms: float
    p99_ms: float


def measure(ours: Server, theirs: Server, seconds: float) -> Figures:
    asked = requests()
    for server in (ours, theirs):
        saturation(server, asked, min(1.0, seconds))  # every key is there then, and every path warm
    windows = [
        (
            *undisturbed(lambda: saturation(ours, asked, seconds)),
            *undisturbed(lambda: saturation(theirs, asked, seconds)),
        )
        for _ in range(WINDOWS)
    ]
    our_rate, our_cpu_us, their_rate, their_cpu_us = (Measured(samples) for samples in zip(*windows, strict=True))
    half = our_rate / 2
    p50 = statistics.median([undisturbed(lambda: percentile(ours, asked, seconds, half, 0.5)) for _ in range(3)])
    p99 = statistics.median([undisturbed(lambda: percentile(ours, asked, seconds, half, 0.99)) for _ in range(WINDOWS)])
    return Figures(our_rate, their_rate, our_cpu_us, their_cpu_us, p50, p99)


def run(seconds: float) -> list[Row]:
    with tempfile.TemporaryDirectory(prefix="shield-bench-") as directory:
        policy = Path(directory, "policy.toml")
        policy.write_text(SIX_LIMITS_TOML)
        serve = [
            sys.executable,
            "-m",
            "shield",
            "serve",
            "--policy",
            str(policy),
            "--listen",
            "127.0.0.1:0",
            "--admin",
            "none",
        ]
        with (
            serving(serve, r" on http://127\.0\.0\.1:(\d+)") as ours,
            serving(python("peers.web_application", str(policy)), r"^port (\d+)") as theirs,
        ):
            before = _cores()
            pin(LOAD_CORE)
            try:
                made = measure(ours, theirs, seconds)
            finally:
                _spread(before)
    ratio = made.ours / made.theirs
    rows = [
        Row("POST /v1/check, six limits, 32 connections", made.ours, "/s", "at least 60,000", made.ours >= 60_000),
        Row(f"{web_application.NAME}, the same decision", made.theirs, "/s"),
        Row("POST /v1/check against web.Application", ratio, "times", "at least 4.5", ratio >= 4.5),
        Row("at half of that rate, open loop: median latency", made.p50_ms, "ms"),
        Row("at half of that rate, open loop: p99 latency", made.p99_ms, "ms", "below 1", made.p99_ms < 1),
    ]
    if made.our_cpu_us and made.their_cpu_us:
        cpu = made.their_cpu_us / made.our_cpu_us
        rows += [
            Row("POST /v1/check: processor time of the server, an answer", made.our_cpu_us, "us"),
            Row(f"{web_application.NAME}: the same", made.their_cpu_us, "us"),
            Row("web.Application's processor time against ours", cpu, "times", "at least 4.5", cpu >= 4.5),
        ]
    return rows


def _cores() -> set[int]:
    import os

    return os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else set()


def _spread(cores: set[int]) -> None:
    import os

    if cores:
        os.sched_setaffinity(0, cores)
