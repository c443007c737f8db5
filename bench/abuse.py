"""How soon are the packaged detectors sure of an attack, what does watching cost, and are honest users left alone?

An API with six limits and all packaged detectors, in this process: nine of ten requests are of five thousand honest
users, every tenth is credential stuffing, enumeration or probing from a handful of addresses. Every outcome is
reported, as a gateway does. Costs are those of a check and its report, with detectors and without, in turns.
"""

from __future__ import annotations

import random
from collections.abc import Callable

from shield import Policy, Request, Shield
from shield.detect.detection import Detection
from shield.detect.watch import Watch

from .decision import SIX_LIMITS
from .record import Found, Row, interleaved

CALLS = 5_000
ATTACKERS = ("198.51.100.1", "198.51.100.2", "198.51.100.3")
STEP_US = 1_000
"""A request each millisecond: an attacker then makes some thirty a second."""
FOLLOWED = 60_000


def run(seconds: float, seed: int) -> list[Found]:
    shield = Shield(SIX_LIMITS)
    policy = Policy.parse('version = 1\n[[detector]]\nuse = "packaged"\n')
    found: list[Found] = []
    first: dict[str, int] = {}
    accused: set[str] = set()

    def note(at: int, detections: tuple[Detection, ...] | list[Detection]) -> None:
        for one in detections:
            first.setdefault(one.detector, at)
            accused.add(str(one.subject))

    source, watch, now_us = random.Random(seed), Watch(policy.detectors), 1_700_000_000_000_000
    for i in range(FOLLOWED):
        now_us += STEP_US
        request, status = one_of(source, i)
        note(i, list(watch.request(request, now_us)))
        note(i, list(watch.outcome(request, status, None, now_us)))
    attackers = {name for subject in accused for name in (*ATTACKERS, "thief") if name in subject}
    sure = min(first.values(), default=0) / 10
    known = min(3, len(attackers))
    found += [
        Row("abuse: requests of the attackers until the first detector was sure", sure, "requests"),
        Row("abuse: detectors that found something", len(first), "detectors"),
        Row("abuse: attackers found, of three", known, "attackers", "at least 3", known == 3),
    ]
    own = Watch(policy.detectors)
    clock = [now_us]

    def work(watching: bool) -> Callable[[int], None]:
        def asks(calls: int) -> None:
            now, numbers = clock[0], random.Random(seed)
            for i in range(calls):
                now += STEP_US
                request, status = one_of(numbers, i)
                shield.check_nowait(request)
                if watching:
                    own.request(request, now)
                    own.outcome(request, status, None, now)
            clock[0] = now

        return asks

    without, watched = interleaved([work(False), work(True)], [CALLS, CALLS], seconds)
    found.append(Row("abuse: all packaged detectors add to a check and its report", watched - without, "ns"))
    return found


def one_of(source: random.Random, i: int) -> tuple[Request, int]:
    """A request and its outcome: every tenth an attacker's."""
    if i % 10:
        user = source.randrange(5_000)
        path, status = f"/orders/{user}/items", 200 if source.random() > 0.02 else 404
        agent, address = "Mozilla/5.0 (X11; Linux x86_64) Firefox/130.0", f"203.0.113.{user % 250}"
        return Request(tenant="acme", user=f"u{user}", ip=address, method="GET", path=path, user_agent=agent), status
    kind = i // 10 % 3
    address = ATTACKERS[kind]
    if kind == 0:
        user, path, method, status = f"victim{i}", "/login", "POST", 401
    elif kind == 1:
        user, path, method, status = "thief", f"/orders/{i}", "GET", 404
    else:
        user, path, method, status = "probe", ("/.env", "/.git/config", "/wp-login.php")[i % 3], "GET", 404
    return Request(tenant="acme", user=user, ip=address, method=method, path=path, user_agent="python/3"), status
