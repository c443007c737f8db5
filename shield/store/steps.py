"""What the scripts are told: charges and settlements as keys and packed numbers. Pure: no clock, no I/O.

A bucket's address is 16 bytes, BLAKE2b over the limit's identity and the partition, keyed by the store's
prefix: however long a client made its key, the store holds 22 characters of it and nobody can read it back.
The layouts that are packed here are those of the headers in lua/.
"""

from __future__ import annotations

import binascii
import math
from collections.abc import Sequence
from fractions import Fraction
from functools import lru_cache
from hashlib import blake2b
from struct import Struct
from typing import TYPE_CHECKING, Final, NamedTuple

from shield.policy import calendar
from shield.policy.model import CONCURRENCY, FIXED_WINDOW, SLIDING_WINDOW, TOKEN_BUCKET, Limit, Numbers

if TYPE_CHECKING:
    from shield.core import Bucket
    from shield.store import Settlement

BUCKET, SLIDING, FIXED, CALENDAR, PLACES = 1, 2, 3, 4, 5
ENFORCED, COUNT_DENIED = 1, 2
MAX_EXACT: Final = 2**53 - 1
# What the scripts' arithmetic is exact for; the loader of policies allows no more.
MAX_PERIOD_US: Final = 2**42
MAX_LIMIT: Final = 10**9
MAX_PLACES: Final = 1024
# Policies have dozens of limits; the bound only keeps a process that reloads for years from growing.
MAX_FORMS: Final = 4096

_KINDS: Final = {TOKEN_BUCKET: BUCKET, SLIDING_WINDOW: SLIDING, FIXED_WINDOW: FIXED, CONCURRENCY: PLACES}
_URL_SAFE: Final = bytes.maketrans(b"+/", b"-_")


class Charge(NamedTuple):
    """One charge as it is sent, and what is needed to undo it."""

    bucket: Bucket
    form: Form
    address: bytes
    lease_id: str | None


@lru_cache(maxsize=256)
def _doubles(count: int) -> Struct:
    return Struct(f"<{count}d")


def slug(raw: bytes) -> bytes:
    """Base64url without padding: 16 bytes become 22 characters."""
    return binascii.b2a_base64(raw, newline=False).rstrip(b"=").translate(_URL_SAFE)


