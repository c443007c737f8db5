"""The named scenarios: what each asks, and the modules that answer. A module is imported when its scenario runs."""

from __future__ import annotations

import inspect
from importlib import import_module
from typing import NamedTuple

from .record import Skipped
from .results import Results


class Scenario(NamedTuple):
    """One name of the command line."""

    asks: str
    modules: tuple[str, ...]
    """Each has `run(seconds)`, or `run(seconds, seed)` where chance has a part."""


SCENARIOS = {
    "core": Scenario("one limit, from Python into the compiled table and back", ("core", "algorithms")),
    "decision": Scenario("six limits in one step", ("decision",)),
    "idempotency": Scenario("what an idempotency key adds to a decision", ("idempotency",)),
    "blocks": Scenario("a million blocked networks, and a check beside blocks", ("blocks",)),
    "graphql": Scenario("pricing an operation, and the hostile ones", ("graphql",)),
    "detectors": Scenario("twelve detectors beside a check", ("detectors",)),
    "identity": Scenario("tokens known, new and forged", ("identity",)),
    "middleware": Scenario("what the ASGI middleware adds to a request", ("middleware",)),
    "memory": Scenario("bytes a key, and ten million attacker keys", ("memory",)),
    "scale": Scenario("a thousand limits, ten million keys, the longest call", ("scale",)),
    "shared": Scenario("one table for the processes of a host", ("shared",)),
    "server": Scenario("the endpoint, and how late it is at which rate, on both lanes", ("server", "offered", "mixes")),
    "store": Scenario("Redis: how near to what one server can do", ("store", "stores")),
    "leases": Scenario("Redis: one hot tenant over four processes", ("leases",)),
    "abuse": Scenario("all packaged detectors on traffic with attackers in it", ("abuse",)),
    "attack": Scenario("one exhausted key, newcomers without end, slow clients", ("attack",)),
    "faults": Scenario("Redis stands still, and a primary of a cluster is killed", ("faults", "failover")),
    "peers": Scenario("other rate limiters for Python, each in processes of its own", ("peer_runs",)),
    "soak": Scenario("does anything grow or slow down? --seconds 180 is an hour", ("soak",)),
    "capacity": Scenario("what workers, Redis and memory do; with --rate what a launch needs", ("workers",)),
}

ALIASES = {"fault": "faults"}


def run(name: str, seconds: float, seed: int, results: Results) -> None:
    """Adds what the scenario found. What needs a package that is not installed is skipped and says so."""
    for module in SCENARIOS[name].modules:
        try:
            ask = import_module(f".{module}", __package__).run
            results.add(name, ask(seconds, seed) if len(inspect.signature(ask).parameters) > 1 else ask(seconds))
        except ModuleNotFoundError as error:
            why = f"{error.name} is not installed: pip install 'shield-limiter[bench]'"
            results.add(name, [Skipped(f"{name} ({module})", why)])
        except Exception as error:
            # The figures of the other scenarios are not lost for it; the run's exit status tells.
            results.faults += 1
            results.add(name, [Skipped(f"{name} ({module})", f"a fault, {type(error).__name__}: {error}")])
