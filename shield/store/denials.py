"""What the store has refused a moment ago, so that an attack on an exhausted key costs it next to nothing.

The law of this file: it refuses only what the store, asked with the same numbers, has refused for at most the same
cost, and for no longer than min(retry_after, `LONGEST_US`) from when that was asked. Nobody but the store can make
units come back within `retry_after`, except by a refund, a reset or other numbers: those of this node are forgotten
at once, those of another make this one too strict for `LONGEST_US` at most. It never admits anything.

Never remembered: concurrency, whose places come free at any time; requests that meet a `count_denied` limit, whose
refusals are charged; requests with a nonce or an idempotency key, which are to be spent or found. What such an answer
does not know, the other limits of the request, it does not show.

Pure: `now_us` is an argument, of one clock for all calls, and an entry from its future is worth nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final, NamedTuple

from shield.core import Step
from shield.policy.model import Numbers
from shield.store.aging import aged
from shield.store.steps import BUCKET, OUTCOME, Form

# The bound on how long another node's refund may go unseen, and so on how rarely an attacked key asks: once a second.
LONGEST_US: Final = 1_000_000
# From here on one request of many asks anew while the others are still refused: when the entry ends, its successor is
# there, and no herd goes to the store at once.
REFRESH_AFTER_US: Final = 800_000
# What other nodes hold on leases may come back at any time, and most of it does so soon: within a window of theirs.
LEASED_US: Final = 50_000
# Entries end within a second; 65,536 are as many exhausted keys under attack, in 25 MB. The oldest go first.
MAX_DENIALS: Final = 65_536

State = tuple[int, ...] | None
"""Five numbers as of a reply, or None for a charge of which nothing is known."""


class Denial:
    """One bucket that was empty."""

    __slots__ = ("asked_us", "cost", "heard_us", "now_us", "numbers", "refresh_us", "state", "until_us")

    def __init__(
        self,
        numbers: Numbers,
        cost: int,
        state: tuple[int, ...],
        now_us: int,
        asked_us: int,
        heard_us: int,
        until_us: int,
    ) -> None:
        self.numbers = numbers
        self.cost = cost
        self.state = state
        self.now_us = now_us
        self.asked_us = asked_us
        self.heard_us = heard_us
        self.until_us = until_us
        # What ends by itself needs no successor: there is something to be had then.
        self.refresh_us = asked_us + REFRESH_AFTER_US if until_us - asked_us == LONGEST_US else until_us


class Refusal(NamedTuple):
    """A request refused by what is remembered."""

    now_us: int
    """The store's instant, or a little before: its clock was read before its reply was heard."""
    states: list[State]


class Denials:
    """Refusals of the last second, by cell and section."""

    def __init__(self, max_denials: int = MAX_DENIALS) -> None:
        self._max = max_denials
        self._known: dict[tuple[bytes, bytes], Denial | int] = {}

    def __len__(self) -> int:
        return len(self._known)

    def find(self, step: Step, now_us: int, patience_us: int) -> Refusal | None:
        """The refusal of a request, if it is known. None asks the caller to ask the store, and the one who is asked
        to for a successor has `patience_us` before the next one is.
        """
        known = self._known
        refusing: list[tuple[int, Form, Numbers, Denial]] = []
        for i, cell, form, numbers in step.shape.deniable:
            key = (step.cells[cell], form.id)
            denial = known.get(key)
            if denial is None or isinstance(denial, int):
                continue
            if not denial.asked_us <= now_us < denial.until_us or denial.numbers is not numbers:
                del known[key]
            elif step.costs[i] >= denial.cost:
                if now_us >= denial.refresh_us:
                    denial.refresh_us = now_us + patience_us
                    return None
                refusing.append((i, form, numbers, denial))
        if not refusing:
            return None
        # What was heard of at different times is told as of one instant, the earliest that may be now.
        instant_us = min(denial.now_us + now_us - denial.heard_us for _, _, _, denial in refusing)
        states: list[State] = [None] * len(step.shape)
        for i, form, numbers, denial in refusing:
            states[i] = aged(denial.state, form, numbers, instant_us)
        return Refusal(instant_us, states)

    def note(
        self,
        step: Step,
        now_us: int,
        states: Sequence[int],
        waits_us: Sequence[int | None],
        asked_us: int,
        heard_us: int,
    ) -> None:
        """The store refused: `waits_us` until each charge would fit, None for never."""
        for i, cell, form, numbers in step.shape.deniable:
            wait_us = waits_us[i]
            if wait_us == 0 or step.costs[i] == 0:
                continue
            key = (step.cells[cell], form.id)
            longest_us = LEASED_US if form.kind == BUCKET and states[OUTCOME * i + 4] else LONGEST_US
            until_us = asked_us + (LONGEST_US if wait_us is None else min(wait_us, longest_us))
            before = self._known.get(key)
            if isinstance(before, int) and asked_us <= before:
                continue  # refused before something came back, heard of after that
            state = (1, *states[OUTCOME * i + 1 : OUTCOME * (i + 1)])
            self._put(key, Denial(numbers, step.costs[i], state, now_us, asked_us, heard_us, until_us))

    def forget(self, cell: bytes, section: bytes, now_us: int) -> None:
        """Something has come back to this bucket, or may have: what was asked up to now is worth nothing, also where it
        is not heard yet.
        """
        self._put((cell, section), now_us)

    def _put(self, key: tuple[bytes, bytes], what: Denial | int) -> None:
        self._known.pop(key, None)
        if len(self._known) >= self._max:
            del self._known[next(iter(self._known))]
        self._known[key] = what

    def clear(self) -> None:
        self._known.clear()
