"""What a policy says once it has been read: plain frozen values with every default filled in and every number
merged.

Nothing here is checked again later, so these are built by the loader, which refuses a wrong policy whole.
What a limit allows (`Numbers`) is kept apart from what it is (`Limit.identity`): numbers may change under a
bucket and what was spent stays spent; a changed identity is another bucket.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from os import PathLike
from types import MappingProxyType
from typing import Any

from shield.policy.detector import Condition, Detector

TOKEN_BUCKET = "token-bucket"
SLIDING_WINDOW = "sliding-window"
FIXED_WINDOW = "fixed-window"
CONCURRENCY = "concurrency"
ALGORITHMS = (TOKEN_BUCKET, SLIDING_WINDOW, FIXED_WINDOW, CONCURRENCY)

LOOPBACK = ("127.0.0.0/8", "::1/128")


def _frozen(mapping: Mapping[str, Any] | None = None) -> Mapping[str, Any]:
    return MappingProxyType(dict(mapping or {}))


@dataclass(frozen=True, slots=True)
class Numbers:
    """What a limit allows, and what may change without a new bucket."""

    limit: int  # burst of a token bucket; units per window; places of a concurrency limit
    refill_units: int = 0  # token bucket: c of the reduced rate, c units per p microseconds; else 0
    refill_us: int = 0  # token bucket: p of the reduced rate; else 0


@dataclass(frozen=True, slots=True)
class Limit:
    """One named quota: which requests it matches, what it counts by, how much it allows."""

    name: str
    key: tuple[str, ...]  # request fields, or "attributes.NAME"
    algorithm: str  # one of ALGORITHMS
    numbers: Numbers
    plans: Mapping[str, Numbers] = field(default_factory=_frozen, hash=False)  # complete numbers, already merged
    window_us: int | None = None  # windows but the calendar month; a calendar day says 86_400_000_000
    align: str | None = None  # None, "day" or "month"
    timezone: str | None = None  # IANA name, only when aligned
    ttl_us: int | None = None  # concurrency: after how long a place is free again without a release
    methods: tuple[str, ...] = ()  # upper case; () is every method
    paths: tuple[str, ...] = ()  # templates as written; () is every path
    missing: str = "skip"  # "skip" or "deny"
    when_store_fails: str = "local"  # "local", "allow" or "deny"
    when_full: str = "share"  # "share", "deny" or "allow"; concurrency always denies
    count_denied: bool = False
    mode: str = "enforce"  # "enforce" or "shadow"
    cost: int | str = 1  # units, or "request" or "bytes"

    @property
    def identity(self) -> str:
        """What makes two limits the same family of buckets: everything but numbers and conduct. One word."""
        window = "" if self.window_us is None else str(self.window_us)
        parts = (self.name, self.algorithm, ",".join(self.key), window, self.align or "", self.timezone or "")
        return "|".join(parts)

    def numbers_for(self, plan: str | None) -> Numbers:
        """The numbers of this plan; of the limit itself where the plan is absent or not named here."""
        return self.numbers if plan is None else self.plans.get(plan, self.numbers)


@dataclass(frozen=True, slots=True)
class Identity:
    """Who a request comes from, and whom Shield believes about that."""

    trusted_proxies: tuple[str, ...] = LOOPBACK  # canonical networks; unix sockets are always trusted
    ipv6_prefix: int = 64  # bits of an IPv6 address that make one subject
    anonymous: bool = True
    headers: Mapping[str, str] = field(default_factory=_frozen, hash=False)  # request field -> header name


@dataclass(frozen=True, slots=True)
class SizeGuard:
    """How large a body may be and what it may be."""

    max_body_bytes: int | None = None  # None: no ceiling
    content_types: tuple[str, ...] = ()  # lower-case "type/subtype" or "type/*"; () is any


@dataclass(frozen=True, slots=True)
class Blocks:
    """How blocks are kept, and who is never blocked or looked at by detectors."""

    allow: tuple[str, ...] = ()  # networks
    allow_users: tuple[str, ...] = ()
    allow_tenants: tuple[str, ...] = ()
    allow_api_keys: tuple[str, ...] = ()
    lists: tuple[str, ...] = ()  # paths of files
    file: str | None = None  # where blocks are remembered across restarts
    steps_us: tuple[int, ...] = (60_000_000, 600_000_000, 3_600_000_000, 86_400_000_000)
    forget_after_us: int = 86_400_000_000
    max_blocks: int = 100_000


@dataclass(frozen=True, slots=True)
class Events:
    """Where security events go, and whether they may name their subjects."""

    to: tuple[str, ...]  # "stdout", "file:PATH", "syslog:unix:PATH", "syslog:HOST:PORT"
    subjects: str = "hash"  # or "plain"
    key_file: str | None = None  # what subjects are hashed with; None: a key of the process
    fold_us: int = 60_000_000


@dataclass(frozen=True, slots=True)
class Policy:
    """One policy, whole and valid. `load` and `parse` raise PolicyError with every issue there is."""

    version: int = 1
    name: str = "default"
    owner: str | None = None
    settle_within_us: int = 300_000_000
    identity: Identity = field(default_factory=Identity)
    limits: tuple[Limit, ...] = ()
    size: SizeGuard | None = None
    detectors: tuple[Detector, ...] = ()
    blocks: Blocks | None = None
    events: Events | None = None

    @classmethod
    def load(cls, path: str | PathLike[str]) -> Policy:
        """Reads a .toml, .yaml, .yml or .json file. Raises PolicyError, also when it cannot be read."""
        from shield.policy import loader

        return loader.load(path)

    @classmethod
    def parse(cls, text: str | bytes, format: str = "toml", source: str | None = None) -> Policy:
        """Reads text as "toml", "yaml" or "json". `source` is named in errors. Raises PolicyError."""
        from shield.policy import loader

        return loader.parse(text, format, source)

    def warnings(self) -> tuple[str, ...]:
        """What is allowed but probably not meant, one sentence each."""
        from shield.policy import advice

        return advice.warnings(self)

    @property
    def fingerprint(self) -> str:
        """Twelve hexadecimal digits of a hash over the model: equal policies have equal ones."""
        plain = _plain(self)
        if not self.detectors:
            del plain["detectors"]  # a policy that has none is what it was before there were any
        if self.blocks is None:
            del plain["blocks"]
        if self.events is None:
            del plain["events"]
        text = json.dumps(plain, sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(text.encode()).hexdigest()[:12]


def _plain(value: Any) -> Any:
    """The same value as JSON would hold it; numbers, text, lists and objects only."""
    if isinstance(value, Mapping):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, tuple):
        return [_plain(item) for item in value]
    if isinstance(value, (Policy, Identity, Limit, Numbers, SizeGuard, Detector, Condition, Blocks, Events)):
        return {one.name: _plain(getattr(value, one.name)) for one in fields(value)}
    return value
