"""Replies to requests that nobody waits for any more: what they took is given back, under the rule for refunds.

The law of this file: what a lost request took is given back at most once, and never more than has not drained since.
What cannot be given back stays charged, and is counted.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any, TypeGuard

from shield.core import Outcome, Step
from shield.errors import StoreError
from shield.store import Settlement, SettlementEntry
from shield.store.key_records import Ending
from shield.store.key_wire import NONE, end_command
from shield.store.link import Link
from shield.store.lua import RELEASE, SETTLE
from shield.store.resp import evalsha
from shield.store.settling import pack_settle
from shield.store.steps import OUTCOME, PLACES, UNDO, Forms

TAKEN, FITS, SETTLED = 1, 0, 1


class LateReplies:
    """Reads late replies and undoes them. `forget` hears which buckets get something back."""

    def __init__(
        self,
        link: Link,
        forms: Forms,
        *,
        slack_ms: int,
        instant: Callable[[], bytes],
        forget: Callable[[Settlement], None],
    ) -> None:
        self._link = link
        self._forms = forms
        self._slack_ms = slack_ms
        self._instant = instant
        self._forget = forget
        self.counts = dict.fromkeys(("late_taken", "late_given_back", "late_lost"), 0)

    def came(self, step: Step, outcome: Outcome) -> None:
        """What became of a request that nobody waits for any more. Never raises."""
        if outcome.status != TAKEN:
            return
        self.counts["late_taken"] += 1
        back, places = what_it_took(self._forms, step, outcome)
        instant = self._instant()
        if back is not None:
            self._forget(back)
            self._give_back(
                settle_command(
                    self._forms, back, instant, slack_ms=self._slack_ms, mode=UNDO, around_us=back.charged_at_us
                ),
                back,
            )
        if places:
            keys, ids = [key for key, _ in places], [lease_id for _, lease_id in places]
            self._give_back(evalsha(RELEASE.sha, keys, (instant, *ids)))
        if step.claim is not None and step.claim.told[0] == NONE:
            ending = Ending(step.claim.held, "abandon", step.claim.claim.rules)
            self._give_back(end_command(self._forms.naming, ending, instant, slack_ms=self._slack_ms))

    def _give_back(self, call: bytes, settlement: Settlement | None = None) -> None:
        try:
            future = self._link.request(call)
        except StoreError:
            self.counts["late_lost"] += 1
            return
        future.add_done_callback(self._given_back)
        if settlement is not None:
            # What was asked before it was done may have been refused, and is heard now.
            future.add_done_callback(lambda _: self._forget(settlement))

    def _given_back(self, future: asyncio.Future[Any]) -> None:
        reply = future.result() if has_reply(future) else None
        done = isinstance(reply, int) or (isinstance(reply, list) and reply[1:] == [SETTLED])
        self.counts["late_given_back" if done else "late_lost"] += 1


def what_it_took(
    forms: Forms, step: Step, outcome: Outcome, *, but_penalties: bool = False
) -> tuple[Settlement | None, list[tuple[bytes, bytes]]]:
    """What a step that took would have to give back: units, and its nonce and places as (key, whose it is).
    `but_penalties`: not what its limits take from a refused request as well.
    """
    states = outcome.states
    entries = []
    places = [] if step.nonce is None else [(step.nonce.name, step.nonce.owner)]
    for i in range(len(step.shape)):
        bucket = step.charges.bucket(step.of[i])
        form = forms.of(bucket.limit)
        if states[OUTCOME * i] != FITS or bucket.cost == 0 or (but_penalties and step.shape.penalised(i)):
            continue
        address = form.address(bucket.partition)
        if form.kind == PLACES:
            places.append((form.key(address), step.charges.lease_id(step.of[i]).encode()))
        else:
            start_us = states[OUTCOME * i + 3]
            entries.append(SettlementEntry(bucket.limit, address, bucket.cost, 0, start_us, numbers=bucket.numbers))
    return Settlement(b"", 0, outcome.now_us, tuple(entries)) if entries else None, places


def has_reply(future: asyncio.Future[Any] | None) -> TypeGuard[asyncio.Future[Any]]:
    """Whether a future has brought what was asked for."""
    return future is not None and future.done() and not future.cancelled() and future.exception() is None


def settle_command(
    forms: Forms, settlement: Settlement, instant: bytes, *, slack_ms: int, mode: int, around_us: int
) -> bytes:
    """settle.lua for one settlement."""
    keys, blob = pack_settle(forms, settlement, slack_ms=slack_ms, mode=mode, around_us=around_us)
    return evalsha(SETTLE.sha, keys, (blob, instant))
