"""The oracle: what Shield has to answer, in exact fractions and as plainly as it can be said.

Read this to learn the rules; `oracle_buckets.py` has the algorithms. It is slow, it forgets nothing, it knows
no store and shares no code with what it judges. Every store must give its answers to the same instants and
charges, exactly.

A request is a list of charges, and one step takes all of them or none. Time is an argument, in whole
microseconds; it may stand still or go backwards. A step (`Oracle.apply`) brings a copy of every bucket to
now, asks every copy, and only then changes copies and puts them back: a copy that is not put back never
happened.
"""

from __future__ import annotations

import copy
from collections.abc import Hashable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from tests.oracle_buckets import BUCKETS, Numbers


@dataclass(frozen=True)
class Spec:
    """What a limit is, as far as the rules care. A shield.policy Limit has these attributes too and serves as
    well."""

    name: str
    algorithm: str = "token-bucket"
    key: tuple[str, ...] = ()
    window_us: int | None = None
    align: str | None = None
    timezone: str | None = None
    ttl_us: int | None = None
    count_denied: bool = False
    mode: str = "enforce"


class Charge(NamedTuple):
    """One (bucket, cost) that a request would take. `lease` is the name for places of a concurrency limit."""

    limit: Any  # a Spec, a shield.policy Limit, or the name of one the oracle was given
    numbers: Any  # a Numbers, a tuple (limit, c, p), or a shield.policy Numbers
    key: Hashable
    cost: int
    lease: str | None = None


class Status(NamedTuple):
    """The answer of one limit. `retry_after_us` is None when the cost can never fit."""

    fits: bool
    limit: int
    remaining: int
    retry_after_us: int | None
    reset_after_us: int


@dataclass(frozen=True)
class Outcome:
    """The answer to one request; tuples have one entry for each charge."""

    admitted: bool
    statuses: tuple[Status, ...]
    retry_after_us: int | None
    """0 when admitted. Else the longest wait of the enforced limits, where never (None) is the longest."""
    leases: tuple[str | None, ...]
    """The name under which places are held now, where some are."""
    states: tuple[tuple[int, ...], ...]
    """After the step. Token bucket: units, ticks, at_us. Windows: cur, prev, start_us, end_us.
    Concurrency: places in use, and when enough of them have expired (0: none need to, or the cost never
    fits)."""


class Settled(NamedTuple):
    """What one charge really cost. `start_us` is the start of the window that was charged; None for a token
    bucket."""

    limit: Any
    numbers: Any
    key: Hashable
    charged: int
    actual: int
    charged_us: int
    start_us: int | None = None


