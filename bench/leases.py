"""What does one hot tenant cost when four processes take units of it in advance?

Each asks as fast as it can for one tenant that may 20,000 a second with bursts of 2,000. Told are Redis commands for
a thousand admitted, how much of the quota was used from the time all were there until the first stopped, the longest
excess over law 1 with and without processes that are killed at random, and decisions per second of processor time
beside those of one process with the memory store, whose requests are the same.
"""

from __future__ import annotations

import json
import random
import subprocess
import tempfile
import time
from pathlib import Path
from typing import Any

from shield.testing import check_trace

from .lease_worker import BURST, RATE, admissions, start
from .record import Row
from .servers import Server, binaries, run_server

PROCESSES = 4


def finished(processes: list[subprocess.Popen[bytes]]) -> list[dict[str, Any]]:
    return [json.loads(process.communicate()[0]) for process in processes]


def hot(server: Server, seconds: float) -> list[Row]:
    """Four processes to the end."""
    with server.client() as client:
        before = client.info("commandstats").get("cmdstat_evalsha", {"calls": 0})["calls"]
        told = finished([start(f"{server.url}?prefix=hot&deadline=1s", seconds) for _ in range(PROCESSES)])
        commands = client.info("commandstats")["cmdstat_evalsha"]["calls"] - before
    alone = finished([start("memory://", seconds)])[0]
    admitted = sum(one["admitted"] for one in told)
    lasted_s = (max(one["ended_us"] for one in told) - min(one["began_us"] for one in told)) / 1e6
    used = 100 * admitted / (BURST + RATE * lasted_s)
    each = 1_000 * commands / admitted
    rate = sum(one["decided"] for one in told) / sum(one["cpu_s"] for one in told)
    share = 100 * rate / (alone["decided"] / alone["cpu_s"])
    return [
        Row("leases: commands for 1,000 admitted", each, "commands", "at most 15", each <= 15),
        Row("leases: quota used", used, "percent", "at least 97", used >= 97),
        Row("leases: degraded decisions", sum(one["degraded"] for one in told), "decisions"),
        Row("leases: decisions", rate, "/s of CPU"),
        Row("memory store: decisions", alone["decided"] / alone["cpu_s"], "/s of CPU"),
        Row("leases against the memory store", share, "percent", "at least 70", share >= 70),
    ]


def killed(server: Server, seconds: float) -> list[Row]:
    """Four processes, of which one is killed and begun anew every half second or so."""
    url = f"{server.url}?prefix=killed&deadline=1s"
    kills = max(2, int(2 * seconds))
    with tempfile.TemporaryDirectory(prefix="shield-") as directory:
        files = [Path(directory, str(i)) for i in range(PROCESSES + kills)]
        running = [start(url, 600, file) for file in files[:PROCESSES]]
        began = time.monotonic()
        while not all(file.exists() and file.stat().st_size for file in files[:PROCESSES]):
            if time.monotonic() - began > 30:
                raise RuntimeError("the processes do not begin to ask")
            time.sleep(0.01)
        for i in range(kills):
            time.sleep(random.random() * seconds / kills)
            victim = running.pop(random.randrange(PROCESSES))
            victim.kill()
            victim.wait()
            running.append(start(url, 600, files[PROCESSES + i]))
        for process in running:
            process.kill()
            process.wait()
        admitted = admissions(files)
    over = check_trace(admitted, f"{RATE}/s", BURST)
    lasted_s = (admitted[-1][0] - admitted[0][0]) / 1e6
    excess = float(over[0].excess) if over else 0.0
    return [
        Row(f"leases, {kills} processes killed: units over law 1", excess, "units", "0", not over),
        Row("the same: quota used", 100 * len(admitted) / (BURST + RATE * lasted_s), "percent"),
    ]


def run(seconds: float) -> list[Row]:
    kind, binary = next(iter(binaries().items()))
    with run_server(kind, binary) as server:
        return hot(server, 2 * seconds) + killed(server, 2 * seconds)
