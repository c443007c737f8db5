"""What the scripts are told: charges and settlements as keys and packed numbers. Pure: no clock, no I/O.

All levels of one partition key lie in one cell, whose address is 16 bytes: BLAKE2b over the names of the key's fields
and their values, keyed by the store's prefix. However long a client made its key, the store holds 22 characters of it
and nobody can read it back. Inside a cell a limit is known by 8 bytes of its identity's hash. What is the same for
every request that meets the same limits, its shape, is packed once. The layouts are those of the headers in lua/.
"""

from __future__ import annotations

import binascii
import math
from collections.abc import Sequence
from fractions import Fraction
from functools import lru_cache
from hashlib import blake2b
from struct import Struct
from typing import TYPE_CHECKING, Final

from shield.policy import calendar
from shield.policy.model import CONCURRENCY, FIXED_WINDOW, SLIDING_WINDOW, TOKEN_BUCKET, Limit, Numbers
from shield.store.resp import bulk

if TYPE_CHECKING:
    from shield.core import Bucket, Charges
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
# Names of cells that are kept for the next request of the same key, and how long a key may be to be kept: 25 MB.
MAX_NAMES: Final = 65_536
MAX_NAMED_BYTES: Final = 128
# Numbers that stand for one charge in a reply.
OUTCOME: Final = 5
VERSION: Final = 2
"""Of the layout in which states lie on the server, the first byte of every cell."""

_KINDS: Final = {TOKEN_BUCKET: BUCKET, SLIDING_WINDOW: SLIDING, FIXED_WINDOW: FIXED, CONCURRENCY: PLACES}
_URL_SAFE: Final = bytes.maketrans(b"+/", b"-_")


@lru_cache(maxsize=256)
def _doubles(count: int) -> Struct:
    return Struct(f"<{count}d")


def slug(raw: bytes) -> bytes:
    """Base64url without padding: 16 bytes become 22 characters."""
    return binascii.b2a_base64(raw, newline=False).rstrip(b"=").translate(_URL_SAFE)


class Names:
    """The addresses of all keys made of the same fields."""

    __slots__ = ("_cells", "_digest", "_head")

    def __init__(self, prefix: str, fields: tuple[str, ...]) -> None:
        named = b"".join(len(raw).to_bytes(4, "little") + raw for raw in (field.encode() for field in fields))
        start = len(fields).to_bytes(4, "little") + named
        self._digest = blake2b(start, digest_size=16, key=prefix.encode())
        self._head = f"{prefix}:".encode()
        self._cells: dict[bytes, bytes] = {}

    def address(self, partition: bytes) -> bytes:
        digest = self._digest.copy()
        digest.update(partition)
        return digest.digest()

    def cell(self, partition: bytes) -> bytes:
        """The cell's key as an argument on the wire."""
        found = self._cells.get(partition)
        if found is None:
            found = bulk(self._head + slug(self.address(partition)))
            if len(partition) <= MAX_NAMED_BYTES:
                if len(self._cells) >= MAX_NAMES:
                    self._cells.clear()
                self._cells[partition] = found
        return found


class Form:
    """One limit as the scripts see it: resolved once, nothing is left to look up but the key and the cost."""

    __slots__ = ("_around", "_head", "_numbers", "_slowest", "id", "kind", "limit", "names")

    def __init__(self, prefix: str, limit: Limit, names: Names) -> None:
        self.limit = limit
        self.names = names
        self.kind = CALENDAR if limit.align is not None else _KINDS[limit.algorithm]
        self.id = blake2b(limit.identity.encode(), digest_size=8, key=prefix.encode()).digest()
        self._head = (f"{prefix}:{limit.name}:" if self.kind == PLACES else f"{prefix}:").encode()
        self._numbers: dict[Numbers, tuple[float, ...]] = {}
        self._around: tuple[int, ...] = ()
        self._slowest = Fraction(0)
        if self.kind == BUCKET:
            every = (limit.numbers, *limit.plans.values())
            self._slowest = max(Fraction(numbers.refill_us, numbers.refill_units) for numbers in every)

    def address(self, partition: bytes) -> bytes:
        return self.names.address(partition)

    def key(self, address: bytes) -> bytes:
        """The key in which a bucket of this limit lies: its cell, or the set of its places."""
        return self._head + slug(address)

    @property
    def until_us(self) -> tuple[int, int] | None:
        """Between which instants `numbers` stays the same; None: always."""
        return self._around[1:3] if self.kind == CALENDAR else None  # type: ignore[return-value]

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


