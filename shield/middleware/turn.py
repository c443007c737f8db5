"""One request on its way through a middleware, and what is owed when it ends.

A handler finds its turn as `current()`, and may say there what only it knows:

    current().cost = 12           what it really cost, for limits with `cost = "request"`
    current().event = "login_failed"   what happened, for detectors
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from contextvars import ContextVar
from typing import Any, Final, Literal

import msgspec

from shield.decision import Decision
from shield.errors import ReceiptError, RequestError, ShieldError, StoreError
from shield.middleware.capture import Capture
from shield.request import Request
from shield.shield import Shield

Caller = Callable[[Coroutine[Any, Any, Any]], Any]

MESSAGE: Final = "MESSAGE"
"""The method of a message in a connection that stays: what a limit names to be charged for it."""

CURRENT: Final[ContextVar[Turn | None]] = ContextVar("shield_turn", default=None)


EXTENSIONS_PER_LEASE: Final = 3
"""Two may fail before a lease is lost."""
MAX_EXTENSIONS: Final = 30
"""Ten leases, ten minutes by default: what takes longer hangs, and nobody who repeats it waits for ever."""

Ended = Literal["answered", "undone", "unknown"]

CALL_S: Final = 30.0
"""How long a handler in a thread waits for the loop: longer than any store takes. Only a loop that hangs reaches it."""


def caller_in(loop: asyncio.AbstractEventLoop) -> Caller:
    """Runs coroutines in this loop for code that cannot await: in a thread beside it or, what never waits, in it."""

    def call(coroutine: Coroutine[Any, Any, Any]) -> Any:
        try:
            asyncio.get_running_loop()
        except RuntimeError:
            return asyncio.run_coroutine_threadsafe(coroutine, loop).result(CALL_S)
        return at_once(coroutine)

    return call


def at_once(coroutine: Coroutine[Any, Any, Any]) -> Any:
    """The result of a coroutine that never waits. ShieldError for one that would."""
    try:
        coroutine.send(None)
    except StopIteration as done:
        return done.value
    coroutine.close()
    raise ShieldError("this store has to be waited for, and a function that is not async cannot wait in a loop")


def current() -> Turn | None:
    """The turn of the request that is being handled; None where no middleware is at work."""
    return CURRENT.get()


class Turn:
    """A request that was decided.

    `cost`, `type_cost` (of GraphQL) and `event` are for the handler to set.
    """

    __slots__ = ("_done", "_key_done", "also", "call", "capture", "cost", "decision", "event", "received", "refusal",
                 "request", "shield", "type_cost")  # fmt: skip

    def __init__(self, shield: Shield, request: Request, decision: Decision, call: Caller | None = None) -> None:
        self.shield = shield
        rules = shield.policy.idempotency
        owns = decision.idempotency is not None and rules is not None
        self.capture = Capture(rules.max_body_bytes) if owns and rules is not None else None
        """The response of a request that owns its idempotency key, as far as it went."""
        self.request = request
        """The facts that were stated. `decision.charges.request` is whose they turned out to be."""
        self.decision = decision
        self.call = call
        """Runs a coroutine of the shield's to its end, for handlers that cannot await; None where they can."""
        self.cost: int | None = None
        self.type_cost: int | None = None
        self.event: str | None = None
        self.received: int | None = None
        """Bytes of the body that came, where their number was not stated before."""
        self.also: list[Decision] = []
        """What further limits said, on the handler's behalf."""
        self.refusal: Decision | None = None
        """Set when one of those refused: that is the answer, whatever the framework makes of it."""
        self._done = False
        self._key_done = False

    @property
    def principal(self) -> Request:
        """The request with the tenant and user that its token or key says."""
        return self.decision.charges.request or self.request

    def headers(self) -> dict[str, str]:
        """RateLimit fields of everything that was decided."""
        fields = self.decision.headers
        if not self.also:
            return fields
        # Where a further limit refused, only what refused is shown: as for any refusal.
        decisions = [self.refusal] if self.refusal is not None else [self.decision, *self.also]
        merged = dict(decisions[0].headers)
        for decision in decisions[1:]:
            for name, value in decision.headers.items():
                merged[name] = f"{merged[name]}, {value}" if name in merged else value
        return merged

    @property
    def owes(self) -> bool:
        """Whether ending it needs the store."""
        return self.decision.has_sequel or any(decision.has_sequel for decision in self.also)

    async def message(self, size: int, cost: int | None = None) -> Decision | None:
        """Charges a message of so many bytes, in a connection that stays, to the limits that name the method MESSAGE;
        None where no limit does.
        """
        shield = self.shield
        limits = shield.limits_of_method(MESSAGE)
        if not limits:
            return None
        stated = msgspec.structs.replace(self.principal, method=MESSAGE, bytes=size, cost=cost)
        decision = await shield.check_only(limits, stated)
        if decision.leases:
            self.also.append(decision)  # its places are the connection's
        return decision

    async def end_key(self, how: Ended) -> None:
        """Says what became of a request that owns its idempotency key. Once; never raises what the store may raise: the
        response goes out in any case, and the key is then free after its lease.

        "answered": the captured response is the answer. "undone": the handler raised or was never asked, so whoever
        repeats the request runs it. "unknown": it was cut off in the middle, and only the lease may decide that.
        """
        capture = self.capture
        if capture is None or self._key_done:
            return
        self._key_done = True
        try:
            if how == "undone":
                await self.shield.abandon(self.decision)
            elif how == "answered" and capture.status is not None:
                try:
                    await self.shield.complete(self.decision, capture.status, capture.headers, capture.body)
                except RequestError:
                    # A header field that could not be sent again. That it was done is kept all the same.
                    await self.shield.complete(self.decision, capture.status, (), None)
        except Exception:  # whatever it is, the client has a response coming
            self.shield.counts["middleware_not_kept"] += 1

    async def extend(self) -> bool:
        """Extends the lease of its key; False when there is no use in going on."""
        try:
            return not self._key_done and await self.shield.extend(self.decision)
        except StoreError:
            return True
        except ReceiptError:
            return False

    async def keep_lease(self) -> None:
        """Extends the lease until it is cancelled, or the request has taken far too long."""
        owned = self.decision.idempotency
        assert owned is not None
        for _ in range(MAX_EXTENSIONS):
            await asyncio.sleep(owned.lease_s / EXTENSIONS_PER_LEASE)
            if not await self.extend():
                return

    async def finish(self, status: int | None) -> None:
        """Settles what it really took, gives places back, and tells detectors its status. Once; never raises what the
        store may raise: a place that is not given back lapses, a charge that is not settled stays.
        """
        if self._done:
            return
        self._done = True
        abuse = self.shield.abuse
        if abuse.active and (status is not None or self.event is not None):
            abuse.outcome(self.principal, status, self.event)
        for decision in (self.decision, *self.also):
            if decision.has_sequel:
                await self._end(decision)

    async def _end(self, decision: Decision) -> None:
        leases, receipt = decision.leases, decision.receipt
        try:
            if receipt is not None and (self.cost, self.received, self.type_cost) != (None, None, None):
                await self.shield.report(receipt, cost=self.cost, bytes=self.received, type_cost=self.type_cost)
        except (StoreError, ReceiptError, RequestError):
            self.shield.counts["middleware_not_settled"] += 1
        try:
            if leases:
                await self.shield.release(leases)
        except StoreError:
            self.shield.counts["middleware_not_released"] += 1
