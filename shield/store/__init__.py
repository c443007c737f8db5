"""Where buckets live. A store does one thing: it applies the charges of a request in one atomic step.

`Store` is what the facade asks of any of them, `open_store` finds the right one for a URL. The stores
themselves are imported when they are asked for, so that a process that keeps its buckets in memory never
imports redis.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

from shield.store.url import StoreURLError, split_url

if TYPE_CHECKING:
    from shield.clock import Clock
    from shield.core import Bucket, Charges, CompiledPolicy
    from shield.guard.idempotency import Claim, Key
    from shield.policy.model import Limit, Numbers
    from shield.request import Request
    from shield.store.key_records import Ending, Outcome

__all__ = ["Lease", "RemoteStore", "Settlement", "SettlementEntry", "Store", "StoreURLError", "open_store"]


@dataclass(frozen=True, slots=True)
class SettlementEntry:
    """What one bucket was charged, in units, and what it turned out to cost."""

    limit: Limit
    address: bytes
    """The bucket's 16 bytes, as the store that was charged names it."""
    charged: int
    actual: int
    window_start_us: int | None = None
    """The start of the window that was charged; None for a token bucket."""
    plan: str | None = None
    """The plan the request had: the numbers that hold now are the limit's for it, unless `numbers` says
    otherwise.
    """
    numbers: Numbers | None = None


@dataclass(frozen=True, slots=True)
class Settlement:
    """The difference between charged and actual cost, to be made good once for each `receipt_id`.

    Instants are of the store's clock: `charged_at_us` is the instant of the decision, and from `expires_us`
    on the receipt is worth nothing.
    """

    receipt_id: bytes
    expires_us: int
    charged_at_us: int
    entries: tuple[SettlementEntry, ...]
    compiled: CompiledPolicy | None = None
    """The policy that `entries` speak of, for a store of this process: it counts by its numbers."""


@dataclass(frozen=True, slots=True)
class Lease:
    """The places one request holds of one concurrency limit."""

    limit_name: str
    address: bytes
    lease_id: str


@runtime_checkable
class Store(Protocol):
    """One atomic step over all charges of a request, and what may follow it.

    Every method raises StoreError (StoreTimeout, StoreProtocolError) when the truth is not known, and never
    takes a failure for permission.
    """

    name: str
    local: bool
    """True: `apply` never waits, so a caller that cannot wait may use it."""
    keeps_keys: bool
    """True: it takes claims to idempotency keys. Where it is false or absent, a policy that needs it is refused."""

    @property
    def ready(self) -> bool:
        """Whether a step would be tried now."""

    async def open(self) -> None: ...

    async def close(self) -> None: ...

    async def apply(self, charges: Charges, claim: Claim | None = None) -> None:
        """Takes all charges or none, at one instant, and writes the outcome into `charges`. With a `claim` the
        idempotency key is part of it: taken when the charges are, else what its record says is the refusal.
        """

    async def settle(self, settlement: Settlement) -> bool:
        """False when this receipt was settled before. ReceiptError when it has expired."""

    async def release(self, leases: Sequence[Lease]) -> int:
        """How many places came free; unknown and expired leases are no-ops."""

    async def end(self, ending: Ending) -> Outcome:
        """What became of the request that owns an idempotency key; written only while it still does."""

    def stats(self) -> dict[str, Any]:
        """Counts for metrics."""


@runtime_checkable
class RemoteStore(Store, Protocol):
    """A store that other nodes use as well."""

    def address(self, bucket: Bucket) -> bytes:
        """The 16 bytes that name a charge's bucket, the same on every node."""

    def places(self, charges: Charges) -> Iterable[int]:
        """Which parts of the store a request needs, where it may be away in part."""

    def place(self, address: bytes) -> int:
        """Which part of the store holds a bucket."""

    def place_key(self, key: Key, request: Request) -> Key:
        """An idempotency key as this store names it: its owner's handle says so, too."""

    async def shared_secret(self) -> bytes:
        """32 bytes that all nodes of this store agree on, for sealing receipts."""


def open_store(url: str, *, clock: Clock | None = None) -> Store:
    """The store a URL names, not yet opened. StoreURLError says what is wrong with the URL, without its
    password.

    `clock` (Unix nanoseconds) is for stores that have no clock of their own; Redis has one and asks this one
    only which calendar day it is likely to be there.
    """
    parts = split_url(url)
    if parts.scheme == "memory":
        from shield.store.memory import MemoryStore

        parts.must_be_bare()
        return MemoryStore(
            **parts.options.take(
                max_keys=parts.options.whole(1, 1_000_000_000),
                max_leases=parts.options.whole(1, 10_000_000),
                max_receipts=parts.options.whole(1, 1_000_000_000),
                max_nonces=parts.options.whole(1, 1_000_000_000),
            ),
            clock=clock,
        )
    if parts.scheme == "shared":
        from shield.store.shared import SharedStore

        return SharedStore(url, clock=clock)
    if parts.scheme in ("redis", "rediss", "unix", "redis+sentinel", "redis+cluster"):
        from shield.store.redis import RedisStore

        return RedisStore(url, clock=clock)
    raise StoreURLError(
        f"no store for {parts.scheme}://; known are memory://, shared://NAME, redis://, rediss://, unix://, "
        "redis+sentinel:// and redis+cluster://"
    )
