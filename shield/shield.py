"""The facade: plan, apply, conclude.

    request -> plan (pure) -> store.apply(charges) -> conclude (pure) -> decision

The store's step is the only thing that may wait. While a remote store's truth is not known, a table of this process
stands in for it as each limit's `when_store_fails` says, and the decision says `degraded`.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from shield.abuse import Abuse
from shield.block.lists import BlockLists
from shield.clock import Clock
from shield.compile import compile_policy
from shield.core import Charges, CompiledPolicy, Decision
from shield.errors import PolicyError, PolicyIssue, ShieldError, StoreError
from shield.guard.graphql import PriceGuard
from shield.guard.idempotency import Claim, Key, KeyGuard, Refusal
from shield.keeper import Keeper
from shield.keyed import Keyed
from shield.pacing import Pacing
from shield.policy import Policy
from shield.receipt import Handles
from shield.request import Request
from shield.resolving import Resolving
from shield.sharing import SharedDetectors
from shield.standing_in import StandingIn
from shield.store.memory import MemoryStore
from shield.store.table import TableStore

if TYPE_CHECKING:
    from shield.detect.travel import Locate
    from shield.gate import Gate
    from shield.identity.api_keys import ApiKeys
    from shield.store import Store
    from shield.store.standin import StandIn


class Explanation(NamedTuple):
    """How one limit saw one request."""

    name: str
    matched: bool
    why: str
    key: str | None
    """The key it counted by, in clear: for the operator who asked, never for a log."""


class Shield(Keyed, Pacing, StandingIn, Resolving, SharedDetectors):
    """Decides every quota of a request in one atomic step.

    `store` is a URL (`memory://`, `shared://NAME`, `redis://host:6379/0`, `rediss://`, `unix:///path`) or a Store.
    `clock` returns Unix nanoseconds; the default is the system's (a remote store reads its own). `secret` seals
    receipts and leases: all nodes that share a store need the same one; by default the store has one.
    `trace` is called with a dict for every decision. `locate` answers where an address is, for detectors of travel.
    `blocks` names a file that blocks are kept in and that processes of one host may share; by default a shared://
    table has one beside it, and what the nodes of a Redis block stands there. BlockFileError when it cannot be used.

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
        blocks: str | os.PathLike[str] | None = None,
    ) -> None:
        from shield.store import RemoteStore, open_store

        self.store: Store = open_store(store, clock=clock) if isinstance(store, str) else store
        self._local: TableStore
        if isinstance(self.store, TableStore):
            self._local = self.store
        else:
            # Stands in while the store is away. A store that wraps a local one brings its registry along: charges are
            # compiled against one registry and mean nothing to another.
            self._local = MemoryStore(clock=clock, registry=getattr(self.store, "registry", None))
        self._remote = self.store if isinstance(self.store, RemoteStore) else None
        self._standin: StandIn | None = None
        if self._remote is not None and isinstance(self._local, MemoryStore):
            from shield.store.standin import StandIn

            self._standin = StandIn(self._local.table, partial(compile_policy, registry=self._local.registry))
        self._paying: asyncio.Task[None] | None = None  # tells the store what it does not know of
        self._start_pacing()
        self._clock, self._trace, self._secret = clock, trace, secret
        self._gate: Gate | None = None
        self._prepared: tuple[Policy, Gate | None, BlockLists] | None = None
        self._keeper: Keeper | None = None
        self._handles = Handles(secret) if secret is not None else None
        self._own = Handles(os.urandom(32))  # for places in this process, which no other node could release
        if self._handles is None and self._remote is None:
            self._handles = Handles(self._local.secret)  # the processes of one shared table accept each other's
        path = getattr(self.store, "blocks_path", None) if blocks is None else Path(blocks)
        self.abuse = Abuse(clock=clock, locate=locate, path=path)
        self.abuse.blocks.changed = self._route
        self._adopt(policy, self._new_gate(policy), BlockLists.of(policy, self.abuse.now_us()))

    def _new_gate(self, policy: Policy) -> Gate | None:
        """What settles who asks, for a policy that verifies it. PolicyError."""
        if policy.identity.failures is None:
            return None
        from shield.gate import Gate

        try:
            gate = Gate(policy, self._local.registry, clock=self._clock, local=self.store.local)
        except MemoryError as error:
            raise PolicyError([PolicyIssue("", f"no room for this policy: {error}")]) from None
        gate.take_over(self._gate)
        return gate

    async def _ready_for(self, policy: Policy) -> tuple[Gate | None, BlockLists]:
        """What is read and fetched before a policy is put in force. PolicyError."""
        prepared, self._prepared = self._prepared, None
        if prepared is not None and prepared[0] is policy:
            return prepared[1:]
        # What it has read stays where a policy replaces itself: its files may be gone by now.
        lists = self.abuse.blocks.lists
        if policy is not self.policy:
            lists = await asyncio.to_thread(BlockLists.of, policy, self.abuse.now_us())
        return await self._gate_for(policy), lists

    async def _gate_for(self, policy: Policy) -> Gate | None:
        """The gate to put in force with a policy. PolicyError."""
        if policy is self.policy:
            # What it has read stays: its files may be gone by now, and it goes on all the same.
            if self._gate is not None:
                self._gate.compile(policy)
            return self._gate
        gate = self._new_gate(policy)
        if gate is not None:
            await gate.refresh()  # before it decides anything: nobody is refused for keys that are being fetched
        return gate

    def _adopt(self, policy: Policy, gate: Gate | None, lists: BlockLists) -> None:
        prices = PriceGuard(policy.graphql) if policy.graphql is not None else None
        self._resolve(policy, prices, gate)
        self.policy = policy
        self._prices = prices
        self._keys = KeyGuard(policy.idempotency) if policy.idempotency is not None else None
        self._gate = gate
        self._table = self._local.table
        self.abuse.adopt(policy, lists)

    async def __aenter__(self) -> Shield:
        await self.open()
        return self

    async def __aexit__(self, *exc: object) -> None:
        await self.close()

    async def open(self) -> None:
        """Connects the store and fetches issuers' keys. What cannot be reached is no error here: decisions are degraded
        until the store answers, and tokens are refused until there are keys for them.
        """
        if self._gate is not None:
            await self._gate.refresh()
        if self._keeper is None:
            self._keeper = Keeper(lambda: self._gate)
        self._keeper.start()
        await self.store.open()
        await self._agree_on_secret()
        blocks = self.abuse.blocks
        blocks.start(getattr(self.store, "block_log", None))
        await blocks.turn()  # what the others have said, before anything is decided
        await self._start_sharing()

    async def close(self) -> None:
        """Closes the store's connections."""
        await self._stop_sharing()
        if self._keeper is not None:
            await self._keeper.stop()
            self._keeper = None
        if self._paying is not None:
            self._paying.cancel()
        await self.abuse.blocks.stop()
        await self.store.close()

    @property
    def ready(self) -> bool:
        """True while decisions rest on the store's truth."""
        return self.store.ready

    # ---- deciding ---------------------------------------------------------------------------------------------------

    async def check(self, request: Request) -> Decision:
        """One request, one decision. Refusals are values; a store that is away makes the decision `degraded`."""
        if self.store.local:
            return self.check_nowait(request)
        if (leased := self.check_leased(request)) is not None:
            return leased
        if self._only_limits:  # nothing comes before them and nobody looks on
            return await self._check_remote(request, self._compiled)
        active, screen = self.abuse.active, self._screen
        if active and (block := screen.of_address(request)) is not None:
            return self._conclude(await screen.refuse_through(request, block, self._table, self.store))
        if self._gate is not None:
            passed = self._gate.known(request)
            if passed is None:
                outcome = await self._gate.pass_through(request, self._table, self.store)
                if isinstance(outcome, Decision):
                    if active and (block := screen.of_unknown(request)) is not None:
                        return self._conclude(await screen.refuse_through(request, block, self._table, self.store))
                    return self._conclude(outcome.charges, outcome)
                passed = outcome
            request = passed
        if not active:
            return await self._check_remote(request, self._compiled)
        if (block := screen.of_subject(request)) is not None:
            return self._conclude(await screen.refuse_through(request, block, self._table, self.store))
        decision = await self._check_remote(request, screen.policy_for(request, self._compiled))
        self.abuse.seen(request)
        return decision

    async def _check_remote(self, request: Request, compiled: CompiledPolicy) -> Decision:
        charges = compiled.charges(request)
        key = None if self._keys is None else self._keys.read(request)
        claim = None if key is None else self._claim(charges, key)
        if len(charges) == 0 and claim is None:
            self._table.apply(charges)
            return self._conclude(charges)
        standin, remote = self._standin, self._remote
        if claim is not None:
            await self._agree_on_secret()  # before anything is taken: an owner that cannot be sealed owns for nothing
        away = claim is not None and self._handles is None
        if away or (standin is not None and standin.owing and not await self._joins_back(standin, charges)):
            return self._decide_away(request, compiled, key, claim)
        try:
            # A store that somebody else wrote may know nothing of keys.
            await (self.store.apply(charges) if claim is None else self.store.apply(charges, claim))
        except StoreError:
            return self._decide_away(request, compiled, key, claim)
        else:
            if standin is not None and remote is not None and standin.waits:
                standin.store_answers(remote.places(charges) if standin.stands_in else ())
        if self._handles is None and not charges.degraded:
            await self._agree_on_secret()
        return self._conclude(charges, claim=claim)

    def _decide_away(
        self, request: Request, compiled: CompiledPolicy, key: Key | Refusal | None, claim: Claim | None
    ) -> Decision:
        """Without the store's truth."""
        charges = compiled.charges(request)
        refused = self._turned_away(charges, key, claim)
        if self._standin is not None and not refused:
            charges = self._alone(self._standin, charges)
        else:
            self._table.apply(charges, degraded=True)
        return self._conclude(charges)

    def _decide_elsewhere(self, request: Request) -> Decision:
        if not self.store.local:
            raise ShieldError(f"check_nowait needs a local store; {self.store.name} must be awaited: use check")
        gate, compiled, table = self._gate, self._compiled, self._table
        active, screen = self.abuse.active, self._screen
        if active and (block := screen.of_address(request)) is not None:
            return self._conclude(screen.refuse(request, block, table))
        passed = request if gate is None else gate.known(request)
        if passed is None and gate is not None:
            outcome = gate.pass_nowait(request, table)
            if isinstance(outcome, Decision):
                if active and (block := screen.of_unknown(request)) is not None:
                    return self._conclude(screen.refuse(request, block, table))
                return self._conclude(outcome.charges, outcome)
            passed = outcome
        assert passed is not None
        if active:
            if (block := screen.of_subject(passed)) is not None:
                return self._conclude(screen.refuse(passed, block, table))
            compiled = screen.policy_for(passed, compiled)
        key = None if self._keys is None else self._keys.read(passed)
        if key is None:
            decision = self.decide_passed(compiled, table, passed)
        else:
            decision = self._decide_keyed(self._local, compiled, passed, key)
        if active:
            self.abuse.seen(passed)
        return decision

    def _conclude(self, charges: Charges, decision: Decision | None = None, claim: Claim | None = None) -> Decision:
        if decision is None:
            decision = Decision(charges)
        if claim is not None and decision.allowed:
            decision.own(self._ownership(claim))
        if decision.has_sequel:
            decision.attach(self._receipt(charges), self._leases(charges))
        if self._trace is not None:
            self._trace(self._record(charges, decision))
        return decision

    def _record(self, charges: Charges, decision: Decision) -> dict[str, Any]:
        traced = charges.trace()
        if self._remote is not None:  # the traces of its nodes speak of the same buckets
            for i, charge in enumerate(traced):
                charge["key"] = self._remote.address(charges.bucket(i)).hex()
        return {
            "now_us": charges.now_us,
            "request_id": decision.request_id,
            "allowed": decision.allowed,
            "status": decision.status,
            "reason": decision.reason,
            "violated": decision.violated,
            "degraded": decision.degraded,
            "charges": traced,
        }

    # ---- policy -----------------------------------------------------------------------------------------------------

    async def replace_policy(self, policy: Policy) -> None:
        """From the next decision on. Buckets stay: new numbers apply when one is touched, and nothing is minted."""
        self._adopt(policy, *await self._ready_for(policy))
        if self._keeper is not None:
            self._keeper.start()

    @property
    def api_keys(self) -> ApiKeys | None:
        """The keys this service hands out, where the policy has any: made, listed and revoked there."""
        return None if self._gate is None else self._gate.api_keys

    @property
    def identity_notes(self) -> tuple[str, ...]:
        """What an operator should know about the keys that identity is verified with, one sentence each."""
        return () if self._gate is None else self._gate.notes

    @property
    def block_notes(self) -> tuple[str, ...]:
        """What an operator should know about block lists, one sentence each."""
        return self.abuse.blocks.lists.notes

    async def make_room(self, policy: Policy) -> None:
        """After this `replace_policy` with the same policy cannot fail, nor does it wait. PolicyError when there is no
        room for it, or a file that it names cannot be used.

        For several processes that change together or not at all. A policy that is not put in force after all is taken
        back by replacing the running one with itself: until then cells may be forgotten by the other one's numbers.
        """
        self._prepared = None
        self._compile(policy)
        self._prepared = policy, *await self._ready_for(policy)

    def explain(self, request: Request) -> list[Explanation]:
        """Every limit of the policy: did it match, why, and by which key. Takes nothing."""
        if self._gate is not None:
            from shield.identity.jose import TokenError

            try:
                request = self._gate.identify(request)
            except TokenError as error:
                why = f"identity: {error.detail}"
                return [Explanation(limit.name, False, why, None) for limit in self.policy.limits]
        seen: list[tuple[bool, str, str | None]] = self._compiled.explain(request)
        return [
            Explanation(limit.name, matched, why, key)
            for limit, (matched, why, key) in zip(self.policy.limits, seen, strict=True)
        ]

    def stats(self) -> Mapping[str, int]:
        """Counts of the local table and of the store, for metrics."""
        own = {**({} if self._gate is None else self._gate.stats()), **self._abuse_stats(), **self.pacing_stats()}
        return {**self._local.stats(), **self.store.stats(), **own}