class Shape:
    """Charges of which only the keys and costs are still to be named."""

    __slots__ = (
        "_calendars",
        "_described",
        "_from_us",
        "_refused",
        "_to_us",
        "_wire",
        "deniable",
        "key_of",
        "keys",
        "places",
    )

    def __init__(self, described: Sequence[tuple[Form, Bucket]], refused: bool) -> None:
        self._described = [
            (form, bucket.numbers, (ENFORCED if bucket.enforced else 0) + (COUNT_DENIED if bucket.count_denied else 0))
            for form, bucket in described
        ]
        self._refused = refused
        groups: dict[tuple[str, ...], int] = {}
        self.keys: list[tuple[int, Form]] = []
        """For each key of the request: which of its partitions it is made of, and a form that knows its name."""
        self.places: list[int] = []
        """Which charges hold places."""
        cells: dict[int, int] = {}
        self.key_of: list[int] = []
        for i, (form, _) in enumerate(described):
            group = groups.setdefault(form.limit.key, len(groups))
            if form.kind == PLACES:
                self.places.append(i)
            elif group in cells:
                self.key_of.append(cells[group])
                continue
            else:
                cells[group] = len(self.keys) + 1
            self.keys.append((group, form))
            self.key_of.append(len(self.keys))
        self.deniable: list[tuple[int, int, Form, Numbers]] = []
        """Charges whose refusal may be remembered: index, which key, form, numbers. None of a request whose refusals
        are charged, or that a guard has refused.
        """
        if not refused and not any(bucket.count_denied for _, bucket in described):
            self.deniable = [
                (i, self.key_of[i] - 1, form, bucket.numbers)
                for i, (form, bucket) in enumerate(described)
                if bucket.enforced and form.kind != PLACES
            ]
        self._calendars = [form for form, _ in described if form.kind == CALENDAR]
        self._wire = b""
        self._from_us, self._to_us = 0, -1

    def __len__(self) -> int:
        return len(self._described)

    def wire(self, around_us: int) -> bytes:
        """The shape as an argument on the wire. `around_us`: about what time it is there, for calendars."""
        if not self._from_us <= around_us < self._to_us:
            packed = [_doubles(2).pack(self._refused, len(self.keys))]
            for (form, numbers, flags), key in zip(self._described, self.key_of, strict=True):
                packed.append(form.id)
                packed.append(_doubles(8).pack(key, form.kind, flags, *form.numbers(numbers, around_us)))
            self._wire = bulk(b"".join(packed))
            spans = [span for form in self._calendars if (span := form.until_us) is not None]
            self._from_us = max((span[0] for span in spans), default=-(2**63))
            self._to_us = min((span[1] for span in spans), default=2**63)
        return self._wire


class Step:
    """One request on its way: which keys, which shape, which costs."""

    __slots__ = ("cells", "charges", "costs", "lease_ids", "shape")

    def __init__(
        self, charges: Charges, shape: Shape, cells: list[bytes], costs: tuple[int, ...], lease_ids: list[str]
    ) -> None:
        self.charges = charges
        self.shape = shape
        self.cells = cells
        """Its keys, each as an argument on the wire."""
        self.costs = costs
        self.lease_ids = lease_ids

    def packed_costs(self) -> bytes:
        """The costs as an argument on the wire."""
        return _costs(self.costs)


