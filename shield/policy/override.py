"""Numbers of single keys: what an operator allows one customer, in place of what the policy says.

Numbers are not identity (law 7): the key keeps its bucket, and what was spent in it stays spent. For the core an
override is one more plan, whose name nobody can state, and a table from keys to such names.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, Final

from shield.core.cidr import canonical
from shield.policy import schema
from shield.policy.model import FIXED_WINDOW, SLIDING_WINDOW, Limit, Numbers, Policy
from shield.policy.path import normalise
from shield.policy.report import REFUSED, Report
from shield.policy.validate import numbers_of_plan
from shield.rate import Rate

# Of one limit. An answer's header fields are looked up among them: customers by the thousand share what they are sold.
MAX_DIFFERENT: Final = 256
_MARK: Final = "\x00=\x00"

Key = tuple[str, ...]
"""The values of a limit's key fields, in its order."""
Stated = Mapping[str, Any]
"""`rate` and `burst`, or `limit`, as under `plans`."""


def numbers_stated(limit: Limit, stated: Stated) -> Numbers:
    """What was said of one of a limit's keys. ValueError names what is wrong."""
    report = Report()
    # A window's length is its identity: the rate must have the same period.
    windowed = limit.algorithm in (FIXED_WINDOW, SLIDING_WINDOW)
    rate = Rate(limit.numbers.limit, limit.window_us) if windowed else None
    entry = schema.PLAN.read({name: value for name, value in stated.items() if value is not None}, "", report)
    numbers = None
    if entry is not REFUSED:
        numbers = numbers_of_plan(entry, rate, limit.algorithm, limit.numbers, report)
    if report.issues or numbers is None:
        why = "; ".join(str(issue).lstrip(".") for issue in report.issues)
        raise ValueError(why or "found neither rate, burst nor limit; allowed: what the limit's plans may say")
    return numbers


def partition_of(limit: Limit, key: Key, ipv6_prefix: int) -> bytes:
    """A key's canonical bytes, as the core makes them of a request. ValueError."""
    parts = []
    for field, value in zip(limit.key, key, strict=True):
        if field == "ip":
            raw = canonical(value.partition("/")[0], ipv6_prefix)
            if raw is None:
                raise ValueError(f"key.ip: found {value[:64]!r}; allowed: an address")
        else:
            raw = (normalise(value) if field == "path" else value).encode()
        parts += [len(raw).to_bytes(4, "little"), raw]
    return b"".join(parts)


def with_overrides(policy: Policy, overrides: Mapping[str, Mapping[Key, Stated]]) -> Policy:
    """The policy in which these keys of these limits have numbers of their own. What does not fit the policy (a limit
    that it has not, or that counts by something else now) is passed over: it may fit the next one.
    """
    if not overrides:
        return policy
    limits, names = [], {}
    for limit in policy.limits:
        plans = dict(limit.plans)
        mine: dict[bytes, str] = {}
        for key, stated in overrides.get(limit.name, {}).items():
            try:
                numbers = numbers_stated(limit, stated)
                partition = partition_of(limit, key, policy.identity.ipv6_prefix)
            except ValueError:
                continue
            name = f"{_MARK}{numbers.limit},{numbers.refill_units},{numbers.refill_us}"
            plans[name] = numbers
            mine[partition] = name
        limits.append(replace(limit, plans=plans) if mine else limit)
        if mine:
            names[limit.name] = mine
    return replace(policy, limits=tuple(limits), overrides=names)
