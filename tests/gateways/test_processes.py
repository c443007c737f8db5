"""The processes of these tests end with the test run, also with one that is killed."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.gateway_processes import ROOT
from tests.gateways.conftest import need

_STARTS_ALL = """
import contextlib, sys, time
from pathlib import Path
from tests.gateway_processes import run_envoy, run_nginx, run_shield, unchanged

directory = Path(sys.argv[1])
with contextlib.ExitStack() as stack:
    shield = stack.enter_context(run_shield(directory / "shield", sys.stdin.read()))
    for run in (run_envoy, run_nginx):
        stack.enter_context(run(directory / run.__name__, shield.port, unchanged))
    print("started", flush=True)
    time.sleep(60)
"""
_POLICY = '[[limit]]\nname = "a"\nkey = ["ip"]\nrate = "1/s"\n'


def below(directory: Path) -> dict[int, str]:
    """Live processes whose working directory is in here: pid -> program."""
    found = {}
    for entry in Path("/proc").iterdir():
        try:
            if entry.name.isdigit() and Path(os.readlink(entry / "cwd")).is_relative_to(directory):
                found[int(entry.name)] = (entry / "comm").read_text().strip()
        except OSError:
            continue  # it has ended, or is not ours to look at
    return found


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere nothing ends the children of a killed process")
def test_a_killed_test_run_leaves_nothing_behind(tmp_path: Path) -> None:
    need("envoy")
    need("nginx")
    directory = tmp_path.resolve()
    command = [sys.executable, "-c", _STARTS_ALL, str(directory)]
    with subprocess.Popen(command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as run:
        try:
            assert run.stdin is not None
            assert run.stdout is not None
            run.stdin.write(_POLICY.encode())
            run.stdin.close()
            assert run.stdout.readline() == b"started\n"
            programs = sorted(below(directory).values())
            assert len(programs) == 4, programs  # Shield, Envoy, and nginx with one worker
        finally:
            run.send_signal(signal.SIGKILL)
    ends = time.monotonic() + 10
    while below(directory) and time.monotonic() < ends:
        time.sleep(0.01)
    assert below(directory) == {}
