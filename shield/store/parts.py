"""A request whose keys lie in several slots of a cluster: cut into parts, each one atomic step, and put together again.

The law of this file: nothing is kept that not all parts took. The tenant's part comes last and is the commit; what the
others took is given back when it refuses. A part that comes after a refusal takes nothing and is still asked: every
limit that stands in the way is named, and `count_denied` is charged.

An idempotency key goes with the last part, and what its record says comes before what any limit says. A stored answer
costs nothing, so nobody can charge a refusal before the record was looked at: where there is a key the other parts take
no penalties, and are asked for them once it is known that the request is refused. The nonce is looked at before the
record and taken with a stored answer, whichever part it lies in.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from shield.core import Outcome, Step
from shield.store import Settlement, SettlementEntry
from shield.store.aging import aged
from shield.store.late import FITS
from shield.store.naming import slot_of
from shield.store.primary import FULL, REFUSED, TAKEN, USED
from shield.store.steps import OUTCOME, Forms

if TYPE_CHECKING:
    from shield.store.key_wire import KeyClaim

Keys = tuple[int, ...]
"""Some of a step's keys, by number, ascending."""


def by_slot(step: Step) -> list[tuple[int, Keys]]:
    """(slot, its keys), the slot of the idempotency key last; where there is none, that of the tenant or the nonce;
    where there is neither, the one with most keys.
    """
    slots: dict[int, list[int]] = {}
    last, weight = -1, -1
    for i, cell in enumerate(step.cells):
        slots.setdefault(slot_of(cell), []).append(i)
    for slot, keys in slots.items():
        of_a_tenant = any(step.shape.keys[key][1].names.of_a_tenant for key in keys)
        commits = of_a_tenant or (step.nonce is not None and step.nonce_key in keys)
        if (mine := len(keys) + (len(step.cells) if commits else 0)) > weight:
            last, weight = slot, mine
    if step.claim is not None:
        last = slot_of(step.claim.keys[0])
        slots.setdefault(last, [])
    ordered = sorted(slot for slot in slots if slot != last)
    return [(slot, tuple(slots[slot])) for slot in (*ordered, last)]


def before(part: Step, outcome: Outcome) -> Outcome:
    """What a part that took and gave back has to tell: its states as they were before it took."""
    states = outcome.states
    for i in range(len(part.shape)):
        if states[OUTCOME * i] == FITS and not part.shape.penalised(i):
            states[OUTCOME * i + 1] -= part.costs[i]
    return Outcome(outcome.now_us, outcome.status, states, outcome.retry_us)


def part_of(step: Step, slot: int, keys: Keys, *, alone: bool, refused: bool = False, penal: bool = True) -> Step:
    """The part of a step that has these keys. `refused`, `penal`: as for `Step.part`."""
    part = step.part(keys, refused=refused, penal=penal)
    part.slot, part.alone = slot, alone
    return part


def has_penalties(step: Step, keys: Keys) -> bool:
    """Whether one of the limits that lie in these keys is charged by a refusal, too."""
    return any(key - 1 in keys and step.shape.penalised(i) for i, key in enumerate(step.shape.key_of))


def took(part: Step, outcome: Outcome) -> bool:
    """Whether a part took all that it was asked for, its idempotency key included."""
    return outcome.status == TAKEN and (part.claim is None or part.claim.taken)


def is_given_back(part: Step, outcome: Outcome, claim: KeyClaim | None) -> bool:
    """Whether a part took something that a request that is not admitted must not keep. With a stored answer it keeps
    its nonce, and what that counts by.
    """
    return outcome.status == TAKEN and not (claim is not None and claim.answered and part.nonce is not None)


def penalised(part: Step, outcome: Outcome, after: Outcome) -> Outcome:
    """What a part has to tell that was asked for its penalties afterwards: as before, but for what those changed."""
    states, told = outcome.states, after.states
    for i in range(len(part.shape)):
        if part.shape.penalised(i):
            states[OUTCOME * i + 1 : OUTCOME * (i + 1)] = told[OUTCOME * i + 1 : OUTCOME * (i + 1)]
    return Outcome(max(outcome.now_us, after.now_us), outcome.status, states, outcome.retry_us)


def join(step: Step, parts: Sequence[tuple[Step, Outcome]]) -> Outcome:
    """What became of the whole, told as of one instant."""
    now_us = max(outcome.now_us for _, outcome in parts)
    kinds = [outcome.status for _, outcome in parts]
    status = REFUSED if REFUSED in kinds or step.shape.refused else FULL if FULL in kinds else TAKEN
    retry_us = 0
    for _, outcome in parts:
        if outcome.status >= USED:  # the nonce comes before every limit
            status, retry_us = outcome.status, outcome.retry_us
    whole = [0] * (OUTCOME * len(step.shape))
    where = {charge: i for i, charge in enumerate(step.of)}
    for part, outcome in parts:
        states = outcome.states
        for i, charge in enumerate(part.of):
            at = OUTCOME * where[charge]
            state = tuple(states[OUTCOME * i : OUTCOME * (i + 1)])
            whole[at : at + OUTCOME] = aged(state, part.shape.form(i), part.shape.numbers(i), now_us)
    return Outcome(now_us, status, whole, retry_us)


def settlements(forms: Forms, settlement: Settlement) -> list[Settlement]:
    """A settlement cut by slot."""
    slots: dict[int, list[SettlementEntry]] = {}
    for entry in settlement.entries:
        slots.setdefault(slot_of(forms.of(entry.limit).key(entry.address)), []).append(entry)
    return [replace(settlement, entries=tuple(entries)) for entries in slots.values()]


def together(
    places: Sequence[tuple[bytes, bytes]], *, tagged: bool, at_most: int
) -> Iterator[Sequence[tuple[bytes, bytes]]]:
    """(key, lease id) pairs in lots for one command each: of one key where keys may lie on several servers."""
    lots: dict[bytes, list[tuple[bytes, bytes]]] = {}
    for key, lease_id in places:
        lots.setdefault(key if tagged else b"", []).append((key, lease_id))
    for lot in lots.values():
        for at in range(0, len(lot), at_most):
            yield lot[at : at + at_most]
