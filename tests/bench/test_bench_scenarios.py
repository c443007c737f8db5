"""Scenarios and peers: named, importable, asked through the same three names, skipped with a reason."""

from __future__ import annotations

import asyncio
import inspect
from importlib import import_module
from importlib.metadata import PackageNotFoundError

import pytest

from bench import machine, offered, peer_runs, scenarios, soak, workers
from bench.record import Row, Skipped
from bench.results import Results
from bench.scenarios import ALIASES, SCENARIOS


def test_the_scenarios_of_a_capacity_planner_are_there():
    wanted = {"core", "memory", "store", "server", "graphql", "abuse", "attack", "fault", "soak", "peers", "capacity"}
    assert wanted <= {*SCENARIOS, *ALIASES}


@pytest.mark.parametrize("name", SCENARIOS)
def test_every_module_of_a_scenario_can_be_asked(name):
    for module in SCENARIOS[name].modules:
        asked = import_module(f"bench.{module}")
        assert list(inspect.signature(asked.run).parameters) in (["seconds"], ["seconds", "seed"])
        assert asked.__doc__


@pytest.mark.parametrize("name", peer_runs.PEERS)
def test_a_peer_is_asked_by_the_same_names_and_refuses_what_is_too_much(name):
    peer = import_module(f"bench.peers.{name}")
    assert peer.NAME
    assert peer.DISTRIBUTION
    hit = peer.make(3)

    async def ask(key: str) -> bool:
        found = hit(key)
        return await found if inspect.isawaitable(found) else found

    async def all_of_them() -> list[bool]:
        return [await ask("a") for _ in range(6)] + [await ask("b")]

    found = asyncio.run(all_of_them())
    assert all(type(one) is bool for one in found)
    assert found[:3] == [True] * 3
    assert found[5] is False
    assert found[6] is True


def test_a_peer_is_measured_in_a_process_of_its_own():
    told = peer_runs._fresh(peer_runs.OURS, 0.01)
    assert told["name"].startswith("Shield")
    assert told["allowed"] > 0
    assert told["refused"] > 0


def test_what_is_not_installed_is_skipped_with_its_reason(monkeypatch):
    def absent(name: str) -> str:
        raise PackageNotFoundError(name)

    monkeypatch.setattr(peer_runs, "version", absent)
    monkeypatch.setattr(peer_runs, "REPEATS", 0)
    monkeypatch.setattr(peer_runs, "PEERS", ("throttled_gcra",))
    monkeypatch.setattr(peer_runs, "OURS", "throttled_gcra")
    monkeypatch.setattr(peer_runs, "measured", lambda taken: [])
    [skipped] = peer_runs.run(0.1)
    assert skipped == Skipped(
        "throttled-py, MemoryStore, GCRA", "throttled-py is not installed: pip install 'shield-limiter[bench]'"
    )


def test_a_module_that_misses_a_package_is_skipped(monkeypatch):
    monkeypatch.setitem(SCENARIOS, "gone", scenarios.Scenario("nothing", ("gone_module",)))
    found = Results({}, {})
    scenarios.run("gone", 0.1, 1, found)
    assert found.skipped[0]["why"].startswith("bench.gone_module is not installed")


def test_a_fault_of_one_scenario_keeps_the_figures_of_the_others(monkeypatch):
    def faulty(seconds: float) -> list[Row]:
        raise ZeroDivisionError("by nothing")

    monkeypatch.setattr(import_module("bench.decision"), "run", faulty)
    found = Results({}, {})
    found.add("core", [Row("allow", 1.0, "ns")])
    scenarios.run("decision", 0.1, 1, found)
    assert (len(found.rows), found.faults) == (1, 1)
    assert found.skipped[0]["why"] == "a fault, ZeroDivisionError: by nothing"


def test_one_core_is_enough_for_what_needs_no_second(monkeypatch):
    monkeypatch.setattr(workers, "cores", lambda: [0])
    assert workers.counts() == [1]
    monkeypatch.setattr(workers, "cores", lambda: list(range(6)))
    assert workers.counts() == [1, 2, 4, 6]


def test_other_systems_are_told_what_is_missing(monkeypatch):
    for module in (workers, offered, soak):
        monkeypatch.setattr(module.sys, "platform", "darwin")
        assert module.run(0.1, 1)[0].why == offered.NEEDS


def test_the_machine_says_what_figures_depend_on():
    told = machine.facts()
    assert {"cpu", "cores", "governor", "clock_source", "system", "python", "packages"} <= set(told)
    assert 1 < told["clock_read_ns"] < 1e6


def test_a_small_scenario_gives_figures():
    found = Results({}, {})
    scenarios.run("abuse", 0.01, 1, found)
    assert [row["what"] for row in found.rows][2] == "abuse: attackers found, of three"
    assert found.rows[2]["met"]
    assert Row("x", 1.0, "ns").met