class Forms:
    """The forms of every limit in use, kept by the limit object itself, and the shapes of requests under one policy."""

    def __init__(self, prefix: str) -> None:
        self.prefix = prefix
        self._forms: dict[int, Form] = {}
        self._names: dict[tuple[str, ...], Names] = {}
        self._shapes: dict[bytes, Shape] = {}
        self._policy: object = None  # whose shapes these are

    def of(self, limit: Limit) -> Form:
        # A form holds its limit, so the id of a limit that is in here cannot be another's.
        form = self._forms.get(id(limit))
        if form is None:
            if len(self._forms) >= MAX_FORMS:
                self._forms.clear()
                self._names.clear()
            names = self._names.get(limit.key)
            if names is None:
                names = self._names[limit.key] = Names(self.prefix, limit.key)
            form = self._forms[id(limit)] = Form(self.prefix, limit, names)
        return form

    def step(self, charges: Charges) -> Step:
        """One request in the words of the scripts."""
        outline = charges.outline()
        if outline is None:
            return self._odd_step(charges)
        marks, partitions, costs = outline
        if charges.policy is not self._policy:
            self._policy = charges.policy
            self._shapes.clear()
        shape = self._shapes.get(marks)
        if shape is None:
            if len(self._shapes) >= MAX_FORMS:
                self._shapes.clear()
            buckets = [charges.bucket(i) for i in range(len(charges))]
            shape = self._shapes[marks] = Shape(
                [(self.of(bucket.limit), bucket) for bucket in buckets], charges.refused
            )
        return self._named(charges, shape, partitions, costs)

    def _odd_step(self, charges: Charges) -> Step:
        """More limits than an outline holds: worked out anew each time."""
        buckets = [charges.bucket(i) for i in range(len(charges))]
        shape = Shape([(self.of(bucket.limit), bucket) for bucket in buckets], charges.refused)
        partitions: dict[tuple[str, ...], bytes] = {bucket.limit.key: bucket.partition for bucket in buckets}
        return self._named(charges, shape, list(partitions.values()), tuple(bucket.cost for bucket in buckets))

    def _named(self, charges: Charges, shape: Shape, partitions: list[bytes], costs: tuple[int, ...]) -> Step:
        if not shape.places:
            cells = [form.names.cell(partitions[group]) for group, form in shape.keys]
            return Step(charges, shape, cells, costs, [])
        cells = [
            bulk(form.key(form.address(partitions[group])))
            if form.kind == PLACES
            else form.names.cell(partitions[group])
            for group, form in shape.keys
        ]
        return Step(charges, shape, cells, costs, [charges.lease_id(i) for i in shape.places])

    def lease_key(self, limit_name: str, address: bytes) -> bytes:
        return f"{self.prefix}:{limit_name}:".encode() + slug(address)

    def mark_key(self, receipt_id: bytes) -> bytes:
        """Where it is remembered that a receipt was settled. No limit's name begins with a tilde."""
        return f"{self.prefix}:~receipt:".encode() + slug(receipt_id)

    @property
    def version_key(self) -> bytes:
        """Where it is written which layout the states of this prefix have."""
        return f"{self.prefix}:~version".encode()


@lru_cache(maxsize=4096)
def _costs(costs: tuple[int, ...]) -> bytes:
    return bulk(_doubles(len(costs)).pack(*costs))


def pack_settle(
    forms: Forms, settlement: Settlement, *, slack_ms: int, once: bool, around_us: int
) -> tuple[list[bytes], bytes]:
    """(KEYS, ARGV[1]) of settle.lua. Entries with nothing to make good, and leases, are left out."""
    packed = [_doubles(4).pack(slack_ms, once, settlement.charged_at_us, settlement.expires_us)]
    keys = [forms.mark_key(settlement.receipt_id)] if once else []
    for entry in settlement.entries:
        form = forms.of(entry.limit)
        delta = entry.actual - entry.charged
        if delta == 0 or form.kind == PLACES:
            continue
        now = entry.numbers or entry.limit.numbers_for(entry.plan)
        keys.append(form.key(entry.address))
        packed.append(form.id)
        start_us = entry.window_start_us or 0
        packed.append(_doubles(8).pack(form.kind, *form.numbers(now, around_us), delta, start_us))
    return keys, b"".join(packed)
