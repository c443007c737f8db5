"""When requests are meant to leave, and for which keys: seeded, so that a run can be made again.

Several processes share one stream: for constant arrivals each takes every n-th instant, for Poisson arrivals each makes
its own with a part of the rate, which together are Poisson again.
"""

from __future__ import annotations

import math
import random
from array import array
from collections.abc import Iterator

KINDS = ("constant", "poisson")


def instants(
    rate: float, seconds: float, kind: str = "constant", *, seed: int = 1, part: int = 0, parts: int = 1
) -> array[float]:
    """Seconds from the start at which the requests of one part of the stream leave, ascending, all below `seconds`."""
    if kind == "constant":
        return array("d", (i / rate for i in range(part, math.ceil(rate * seconds - 1e-9), parts)))
    if kind != "poisson":
        raise ValueError(f"arrivals: found {kind!r}; allowed: {', '.join(KINDS)}")
    source = random.Random(f"{seed}:{part}:{parts}")
    found, at, own = array("d"), 0.0, rate / parts
    while True:
        at += source.expovariate(own)
        if at >= seconds:
            return found
        found.append(at)


def zipf(keys: int, skew: float, source: random.Random) -> Iterator[int]:
    """Endless ranks 0 to keys - 1, rank k as often as (k + 1) ** -skew; skew 0 is uniform.

    Rejection-inversion, which needs no table: ten million keys cost as much as ten. (Hörmann and Derflinger, 1996.)
    """
    if skew == 0:
        while True:
            yield source.randrange(keys)

    def area(x: float) -> float:
        """The integral of x ** -skew."""
        return math.log(x) if skew == 1 else (x ** (1 - skew) - 1) / (1 - skew)

    def back(y: float) -> float:
        return math.exp(y) if skew == 1 else max(1 + y * (1 - skew), 1e-300) ** (1 / (1 - skew))

    lowest, highest = area(1.5) - 1, area(keys + 0.5)
    draw = source.random
    while True:
        y = lowest + draw() * (highest - lowest)
        k = min(keys, max(1, round(back(y))))
        if y >= area(k + 0.5) - k**-skew:
            yield k - 1
