"""Law 1 over several processes that hold leases of one bucket, and are killed at any moment."""

from __future__ import annotations

import json
import random
import time
from pathlib import Path

from bench.lease_worker import BURST, RATE, admissions, start
from shield.testing import check_trace
from tests.servers import Server

PROCESSES = 4
SECONDS = 4.0
KILLS = 5


def test_no_interval_is_over_the_law_while_nodes_are_killed(any_server: Server, tmp_path: Path) -> None:
    url = f"{any_server.url}?prefix=killed&deadline=500ms"
    files = [tmp_path / str(i) for i in range(PROCESSES + KILLS)]
    running = [start(url, 60, file) for file in files[:PROCESSES]]
    try:
        ends = time.monotonic() + 30
        while not all(file.exists() and file.stat().st_size for file in files[:PROCESSES]):
            assert time.monotonic() < ends, "they do not begin"
            time.sleep(0.02)
        for i in range(KILLS):
            time.sleep(SECONDS / KILLS * random.random())
            victim = running.pop(random.randrange(len(running)))
            victim.kill()
            victim.wait()
            running.append(start(url, 60, files[PROCESSES + i]))
    finally:
        for process in running:
            process.kill()
            process.wait()
    admitted = admissions(files)
    assert len(admitted) > 2 * BURST, "they hardly ran"
    assert check_trace(admitted, f"{RATE}/s", BURST) == []
    with any_server.client() as client:
        lease_commands = client.info("commandstats")["cmdstat_evalsha"]["calls"]
    assert lease_commands < len(admitted) / 5, json.dumps({"commands": lease_commands, "admitted": len(admitted)})
