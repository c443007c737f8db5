"""Processes that charge one shared table until they are done or killed, and write down what they were admitted.

Run as `python -m tests.laws.shared_workers SCENARIO URL`; prints what happened as JSON. It is a process of its own
because it forks: a small one forks fast, and the test's own is none.

A log is memory that parent and child share, so what was written before a kill is not lost: how many asks were begun
(written before the ask), how many admissions there are, and each admission's key and instant by the store's clock.
"""

from __future__ import annotations

import json
import mmap
import os
import random
import signal
import struct
import sys
import time
from collections.abc import Callable
from typing import Any

from shield import Policy, Request, Shield

RECORD = struct.Struct("<IQ")
HEAD = 16
ROOM = 20_000


class Log:
    """One child's."""

    def __init__(self) -> None:
        self.memory = mmap.mmap(-1, HEAD + ROOM * RECORD.size)

    def begin(self) -> None:
        self.memory[0:8] = (self.begun + 1).to_bytes(8, "little")

    def admitted(self, key: int, at_us: int) -> None:
        n = len(self)
        RECORD.pack_into(self.memory, HEAD + n * RECORD.size, key, at_us)
        self.memory[8:16] = (n + 1).to_bytes(8, "little")

    @property
    def begun(self) -> int:
        return int.from_bytes(self.memory[0:8], "little")

    def __len__(self) -> int:
        return int.from_bytes(self.memory[8:16], "little")

    def records(self) -> list[tuple[int, int]]:
        return [RECORD.unpack_from(self.memory, HEAD + i * RECORD.size) for i in range(len(self))]


def child(work: Callable[[Log, int], None], log: Log, number: int) -> int:
    pid = os.fork()
    if pid == 0:
        status = 1
        try:
            work(log, number)
            status = 0
        finally:
            os._exit(status)
    return pid


def all_to_the_end(work: Callable[[Log, int], None], processes: int) -> list[Log]:
    logs = [Log() for _ in range(processes)]
    pids = [child(work, log, i) for i, log in enumerate(logs)]
    for pid in pids:
        _, status = os.waitpid(pid, 0)
        assert status == 0
    return logs


def killed_at_random(work: Callable[[Log, int], None], processes: int, at_once: int, seed: int) -> list[Log]:
    """`processes` children, some at a time, each killed after it has begun a random number of asks."""
    source = random.Random(seed)
    logs: list[Log] = []
    running: dict[int, tuple[Log, int]] = {}
    deadline = time.monotonic() + 120
    while len(logs) < processes or running:
        while len(running) < at_once and len(logs) < processes:
            logs.append(Log())
            running[child(work, logs[-1], len(logs))] = (logs[-1], source.randrange(1, 60))
        for pid, (log, asks) in list(running.items()):
            if log.begun >= asks:
                os.kill(pid, signal.SIGKILL)
                _, status = os.waitpid(pid, 0)
                assert os.WIFSIGNALED(status)
                del running[pid]
        assert time.monotonic() < deadline
    return logs


def limits(**rates: str) -> Policy:
    texts = [f'[[limit]]\nname = "{name}"\n{more}\n' for name, more in rates.items()]
    return Policy.parse('version = 1\nname = "workers"\n' + "\n".join(texts))


COUNTED = limits(
    first='key = ["tenant"]\nrate = "1/30d"\nburst = 5000',
    middle='key = ["tenant"]\nalgorithm = "fixed-window"\nrate = "5000/30d"',
    last='key = ["user"]\nrate = "1/30d"\nburst = 40',
)
HOT = limits(
    hot='key = ["user"]\nrate = "20000/s"\nburst = 50', second='key = ["tenant"]\nrate = "30000/s"\nburst = 70'
)
CROWD = limits(crowd='key = ["user"]\nrate = "100000/s"\nburst = 2\nwhen_full = "deny"')
KILLED = limits(
    total='key = ["tenant"]\nrate = "1/30d"\nburst = 1000000',
    crowd='key = ["user"]\nrate = "2000/s"\nburst = 5\nwhen_full = "deny"',
    window='key = ["tenant"]\nalgorithm = "sliding-window"\nrate = "100000/200ms"',
    places='key = ["tenant"]\nalgorithm = "concurrency"\nlimit = 1024\nttl = "200ms"',
)


