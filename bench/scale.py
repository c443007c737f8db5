"""What do a thousand limits cost, and ten million keys, and does any single call take long?

A thousand limits: six of them match, by method and path; the same six alone, with the same paths, are the other policy.
Every request has a path of its own, as an attacker's would.

Ten million keys: asked at random, one at a time and a thousand at a time, against 5,000 in a table of the default size.

The longest call: a million newcomers into an empty table of ten million (its pages are touched for the first time), and
a million into a full one whose cells have all run out (each drops old ones). A pause of Shield's own is in every run, a
neighbour's on the machine does not, so the least of three runs counts; the same loop around an empty function says
what the machine alone does.
"""

from __future__ import annotations

import gc
import random
from collections.abc import Callable
from time import perf_counter_ns

from shield import Policy, Request, Shield, TokenBucket

from .record import Row, interleaved

KEYS = 10_000_000
FEW = 5_000
CALLS = 1_000_000
RUNS = 3
BATCH = 1_000


def run(seconds: float) -> list[Row]:
    return [*thousand_limits(seconds), *ten_million_keys(seconds), *longest_calls()]


def limit(name: str, key: str, path: str) -> str:
    return (
        f'[[limit]]\nname = "{name}"\nkey = {key}\nrate = "1000000/s"\nburst = 1_000_000_000\n'
        f'match = {{ method = ["POST", "PUT"], path = "{path}" }}\n'
    )


def thousand_limits(seconds: float) -> list[Row]:
    keys = ('["tenant", "user"]', '["tenant"]', '["ip"]')
    six = [limit(f"six-{i}", keys[i // 2], "/api/orders/{id}") for i in range(6)]
    others = [limit(f"other-{i}", keys[i % 3], f"/api/service-{i // 2}/{{id}}/items") for i in range(994)]
    head = 'version = 1\nname = "bench"\n'
    alone = Shield(Policy.parse(head + "".join(six)))
    among = Shield(Policy.parse(head + "".join(others[:500] + six + others[500:])))

    def make(i: int) -> Request:
        path = f"/api/orders/{i}"
        return Request(tenant="acme", user=f"user:{i % FEW}", ip=f"203.0.113.{i % 250}", method="POST", path=path)

    def asks(ask: Callable[[Request], object]) -> Callable[[int], None]:
        def work(calls: int) -> None:
            for i in range(calls):
                ask(make(i))

        return work

    works = [asks(lambda request: None), asks(alone.check_nowait), asks(among.check_nowait)]
    nothing, few, many = interleaved(works, [10_000] * 3, seconds)
    ratio = (many - nothing) / (few - nothing)
    return [
        Row("six limits alone, matched by path", few - nothing, "ns"),
        Row("the same six among a thousand", many - nothing, "ns"),
        Row("a thousand limits against six", ratio, "times", "at most 1.3", ratio <= 1.3),
    ]


def ten_million_keys(seconds: float) -> list[Row]:
    many = TokenBucket("1000000/s", burst=1_000_000_000, max_keys=KEYS)
    for start in range(0, KEYS, 100_000):
        many.allow_many([f"user:{i}" for i in range(start, start + 100_000)], cost=1_000_000)
    few = TokenBucket("1000000/s", burst=1_000_000_000)
    source = random.Random(1)
    spread = [source.randrange(KEYS) for _ in range(100_000)]
    close = [i % FEW for i in spread]

    def asks(ask: Callable[[str], object], numbers: list[int]) -> Callable[[int], None]:
        def work(calls: int) -> None:
            for i in numbers[:calls]:
                ask(f"user:{i}")

        return work

    def batches(ask: Callable[[list[str]], object], numbers: list[int]) -> Callable[[int], None]:
        def work(calls: int) -> None:
            for start in range(0, calls, BATCH):
                ask([f"user:{i}" for i in numbers[start : start + BATCH]])

        return work

    works = [
        asks(lambda key: None, spread),
        asks(many.allow, spread),
        asks(few.allow, close),
        batches(lambda keys: None, spread),
        batches(many.allow_many, spread),
        batches(few.allow_many, close),
    ]
    key, one_many, one_few, keys, batch_many, batch_few = interleaved(works, [100_000] * 6, seconds)
    single, batched = (one_many - key) / (one_few - key), (batch_many - keys) / (batch_few - keys)
    whole = one_many / one_few
    return [
        Row("TokenBucket.allow, ten million keys, the key's text taken off", one_many - key, "ns"),
        Row("the same, 5,000 keys", one_few - key, "ns"),
        Row("ten million keys against 5,000, allow", single, "times"),
        Row("the same with the key's text made", whole, "times", "at most 4", whole <= 4),
        Row("ten million keys against 5,000, allow_many", batched, "times", "at most 4", batched <= 4),
    ]


def longest(ask: Callable[[str], object], name: str) -> float:
    """Microseconds of the longest of CALLS single calls, each with a new key."""
    most = 0
    for start in range(0, CALLS, 10_000):
        for key in [f"{name}:{i}" for i in range(start, start + 10_000)]:
            before = perf_counter_ns()
            ask(key)
            most = max(most, perf_counter_ns() - before)
    return most / 1000


def longest_calls() -> list[Row]:
    grown, expired, empty = [], [], []
    gc.disable()
    try:
        for at in range(RUNS):
            bucket = TokenBucket("1000000/s", burst=1, max_keys=KEYS)
            grown.append(longest(bucket.allow, f"first-{at}"))
            empty.append(longest(lambda key: None, f"nobody-{at}"))
        for start in range(CALLS, KEYS, 100_000):
            bucket.allow_many([f"user:{i}" for i in range(start, start + 100_000)])
        for at in range(RUNS):
            expired.append(longest(bucket.allow, f"late-{at}"))
    finally:
        gc.enable()
    return [
        Row(
            "longest call, a million newcomers to an empty table", min(grown), "us", "at most 1,000", min(grown) <= 1000
        ),
        Row(
            "longest call, a million to a full one that has run out",
            min(expired),
            "us",
            "at most 1,000",
            min(expired) <= 1000,
        ),
        Row("longest call of a function that does nothing", min(empty), "us"),
    ]
