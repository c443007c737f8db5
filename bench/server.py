"""How many decisions does the endpoint answer on one core, and how late are they at half of that?

`shield serve` and aiohttp's own web.Application with the same decision (six limits, memory store) run in processes of
their own on one core and are asked in turns, over 32 kept connections, by a generator on another core. A window in
which the hypervisor kept more than one percent of the machine for itself is measured again, a few times.

Beside the rates stands what one answer costs the server of its processor, the kernel's part included: at saturation
one is the other's inverse, and it hardly depends on what else the machine does meanwhile.
"""

from __future__ import annotations

import itertools
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

from . import generator, latency
from .decision import SIX_LIMITS_TOML
from .flood import flood, processor_s
from .lateness import believed
from .load import in_turn, pin, undisturbed
from .machine import cores
from .peers import web_application
from .process import python, shield_of
from .record import Found, Measured, Row, Skipped

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


def saturation(server: Server, asked: list[bytes], seconds: float) -> tuple[float, float]:
    """Answers a second, and microseconds of the server's processor for each; 0 where nobody counts those."""
    before = processor_s(server.pid)
    load = flood(server.port, itertools.cycle(asked), CONNECTIONS, seconds)
    after = processor_s(server.pid)
    return load.rate, (after - before) / load.count * 1e6 if before is not None and after is not None else 0.0


def lateness(server: Server, asked: list[bytes], seconds: float, rate: float) -> tuple[dict[str, float], str]:
    """Milliseconds by percentile at this rate, open loop, and what is wrong with them."""
    window, doubt = believed(
        lambda: generator.here(server.port, in_turn(asked), rate, seconds, CONNECTIONS), [server.pid]
    )
    return latency.percentiles(window.load.latency), doubt


class Figures(NamedTuple):
    """What was measured; of each window one sample."""

    ours: Measured
    theirs: Measured
    our_cpu_us: Measured
    their_cpu_us: Measured
    late_ms: list[dict[str, float]]
    """By percentile, of the windows beyond doubt."""
    doubt: str
    """Of the last one that was not."""


def measure(ours: Server, theirs: Server, seconds: float) -> Figures:
    asked = requests()
    for server in (ours, theirs):
        saturation(server, asked, min(1.0, seconds))  # every key is there then, and every path warm
    windows = [
        (
            *undisturbed(lambda: saturation(ours, asked, seconds))[0],
            *undisturbed(lambda: saturation(theirs, asked, seconds))[0],
        )
        for _ in range(WINDOWS)
    ]
    our_rate, our_cpu_us, their_rate, their_cpu_us = (Measured(samples) for samples in zip(*windows, strict=True))
    late = [lateness(ours, asked, seconds, our_rate / 2) for _ in range(WINDOWS)]
    doubt = next((doubt for _, doubt in reversed(late) if doubt), "")
    return Figures(our_rate, their_rate, our_cpu_us, their_cpu_us, [ms for ms, doubt in late if not doubt], doubt)


def run(seconds: float) -> list[Found]:
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
    rows: list[Found] = [
        Row("POST /v1/check, six limits, 32 connections", made.ours, "/s", "at least 60,000", made.ours >= 60_000),
        Row(f"{web_application.NAME}, the same decision", made.theirs, "/s"),
        Row("POST /v1/check against web.Application", ratio, "times", "at least 4.5", ratio >= 4.5),
        *_late(made),
    ]
    if made.our_cpu_us and made.their_cpu_us:
        cpu = made.their_cpu_us / made.our_cpu_us
        rows += [
            Row("POST /v1/check: processor time of the server, an answer", made.our_cpu_us, "us"),
            Row(f"{web_application.NAME}: the same", made.their_cpu_us, "us"),
            Row("web.Application's processor time against ours", cpu, "times", "at least 4.5", cpu >= 4.5),
        ]
    return rows


def _late(made: Figures) -> list[Found]:
    median, p99 = (f"at half of that rate, open loop: {which} latency" for which in ("median", "p99"))
    if not made.late_ms:
        return [Skipped(median, made.doubt), Skipped(p99, made.doubt)]
    p99_ms = Measured([each["p99"] for each in made.late_ms])
    return [
        Row(median, Measured([each["p50"] for each in made.late_ms]), "ms"),
        Row(p99, p99_ms, "ms", "below 1", p99_ms < 1),
    ]


def _cores() -> set[int]:
    import os

    return os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else set()


def _spread(cores: set[int]) -> None:
    import os

    if cores:
        os.sched_setaffinity(0, cores)
