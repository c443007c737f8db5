"""What does each algorithm cost, over one key, five thousand and a million, when it allows and when it refuses?

Token bucket and sliding window by their own classes; the fixed window, which only a policy has, through a Shield, whose
Request is made for each call and taken off.
"""

from __future__ import annotations

import random
from collections.abc import Callable

from shield import Policy, Request, Shield, SlidingWindow, TokenBucket

from .record import Found, Row, interleaved

MILLION = 1_000_000
COUNTS = (1, 5_000, MILLION)
CALLS = 20_000
PLENTY = "1000000/s"
_FIXED = 'version = 1\n[[limit]]\nname = "f"\nkey = ["user"]\nalgorithm = "fixed-window"\nrate = "{}"\n'


def run(seconds: float, seed: int) -> list[Found]:
    source = random.Random(seed)
    orders = {count: [source.randrange(count) for _ in range(CALLS)] for count in COUNTS}
    bucket = TokenBucket(PLENTY, burst=1_000_000_000, max_keys=MILLION)
    window = SlidingWindow(PLENTY, max_keys=MILLION)
    for start in range(0, MILLION, 10_000):
        names = [f"user:{i}" for i in range(start, start + 10_000)]
        bucket.allow_many(names, cost=1000)
        window.allow_many(names)
    shield = Shield(Policy.parse(_FIXED.format(PLENTY)))
    spent_bucket, spent_window = TokenBucket("1/day"), SlidingWindow("1/day")
    spent_shield = Shield(Policy.parse(_FIXED.format("1/day")))
    for start in (spent_bucket.allow, spent_window.allow, lambda key: spent_shield.check_nowait(Request(user=key))):
        start("user:0")

    def request(key: str) -> Request:
        return Request(user=key)

    asked: list[tuple[str, Callable[[str], object] | None, int]] = [("", None, count) for count in COUNTS]
    asked.append(("", request, 5_000))
    for name, ask in (("token bucket", bucket.allow), ("sliding window", window.allow)):
        asked += [(f"{name}, allowed", ask, count) for count in COUNTS]
    asked += [
        ("token bucket, refused", spent_bucket.allow, 1),
        ("sliding window, refused", spent_window.allow, 1),
        ("fixed window of a policy, allowed", lambda key: shield.check_nowait(Request(user=key)), 5_000),
        ("fixed window of a policy, refused", lambda key: spent_shield.check_nowait(Request(user=key)), 1),
    ]
    figures = interleaved([_work(ask, orders[count]) for _, ask, count in asked], [CALLS] * len(asked), seconds)
    texts = dict(zip(COUNTS, figures, strict=False))
    requests = figures[len(COUNTS)]
    found: list[Found] = []
    for (name, _, count), ns in list(zip(asked, figures, strict=True))[len(COUNTS) + 1 :]:
        own = ns - (requests if "policy" in name else texts[count])
        found.append(Row(f"{name}, {count:,} key{'s' * (count > 1)}", own, "ns"))
    return found


def _work(ask: Callable[[str], object] | None, order: list[int]) -> Callable[[int], None]:
    """None builds the texts and does nothing with them."""

    def work(calls: int) -> None:
        assert ask is not None
        for i in order:
            ask(f"user:{i}")

    def texts(calls: int) -> None:
        for i in order:
            f"user:{i}"

    return texts if ask is None else work
