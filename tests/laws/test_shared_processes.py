"""The laws between processes of one host that share a table, and what killed ones leave."""

from __future__ import annotations

import json
import subprocess
import sys
from collections import defaultdict
from pathlib import Path
from typing import Any

from shield.store.shared import remove_table
from shield.testing import check_trace

ROOT = Path(__file__).resolve().parent.parent.parent


def run(scenario: str, tmp_path: Path, options: str) -> dict[str, Any]:
    url = f"shared://{scenario}?{options}&dir={tmp_path}"
    command = [sys.executable, "-m", "tests.laws.shared_workers", scenario, url]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    remove_table(url)
    return json.loads(done.stdout)


def by_key(admissions: list[list[int]]) -> dict[int, list[tuple[int, int]]]:
    found = defaultdict(list)
    for key, at_us in sorted(admissions, key=lambda record: record[1]):
        found[key].append((at_us, 1))
    return found


def test_as_many_are_admitted_as_there_is_and_refusals_cost_nothing(tmp_path):
    """A token bucket's refund is less by what has drained since, ticks of a unit: it may show as one unit."""
    found = run("counted", tmp_path, "max_keys=1000&max_leases=1&max_receipts=1")
    assert found["admitted"] == 400
    assert found["remaining"]["last"] == 0
    assert found["remaining"]["middle"] == 4600
    assert found["remaining"]["first"] in (4599, 4600)


def test_law_1_on_hot_keys_that_all_processes_charge(tmp_path):
    found = by_key(run("hot", tmp_path, "max_keys=1000&max_leases=1&max_receipts=1")["admissions"])
    assert sorted(found) == [0, 1, 9]
    assert check_trace(found[0], rate="20000/s", burst=50) == []
    assert check_trace(found[1], rate="20000/s", burst=50) == []
    assert check_trace(found[9], rate="30000/s", burst=70) == []


def test_law_1_while_slots_change_hands(tmp_path):
    found = by_key(run("crowd", tmp_path, "max_keys=1&max_leases=1&max_receipts=1")["admissions"])
    assert len(found) > 32, "more keys than slots"
    assert [key for key in found if check_trace(found[key], rate="100000/s", burst=2)] == []


def test_hundreds_of_processes_are_killed_and_the_table_goes_on(tmp_path):
    found = run("killed", tmp_path, "max_keys=1&max_leases=5000&max_receipts=1")
    admissions = by_key(found["admissions"])
    logged = sum(map(len, admissions.values()))
    assert found["killed"] >= 300
    assert logged > 1000
    assert [key for key in admissions if check_trace(admissions[key], rate="2000/s", burst=5)] == [], "law 1"
    # What is lost is at most what each had in hand: one charge of one unit.
    assert logged <= found["charged"] <= logged + found["killed"]
    # No cell is stuck: an hour later every key has its burst of 5 and not one more; all places have come back.
    assert found["later"] == ([True] * 5 + [False]) * 60
    assert found["reasons"] == ["limit", "ok"]
    assert found["places"] == 1023
