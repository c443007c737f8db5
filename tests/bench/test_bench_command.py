"""`shield bench` and `python -m bench`: the same command, from wherever it is started."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

from bench.process import python, shield_of

ROOT = Path(__file__).resolve().parents[2]


def run(*command: str, cwd: Path = ROOT) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command, cwd=cwd, capture_output=True, text=True, timeout=60, env={**os.environ})


def test_a_scenario_is_run_and_its_figures_are_written(tmp_path):
    file = tmp_path / "figures.json"
    done = run(sys.executable, "-m", "bench", "decision", "--seconds", "0.01", "--json", str(file))
    assert done.returncode == 0, done.stderr
    assert "check_nowait, six limits, Request given" in done.stdout
    told = json.loads(file.read_text())
    assert told["machine"]["cores"] >= 1
    assert told["machine"]["packages"]["shield-limiter"]
    assert {"what", "value", "unit"} <= set(told["rows"][0])


def test_misuse_is_2_and_names_what_there_is():
    for wrong, said in (("cor", "there are core, decision"), ("--seconds=0", "allowed: seconds, 0.01 to 86400")):
        done = run(sys.executable, "-m", "bench", wrong)
        assert (done.returncode, done.stdout) == (2, "")
        assert said in done.stderr


def test_the_list_says_what_each_scenario_asks():
    done = run(sys.executable, "-m", "bench", "--list")
    assert done.returncode == 0
    assert "core " in done.stdout


def test_a_child_is_started_from_any_folder_under_either_name(tmp_path):
    done = subprocess.run(
        python("peers.web_application"), cwd=tmp_path, env=shield_of(), capture_output=True, text=True, timeout=60
    )
    assert "IndexError" in done.stderr  # it ran, and missed the policy's file
