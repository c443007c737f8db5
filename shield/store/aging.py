"""A state that was told a moment ago, as it is now."""

from __future__ import annotations

from typing import TYPE_CHECKING

from shield.store.steps import BUCKET, FIXED, SLIDING, Form

if TYPE_CHECKING:
    from shield.policy.model import Numbers


def aged(state: tuple[int, ...], form: Form, numbers: Numbers, now_us: int) -> tuple[int, ...]:
    """A state as it is at `now_us`, which is no more than a second after it was told."""
    if form.kind == BUCKET:
        verdict, units, ticks, at_us, _ = state
        if now_us > at_us:
            left = max(0, units * numbers.refill_us + ticks - numbers.refill_units * (now_us - at_us))
            units, ticks = divmod(left, numbers.refill_us)
            at_us = now_us
        return verdict, units, ticks, at_us, 0
    verdict, cur, _, _, end_us = state
    if form.kind == SLIDING and now_us >= end_us:
        # Refused on into the next window, by what still counts of this one.
        length_us = form.limit.window_us or 0
        return verdict, 0, cur, end_us, end_us + length_us
    if form.kind == FIXED and now_us >= end_us:
        return verdict, 0, 0, end_us, end_us + (form.limit.window_us or 0)
    return state
