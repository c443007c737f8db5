"""What is left of a policy's limits to whom a detector has throttled.

A throttled subject meets the same buckets under smaller numbers. Numbers are not identity (law 7): what it has spent
stays spent when they shrink and when they grow again, and nothing is minted either way. For the core they are the
numbers of plans that nobody can state, one for each pair of a throttle and a plan, so all that holds for plans (the
time after which a bucket may be forgotten, what a receipt is settled by) holds for them.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from fractions import Fraction
from math import gcd
from typing import Final

from shield.policy.detector import THROTTLE, Detector
from shield.policy.model import TOKEN_BUCKET, Limit, Numbers, Policy

# No period is longer than the core's arithmetic allows; a slower rate is rounded up to this.
MAX_PERIOD_US: Final = 2**42 - 1
# No plan of a policy or a request is printable text with this in it.
_MARK: Final = "\x00"


@dataclass(frozen=True, slots=True)
class Throttle:
    """What one kind of subject is left with."""

    field: str  # the limits whose keys name this field are smaller
    factor: float

    @property
    def prefix(self) -> str:
        """Of the names of its plans."""
        return f"{_MARK}{self.field}{_MARK}{self.factor!r}{_MARK}"


def field_of(kind: str) -> str:
    """The key field by which limits count this kind of subject."""
    return "ip" if kind == "network" else kind


def throttles_of(detectors: Iterable[Detector]) -> tuple[Throttle, ...]:
    """The throttles that these detectors may ask for."""
    found: dict[Throttle, None] = {}
    for one in detectors:
        if one.action == THROTTLE:
            kinds = ("user", "api_key", "session", "ip") if one.subject == "principal" else (one.subject,)
            found.update((Throttle(field_of(kind), one.factor), None) for kind in kinds)
    return tuple(found)


def with_throttles(policy: Policy) -> tuple[Limit, ...]:
    """The policy's limits, which know the numbers of its throttles under the names of further plans."""
    throttles = throttles_of(policy.detectors)
    if not throttles:
        return policy.limits
    stated = {plan for limit in policy.limits for plan in limit.plans}
    return tuple(_expanded(limit, throttles, stated) for limit in policy.limits)


def _expanded(limit: Limit, throttles: Iterable[Throttle], stated: Iterable[str]) -> Limit:
    plans = dict(limit.plans)
    for throttle in throttles:
        factor = Fraction(str(throttle.factor)) if throttle.field in limit.key else Fraction(1)
        for plan in ("", *stated):
            numbers = limit.numbers_for(plan or None)
            if factor != 1 or numbers != limit.numbers:
                plans[throttle.prefix + plan] = scaled(limit, numbers, factor)
    return replace(limit, plans=plans)


def scaled(limit: Limit, numbers: Numbers, factor: Fraction) -> Numbers:
    """A part of what a limit allows, rounded down, and one unit at least."""
    if factor == 1:
        return numbers
    held = max(1, int(numbers.limit * factor)) if numbers.limit else 0
    if limit.algorithm != TOKEN_BUCKET:
        return replace(numbers, limit=held)
    units, period_us = _reduced(numbers.refill_units * factor.numerator, numbers.refill_us * factor.denominator)
    if period_us > MAX_PERIOD_US:
        units, period_us = _reduced(max(1, units * MAX_PERIOD_US // period_us), MAX_PERIOD_US)
    return Numbers(held, units, period_us)


def _reduced(units: int, period_us: int) -> tuple[int, int]:
    common = gcd(units, period_us)
    return units // common, period_us // common
