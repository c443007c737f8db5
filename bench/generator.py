"""The load generator: several processes of bare sockets, one stream of requests, and an honest word on itself.

Each process has its part of the intended instants and its own connections. They begin at one instant of the machine's
clock. What they measured is summed as histograms. A generator that was late by its own fault says so in `doubt`, and
its latencies are not to be told: a wrong figure is worse than none.
"""

from __future__ import annotations

import gc
import json
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from hdrh.histogram import HdrHistogram

from . import latency
from .arrivals import instants
from .flood import flood
from .load import close, connect, pin
from .open_loop import OpenLoop
from .process import python, shield_of
from .traffic import Traffic

CONNECTIONS = 64
"""Of a process: more than a server of this kind has under way before it is saturated."""
MAX_RATE_EACH = 80_000
"""Requests a second that one process makes without being late; more processes are started for more, one a core."""
OWN_LAG_PART, OWN_LAG_MS = 0.25, 0.2
"""A generator whose own lag at p99 is more than this part of the latency at p99, and more than so much, is in doubt."""
MAX_BUSY = 0.95
"""One that is busy for more of the time is in doubt: what queues then may queue for it."""
COUNTED = ("intended", "answers", "in_time", "refused", "failed", "unanswered", "sent_bytes", "received_bytes")
_START_S = 0.05


@dataclass(slots=True)
class Load:
    """What came of a load."""

    seconds: float
    latency: HdrHistogram
    lag: HdrHistogram
    """What the generator itself was late by."""
    intended: int = 0
    answers: int = 0
    in_time: int = 0
    """Answers until the last intended instant: what the server kept up with."""
    refused: int = 0
    failed: int = 0
    unanswered: int = 0
    sent_bytes: int = 0
    received_bytes: int = 0
    cpu_s: list[float] = field(default_factory=list)
    """Of each process."""
    busy: float = 0.0
    """The part of the time in which it had something to do: of the busiest process."""

    @property
    def offered(self) -> float:
        """Requests a second that were meant to leave."""
        return self.intended / self.seconds

    @property
    def achieved(self) -> float:
        """Answers a second while requests were meant to leave."""
        return self.in_time / self.seconds

    @property
    def doubt(self) -> str:
        """Why these latencies are not the server's; empty when they are."""
        if self.failed:
            return f"{self.failed:,} of {self.intended:,} requests failed"
        lag, found = latency.ms(self.lag, 99), latency.ms(self.latency, 99)
        if lag > max(OWN_LAG_MS, OWN_LAG_PART * found):
            return f"the generator is saturated: at p99 it was {lag:.1f} ms late itself, of {found:.1f} ms"
        if self.busy > MAX_BUSY:
            return f"the generator is saturated: it had something to do for {self.busy:.0%} of the time"
        return ""


