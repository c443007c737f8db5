"""The named scenarios: what each asks, and the modules that answer. A module is imported when its scenario runs."""

from __future__ import annotations

from importlib import import_module
from typing import NamedTuple

from .record import Row


class Scenario(NamedTuple):
    """One name of the command line."""

    asks: str
    modules: tuple[str, ...]
    """Each has `run(seconds) -> rows`."""


SCENARIOS = {
    "core": Scenario("one limit, from Python into the compiled table and back", ("core",)),
    "decision": Scenario("six limits in one step", ("decision",)),
    "graphql": Scenario("pricing an operation, and the hostile ones", ("graphql",)),
    "detectors": Scenario("twelve detectors beside a check", ("detectors",)),
    "identity": Scenario("tokens known, new and forged", ("identity",)),
    "memory": Scenario("bytes a key, and ten million attacker keys", ("memory",)),
    "scale": Scenario("a thousand limits, ten million keys, the longest call", ("scale",)),
    "shared": Scenario("one table for the processes of a host", ("shared",)),
    "server": Scenario("the endpoint", ("server",)),
    "store": Scenario("Redis: how near to what one server can do", ("store",)),
    "faults": Scenario("Redis stands still for two seconds", ("faults",)),
}


class Missing(Exception):
    """A scenario needs something that this machine does not have; the text says what."""


def run(name: str, seconds: float) -> list[Row]:
    """The scenario's figures. Missing when a package that it needs is not installed."""
    rows: list[Row] = []
    for module in SCENARIOS[name].modules:
        try:
            rows += import_module(f".{module}", __package__).run(seconds)
        except ModuleNotFoundError as error:
            raise Missing(f"needs {error.name}: pip install 'shield-limiter[bench]'") from error
    return rows