def instants(decision: Any) -> dict[str, int]:
    return {charge["limit"]: charge["state"][2] for charge in decision.charges.trace() if len(charge["state"]) == 3}


def counted(url: str) -> dict[str, Any]:
    """Four processes over 10 users of 40 units and one tenant's: 400 are admitted, and a refusal costs nothing."""
    shield = Shield(COUNTED, url)

    def work(log: Log, number: int) -> None:
        source = random.Random(number)
        for _ in range(1500):
            user = source.randrange(10)
            log.begin()
            if shield.check_nowait(Request(tenant="t", user=str(user))).allowed:
                log.admitted(user, 0)

    logs = all_to_the_end(work, 4)
    peek = Shield(limits(**{limit.name: _again(limit) + "\ncost = 0" for limit in COUNTED.limits}), url)
    seen = peek.check_nowait(Request(tenant="t", user="0"))
    return {"admitted": sum(map(len, logs)), "remaining": {s.name: s.remaining for s in seen.limits}}


def _again(limit: Any) -> str:
    key = f'key = ["{limit.key[0]}"]\n'
    if limit.algorithm == "fixed-window":
        return key + 'algorithm = "fixed-window"\nrate = "5000/30d"'
    return key + f'rate = "1/30d"\nburst = {limit.numbers.limit}'


def hot(url: str) -> dict[str, Any]:
    """Four processes over two users and one tenant, all being admitted and refused all the time."""
    shield = Shield(HOT, url)

    def work(log: Log, number: int) -> None:
        for i in range(4000):
            user = (i + number) % 2
            decision = shield.check_nowait(Request(tenant="t", user=str(user)))
            if decision.allowed:
                at = instants(decision)
                log.admitted(user, at["hot"])
                log.admitted(9, at["second"])

    logs = all_to_the_end(work, 4)
    return {"admissions": [record for log in logs for record in log.records()]}


def crowd(url: str) -> dict[str, Any]:
    """Four processes and 60 keys for the 32 slots of one window. Buckets are empty again in 20 us, before their keys
    come back, so slots change hands all the time however fast the machine is."""
    shield = Shield(CROWD, url)

    def work(log: Log, number: int) -> None:
        source = random.Random(number)
        for _ in range(6000):
            user = source.randrange(60)
            decision = shield.check_nowait(Request(user=str(user)))
            if decision.allowed:
                log.admitted(user, instants(decision)["crowd"])

    logs = all_to_the_end(work, 4)
    return {"admissions": [record for log in logs for record in log.records()]}


def killed(url: str) -> dict[str, Any]:
    """Three at a time, killed wherever they are; then every key is asked at a later instant."""
    shield = Shield(KILLED, url)

    def work(log: Log, number: int) -> None:
        source = random.Random(number)
        while True:
            user = source.randrange(60)
            request = Request(tenant="t", user=str(user))
            log.begin()
            decision = shield.check_nowait(request)
            if decision.allowed and len(log) < ROOM:
                log.admitted(user, instants(decision)["crowd"])

    processes = int(os.environ.get("SHIELD_KILLS", "300"))
    logs = killed_at_random(work, processes, at_once=3, seed=7)
    later_ns = [time.time_ns() + 3600 * 10**9]
    after = Shield(KILLED, url, clock=lambda: later_ns[0])
    asked = []
    for user in range(60):
        later_ns[0] += 10**9  # what the keys before have used is back, so they make room
        asked += [after.check_nowait(Request(user=str(user))) for _ in range(6)]
    total = after.check_nowait(Request(tenant="t", cost=1))
    return {
        "admissions": [record for log in logs for record in log.records()],
        "killed": processes,
        "begun": sum(log.begun for log in logs),
        "charged": 1_000_000 - 1 - next(s.remaining for s in total.limits if s.name == "total"),
        "later": [decision.allowed for decision in asked],
        "reasons": sorted({decision.reason for decision in asked}),
        "places": next(s.remaining for s in total.limits if s.name == "places"),
    }


if __name__ == "__main__":
    json.dump({"counted": counted, "hot": hot, "crowd": crowd, "killed": killed}[sys.argv[1]](sys.argv[2]), sys.stdout)
