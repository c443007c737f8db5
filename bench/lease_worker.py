"""One of several processes that ask for the same tenant, for the benchmark of leases and their tests.

    python -m bench.lease_worker URL SECONDS [FILE]

asks as fast as it can, 64 requests a turn of the loop, with pauses where a FILE is given. At the end it prints what
became of it as JSON. FILE gets the instants of its admissions, by the store's clock, in microseconds, eight bytes
each: after every turn, so that little is lost when it is killed.
"""

from __future__ import annotations

import asyncio
import json
import os
import struct
import subprocess
import sys
import time
from pathlib import Path

import uvloop

from shield import Policy, Request, Shield

from .process import python, shield_of

BURST, RATE = 2_000, 20_000
POLICY = Policy.parse(
    'version = 1\nname = "hot"\n[[limit]]\nname = "tenant"\nkey = ["tenant"]\n'
    f'rate = "{RATE}/s"\nburst = {BURST}\nlease = "auto"\n'
)
A_TURN = 64
PAUSE_S = 0.004


def start(url: str, seconds: float, file: Path | None = None) -> subprocess.Popen[bytes]:
    """Starts one; it begins to ask at once."""
    command = python("lease_worker", url, str(seconds), *([str(file)] if file else []))
    return subprocess.Popen(command, stdout=subprocess.PIPE, env=shield_of())


def admissions(files: list[Path]) -> list[tuple[int, int]]:
    """What all of them admitted, (instant, 1) each, in its order."""
    instants: list[int] = []
    for file in files:
        data = file.read_bytes() if file.exists() else b""
        instants += struct.unpack(f"<{len(data) // 8}q", data[: len(data) // 8 * 8])
    return [(instant, 1) for instant in sorted(instants)]


async def ask(url: str, seconds: float, file: int | None) -> dict[str, float]:
    request = Request(tenant="acme")
    decided = admitted = degraded = 0
    async with Shield(POLICY, url) as shield:
        if not shield.store.local:  # all nodes are counted before any begins
            await asyncio.sleep(1.0 if file is None else 0.1)
        cpu_s, began_us = time.process_time(), time.time_ns() // 1000
        ends = time.perf_counter() + seconds
        while time.perf_counter() < ends:
            instants = []
            for _ in range(A_TURN):
                decision = await shield.check(request)
                decided += 1
                if decision.degraded:
                    degraded += 1
                elif decision.allowed:
                    admitted += 1
                    instants.append(decision.charges.now_us)
            if file is not None:
                os.write(file, struct.pack(f"<{len(instants)}q", *instants))
            await asyncio.sleep(0 if file is None else PAUSE_S)
        cpu_s, ended_us = time.process_time() - cpu_s, time.time_ns() // 1000
        return {
            "decided": decided,
            "admitted": admitted,
            "degraded": degraded,
            "cpu_s": cpu_s,
            "began_us": began_us,
            "ended_us": ended_us,
            "commands": shield.stats().get("lease_commands", 0),
        }


def main(url: str, seconds: str, file: str | None = None) -> None:
    out = None if file is None else os.open(file, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    print(json.dumps(uvloop.run(ask(url, float(seconds), out))))


if __name__ == "__main__":
    main(*sys.argv[1:])
