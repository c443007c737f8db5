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
from dataclasses import dataclass, field, fields, is_dataclass
from os import PathLike
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Literal

from shield.graphql.ceilings import Ceilings
from shield.graphql.pricer import Dialect

if TYPE_CHECKING:
    from shield.graphql.schema import Schema
    from shield.policy.replay import ReplayGuard

from shield.policy.abuse import Blocks, Events
from shield.policy.detector import Detector

TOKEN_BUCKET = "token-bucket"
SLIDING_WINDOW = "sliding-window"
FIXED_WINDOW = "fixed-window"
CONCURRENCY = "concurrency"
ALGORITHMS = (TOKEN_BUCKET, SLIDING_WINDOW, FIXED_WINDOW, CONCURRENCY)

LOOPBACK = ("127.0.0.0/8", "::1/128")

SYMMETRIC_ALGORITHMS = ("HS256", "HS384", "HS512")
TOKEN_ALGORITHMS = (
    *("RS256", "RS384", "RS512", "PS256", "PS384", "PS512", "ES256", "ES384", "ES512", "EdDSA", "Ed25519", "Ed448"),
    *SYMMETRIC_ALGORITHMS,
)
LATE = {"late": True}
"""Marks a field that came after policies had fingerprints: it counts only where it is not its default."""

IDENTITY_FAILURES = "identity-failures"
"""The limit that failed verifications are charged to, by address."""


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
    cost: int | str = 1  # units, or "request", "bytes", "graphql" or "graphql:type"
    lease: str = field(default="off", metadata=LATE)  # "off" or "auto"; only a token bucket has it

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
class JwtIssuer:
    """An issuer of tokens, and how they are verified."""

    issuer: str  # the claim iss, exactly
    name: str  # stands in front of its tenants and users; the issuer unless the policy says otherwise
    audiences: tuple[str, ...]
    algorithms: tuple[str, ...]  # of TOKEN_ALGORITHMS
    jwks: str | None  # "file:NAME", "https://..." or "http://..." on loopback; None: there is a secret
    secret: str | None = None  # "file:NAME"
    claims: Mapping[str, str] = field(default_factory=_frozen, hash=False)  # request field -> claim
    leeway_us: int = 30_000_000
    typ: str | None = None
    max_token_bytes: int = 8_192
    refresh_us: int = 300_000_000
    keep_us: int = 86_400_000_000


@dataclass(frozen=True, slots=True)
class ApiKeys:
    """Where the keys that this service hands out are kept. Both are "file:NAME"."""

    store: str
    secret: str


@dataclass(frozen=True, slots=True)
class Identity:
    """Who a request comes from, and whom Shield believes about that."""

    trusted_proxies: tuple[str, ...] = LOOPBACK  # canonical networks; unix sockets are always trusted
    ipv6_prefix: int = 64  # bits of an IPv6 address that make one subject
    anonymous: bool = True
    headers: Mapping[str, str] = field(default_factory=_frozen, hash=False)  # request field -> header name
    jwt: tuple[JwtIssuer, ...] = field(default=(), metadata=LATE)
    api_keys: ApiKeys | None = field(default=None, metadata=LATE)
    # What failed verifications are charged to; None: nothing is verified.
    failures: Limit | None = field(default=None, metadata=LATE)
    # Where relative names of files start; None: the working directory. The same policy elsewhere is the same policy.
    directory: str | None = field(default=None, compare=False)


@dataclass(frozen=True, slots=True)
class SizeGuard:
    """How large a body may be and what it may be."""

    max_body_bytes: int | None = None  # None: no ceiling
    content_types: tuple[str, ...] = ()  # lower-case "type/subtype" or "type/*"; () is any
    mode: str = field(default="enforce", metadata=LATE)  # "enforce" or "shadow"


