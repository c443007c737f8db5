"""What decides while a remote store is away: this process alone, with its share of every limit.

The law of this file: N nodes that stand in together admit no more than the store would have. A key's local bucket
holds a 1/N of the burst (one unit at least) and refills at rate / N; it starts empty at the instant the store was
lost, because what the store had left may have been spent elsewhere a moment ago. A node that has not reached its store
since it started holds one unit then: a service that starts without its store serves. What was admitted meanwhile, less
what has drained since, is charged to the store before this node asks it for that bucket again: coming back is no
second burst. A store of several servers is lost and found place by place. Above the law come only: the one unit of a
limit with less than N, that of a node that starts, and a number of nodes that was wrong.

Time is that of the table it decides with.
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable, Iterable, Sequence
from fractions import Fraction
from typing import TYPE_CHECKING, Final

from shield.errors import ReceiptError, StoreError
from shield.policy.calendar import window_of
from shield.policy.model import TOKEN_BUCKET, Limit, Numbers
from shield.policy.throttle import scaled
from shield.store import Settlement, SettlementEntry

if TYPE_CHECKING:
    from shield.core import Charges, CompiledPolicy, Table
    from shield.policy import Policy
    from shield.request import Request
    from shield.store import Store

# Keys whose spending is remembered for the way back; those beyond it join back with what they have. 20 MB.
MAX_DEBTS: Final = 65_536
# Buckets in one settlement, and how long the store remembers that it was made.
BUCKETS_AT_ONCE: Final = 64
MARK_US: Final = 3_600_000_000


class _Spent:
    """What one bucket admitted since the store was lost: in ticks for a token bucket, beside its level, which began
    full; for a window the units of one window.

    The store's level is too low by at most what was admitted, and by at most what is in the local bucket: both bound
    what it has to hear.
    """

    __slots__ = ("admitted", "at_us", "full", "level", "limit", "numbers", "plan")

    def __init__(self, limit: Limit, plan: str | None, numbers: Numbers, full: Numbers, lost_us: int) -> None:
        self.limit, self.plan = limit, plan
        self.numbers, self.full = numbers, full
        self.at_us = lost_us
        self.level = numbers.limit * self.unit
        self.admitted = 0

    def move(self, now_us: int) -> None:
        if self.limit.algorithm == TOKEN_BUCKET:
            self.level = max(0, self.level - self.numbers.refill_units * max(0, now_us - self.at_us))
            self.at_us = max(self.at_us, now_us)
        elif (start_us := _window_start(self.limit, now_us)) > self.at_us:
            self.admitted, self.at_us = 0, start_us

    def take(self, cost: int) -> None:
        self.admitted += cost * self.unit
        self.level += cost * self.unit

    @property
    def unit(self) -> int:
        return self.numbers.refill_us if self.limit.algorithm == TOKEN_BUCKET else 1

    @property
    def units(self) -> int:
        """What the store has to hear, rounded up."""
        ticks = min(self.admitted, self.level) if self.limit.algorithm == TOKEN_BUCKET else self.admitted
        return -(-ticks // self.unit)


Key = tuple[str, bytes]
"""A bucket: its limit's identity, its address in the store."""