def generate(
    port: int,
    traffic: Traffic,
    rate: float,
    seconds: float,
    *,
    arrivals: str = "poisson",
    seed: int = 1,
    connections: int = CONNECTIONS,
    processes: int | None = None,
    cores: list[int] | None = None,
) -> Load:
    """One load on a server of this machine. RuntimeError when a process of the generator fails."""
    parts = processes or max(1, min(-(-int(rate) // MAX_RATE_EACH), len(cores) if cores else sys.maxsize))
    told = []
    for part in range(parts):
        told.append(
            {
                "port": port,
                "traffic": asdict(traffic),
                "arrivals": [rate, seconds, arrivals],
                "seed": seed,
                "part": part,
                "parts": parts,
                "connections": connections,
                "core": cores[part % len(cores)] if cores else None,
            }
        )
    found = _together(told)
    whole = Load(seconds, latency.histogram(), latency.histogram())
    for one in found:
        whole.latency.add(latency.decoded(one["latency"]))
        whole.lag.add(latency.decoded(one["lag"]))
        whole.cpu_s.append(one["cpu_s"])
        whole.busy = max(whole.busy, one["busy"])
        for count in COUNTED:
            setattr(whole, count, getattr(whole, count) + one[count])
    return whole


def saturate(
    port: int,
    traffic: Traffic,
    seconds: float,
    *,
    connections: int = CONNECTIONS,
    core: int | None = None,
    seed: int = 1,
) -> float:
    """Answers a second when there is always a next request: by one process, which may be what is saturated."""
    told = {"port": port, "traffic": asdict(traffic), "seed": seed, "connections": connections, "core": core}
    (found,) = _together([{**told, "arrivals": [0.0, seconds, "closed"], "part": 0, "parts": 1}])
    return float(found["rate"])


def here(port: int, requests: Callable[[], bytes], rate: float, seconds: float, connections: int) -> Load:
    """The same by this process, evenly spaced."""
    load, cpu_s = drive(port, requests, instants(rate, seconds), connections, time.perf_counter)
    counted = {name: getattr(load, name) for name in COUNTED}
    made = map(latency.histogram, (load.latencies_s, load.lags_s))
    return Load(seconds, *made, cpu_s=[cpu_s], busy=load.busy, **counted)


def _together(told: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Starts a process for each, lets them begin at one instant, and gives what they say at the end."""
    pipe = subprocess.PIPE
    running = []
    try:
        for one in told:
            command = python("generator", json.dumps(one))
            running.append(
                subprocess.Popen(command, env=shield_of(), stdin=pipe, stdout=pipe, stderr=pipe, text=True, bufsize=1)
            )
        ready = [one.stdout.readline() for one in running if one.stdout is not None]
        if all(line == "ready\n" for line in ready):
            started = time.perf_counter() + _START_S
            for one in running:
                assert one.stdin is not None
                one.stdin.write(f"{started!r}\n")
                one.stdin.flush()
        found = []
        for one in running:
            out, error = one.communicate()
            if one.returncode:
                last = error.strip().splitlines()[-1:] or ["it said nothing"]
                raise RuntimeError(f"a process of the generator ended: {last[0]}")
            found.append(json.loads(out))
        return found
    finally:
        for one in running:
            if one.poll() is None:
                one.kill()
                one.wait()


def _source(told: dict[str, Any]) -> Callable[[], bytes]:
    return Traffic(**told["traffic"]).source(told["seed"] * 1000 + told["part"])


def _closed(told: dict[str, Any]) -> dict[str, Any]:
    requests = iter(_source(told), b"")  # without end
    _begin()
    return {"rate": flood(told["port"], requests, told["connections"], told["arrivals"][1]).rate}


def drive(
    port: int, request: Callable[[], bytes], when: Sequence[float], connections: int, begin: Callable[[], float]
) -> tuple[OpenLoop, float]:
    """A load of this process, and seconds of its processor time. It starts at the instant that `begin` gives once all
    is ready. No garbage is collected meanwhile: a collection would be lateness of our own.
    """
    load = OpenLoop(request, when)
    clients = connect(load, port, connections)
    collects = gc.isenabled()
    gc.collect()
    gc.disable()
    try:
        started = begin()
        cpu_s = time.process_time()
        load.run(clients, started)
        cpu_s = time.process_time() - cpu_s
    finally:
        if collects:
            gc.enable()
        close(clients)
    return load, cpu_s


def _open(told: dict[str, Any]) -> dict[str, Any]:
    rate, seconds, kind = told["arrivals"]
    when = instants(rate, seconds, kind, seed=told["seed"], part=told["part"], parts=told["parts"])
    load, cpu_s = drive(told["port"], _source(told), when, told["connections"], _begin)
    return {
        "latency": latency.encoded(latency.histogram(load.latencies_s)),
        "lag": latency.encoded(latency.histogram(load.lags_s)),
        "cpu_s": cpu_s,
        "busy": load.busy,
        **{name: getattr(load, name) for name in COUNTED},
    }


def _begin() -> float:
    print("ready", flush=True)
    started = float(sys.stdin.readline())
    while time.perf_counter() < started - 0.002:
        time.sleep(0.001)
    return started


def main(told: dict[str, Any]) -> None:
    if told["core"] is not None:
        pin(told["core"])
    found = _closed(told) if told["arrivals"][2] == "closed" else _open(told)
    print(json.dumps(found), flush=True)


if __name__ == "__main__":
    main(json.loads(sys.argv[1]))