@dataclass(frozen=True, slots=True)
class GraphQLGuard:
    """What a GraphQL operation may cost, and how that is reckoned."""

    dialect: Dialect = "shape"
    default_list_size: int | None = 10  # None: unbounded
    unknown: Literal["refuse", "shape"] = "refuse"  # what becomes of a document that does not fit the schema
    ceilings: Ceilings = field(default_factory=Ceilings)
    mode: str = field(default="enforce", metadata=LATE)  # "enforce" or "shadow"
    reads_http: bool = False  # operations are also read from the body and query string of matching requests
    methods: tuple[str, ...] = ()
    paths: tuple[str, ...] = ()
    schema_digest: str | None = None  # SHA-256 of the SDL
    persisted_digest: str | None = None
    schema: Schema | None = field(default=None, compare=False, repr=False)
    persisted: Mapping[str, str] = field(default_factory=_frozen, compare=False, repr=False)


@dataclass(frozen=True, slots=True)
class Routes:
    """Requests by method and path; () is every one."""

    methods: tuple[str, ...] = ()
    paths: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class IdempotencyGuard:
    """What an idempotency key does for a request."""

    required: bool = False
    methods: tuple[str, ...] = ("POST", "PATCH")
    match: Routes = field(default_factory=Routes)
    strict: Routes | None = None  # where a key is never taken over; None: nowhere
    syntax: Literal["any", "quoted"] = "any"
    retention_us: int = 86_400_000_000
    lease_us: int = 60_000_000
    keep: Literal["all", "final", "2xx"] = "all"
    max_body_bytes: int = 65_536  # of an answer; what is larger is not kept
    max_keys_per_tenant: int = 100_000
    max_keys: int = 250_000  # of a process or host
    max_bytes: int = 67_108_864  # of all answers that a process or host keeps
    when_store_fails: Literal["deny", "allow"] = "deny"


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
    graphql: GraphQLGuard | None = field(default=None, metadata=LATE)
    replay: ReplayGuard | None = field(default=None, metadata=LATE)
    idempotency: IdempotencyGuard | None = field(default=None, metadata=LATE)
    detectors: tuple[Detector, ...] = field(default=(), metadata=LATE)
    blocks: Blocks = field(default=Blocks(), metadata=LATE)
    events: Events | None = field(default=None, metadata=LATE)  # None: there are none
    # Limit -> canonical bytes of a key -> the plan whose numbers it has. Operators say so while the policy is in force.
    overrides: Mapping[str, Mapping[bytes, str]] = field(default_factory=_frozen, hash=False, compare=False, repr=False)

    @classmethod
    def load(cls, path: str | PathLike[str]) -> Policy:
        """Reads a .toml, .yaml, .yml or .json file. Raises PolicyError, also when it cannot be read."""
        from shield.policy import loader

        return loader.load(path)

    @classmethod
    def parse(
        cls, text: str | bytes, format: str = "toml", source: str | None = None, directory: str | None = None
    ) -> Policy:
        """Reads text as "toml", "yaml" or "json". `source` is named in errors; names of files in it start in
        `directory`, by default where the process runs. Raises PolicyError.
        """
        from shield.policy import loader

        return loader.parse(text, format, source, directory)

    def warnings(self) -> tuple[str, ...]:
        """What is allowed but probably not meant, one sentence each."""
        from shield.policy import advice

        return advice.warnings(self)

    @property
    def signed(self) -> bool:
        """Whether signatures of requests are verified."""
        return self.replay is not None and bool(self.replay.schemes)

    @property
    def shadow_guards(self) -> tuple[str, ...]:
        """Guards that tell what they would have refused, as decisions and metrics name them."""
        guards = {"guard.size": self.size, "guard.graphql": self.graphql}
        return tuple(name for name, guard in guards.items() if guard is not None and guard.mode == "shadow")

    @property
    def fingerprint(self) -> str:
        """Twelve hexadecimal digits of a hash over the model: equal policies have equal ones."""
        text = json.dumps(_plain(self), sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(text.encode()).hexdigest()[:12]


def _plain(value: Any) -> Any:
    """The same value as JSON would hold it; numbers, text, lists and objects only."""
    if isinstance(value, Mapping):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, tuple):
        return [_plain(item) for item in value]
    if is_dataclass(value):
        return {
            one.name: _plain(getattr(value, one.name))
            for one in fields(value)
            if one.compare and not ("late" in one.metadata and getattr(value, one.name) == one.default)
        }
    return value