class StandIn:
    """One node's share of a policy, and what it spent of it. `compile` makes a policy one for the table."""

    def __init__(self, table: Table, compile: Callable[[Policy], CompiledPolicy]) -> None:
        self._table = table
        self._compile = compile
        self._policy: Policy | None = None
        self._nodes = 0
        self._compiled: CompiledPolicy | None = None
        self._lost_us: dict[int, int] = {}
        self._spare = 1
        self._spent: dict[Key, _Spent] = {}
        # What the store is being told, or has not confirmed; a bucket waits for no more than one of them.
        self._telling: dict[Key, Settlement] = {}
        self.untold = 0
        """Admissions that the store will not hear of, for want of room or because it was away for too long."""

    @property
    def owing(self) -> bool:
        """Whether something was admitted that the store does not know of."""
        return bool(self._telling or self._spent)

    @property
    def stands_in(self) -> bool:
        """Whether the store, or a part of it, was away when it was last asked."""
        return bool(self._lost_us)

    @property
    def waits(self) -> bool:
        """Whether it is news that the store answers."""
        return bool(self._spare or self._lost_us)

    def owes(self, keys: Iterable[Key]) -> list[Key]:
        """Those buckets of which the store does not know all."""
        return [key for key in keys if key in self._spent or key in self._telling]

    def store_answers(self, places: Iterable[int]) -> None:
        """The store is there, at these places at least: their next loss is another one."""
        self._spare = 0
        for place in places:
            self._lost_us.pop(place, None)

    def decide(
        self,
        request: Request,
        policy: Policy,
        nodes: int,
        places: Iterable[int],
        key_of: Callable[[Charges, int], Key | None],
    ) -> Charges:
        """The step of one request while the store is away, at one of these places at least. `key_of` names a charge's
        bucket in the store, if it has one there.
        """
        if policy is not self._policy or nodes != self._nodes or self._compiled is None:
            self._compiled = self._compile(share_of(policy, nodes))
            self._policy, self._nodes = policy, nodes
        now_us = self._table.now_us()
        places = tuple(places)
        known = [lost_us for place in places if (lost_us := self._lost_us.get(place, now_us)) <= now_us]
        lost_us = min(known, default=now_us)
        for place in places:
            self._lost_us[place] = min(self._lost_us.get(place, lost_us), now_us)
        charges = self._compiled.charges(request)
        self._table.apply(charges, degraded=True, now_us=now_us, empty_at_us=lost_us, spare=self._spare)
        if charges.admitted:
            self._remember(charges, lost_us, now_us, key_of)
        return charges

    def _remember(
        self, charges: Charges, lost_us: int, now_us: int, key_of: Callable[[Charges, int], Key | None]
    ) -> None:
        for i in range(len(charges)):
            bucket = charges.bucket(i)
            limit: Limit = bucket.limit
            key = key_of(charges, i)
            if bucket.cost == 0 or key is None:
                continue
            spent = self._spent.get(key)
            if spent is None:
                if len(self._spent) >= MAX_DEBTS:
                    self.untold += 1
                    continue
                plan = charges.plan
                spent = self._spent[key] = _Spent(limit, plan, bucket.numbers, self._whole(limit, plan), lost_us)
            spent.move(now_us)
            spent.take(bucket.cost)

    def _whole(self, limit: Limit, plan: str | None) -> Numbers:
        assert self._policy is not None
        whole = next(one for one in self._policy.limits if one.name == limit.name)
        return whole.numbers_for(plan)

    async def pay(self, store: Store, compiled: CompiledPolicy, keys: Sequence[Key]) -> bool:
        """Charges the store what it does not know of these buckets; whether it has heard all of it. What it did not
        confirm is told again under the same name, which it takes once.
        """
        while owed := self.owes(keys):
            waiting = {id(told): told for key in owed if (told := self._telling.get(key)) is not None}
            if not waiting:
                made = self._tell(owed[:BUCKETS_AT_ONCE], compiled)
                waiting = {} if made is None else {id(made): made}
            for told in waiting.values():
                try:
                    await store.settle(told)
                except StoreError:
                    return False
                except ReceiptError:
                    self.untold += len(told.entries)
                self._telling = {key: other for key, other in self._telling.items() if other is not told}
        return True

    async def pay_all(self, store: Store, compiled: CompiledPolicy, place_of: Callable[[Key], int]) -> None:
        """Charges the store all it can be told, each place by itself: one that is away keeps no other waiting."""
        places: dict[int, list[Key]] = {}
        for key in {*self._spent, *self._telling}:
            places.setdefault(place_of(key), []).append(key)
        for keys in places.values():
            for at in range(0, len(keys), BUCKETS_AT_ONCE):
                if not await self.pay(store, compiled, keys[at : at + BUCKETS_AT_ONCE]):
                    break

    def _tell(self, keys: Sequence[Key], compiled: CompiledPolicy) -> Settlement | None:
        """What is to be told of some buckets, None where all of it has drained."""
        now_us = self._table.now_us()
        found = []
        told = []
        for key in keys:
            spent = self._spent.pop(key)
            spent.move(now_us)
            if (units := spent.units) > 0:
                told.append(key)
                found.append(SettlementEntry(spent.limit, key[1], 0, units, plan=spent.plan, numbers=spent.full))
        if not found:
            return None
        made = Settlement(os.urandom(16), now_us + MARK_US, now_us, tuple(found), compiled=compiled)
        self._telling.update(dict.fromkeys(told, made))
        return made


def share_of(policy: Policy, nodes: int) -> Policy:
    """The policy with a 1/N of every number, one unit at least."""
    if nodes <= 1:
        return policy
    limits = []
    for limit in policy.limits:
        plans = {plan: _share(limit, numbers, nodes) for plan, numbers in limit.plans.items()}
        limits.append(dataclasses.replace(limit, numbers=_share(limit, limit.numbers, nodes), plans=plans))
    return dataclasses.replace(policy, limits=tuple(limits))


def _share(limit: Limit, numbers: Numbers, nodes: int) -> Numbers:
    return scaled(limit, numbers, Fraction(1, nodes))


def _window_start(limit: Limit, now_us: int) -> int:
    if limit.align is not None:
        return window_of(now_us, align=limit.align, timezone=limit.timezone or "UTC")[0]
    return now_us - now_us % (limit.window_us or 1)