class Oracle:
    """All buckets. `limits` may be left out: charges bring theirs along, or name one of these."""

    def __init__(self, limits: Iterable[Any] = ()) -> None:
        self.limits = {limit.name: limit for limit in limits}
        self.buckets: dict[Hashable, Any] = {}
        self.settled: set[Hashable] = set()
        self.leases_named = 0

    def apply(self, now_us: int, charges: Sequence[Any], refused: bool = False) -> Outcome:
        """One request at one instant. `refused`: a guard has refused it already, so nothing is taken.

        `charges` are Charges or tuples (limit, numbers, key, cost).
        """
        asked = [self._charge(charge) for charge in charges]
        if len({address(charge) for charge in asked}) < len(asked):
            raise ValueError("one request takes from one bucket only once")
        buckets = [self._bucket(charge).at(now_us, charge.numbers) for charge in asked]
        fits = [bucket.fits(charge.cost) for bucket, charge in zip(buckets, asked, strict=True)]
        # A shadow limit reports and never refuses.
        enforced = [charge.limit.mode == "enforce" for charge in asked]
        admitted = not refused and all(fits[i] for i in range(len(asked)) if enforced[i])

        leases: list[str | None] = [None] * len(asked)
        for i, (charge, bucket) in enumerate(zip(asked, buckets, strict=True)):
            if charge.cost == 0:
                continue  # a peek changes nothing
            changed = bucket.rebased  # always written, or a bucket far ahead of its clock could never recover
            if admitted and fits[i]:
                leases[i] = self._lease(charge)
                bucket.take(charge.cost, leases[i])
                changed = True
            elif not admitted and enforced[i] and charge.limit.count_denied:
                changed = bucket.penalise(charge.cost) or changed
            if changed:
                self.buckets[address(charge)] = bucket

        # From here on everything is told as it is after the step. Waits count penalties too, because a charge
        # that fitted may stand in the way once it has been penalised.
        waits = [bucket.retry_after_us(charge.cost) for bucket, charge in zip(buckets, asked, strict=True)]
        return Outcome(
            admitted=admitted,
            statuses=tuple(
                Status(
                    fits=fits[i],
                    limit=charge.numbers.limit,
                    remaining=bucket.remaining(),
                    retry_after_us=0 if fits[i] else waits[i],
                    reset_after_us=bucket.reset_after_us(),
                )
                for i, (charge, bucket) in enumerate(zip(asked, buckets, strict=True))
            ),
            retry_after_us=(
                0
                if admitted
                else None  # what a guard refused does not become right by waiting
                if refused
                else longest(wait for wait, counts in zip(waits, enforced, strict=True) if counts)
            ),
            leases=tuple(leases),
            states=tuple(
                bucket.state(0 if fits[i] else charge.cost)
                for i, (charge, bucket) in enumerate(zip(asked, buckets, strict=True))
            ),
        )

    def settle(self, now_us: int, receipt: Hashable, entries: Iterable[Settled]) -> bool:
        """Gives back or charges the difference to what it really cost, once per receipt. False: done
        before."""
        if receipt in self.settled:
            return False
        self.settled.add(receipt)
        for entry in entries:
            charge = self._charge((entry.limit, entry.numbers, entry.key, 0))
            bucket = self._bucket(charge).at(now_us, charge.numbers)
            if entry.actual == entry.charged:
                continue
            if entry.actual < entry.charged:
                changed = bucket.refund(entry.charged - entry.actual, entry.charged_us, entry.start_us)
            else:
                changed = bucket.owe(entry.actual - entry.charged)
            if changed or bucket.rebased:
                self.buckets[address(charge)] = bucket
        return True

    def release(self, now_us: int, limit: Any, key: Hashable, lease: str) -> int:
        """Gives places back; how many came free. Unknown and expired leases are no-ops."""
        charge = self._charge((limit, Numbers(0), key, 0))
        bucket = self._bucket(charge).at(now_us, charge.numbers)
        freed: int = bucket.release(lease)
        self.buckets[address(charge)] = bucket
        return freed

    def copy(self) -> Oracle:
        """Another oracle in the same state, for asking what would be."""
        other = copy.copy(self)
        other.buckets, other.settled = dict(self.buckets), set(self.settled)
        return other

    def _charge(self, charge: Any) -> Charge:
        limit, numbers, key, cost, *lease = charge
        limit = self.limits[limit] if isinstance(limit, str) else limit
        return Charge(limit, numbers_of(numbers), key, cost, *lease)

    def _bucket(self, charge: Charge) -> Any:
        """The bucket as it was last put back, or a fresh one."""
        return self.buckets.get(address(charge)) or BUCKETS[charge.limit.algorithm](charge.limit)

    def _lease(self, charge: Charge) -> str | None:
        if charge.limit.algorithm != "concurrency":
            return None
        self.leases_named += 1
        return charge.lease or f"lease-{self.leases_named}"


def numbers_of(value: Any) -> Numbers:
    """Numbers in any of their shapes."""
    if hasattr(value, "refill_us"):
        return Numbers(value.limit, value.refill_units, value.refill_us)
    return Numbers(*value)


def address(charge: Charge) -> Hashable:
    """Which bucket: all that a limit is but for its numbers and conduct, and the values of its key."""
    limit = charge.limit
    return (limit.name, limit.algorithm, limit.key, limit.window_us, limit.align, limit.timezone), charge.key


def longest(waits: Iterable[int | None]) -> int | None:
    """The longest wait, where None means never."""
    known = list(waits)
    return None if None in known else max((wait for wait in known if wait is not None), default=0)
