"""What settle.lua is told: a settlement as keys and packed numbers. Pure: no clock, no I/O."""

from __future__ import annotations

from typing import TYPE_CHECKING

from shield.store.steps import ONCE, PLACES, Forms, doubles

if TYPE_CHECKING:
    from shield.store import Settlement


def pack_settle(
    forms: Forms, settlement: Settlement, *, slack_ms: int, mode: int, around_us: int
) -> tuple[list[bytes], bytes]:
    """(KEYS, ARGV[1]) of settle.lua. Entries with nothing to make good, and leases, are left out."""
    packed = [doubles(4).pack(slack_ms, mode, settlement.charged_at_us, settlement.expires_us)]
    address = settlement.entries[0].address if settlement.entries else bytes(16)
    keys = [forms.mark_key(settlement.receipt_id, address)] if mode == ONCE else []
    for entry in settlement.entries:
        form = forms.of(entry.limit)
        delta = entry.actual - entry.charged
        if delta == 0 or form.kind == PLACES:
            continue
        now = entry.numbers or entry.limit.numbers_for(entry.plan)
        keys.append(form.key(entry.address))
        packed.append(form.id)
        start_us = entry.window_start_us or 0
        packed.append(doubles(8).pack(form.kind, *form.numbers(now, around_us), delta, start_us))
    return keys, b"".join(packed)
