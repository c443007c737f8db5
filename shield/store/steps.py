"""What the scripts are told: charges and settlements as keys and packed numbers. Pure: no clock, no I/O.

All levels of one partition key lie in one cell, whose address is 16 bytes: BLAKE2b over the names of the key's fields
and their values, keyed by the store's prefix. However long a client made its key, the store holds 22 characters of it
and nobody can read it back. Inside a cell a limit is known by 8 bytes of its identity's hash. What is the same for
every request that meets the same limits, its shape, is packed once. The layouts are those of the headers in lua/.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from fractions import Fraction
from functools import lru_cache
from hashlib import blake2b
from struct import Struct
from typing import TYPE_CHECKING, Final

from shield.core import Step, Steps
from shield.policy import calendar
from shield.policy.model import CONCURRENCY, FIXED_WINDOW, SLIDING_WINDOW, TOKEN_BUCKET, Limit, Numbers
from shield.store.naming import Names, Naming
from shield.store.nonce_key import NonceKey, nonce_key
from shield.store.resp import bulk

if TYPE_CHECKING:
    from shield.core import Bucket, Charges
    from shield.store import Settlement

BUCKET, SLIDING, FIXED, CALENDAR, PLACES = 1, 2, 3, 4, 5
ENFORCED, COUNT_DENIED = 1, 2
# How a settlement is made, see settle.lua.
UNDO, ONCE, MARKED = 0, 1, 2
# How a request is decided, see check.lua: the sum of these.
REFUSED, WITH_NONCE = 1, 2
MAX_EXACT: Final = 2**53 - 1
# What the scripts' arithmetic is exact for; the loader of policies allows no more.
MAX_PERIOD_US: Final = 2**42
MAX_LIMIT: Final = 10**9
MAX_PLACES: Final = 1024
# Policies have dozens of limits; the bound only keeps a process that reloads for years from growing.
MAX_FORMS: Final = 4096
# A request has a handful of slots; the bound is for shapes that are met while slots move.
MAX_PARTS: Final = 256
# Numbers that stand for one charge in a reply.
OUTCOME: Final = 5
VERSION: Final = 2
"""Of the layout in which states lie on the server, the first byte of every cell."""

_KINDS: Final = {TOKEN_BUCKET: BUCKET, SLIDING_WINDOW: SLIDING, FIXED_WINDOW: FIXED, CONCURRENCY: PLACES}


@lru_cache(maxsize=256)
def doubles(count: int) -> Struct:
    return Struct(f"<{count}d")


class Form:
    """One limit as the scripts see it: resolved once, nothing is left to look up but the key and the cost."""

    __slots__ = ("_around", "_head", "_naming", "_numbers", "_slowest", "id", "kind", "limit", "names")

    def __init__(self, naming: Naming, limit: Limit, names: Names) -> None:
        prefix = naming.prefix
        self._naming = naming
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
        return self._naming.key(self._head, address)

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


Described = tuple[Form, Numbers, int]
"""What a charge is of, the numbers that hold for it, ENFORCED and COUNT_DENIED."""


def _described(form: Form, bucket: Bucket) -> Described:
    flags = (ENFORCED if bucket.enforced else 0) + (COUNT_DENIED if bucket.count_denied else 0)
    return form, bucket.numbers, flags


class Shape:
    """Charges of which only the keys and costs are still to be named."""

    __slots__ = (
        "_calendars",
        "_described",
        "_from_us",
        "_mode",
        "_parts",
        "_to_us",
        "_wire",
        "deniable",
        "key_of",
        "keys",
        "named",
        "places",
        "refused",
    )

    def __init__(self, described: Sequence[Described], refused: bool, nonce: bool = False) -> None:
        self._described = described
        self.refused = refused
        self._mode = (REFUSED if refused else 0) + (WITH_NONCE if nonce else 0)
        groups: dict[tuple[str, ...], int] = {}
        self.keys: list[tuple[int, Form]] = []
        """For each key of the request: which of its partitions it is made of, and a form that knows its name."""
        self.places: list[int] = []
        """Which charges hold places."""
        cells: dict[int, int] = {}
        self.key_of: list[int] = []
        for i, (form, _, _) in enumerate(described):
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
        self.named: tuple[tuple[int, dict[bytes, bytes], Callable[[bytes], bytes]], ...] | None = None
        """For each key, where all are cells: which partition, the known names, and what makes one that is not."""
        if not self.places:
            self.named = tuple((group, form.names.known, form.names.cell) for group, form in self.keys)
        self.deniable: list[tuple[int, int, Form, Numbers]] = []
        """Charges whose refusal may be remembered: index, which key, form, numbers. None of a request whose refusals
        are charged, or that a guard has refused.
        """
        if not refused and not any(flags & COUNT_DENIED for _, _, flags in described):
            self.deniable = [
                (i, self.key_of[i] - 1, form, numbers)
                for i, (form, numbers, flags) in enumerate(described)
                if flags & ENFORCED and form.kind != PLACES
            ]
        self._calendars = [form for form, _, _ in described if form.kind == CALENDAR]
        self._parts: dict[tuple[tuple[int, ...], bool, bool, bool], tuple[Shape, tuple[int, ...]]] = {}
        self._wire = b""
        self._from_us, self._to_us = 0, -1

    def __len__(self) -> int:
        return len(self._described)

    def part(self, keys: tuple[int, ...], refused: bool, nonce: bool, penal: bool) -> tuple[Shape, tuple[int, ...]]:
        """The charges of some of its keys alone, and which those are. Not `penal`: a refusal is charged by none."""
        found = self._parts.get((keys, refused, nonce, penal))
        if found is None:
            if len(self._parts) >= MAX_PARTS:
                self._parts.clear()
            chosen = tuple(i for i, key in enumerate(self.key_of) if key - 1 in keys)
            described = [self._described[i] for i in chosen]
            if not penal:
                described = [(form, numbers, flags & ~COUNT_DENIED) for form, numbers, flags in described]
            found = self._parts[keys, refused, nonce, penal] = Shape(described, refused, nonce), chosen
        return found

    def form(self, i: int) -> Form:
        """What charge `i` is of."""
        return self._described[i][0]

    def numbers(self, i: int) -> Numbers:
        """The numbers that hold for charge `i`."""
        return self._described[i][1]

    def penalised(self, i: int) -> bool:
        """Whether charge `i` is taken from a refused request as well."""
        form, _, flags = self._described[i]
        return flags == ENFORCED + COUNT_DENIED and form.kind != PLACES

    def wire(self, around_us: int) -> bytes:
        """The shape as an argument on the wire. `around_us`: about what time it is there, for calendars."""
        if not self._from_us <= around_us < self._to_us:
            packed = [doubles(2).pack(self._mode, len(self.keys))]
            for (form, numbers, flags), key in zip(self._described, self.key_of, strict=True):
                packed.append(form.id)
                packed.append(doubles(8).pack(key, form.kind, flags, *form.numbers(numbers, around_us)))
            self._wire = bulk(b"".join(packed))
            spans = [span for form in self._calendars if (span := form.until_us) is not None]
            self._from_us = max((span[0] for span in spans), default=-(2**63))
            self._to_us = min((span[1] for span in spans), default=2**63)
        return self._wire


class Forms:
    """The forms of every limit in use, kept by the limit object itself, and the shapes of requests under one policy."""

    def __init__(self, prefix: str, *, tagged: bool = False) -> None:
        self.prefix = prefix
        self.naming = Naming(prefix, tagged=tagged)
        self._forms: dict[int, Form] = {}
        self._names: dict[tuple[str, ...], Names] = {}
        self.step: Callable[[Charges], Step] = Steps(self._learn, self._named, self._odd_step, MAX_FORMS).step
        """One request in the words of the scripts."""

    def of(self, limit: Limit) -> Form:
        # A form holds its limit, so the id of a limit that is in here cannot be another's.
        form = self._forms.get(id(limit))
        if form is None:
            if len(self._forms) >= MAX_FORMS:
                self._forms.clear()
                self._names.clear()
            names = self._names.get(limit.key)
            if names is None:
                names = self._names[limit.key] = Names(self.naming, limit.key)
            form = self._forms[id(limit)] = Form(self.naming, limit, names)
        return form

    def _learn(self, charges: Charges) -> Shape:
        return self._shape(charges, [charges.bucket(i) for i in range(len(charges))])

    def _odd_step(self, charges: Charges) -> Step:
        """More limits than an outline holds: worked out anew each time."""
        buckets = [charges.bucket(i) for i in range(len(charges))]
        shape = self._shape(charges, buckets)
        partitions: dict[tuple[str, ...], bytes] = {bucket.limit.key: bucket.partition for bucket in buckets}
        return self._named(charges, shape, list(partitions.values()), tuple(bucket.cost for bucket in buckets))

    def _shape(self, charges: Charges, buckets: list[Bucket]) -> Shape:
        described = [_described(self.of(bucket.limit), bucket) for bucket in buckets]
        return Shape(described, charges.refused, charges.nonce_facts is not None)

    def _nonce(self, charges: Charges, shape: Shape, partitions: list[bytes]) -> NonceKey | None:
        facts = charges.nonce_facts
        if facts is None:
            return None
        group, form = shape.keys[shape.key_of[-1] - 1]
        return nonce_key(self.naming, facts, form.address(partitions[group]))

    def _named(self, charges: Charges, shape: Shape, partitions: list[bytes], costs: tuple[int, ...]) -> Step:
        if not shape.places:
            cells = [form.names.cell(partitions[group]) for group, form in shape.keys]
            return Step(charges, shape, cells, costs, [], nonce=self._nonce(charges, shape, partitions))
        cells = [
            bulk(form.key(form.address(partitions[group])))
            if form.kind == PLACES
            else form.names.cell(partitions[group])
            for group, form in shape.keys
        ]
        lease_ids = [charges.lease_id(i) for i in shape.places]
        return Step(charges, shape, cells, costs, lease_ids, nonce=self._nonce(charges, shape, partitions))

    def lease_key(self, limit_name: str, address: bytes) -> bytes:
        return self.naming.key(f"{self.prefix}:{limit_name}:".encode(), address)

    def mark_key(self, receipt_id: bytes, address: bytes = bytes(16)) -> bytes:
        """Where it is remembered that a receipt was settled for the buckets in the slot of this one. No limit's name
        begins with a tilde.
        """
        return self.naming.key(f"{self.prefix}:~receipt:".encode(), receipt_id, address)

    def key_of(self, settlement: Settlement) -> bytes:
        """One of the keys of a settlement, for its slot."""
        for entry in settlement.entries:
            return self.of(entry.limit).key(entry.address)
        return self.mark_key(settlement.receipt_id, bytes(16))

    def own_key(self, what: str) -> bytes:
        """A key of the deployment's own, not of any limit: `version`, `secret`, `nodes`."""
        return f"{self.prefix}:~{what}".encode()

    @property
    def version_key(self) -> bytes:
        """Where it is written which layout the states of this prefix have."""
        return self.own_key("version")
