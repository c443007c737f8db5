"""What does it cost to ask whether an address is in one of a million blocked networks, and what room do they take?"""

from __future__ import annotations

import random

from shield.core.cidr import PrefixTable

from .record import Row, interleaved

NETWORKS = 1_000_000


def run(seconds: float) -> list[Row]:
    dice = random.Random(7)

    def four() -> str:
        return f"{dice.randrange(1, 224)}.{dice.randrange(256)}.{dice.randrange(256)}.{dice.randrange(256)}"

    def six() -> str:
        return (
            f"2{dice.randrange(4096):03x}:{dice.getrandbits(16):x}:{dice.getrandbits(16):x}:{dice.getrandbits(8):x}::"
        )

    tables = [
        PrefixTable("\n".join(f"{four()}/{dice.choice((24, 28, 32, 32))}" for _ in range(NETWORKS)).encode()),
        PrefixTable("\n".join(f"{six()}/{dice.choice((48, 56, 64))}" for _ in range(NETWORKS)).encode()),
    ]
    asked = [[four() for _ in range(200_000)], [six() + "1" for _ in range(200_000)]]
    places = [0, 0]

    def look_up(at: int, calls: int) -> None:
        table, texts = tables[at], asked[at]
        start = places[at]
        for text in texts[start : start + calls]:
            text in table  # noqa: B015
        places[at] = (start + calls) % (len(texts) - calls)

    works = [lambda calls: look_up(0, calls), lambda calls: look_up(1, calls)]
    v4, v6 = interleaved(works, [5_000, 5_000], seconds)
    size = max(table.size_bytes for table in tables) / 1_048_576
    return [
        Row("a million IPv4 networks: one look-up, address as text", v4, "ns", "at most 200", v4 <= 200),
        Row("a million IPv6 networks: one look-up, address as text", v6, "ns", "at most 200", v6 <= 200),
        Row("a million networks", size, "MiB", "at most 64", size <= 64),
    ]
