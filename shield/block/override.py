"""Overrides: numbers of single keys, as operators set and lift them. They spread and stay as blocks do.

For each limit and key there is one place, and a later stamp wins wherever two copies meet.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from typing import Any, Final

import msgspec

from shield.block.block import MAX_BY_CHARS, MAX_VALUE_CHARS, MAX_WHY_CHARS, Place, subject_of
from shield.policy import Limit, Policy
from shield.policy.override import MAX_DIFFERENT, Key, numbers_stated, partition_of

# Each takes half a kilobyte, and a moment of whoever changes one: the policy is resolved anew.
MAX_OVERRIDES: Final = 10_000
LIFTED_US: Final = 86_400_000_000
_FOR_GOOD: Final = 2**62


class Override(
    msgspec.Struct, frozen=True, omit_defaults=True, forbid_unknown_fields=True, tag="override", tag_field="what"
):
    """What one key of a limit is allowed until an instant; or, lifted, that it is allowed what others are."""

    limit: str
    key: tuple[str, ...]
    """The values of the limit's key fields, in its order."""
    stamp_us: int
    by: str
    since_us: int
    until_us: int | None = None
    why: str = ""
    rate: str | None = None
    burst: int | None = None
    places: int | None = None
    """Of a concurrency limit."""
    lifted: bool = False

    @property
    def place(self) -> Place:
        return "override", self.limit, json.dumps(self.key)

    @property
    def order(self) -> str:
        """As a block's."""
        return f"{self.stamp_us:020d}{self.lifted:d}{_FOR_GOOD if self.until_us is None else self.until_us:020d}"

    @property
    def stated(self) -> dict[str, Any]:
        """The numbers, as a policy's plans say them."""
        return {"rate": self.rate, "burst": self.burst, "limit": self.places}

    @property
    def rank(self) -> tuple[str, bytes]:
        """What `order` begins, and the text decides where that is the same."""
        return self.order, msgspec.json.encode(self)

    def ends_before(self, now_us: int) -> bool:
        """Whether it is over."""
        return self.until_us is not None and self.until_us <= now_us

    def as_object(self, fields: Iterable[str] | None) -> dict[str, object]:
        """For people; times are Unix seconds. `fields` are the limit's key, None where the policy has no such limit."""
        names = tuple(fields) if fields is not None else ()
        named = len(names) == len(self.key)
        numbers = {"rate": self.rate, "burst": self.burst, "places": self.places}
        return {
            "limit": self.limit,
            "key": dict(zip(names, self.key, strict=True)) if named else list(self.key),
            **{name: value for name, value in numbers.items() if value is not None},
            "in_force": named,
            "until": None if self.until_us is None else self.until_us / 1_000_000,
            "by": self.by,
            "why": self.why,
            "since": self.since_us / 1_000_000,
        }


def checked(override: Override) -> Override:
    """The same, from wherever it came. ValueError."""
    if not all(0 <= at_us < _FOR_GOOD for at_us in (override.stamp_us, override.since_us, override.until_us or 0)):
        raise ValueError("no override: its times")
    if len(override.key) > 8 or any(len(value) > MAX_VALUE_CHARS for value in override.key):
        raise ValueError("no override: its key")
    return override