class Form:
    """One limit as the scripts see it: resolved once, nothing is left to look up but the key and the cost."""

    __slots__ = ("_around", "_digest", "_head", "_numbers", "_slowest", "kind", "limit")

    def __init__(self, prefix: str, limit: Limit) -> None:
        self.limit = limit
        self.kind = CALENDAR if limit.align is not None else _KINDS[limit.algorithm]
        identity = limit.identity.encode()
        self._digest = blake2b(len(identity).to_bytes(4, "little") + identity, digest_size=16, key=prefix.encode())
        self._head = f"{prefix}:{limit.name}:".encode()
        self._numbers: dict[Numbers, tuple[float, ...]] = {}
        self._around: tuple[int, ...] = ()
        self._slowest = Fraction(0)
        if self.kind == BUCKET:
            every = (limit.numbers, *limit.plans.values())
            self._slowest = max(Fraction(numbers.refill_us, numbers.refill_units) for numbers in every)

    def address(self, partition: bytes) -> bytes:
        digest = self._digest.copy()
        digest.update(partition)
        return digest.digest()

    def key(self, address: bytes) -> bytes:
        return self._head + slug(address)

    def numbers(self, numbers: Numbers, around_us: int) -> tuple[float, ...]:
        """(limit, a, b, c, d) of level.lua. `around_us`: about what time it is there, for calendars."""
        if self.kind == CALENDAR:
            return numbers.limit, *self._boundaries(around_us)
        found = self._numbers.get(numbers)
        if found is None:
            if len(self._numbers) >= MAX_FORMS:
                self._numbers.clear()
            found = self._numbers[numbers] = self._resolve(numbers)
        return found

    def _boundaries(self, around_us: int) -> tuple[int, ...]:
        if not self._around or not self._around[1] <= around_us < self._around[2]:
            assert self.limit.align is not None
            self._around = calendar.boundaries(around_us, self.limit.align, self.limit.timezone or "UTC")
        return self._around

    def _resolve(self, numbers: Numbers) -> tuple[float, ...]:
        limit = self.limit
        if not 0 <= numbers.limit <= (MAX_PLACES if self.kind == PLACES else MAX_LIMIT):
            raise ValueError(f"limit {limit.name}: {numbers.limit} units are more than the scripts can count exactly")
        if self.kind == BUCKET:
            c, p = numbers.refill_units, numbers.refill_us
            if not 1 <= c <= p < MAX_PERIOD_US:
                raise ValueError(f"limit {limit.name}: {c} units per {p} us is no rate the scripts can count exactly")
            drain_us = min(-(-numbers.limit * p // c), MAX_EXACT)
            # The division rounds to nearest; the next double up is never too little time to live.
            slowest_us = math.nextafter(float(max(self._slowest, Fraction(p, c))), math.inf)
            return numbers.limit, c, p, drain_us, slowest_us
        length_us = (limit.ttl_us if self.kind == PLACES else limit.window_us) or 0
        if not 1 <= length_us < MAX_PERIOD_US:
            raise ValueError(f"limit {limit.name}: {length_us} us is no length the scripts can count exactly")
        return numbers.limit, length_us, 0, 0, 0


class Forms:
    """The forms of every limit in use, kept by the limit object itself."""

    def __init__(self, prefix: str) -> None:
        self.prefix = prefix
        self._forms: dict[int, Form] = {}

    def of(self, limit: Limit) -> Form:
        # A form holds its limit, so the id of a limit that is in here cannot be another's.
        form = self._forms.get(id(limit))
        if form is None:
            if len(self._forms) >= MAX_FORMS:
                self._forms.clear()
            form = self._forms[id(limit)] = Form(self.prefix, limit)
        return form

    def lease_key(self, limit_name: str, address: bytes) -> bytes:
        return f"{self.prefix}:{limit_name}:".encode() + slug(address)

    def mark_key(self, receipt_id: bytes) -> bytes:
        """Where it is remembered that a receipt was settled. No limit's name begins with a tilde."""
        return f"{self.prefix}:~receipt:".encode() + slug(receipt_id)


def pack_check(
    charges: Sequence[Charge], *, slack_ms: int, refused: bool, around_us: int
) -> tuple[list[bytes], bytes, list[bytes]]:
    """(KEYS, ARGV[1], lease ids) of check.lua."""
    numbers: list[float] = [slack_ms, refused]
    keys = []
    leases = []
    for bucket, form, address, lease_id in charges:
        keys.append(form.key(address))
        flags = (ENFORCED if bucket.enforced else 0) + (COUNT_DENIED if bucket.count_denied else 0)
        numbers += (form.kind, flags, bucket.cost, *form.numbers(bucket.numbers, around_us))
        if lease_id is not None:
            leases.append(lease_id.encode())
    return keys, _doubles(len(numbers)).pack(*numbers), leases


def pack_settle(
    forms: Forms, settlement: Settlement, *, slack_ms: int, once: bool, around_us: int
) -> tuple[list[bytes], bytes]:
    """(KEYS, ARGV[1]) of settle.lua. Entries with nothing to make good, and leases, are left out."""
    numbers: list[float] = [slack_ms, once, settlement.charged_at_us, settlement.expires_us]
    keys = [forms.mark_key(settlement.receipt_id)] if once else []
    for entry in settlement.entries:
        form = forms.of(entry.limit)
        delta = entry.actual - entry.charged
        if delta == 0 or form.kind == PLACES:
            continue
        now = entry.numbers or entry.limit.numbers_for(entry.plan)
        keys.append(form.key(entry.address))
        numbers += (form.kind, 0, 0, *form.numbers(now, around_us), delta, entry.window_start_us or 0)
    return keys, _doubles(len(numbers)).pack(*numbers)
