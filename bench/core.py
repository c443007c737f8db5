"""How much does one limit cost, from Python into the compiled table and back?

5,000 keys in turn, each key's text built fresh for the call as a user would (Python caches the hash of a str that it
has seen). The cost of building the text is measured alone and taken off both sides.
"""

from __future__ import annotations

from collections.abc import Callable

from shield import SlidingWindow, TokenBucket

from .peers import limits_fixed_window
from .record import Row, interleaved

KEYS = 5_000


def run(seconds: float) -> list[Row]:
    # So much that nothing is refused on either side: a refusal is a different question, and has its own line.
    bucket, window, hot = TokenBucket("10000/s"), SlidingWindow("10000/s"), TokenBucket("1/h")
    hot.allow("hot")
    hit = limits_fixed_window.make(10_000)
    batch = [f"user:{i}" for i in range(1000)]
    many = TokenBucket("100/s", burst=200)  # most of it is refused: 1,000 keys get 35,000 asks a second each

    def asks(ask: Callable[[str], object]) -> Callable[[int], None]:
        def work(calls: int) -> None:
            for i in range(calls):
                ask(f"user:{i % KEYS}")

        return work

    def only_key(calls: int) -> None:
        for i in range(calls):
            f"user:{i % KEYS}"

    def denied(calls: int) -> None:
        allow = hot.allow
        for _ in range(calls):
            allow("hot")

    def batches(calls: int) -> None:
        for _ in range(calls // 1000):
            many.allow_many(batch)

    works = [only_key, asks(bucket.allow), asks(window.allow), asks(bucket.take), denied, batches, asks(hit)]
    calls = [100_000] * 6 + [20_000]
    key, allow, sliding, take, deny, per_key, peer = interleaved(works, calls, seconds)
    ratio = (peer - key) / (allow - key)
    return [
        Row("TokenBucket.allow, 5,000 keys", allow - key, "ns"),
        Row("SlidingWindow.allow, 5,000 keys", sliding - key, "ns"),
        Row("TokenBucket.take, 5,000 keys", take - key, "ns"),
        Row("TokenBucket.allow, one exhausted key", deny, "ns"),
        Row("TokenBucket.allow_many, 1,000 keys, per key", per_key, "ns", "at most 45", per_key <= 45),
        Row(f"{limits_fixed_window.NAME}, 5,000 keys", peer - key, "ns"),
        Row("TokenBucket.allow against limits", ratio, "times", "at least 40", ratio >= 40),
    ]
