"""The facade: plan, apply, conclude.

    request -> plan (pure) -> store.apply(charges) -> conclude (pure) -> decision

The store's step is the only thing that may wait. While a remote store's truth is not known, a table of this process
stands in for it as each limit's `when_store_fails` says, and the decision says `degraded`.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple

from shield.abuse import Abuse
from shield.clock import Clock
from shield.core import Charges, CompiledPolicy, Decision, LocalDecider, Registry
from shield.errors import PolicyError, PolicyIssue, ReceiptError, RequestError, ShieldError, StoreError
from shield.guard.size import check_size
from shield.policy import Policy
from shield.policy.calendar import window_of
from shield.policy.matcher import Matcher
from shield.policy.path import normalise
from shield.receipt import Charged, Handles, HeldLease, Receipt, limit_digest
from shield.request import MAX_COST, Request
from shield.store.memory import MemoryStore

if TYPE_CHECKING:
    from shield.detect.travel import Locate
    from shield.store import Store


class Explanation(NamedTuple):
    """How one limit saw one request."""

    name: str
    matched: bool
    why: str
    key: str | None
    """The key it counted by, in clear: for the operator who asked, never for a log."""


class Shield(LocalDecider):
    """Decides every quota of a request in one atomic step.

    `store` is a URL (`memory://`, `redis://host:6379/0`, `rediss://`, `unix:///path`) or a Store. `clock` returns Unix
    nanoseconds; the default is the system's (a remote store reads its own). `secret` seals receipts and leases: all
    nodes that share a store need the same one; by default a remote store hands one out, and a local one is its own.
    `trace` is called with a dict for every decision. `locate` answers where an address is, for detectors of travel.

    Use it as `async with Shield(...) as shield`, or call `open` and `close`. With a local store nothing needs opening.
    """

    def __init__(
        self,
        policy: Policy,
        store: str | Store = "memory://",
        *,
        clock: Clock | None = None,
        secret: bytes | None = None,
        trace: Callable[[dict[str, Any]], None] | None = None,
        locate: Locate | None = None,
    ) -> None:
        from shield.store import RemoteStore, open_store

        self.store: Store = open_store(store, clock=clock) if isinstance(store, str) else store
        if isinstance(self.store, MemoryStore):
            self._local = self.store
        else:
            # Stands in while the store is away. A store that wraps a local one brings its registry along: charges are
            # compiled against one registry and mean nothing to another.
            self._local = MemoryStore(clock=clock, registry=getattr(self.store, "registry", None))
        self._remote = self.store if isinstance(self.store, RemoteStore) else None
        self._trace = trace
        self._handles = Handles(secret) if secret is not None else None
        self._own = Handles(os.urandom(32))  # for places in this process, which no other node could release
        if self._handles is None and self._remote is None:
            self._handles = Handles(os.urandom(32))
        self.abuse = Abuse(clock=clock, locate=locate)
        self.abuse.changed = self._route
        self._adopt(policy)

    def _adopt(self, policy: Policy) -> None:
        adopt_abuse = self.abuse.prepare(policy)  # before the registry knows of a policy that may yet be refused
        try:
            compiled = compile_policy(policy, self._local.registry)
            refusing = compile_policy(_penalties(policy), self._local.registry)
        except MemoryError as error:
            raise PolicyError([PolicyIssue("", f"no room for this policy: {error}")]) from None
        adopt_abuse()
        self._compiled, self._refusing = compiled, refusing
        self.policy = policy
        self._table = self._local.table
        # What `check_nowait`, which is compiled, decides with.
        self._route()
        self._limits = {limit_digest(limit.identity): limit for limit in policy.limits}

    def _route(self) -> None:
        """Where requests go: past blocks and detectors only while there are any."""
        here = self._table if self.store.local and not self.abuse.active else None
        self.decide_here(self._compiled, here, traced=self._trace is not None)

    async def __aenter__(self) -> Shield:
        await self.open()
        return self

    async def __aexit__(self, *exc: object) -> None:
        await self.close()

    async def open(self) -> None:
        """Connects the store. An unreachable one is no error here: decisions are degraded until it answers."""
        await self.store.open()
        await self._agree_on_secret()

    async def close(self) -> None:
        """Closes the store's connections."""
        await self.store.close()
        self.abuse.close()

    @property
    def ready(self) -> bool:
        """True while decisions rest on the store's truth."""
        return self.store.ready

    # ---- deciding ---------------------------------------------------------------------------------------------------

    async def check(self, request: Request) -> Decision:
        """One request, one decision. Refusals are values; a store that is away makes the decision `degraded`."""
        if self.store.local:
            return self.check_nowait(request)
        if not self.abuse.active:
            return await self._check_remote(request)
        refused = self._turned_away(request)
        if refused is not None:
            if len(refused):
                try:
                    await self.store.apply(refused)
                except StoreError:
                    self._table.apply(refused, degraded=True)
            else:
                self._table.apply(refused)
            return self._conclude(refused)
        decision = await self._check_remote(request)
        self.abuse.seen(request)
        return decision

    def _turned_away(self, request: Request) -> Charges | None:
        """What refuses a request that is blocked: limits that count refusals are charged, no others."""
        block = self.abuse.block_of_address(request) or self.abuse.block_of_subject(request)
        if block is None:
            return None
        charges = self._refusing.charges(request)
        until = "lifted" if block.until_us is None else f"{block.until_us / 1_000_000:.0f} (Unix time)"
        charges.turn_away(block.reason, f"{block.subject[0]}: {block.reason} until {until}")
        return charges

    async def _check_remote(self, request: Request) -> Decision:
        charges = self._compiled.charges(request)
        if len(charges) == 0:
            self._table.apply(charges)
            return self._conclude(charges)
        try:
            await self.store.apply(charges)
        except StoreError:
            self._table.apply(charges, degraded=True)
        if self._handles is None and not charges.degraded:
            await self._agree_on_secret()
        return self._conclude(charges)

    def _decide_elsewhere(self, request: Request) -> Decision:
        if self.store.local:
            refused = self._turned_away(request)
            charges = self._compiled.charges(request) if refused is None else refused
            self._table.apply(charges)
            decision = self._conclude(charges)
            if refused is None:
                self.abuse.seen(request)
            return decision
        raise ShieldError(f"check_nowait needs a local store; {self.store.name} must be awaited: use check")

    def _conclude(self, charges: Charges, decision: Decision | None = None) -> Decision:
        if decision is None:
            decision = Decision(charges)
        if decision.has_sequel:
            decision.attach(self._receipt(charges), self._leases(charges))
        if self._trace is not None:
            self._trace(self._record(charges, decision))
        return decision

    def _record(self, charges: Charges, decision: Decision) -> dict[str, Any]:
        return {
            "now_us": charges.now_us,
            "request_id": decision.request_id,
            "allowed": decision.allowed,
            "status": decision.status,
            "reason": decision.reason,
            "violated": decision.violated,
            "degraded": decision.degraded,
            "charges": charges.trace(),
        }

    # ---- what comes after -------------------------------------------------------------------------------------------

    def _address(self, charges: Charges, i: int) -> bytes:
        return charges.address_of(i) if self._remote is None else self._remote.address(charges.bucket(i))

    def _receipt(self, charges: Charges) -> str | None:
        if self._handles is None or charges.degraded or not (charges.admitted and charges.settleable):
            return None
        charged = tuple(
            Charged(limit_digest(charges.limit(i).identity), plan, self._address(charges, i), kind, cost, start_us)
            for i, plan, kind, cost, start_us in charges.settlement()
        )
        if not charged:
            return None
        expires_us = charges.now_us + self.policy.settle_within_us
        return self._handles.seal_receipt(Receipt(os.urandom(16), expires_us, charges.now_us, charged))

    def _leases(self, charges: Charges) -> list[str]:
        # Which secret opens a lease says where its place is: the shared one in the store, our own in this process.
        handles = self._own if charges.degraded else self._handles
        if handles is None:
            return []
        held = []
        for i, lease_id in charges.leases():
            address = charges.address_of(i) if charges.degraded else self._address(charges, i)
            held.append(handles.seal_lease(HeldLease(charges.limit(i).name, address, lease_id)))
        return held

    async def report(self, receipt: str, *, cost: int | None = None, bytes: int | None = None) -> bool:
        """Settles what a request really took: the difference is refunded or charged, once, on any node.

        `cost` settles limits with `cost = "request"`, `bytes` those with `cost = "bytes"`; a figure that is not given
        leaves its charges as they are. False when there was nothing to settle or it was settled before.

        ReceiptError for a receipt that is not of this service, altered or expired; RequestError for a figure that is
        none; StoreError when the store is away.
        """
        from shield.store import Settlement, SettlementEntry

        actual = {"cost": _figure("cost", cost), "bytes": _figure("bytes", bytes)}
        opened = await self._open_receipt(receipt)
        entries = [
            SettlementEntry(
                limit=self._limits[charged.limit],
                plan=charged.plan,
                address=charged.address,
                charged=charged.cost,
                actual=figure,
                window_start_us=charged.window_start_us,
            )
            for charged in opened.charges
            if charged.limit in self._limits and (figure := actual.get(charged.kind)) is not None
        ]
        if not entries:
            return False
        settlement = Settlement(
            opened.id, opened.expires_us, opened.charged_us, tuple(entries), compiled=self._compiled
        )
        return await self.store.settle(settlement)

    async def release(self, leases: Sequence[str]) -> int:
        """Gives concurrency places back. How many came free; expired and released ones are no-ops, unknown text too."""
        from shield.store import Lease

        await self._agree_on_secret()
        here: list[Lease] = []
        there: list[Lease] = []
        unread = 0
        for text in leases:
            if (held := _opened(self._own, text)) is not None:
                here.append(Lease(held.limit, held.address, held.lease_id))
            elif (held := _opened(self._handles, text)) is not None:
                there.append(Lease(held.limit, held.address, held.lease_id))
            else:
                unread += 1
        freed = await self._local.release(here) if here else 0
        if there:
            freed += await self.store.release(there)
        if unread and self._handles is None:
            raise StoreError("the store has not yet handed out the secret that leases are sealed with")
        return freed

    async def _open_receipt(self, receipt: str) -> Receipt:
        await self._agree_on_secret()
        if self._handles is None:
            raise StoreError("the store has not yet handed out the secret that receipts are sealed with")
        return self._handles.open_receipt(receipt)

    async def _agree_on_secret(self) -> None:
        if self._handles is None and self._remote is not None:
            with contextlib.suppress(StoreError):  # no receipts until the store answers
                self._handles = Handles(await self._remote.shared_secret())

    # ---- policy -----------------------------------------------------------------------------------------------------

    async def replace_policy(self, policy: Policy) -> None:
        """From the next decision on. Buckets stay: new numbers apply when one is touched, and nothing is minted."""
        self._adopt(policy)

    def explain(self, request: Request) -> list[Explanation]:
        """Every limit of the policy: did it match, why, and by which key. Takes nothing."""
        seen: list[tuple[bool, str, str | None]] = self._compiled.explain(request)
        return [
            Explanation(limit.name, matched, why, key)
            for limit, (matched, why, key) in zip(self.policy.limits, seen, strict=True)
        ]

    def stats(self) -> Mapping[str, int]:
        """Counts of the local table and of the store, for metrics."""
        return {**self._local.stats(), **self.store.stats()}