class OverrideBook:
    """The overrides that a process knows. Time is an argument, Unix microseconds."""

    def __init__(self) -> None:
        self._said: dict[Place, Override] = {}
        self.version = 0
        """Counts the changes of what is in force."""
        self.left_out = 0
        """Overrides that others set and this process has no room for."""

    def __len__(self) -> int:
        return sum(not one.lifted for one in self._said.values())

    def learn(self, override: Override, now_us: int) -> bool:
        """An override from wherever. Whether it is news."""
        known = self._said.get(override.place)
        if known is not None and known.rank >= override.rank:
            return False
        forget_us = self.forgotten_at(override)
        if forget_us is not None and forget_us <= now_us:
            return False
        if known is None and len(self._said) >= 2 * MAX_OVERRIDES:
            self.left_out += 1
            return False
        self._said[override.place] = override
        self.version += 1
        return True

    def forgotten_at(self, override: Override) -> int | None:
        """When it makes no difference any more that it was said. None: never by itself."""
        return override.stamp_us + LIFTED_US if override.lifted else override.until_us

    def sweep(self, now_us: int) -> None:
        """Lets go of what is over."""
        over = [
            place
            for place, one in self._said.items()
            if (forget_us := self.forgotten_at(one)) is not None and forget_us <= now_us
        ]
        for place in over:
            self.version += not self._said.pop(place).lifted

    def in_force(self, now_us: int) -> list[Override]:
        """By limit and key."""
        found = [one for one in self._said.values() if not one.lifted and not one.ends_before(now_us)]
        return sorted(found, key=lambda one: (one.limit, one.key))

    def by_limit(self, now_us: int) -> Mapping[str, Mapping[Key, Mapping[str, Any]]]:
        """What `with_overrides` takes."""
        found: dict[str, dict[Key, Mapping[str, Any]]] = {}
        for one in self.in_force(now_us):
            found.setdefault(one.limit, {})[one.key] = one.stated
        return found

    def everything(self) -> list[Override]:
        """All that is remembered."""
        return list(self._said.values())

    # ---- operators ---------------------------------------------------------------------------------------------

    def stated(
        self,
        policy: Policy,
        limit: str,
        key: Mapping[str, str],
        numbers: Mapping[str, Any],
        now_us: int,
        *,
        until_us: int | None,
        by: str,
        why: str,
    ) -> Override:
        """An operator's override, to be learnt. ValueError for what does not fit the policy, and for want of room."""
        found, values = _resolved(policy, limit, key)
        mine = numbers_stated(found, numbers)
        others = [one for one in self.in_force(now_us) if one.limit == limit and one.key != values]
        different = {tuple(one.stated.values()) for one in others}
        if len(different) >= MAX_DIFFERENT and tuple(numbers.get(name) for name in ("rate", "burst", "limit")) not in (
            different
        ):
            raise ValueError(f"{MAX_DIFFERENT} different numbers of {limit} are in force already; make plans of them")
        if len(self) >= MAX_OVERRIDES:
            raise ValueError(f"{MAX_OVERRIDES:,} overrides are in force already")
        assert mine is not None
        return self._said_now(found, values, now_us, until_us=until_us, by=by, why=why, numbers=numbers)

    def lift(self, policy: Policy, limit: str, key: Mapping[str, str], now_us: int, *, by: str) -> Override | None:
        """The end of an override, to be learnt; None where there is none. ValueError."""
        found, values = _resolved(policy, limit, key)
        known = self._said.get(("override", limit, json.dumps(values)))
        if known is None or known.lifted or known.ends_before(now_us):
            return None
        return self._said_now(found, values, now_us, by=by, lifted=True)

    def _said_now(
        self,
        limit: Limit,
        key: Key,
        now_us: int,
        *,
        by: str,
        until_us: int | None = None,
        why: str = "",
        numbers: Mapping[str, Any] | None = None,
        lifted: bool = False,
    ) -> Override:
        known = self._said.get(("override", limit.name, json.dumps(key)))
        numbers = numbers or {}
        return Override(
            limit=limit.name,
            key=key,
            stamp_us=max(now_us, 0 if known is None else known.stamp_us + 1),
            by=by[:MAX_BY_CHARS],
            since_us=now_us,
            until_us=until_us,
            why=why[:MAX_WHY_CHARS],
            rate=numbers.get("rate"),
            burst=numbers.get("burst"),
            places=numbers.get("limit"),
            lifted=lifted,
        )


def _resolved(policy: Policy, name: str, key: Mapping[str, str]) -> tuple[Limit, Key]:
    """The limit of that name, and the key as its values in their order."""
    limit = next((one for one in policy.limits if one.name == name), None)
    if limit is None:
        raise ValueError(f"limit: found {name[:64]!r}; allowed: {', '.join(one.name for one in policy.limits)[:500]}")
    if set(key) != set(limit.key):
        raise ValueError(f"key: found {', '.join(sorted(key))[:200] or 'nothing'}; allowed: {', '.join(limit.key)}")
    for field, value in key.items():
        if not 0 < len(value) <= MAX_VALUE_CHARS:
            raise ValueError(f"key.{field}: allowed: text of 1 to {MAX_VALUE_CHARS:,} characters")
    prefix = policy.identity.ipv6_prefix
    values = tuple(subject_of("ip", key[field], prefix)[1] if field == "ip" else key[field] for field in limit.key)
    try:
        partition_of(limit, values, prefix)
    except UnicodeEncodeError:
        raise ValueError("key: found half of a character; allowed: text") from None
    return limit, values
