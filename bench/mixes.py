"""What does an answer cost by what is asked: how many limits, how uneven the keys, how much refused, how much GraphQL?

A server for each mix on one core, asked in turns; costs are processor time of the worker for an answer. Planning for
another mix than the usual six limits, scale `capacity` by these ratios.
"""

from __future__ import annotations

import contextlib
import sys

from .attack import cost, in_turns
from .endpoint import serving
from .machine import cores
from .offered import NEEDS
from .record import Found, Row, Skipped
from .traffic import Traffic

MIN_S = 0.2
"""In less, opening the connections shows in the cost of an answer."""
USUAL = "six limits"
MIXES = {
    USUAL: Traffic(),
    "one limit": Traffic(limits=1),
    "twenty-four limits": Traffic(limits=24),
    "a third by one user, Zipf 1 beside": Traffic(hot=1 / 3, skew=1.0),
    "half of it refused": Traffic(denied=0.5),
    "a fifth of it GraphQL": Traffic(graphql=0.2),
}


def run(seconds: float, seed: int) -> list[Found]:
    if sys.platform != "linux":
        return [Skipped("mixes of traffic", NEEDS)]
    with contextlib.ExitStack() as stack:
        asks = []
        for traffic in MIXES.values():
            policy = stack.enter_context(traffic.folder())
            server = stack.enter_context(serving(policy, cores=cores()[:1]))
            asks.append(lambda server=server, traffic=traffic: cost(server, traffic, max(MIN_S, seconds / 3), seed))
        figures = dict(zip(MIXES, in_turns(asks), strict=True))
    rows: list[Found] = [Row(f"an answer, {name}", us, "us") for name, us in figures.items()]
    rows += [
        Row(f"an answer, {name}, against {USUAL}", us / figures[USUAL], "times")
        for name, us in figures.items()
        if name != USUAL
    ]
    return rows
