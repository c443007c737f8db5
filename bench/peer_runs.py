"""How does Shield compare with the rate limiters that Python has, each in its documented best configuration?

Every peer is asked the same in a process of its own: 5,000 keys in turn, each key's text built for the call, and one
key that is used up. Peers take turns, several times over; a ratio is taken within a turn, so its spread is what repeats
differ by. What building the text costs is measured in the same process and taken off.
"""

from __future__ import annotations

import asyncio
import inspect
import json
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable
from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from .process import python, shield_of
from .record import Found, Measured, Row, Series, Skipped

OURS = "shield_token_bucket"
PEERS = (
    OURS,
    *("limits_fixed_window", "limits_sliding_window", "throttled_gcra", "pyrate_gcra", "aiolimiter_bucket"),
)
KEYS = 5_000
PLENTY, FEW = 10_000, 5
REPEATS = 5


def run(seconds: float) -> list[Found]:
    found: list[Found] = []
    installed = []
    for peer in PEERS:
        adapter = import_module(f".peers.{peer}", __package__)
        try:
            version(adapter.DISTRIBUTION)
            installed.append(peer)
        except PackageNotFoundError:
            why = f"{adapter.DISTRIBUTION} is not installed: pip install 'shield-limiter[bench]'"
            found.append(Skipped(adapter.NAME, why))
    taken: dict[str, list[dict[str, Any]]] = {peer: [] for peer in installed}
    for turn in range(REPEATS):
        for peer in installed[turn % len(installed) :] + installed[: turn % len(installed)]:
            taken[peer].append(_fresh(peer, seconds / REPEATS))
    return found + measured(taken)


def measured(taken: dict[str, list[dict[str, Any]]]) -> list[Found]:
    """Figures and ratios of what the processes of each peer told."""
    found: list[Found] = []
    bars: list[dict[str, Any]] = []
    for kind in ("allowed", "refused"):
        ours = Measured([one[kind] for one in taken[OURS]])
        for peer, told in taken.items():
            name = f"{told[0]['name']} {told[0]['version']}"
            ns = Measured([one[kind] for one in told])
            found.append(Row(f"{name}, {kind}", ns, "ns"))
            if peer != OURS:
                times = ns / ours
                found.append(Row(f"{name}, {kind}, against Shield", times, "times"))
            if kind == "allowed":
                bars.append({"name": told[0]["name"], "value": float(ns), "unit": "ns", "samples": list(ns.samples)})
    found.append(Series("one check, allowed, 5,000 keys (less is better)", "peers", bars))
    return found


def _fresh(peer: str, seconds: float) -> dict[str, Any]:
    command = python("peer_runs", peer, str(seconds))
    done = subprocess.run(command, env=shield_of(), capture_output=True, text=True)
    if done.returncode:
        last = done.stderr.strip().splitlines()[-1:] or ["it said nothing"]
        raise RuntimeError(f"{peer} ended: {last[0]}")
    told: dict[str, Any] = json.loads(done.stdout)
    return told


Hit = Callable[[str], Any]


def asks(hit: Hit) -> Callable[[int], Awaitable[int]]:
    """`await asks(hit)(calls)`: how many were allowed of so many."""
    if inspect.iscoroutinefunction(hit):

        async def waiting(calls: int) -> int:
            allowed = 0
            for i in range(calls):
                allowed += await hit(f"user:{i % KEYS}")
            return allowed

        return waiting

    async def at_once(calls: int) -> int:
        allowed = 0
        for i in range(calls):
            allowed += hit(f"user:{i % KEYS}")
        return allowed

    return at_once


async def _nothing(calls: int) -> int:
    allowed = 0
    for i in range(calls):
        allowed += len(f"user:{i % KEYS}") > 0
    return allowed


async def measure(peer: str, seconds: float) -> dict[str, Any]:
    """Nanoseconds of processor time for a call of this peer, allowed and refused."""
    adapter = import_module(f".peers.{peer}", __package__)
    hit, used_up = adapter.make(PLENTY), adapter.make(FEW)

    waits = inspect.iscoroutinefunction(used_up)

    async def hot(calls: int) -> int:
        passed = 0
        for _ in range(calls):
            passed += (await used_up("used up")) if waits else used_up("used up")
        return passed

    text = await _cost(_nothing, seconds / 4)
    allowed = await _cost(asks(hit), seconds)
    return {
        "name": adapter.NAME,
        "version": version(adapter.DISTRIBUTION),
        "allowed": max(1.0, allowed - text),
        "refused": await _cost(hot, seconds),
    }


async def _cost(work: Callable[[int], Awaitable[int]], seconds: float) -> float:
    """The median over blocks of calls that take some ten milliseconds each."""
    calls, took = 200, []
    until = time.perf_counter() + seconds
    while time.perf_counter() < until or len(took) < 3:
        started = time.thread_time_ns()
        await work(calls)
        spent = time.thread_time_ns() - started
        took.append(spent / calls)
        if spent < 5_000_000:
            calls *= 2
            took.clear()
    return sorted(took)[len(took) // 2]


if __name__ == "__main__":
    print(json.dumps(asyncio.run(measure(sys.argv[1], float(sys.argv[2])))), flush=True)
