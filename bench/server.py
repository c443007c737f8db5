"""How many decisions does the endpoint answer on one core, and how late are they at half of that?

`shield serve` and aiohttp's own web.Application with the same decision (six limits, memory store) run in processes of
their own on one core and are asked in turns, over 32 kept connections, by a generator on another core. A window in
which the hypervisor kept more than one percent of the machine for itself is measured again, a few times.
"""

from __future__ import annotations

import re
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import uvloop

from .arrivals import instants
from .decision import SIX_LIMITS_TOML
from .load import MAX_STEAL, MAX_TRIES, Closed, close, connect, in_turn, pin, stolen
from .open_loop import OpenLoop
from .peers import web_application
from .process import python, shield_of
from .record import Row

CONNECTIONS = 32
WINDOWS = 5
SERVER_CORE, LOAD_CORE = 0, 1


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


@contextmanager
def serving(command: list[str], port: str) -> Iterator[int]:
    """A server on its core; the port it prints."""
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
                yield int(found[1])
                return
        raise RuntimeError(f"{command[0]} did not start")
    finally:
        process.terminate()
        process.wait(20)


async def undisturbed(measure: Callable[[], Awaitable[float]]) -> float:
    """A figure of a window that was not stolen from; after MAX_TRIES the last one, whatever it was."""
    for _ in range(MAX_TRIES):
        stolen_before, all_before = stolen()
        figure = await measure()
        stolen_after, all_after = stolen()
        if stolen_after - stolen_before <= MAX_STEAL * (all_after - all_before):
            break
    return figure


async def saturation(port: int, asked: list[bytes], seconds: float) -> float:
    """Answers a second."""
    load = Closed(in_turn(asked), seconds)
    clients = await connect(load, port, CONNECTIONS)
    rate = await load.run(clients)
    close(clients)
    return rate


async def percentile(port: int, asked: list[bytes], seconds: float, rate: float, part: float) -> float:
    """Milliseconds within which this part of the answers came."""
    load = OpenLoop(in_turn(asked), instants(rate, seconds))
    clients = await connect(load, port, CONNECTIONS)
    await load.run(clients, time.perf_counter())
    close(clients)
    latencies = sorted(load.latencies_s)
    return latencies[min(len(latencies) - 1, int(part * len(latencies)))] * 1_000


async def measure(ours: int, theirs: int, seconds: float) -> tuple[float, float, float, float]:
    asked = requests()
    rates: list[tuple[float, float]] = []
    for port in (ours, theirs):
        await saturation(port, asked, min(1.0, seconds))  # every key is there then, and every path warm
    for _ in range(WINDOWS):
        mine = await undisturbed(lambda: saturation(ours, asked, seconds))
        peer = await undisturbed(lambda: saturation(theirs, asked, seconds))
        rates.append((mine, peer))
    mine = statistics.median(rate for rate, _ in rates)
    peer = statistics.median(rate for _, rate in rates)
    half = mine / 2
    p50 = statistics.median([await undisturbed(lambda: percentile(ours, asked, seconds, half, 0.5)) for _ in range(3)])
    p99 = statistics.median(
        [await undisturbed(lambda: percentile(ours, asked, seconds, half, 0.99)) for _ in range(WINDOWS)]
    )
    return mine, peer, p50, p99


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
            cores = _cores()
            pin(LOAD_CORE)
            try:
                mine, peer, p50, p99 = uvloop.run(measure(ours, theirs, seconds))
            finally:
                _spread(cores)
    ratio = mine / peer
    return [
        Row("POST /v1/check, six limits, 32 connections", mine, "/s", "at least 60,000", mine >= 60_000),
        Row(f"{web_application.NAME}, the same decision", peer, "/s"),
        Row("POST /v1/check against web.Application", ratio, "times", "at least 4.5", ratio >= 4.5),
        Row("at half of that rate, open loop: median latency", p50, "ms"),
        Row("at half of that rate, open loop: p99 latency", p99, "ms", "below 1", p99 < 1),
    ]


def _cores() -> set[int]:
    import os

    return os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else set()


def _spread(cores: set[int]) -> None:
    import os

    if cores:
        os.sched_setaffinity(0, cores)
