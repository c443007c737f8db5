"""`shield bench` and `python -m bench`: the same command, from wherever it is started."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from argparse import Namespace
from pathlib import Path

import pytest
from test_bench_capacity import FACTS

from bench.process import python, shield_of
from bench.record import Measured, Row, Series
from bench.results import Results
from shield import cli_bench

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


def test_files_are_compared_and_a_regression_is_1(tmp_path):
    slow, fast = tmp_path / "slow.json", tmp_path / "fast.json"
    for path, value in ((fast, 100.0), (slow, 200.0)):
        found = Results({"cpu": "x"}, {"repeats": 10})
        found.add("core", [Row("allow", Measured([value + i for i in range(10)]), "ns")])
        path.write_text(found.text())
    for pair, status, said in (
        ((fast, slow), 1, "REGRESSION"),
        ((slow, fast), 0, "better"),
        ((fast, fast), 0, "no change: 1"),
    ):
        done = run(sys.executable, "-m", "bench", "--compare", *map(str, pair))
        assert (done.returncode, done.stderr) == (status, "")
        assert said in done.stdout
    slow.write_text('{"version": 0}')
    done = run(sys.executable, "-m", "bench", "--compare", str(fast), str(slow))
    assert (done.returncode, done.stdout) == (2, "")
    assert "version 0" in done.stderr


def test_two_checkouts_take_turns():
    done = run(sys.executable, "-m", "bench", "decision", "--against", ".", "--repeats", "14", "--least", "0.9")
    assert done.returncode == 0, done.stderr
    assert "no change: 6 of 6 figures" in done.stdout
    done = run(sys.executable, "-m", "bench", "decision", "--against", "/absent", "--repeats", "5")
    assert (done.returncode, done.stdout) == (2, "")
    assert "no checkout of Shield is there" in done.stderr


def test_interrupted_it_writes_what_was_measured(tmp_path):
    file = tmp_path / "figures.json"
    command = [sys.executable, "-m", "bench", "decision", "graphql", "--seconds", "0.01", "--json", str(file)]
    code = (
        "import runpy, sys; from bench import scenarios\n"
        "before = scenarios.run\n"
        "def run(name, *rest):\n"
        "    if name == 'graphql': raise KeyboardInterrupt\n"
        "    before(name, *rest)\n"
        "scenarios.run = run\n"
        f"sys.argv = {command[2:]!r}\n"
        "runpy.run_module('bench', run_name='__main__')"
    )
    done = run(sys.executable, "-c", code)
    assert done.returncode == 3
    assert "interrupted; 6 figures are in" in done.stderr
    told = json.loads(file.read_text())
    assert (told["interrupted"], len(told["rows"])) == (True, 6)


def test_a_capacity_plan_comes_of_a_measured_file(tmp_path):
    file = tmp_path / "facts.json"
    found = Results({"cpu": "x"}, {"repeats": 1})
    found.add("capacity", [Series("facts", "facts", [FACTS])])
    file.write_text(found.text())
    ask = (sys.executable, "-m", "bench", "capacity", "--measured", str(file), "--p99-ms", "4", "--keys", "20_000_000")
    done = run(*ask, "--rate", "100000", "--hot", "0.1")
    assert (done.returncode, done.stderr) == (0, "")
    lines = done.stdout.splitlines()
    assert lines[0] == "for 100,000 checks/s, 10% of them for one key, p99 4 ms, 20,000,000 keys"
    assert "  workers      5" in lines
    assert "  shards       3" in lines
    assert any(line.startswith("  binds first  ") for line in lines)
    done = run(*ask, "--rate", "10000000")
    assert done.returncode == 1
    assert done.stdout.splitlines()[-1] == "this machine does not serve 10,000,000 checks/s at that p99"
    for wrong, said in ((("--rate", "-1"), "allowed: a number above 0"), (("core", "--rate", "1"), "name capacity")):
        done = run(*ask[:3], *wrong)
        assert (done.returncode, done.stdout) == (2, "")
        assert said in done.stderr
    file.write_text(Results({}, {}).text())
    done = run(*ask, "--rate", "1")
    assert (done.returncode, done.stdout) == (2, "")
    assert "no measurements of the scenario capacity" in done.stderr


def test_where_the_benchmarks_are_not_installed_it_says_where_they_are(monkeypatch):
    monkeypatch.setitem(sys.modules, "bench.command", None)
    monkeypatch.setitem(sys.modules, "shield.bench", None)
    with pytest.raises(ImportError, match="in a clone: python -m bench"):
        cli_bench.run(Namespace())


def test_the_list_says_what_each_scenario_asks():
    done = run(sys.executable, "-m", "bench", "--list")
    assert done.returncode == 0
    assert "core " in done.stdout


def test_a_child_is_started_from_any_folder_under_either_name(tmp_path):
    done = subprocess.run(
        python("peers.web_application"), cwd=tmp_path, env=shield_of(), capture_output=True, text=True, timeout=60
    )
    assert "IndexError" in done.stderr  # it ran, and missed the policy's file
