"""Requests with an idempotency key: the record of the key is looked at and taken in the step that charges the limits,
and whoever was admitted says how it ended.

An owner's handle is sealed and names the record, so no node remembers who runs what, any node can be told, and nobody
ends another's.
"""

from __future__ import annotations

import os
from abc import abstractmethod
from typing import TYPE_CHECKING, Final

from shield.answer import HeaderFields, Ownership, StoredAnswer, pairs_of
from shield.core import Charges, CompiledPolicy, Decision, SharedTable, Table
from shield.errors import ReceiptError, RequestError, ShieldError, StoreError
from shield.guard.idempotency import Claim, Key, KeyGuard, Refusal, keeps, kept_answer
from shield.policy.model import IdempotencyGuard
from shield.receipt import HeldKey
from shield.sequel import Sequel
from shield.store.key_records import Action, Ending, Held, Outcome
from shield.store.table import TableStore

if TYPE_CHECKING:
    from shield.gate import Gate
    from shield.guard.graphql import PriceGuard
    from shield.request import Request

UNAVAILABLE: Final = "idempotency.key: the store that remembers it does not answer"
AWAY_RETRY_US: Final = 1_000_000


class Keyed(Sequel):
    """The part of `shield.Shield` that knows idempotency keys."""

    _gate: Gate | None
    _keys: KeyGuard | None
    _prices: PriceGuard | None
    _table: Table | SharedTable

    @abstractmethod
    def _conclude(self, charges: Charges, decision: Decision | None = None, claim: Claim | None = None) -> Decision: ...

    # ---- the decision ------------------------------------------------------------------------------------------

    def _claim(self, charges: Charges, key: Key | Refusal) -> Claim | None:
        """What a request asks for that nothing has refused yet; None where there is no use in asking."""
        if charges.reason is not None:
            return None
        if isinstance(key, Refusal):
            charges.turn_away(key.reason, key.detail)
            return None
        if self._remote is not None:
            key = self._remote.place_key(key, charges.request)
        return Claim(key, os.urandom(16))

    def _decide_keyed(
        self, store: TableStore, compiled: CompiledPolicy, request: Request, key: Key | Refusal
    ) -> Decision:
        """One step of a store that answers at once."""
        charges = compiled.charges(request)
        claim = self._claim(charges, key)
        try:
            store.step(charges, claim)
        except StoreError:
            charges = compiled.charges(request)
            self._turned_away(charges, key, claim)
            self._table.apply(charges, degraded=True)
            return self._conclude(charges)
        return self._conclude(charges, claim=claim)

    def _turned_away(self, charges: Charges, key: Key | Refusal | None, claim: Claim | None) -> bool:
        """The records are out of reach: whether a request that nothing else refused is refused because of its key. Else
        the policy lets it pass as if it had none.
        """
        if charges.reason is not None:
            return False
        if isinstance(key, Refusal):
            charges.turn_away(key.reason, key.detail, penalised=False)
        elif claim is not None and claim.rules.when_store_fails == "deny":
            charges.turn_away("store_unavailable", UNAVAILABLE, AWAY_RETRY_US, penalised=False)
        return charges.reason is not None

    def _ownership(self, claim: Claim) -> Ownership:
        """What whoever runs the request is handed."""
        assert self._handles is not None
        owner = self._handles.seal_key(HeldKey(claim.key.address, claim.key.holder, claim.owner))
        return Ownership(owner, claim.rules.lease_us / 1_000_000, claim.rules.retention_us / 1_000_000)

    def wants_body(self, request: Request) -> bool:
        """Whether the policy reads the body of such a request, where whoever asks has it: for GraphQL operations,
        for signatures and for the fingerprint that an idempotency key is bound to.
        """
        if request.body is not None:
            return False
        keyed = self._keys is not None and request.idempotency is not None and not request.idempotency.fingerprint
        if keyed or (self._gate is not None and self._gate.wants_body(request)):
            return True
        try:
            return self._prices is not None and self._prices.reads(request)
        except ValueError:
            return False  # it is about to be refused

    # ---- what comes after --------------------------------------------------------------------------------------

    async def complete(
        self, owner: Decision | str, status: int, headers: HeaderFields = (), body: bytes | None = b""
    ) -> bool:
        """The request was answered: whoever repeats it gets this answer, if the policy keeps such; else the key is free
        again. `owner` is the decision, or its `idempotency.owner`. `body` is None where it is too large to hand over.

        True once, for the owner. False when somebody has taken over, or it was ended before. ReceiptError for an owner
        whom this service does not know, RequestError for an answer that is none, StoreError when the store is away.
        """
        return await self._end(owner, *self._completion(status, headers, body))

    async def abandon(self, owner: Decision | str) -> bool:
        """The request did nothing: its key is as if it had never been used. Otherwise as `complete`."""
        return await self._end(owner, "abandon")

    async def extend(self, owner: Decision | str) -> bool:
        """The request takes longer: its lease starts anew. Otherwise as `complete`."""
        return await self._end(owner, "extend")

    def complete_nowait(
        self, owner: Decision | str, status: int, headers: HeaderFields = (), body: bytes | None = b""
    ) -> bool:
        """`complete` for stores that need no I/O. ShieldError for others."""
        return self._end_nowait(owner, *self._completion(status, headers, body))

    def abandon_nowait(self, owner: Decision | str) -> bool:
        """`abandon` for stores that need no I/O. ShieldError for others."""
        return self._end_nowait(owner, "abandon")

    def extend_nowait(self, owner: Decision | str) -> bool:
        """`extend` for stores that need no I/O. ShieldError for others."""
        return self._end_nowait(owner, "extend")

    @property
    def _rules(self) -> IdempotencyGuard:
        """Those in force; a policy that was replaced meanwhile leaves its keys to the defaults."""
        return IdempotencyGuard() if self._keys is None else self._keys.rules

    def _completion(self, status: int, headers: HeaderFields, body: bytes | None) -> tuple[Action, StoredAnswer | None]:
        if body is not None and not isinstance(body, bytes | bytearray | memoryview):
            raise RequestError("body", f"expected bytes, not {type(body).__name__}")
        if body is not None and memoryview(body).nbytes > self._rules.max_body_bytes:
            body = None  # before anything is copied
        answer = kept_answer(status, pairs_of(headers), None if body is None else bytes(body))
        return ("complete", answer) if keeps(self._rules, status) else ("abandon", None)

    async def _end(self, owner: Decision | str, action: Action, answer: StoredAnswer | None = None) -> bool:
        await self._agree_on_secret()
        ending = self._ending(owner, action, answer)
        return _told(await self.store.end(ending))

    def _end_nowait(self, owner: Decision | str, action: Action, answer: StoredAnswer | None = None) -> bool:
        if not isinstance(self.store, TableStore):
            raise ShieldError(f"{action}_nowait needs a local store; {self.store.name} must be awaited: use {action}")
        return _told(self.store.end_nowait(self._ending(owner, action, answer)))

    def _ending(self, owner: Decision | str, action: Action, answer: StoredAnswer | None) -> Ending:
        if isinstance(owner, Decision):
            if owner.idempotency is None:
                raise ReceiptError("the decision owns no idempotency key")
            owner = owner.idempotency.owner
        assert isinstance(owner, str)
        if self._handles is None:
            raise StoreError("the store has not yet handed out the secret that owners are sealed with")
        held = self._handles.open_key(owner)
        return Ending(Held(held.address, held.holder, held.owner), action, self._rules, answer)


def _told(outcome: Outcome) -> bool:
    if outcome == "unknown":
        raise ReceiptError("nothing is known of this idempotency key any more")
    return outcome == "done"