def _penalties(policy: Policy) -> Policy:
    """What is charged when a request is refused before it is planned: the limits that count refusals."""
    limits = tuple(replace(one, missing="skip") for one in policy.limits if one.count_denied)
    return replace(policy, limits=limits, size=None)


def compile_policy(policy: Policy, registry: Registry) -> CompiledPolicy:
    """The policy resolved once, for one store's registry."""
    matcher = Matcher(policy.limits)
    guard = None
    if policy.size is not None:
        guard = partial(check_size, policy.size)
    return CompiledPolicy(
        registry,
        policy.limits,
        select=None if matcher.unconditional else matcher.match,
        guard=guard,
        normalise=normalise,
        windows=[
            None if limit.align is None else partial(window_of, align=limit.align, timezone=limit.timezone or "UTC")
            for limit in policy.limits
        ],
        ipv6_prefix=policy.identity.ipv6_prefix,
    )


def _opened(handles: Handles | None, text: str) -> HeldLease | None:
    """The lease, if these handles sealed it."""
    try:
        return handles.open_lease(text) if handles is not None else None
    except ReceiptError:
        return None


def _figure(field: str, value: int | None) -> int | None:
    if value is None:
        return None
    if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value <= MAX_COST:
        raise RequestError(field, "expected an integer from 0 to 2**53 - 1")
    return value
