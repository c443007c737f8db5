"""What lease.lua and check.lua say about one token bucket with leases out, in exact integers, written to be read.

Levels are in ticks: one unit is p of them, c drain per microsecond. A state is a plain tuple, so that the exhaustive
search of tests/laws/test_lease_search.py can hold millions; the laws it looks for are those of the docstring of
shield/store/leases.py.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple


class Out(NamedTuple):
    """Units that a node holds and has not reported spent."""

    name: int
    units: int
    spent: int
    until: int


class Told(NamedTuple):
    """What a node says of a lease: what was spent of it in all, whether the rest is kept, when it runs out."""

    name: int
    spent: int
    kept: bool
    until: int


class Bucket(NamedTuple):
    """As of `at`."""

    level: int = 0
    at: int = 0
    leases: tuple[Out, ...] = ()

    @property
    def out(self) -> int:
        return sum(lease.units for lease in self.leases)


class Numbers(NamedTuple):
    burst: int
    c: int
    p: int


class Rules:
    """The rules of the store, each by itself, so that a test can break one."""

    def touch(self, bucket: Bucket, numbers: Numbers, now: int) -> Bucket:
        """Drained to now; what runs out on the way is charged as of that instant."""
        level, at, leases = bucket
        for lease in sorted((lease for lease in leases if lease.until <= now), key=lambda lease: lease.until):
            level = max(0, level - numbers.c * max(0, lease.until - at))
            level, at = level + self.run_out(lease) * numbers.p, max(at, lease.until)
        level = max(0, level - numbers.c * max(0, now - at))
        return Bucket(level, max(at, now), tuple(lease for lease in leases if lease.until > now))

    def run_out(self, lease: Out) -> int:
        return lease.units

    def counted(self, bucket: Bucket) -> int:
        """Units out that everybody else sees as used."""
        return bucket.out

    def fits(self, bucket: Bucket, numbers: Numbers, cost: int) -> bool:
        used = bucket.level + (self.counted(bucket) + cost) * numbers.p
        return cost == 0 or used <= numbers.burst * numbers.p

    def tell(self, bucket: Bucket, numbers: Numbers, told: Sequence[Told], now: int) -> tuple[Bucket, tuple[bool, ...]]:
        """The bucket after a report, and which of the leases are known to it."""
        level, at, leases = bucket
        known = []
        for name, spent, kept, until in told:
            found = next((lease for lease in leases if lease.name == name), None)
            known.append(found is not None)
            if found is not None:
                news = max(0, min(spent - found.spent, found.units))
                level += news * numbers.p
                rest = Out(name, found.units - news, max(spent, found.spent), found.until)
                leases = tuple(rest if lease is found else lease for lease in leases if lease is not found or kept)
            elif until > now and spent > 0:
                full = 2 * numbers.burst
                units, part = divmod(level, numbers.p)
                level = max(units, min(units + spent, full)) * numbers.p + part
        return Bucket(level, at, leases), tuple(known)

    def grant(self, bucket: Bucket, numbers: Numbers, want: int, least: int, ahead: int, now: int) -> tuple[int, int]:
        """(units, microseconds until they may be spent); 0 units: until `least` may be had."""
        burst, c, p = numbers
        wait = max(bucket.at - now, 0)
        ahead = max(ahead - wait, 0)
        used = self.counted(bucket)
        free = burst - used - -(-bucket.level // p)
        coming = min(free + ahead * c // p, burst - used)
        half = max(-(-want // 2), least)
        for some, enough in ((free, half), (coming, half), (free, least), (coming, least)):
            if some >= enough and len(bucket.leases) < 64:
                granted = min(some, want)
                return granted, self.start(bucket, numbers, granted, wait)
        return 0, self.start(bucket, numbers, least, wait)

    def start(self, bucket: Bucket, numbers: Numbers, units: int, wait: int) -> int:
        """How long until so many more fit."""
        burst, c, p = numbers
        excess = bucket.level + (self.counted(bucket) + units - burst) * p
        if excess <= 0 and bucket.level // p + self.counted(bucket) + units < burst:
            return 0
        return wait + max(0, -(-excess // c))
