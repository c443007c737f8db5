"""Idempotency keys whose slot is on its way from one server of a cluster to another: the record may lie on one, and the
set of its holder's records on the other. No script may touch both then, so they are asked one after the other.

The law of this file: every record that is running has a place in the set. One is reserved before the record is asked
for, by who would own it, and given back when the record was not taken; what is said of a record's end is written there
first, and the set follows. What a fault leaves behind in the set runs out with the record it was meant for: too strict
until then.
"""

from __future__ import annotations

import contextlib
from collections.abc import Awaitable, Callable
from struct import Struct
from typing import Any, Final, Protocol

from shield.errors import StoreError, StoreProtocolError
from shield.store.key_records import Ending, Held, Outcome
from shield.store.key_wire import KeyClaim, end_command, key_names, outcome_of
from shield.store.lane import Unconfirmed, Unsettled
from shield.store.lua import HOLDER
from shield.store.naming import Naming
from shield.store.resp import evalsha

RESERVE, STAY, LONGER, LEAVE = 1, 2, 3, 4
# What holder.lua answers.
NO_ROOM, DONE, THERE = 0, 1, 2
_PACKED: Final = Struct("<16s16sdddd")


class Run(Protocol):
    """Runs a script where a key is."""

    def __call__(self, call: bytes, key: bytes, *, lasting: bool = False) -> Awaitable[Any]: ...


class Holders:
    """Records and the sets of their holders, by `run`. `instant`: what time scripts are told it is."""

    def __init__(self, run: Run, naming: Naming, instant: Callable[[], bytes], *, slack_ms: int) -> None:
        self._run = run
        self._naming = naming
        self._instant = instant
        self._slack_ms = slack_ms

    async def end(self, ending: Ending, *, waits: bool = False) -> Outcome:
        """What became of the request that owns an idempotency key. Where the store `waits` for replicas it counts when
        these know it: StoreError else, and the same may be said again. Who lets go of a key needs nobody's word: were
        it lost, others would only wait for the lease to end.
        """
        try:
            return await self._end(ending, waits)
        except Unsettled:
            outcome = await self._end(ending, waits, apart=True)
        if outcome == "done":
            lasts_us = ending.rules.retention_us if ending.action == "complete" else ending.rules.lease_us
            with contextlib.suppress(StoreError):
                await self._place(ending.held, LONGER if ending.action == "extend" else STAY, lasts_us)
        return outcome

    async def _end(self, ending: Ending, waits: bool, apart: bool = False) -> Outcome:
        call = end_command(self._naming, ending, self._instant(), slack_ms=self._slack_ms, again=waits, apart=apart)
        key, _ = key_names(self._naming, ending.held.address, ending.held.holder)
        try:
            return outcome_of(await self._run(call, key, lasting=waits and ending.action != "abandon"))
        except Unconfirmed as error:
            if (outcome := outcome_of(error.reply)) == "done":
                raise
            return outcome

    async def reserve(self, claim: KeyClaim) -> int:
        """A place for the record of a claim: DONE, THERE where it has one, NO_ROOM."""
        return await self._place(claim.held, RESERVE, _lasts_us(claim), claim.claim.rules.max_keys_per_tenant)

    async def follow(self, claim: KeyClaim, place: int, *, taken: bool) -> None:
        """Makes the place that `reserve` has found what became of the record."""
        with contextlib.suppress(StoreError):
            if taken:
                await self._place(claim.held, STAY, _lasts_us(claim))
            elif place == DONE:
                await self._place(claim.held, LEAVE)

    async def _place(self, held: Held, action: int, lasts_us: int = 0, most: int = 0) -> int:
        _, key = key_names(self._naming, held.address, held.holder)
        packed = _PACKED.pack(held.address, held.owner, action, lasts_us, most, self._slack_ms)
        reply = await self._run(evalsha(HOLDER.sha, [key], (packed, self._instant())), key)
        if type(reply) is not int or not NO_ROOM <= reply <= THERE:
            raise StoreProtocolError("the store answered what a holder has with something else")
        return reply


def _lasts_us(claim: KeyClaim) -> int:
    return max(claim.claim.rules.lease_us, claim.claim.rules.retention_us)
