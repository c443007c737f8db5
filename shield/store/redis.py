"""The store of many hosts: one atomic step per request over all its charges, answered within a deadline or not at
all.

What happens to one step is told in primary.py: it is sent once, and what a late reply took is given back.

The server's clock decides everything. This process' clock only guesses which calendar day it is there, and
the server says so when the guess is wrong.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Final, Protocol

from shield.core import Outcome, Step
from shield.errors import ReceiptError, StoreError, StoreProtocolError
from shield.store import Lease, Settlement
from shield.store.block_log import BlockLog
from shield.store.cluster import Cluster
from shield.store.denials import Denials
from shield.store.exchange import RedisExchange
from shield.store.greeting import UNVERSIONED, greeting
from shield.store.heartbeat import Heartbeat
from shield.store.holders import Holders
from shield.store.instants import Instants
from shield.store.key_wire import KeyClaim, Placing, turn_away
from shield.store.lane import Late, Unsettled
from shield.store.late import settle_command
from shield.store.leases import Leases
from shield.store.lua import RELEASE
from shield.store.naming import slot_of
from shield.store.nonce_key import fence_key
from shield.store.parts import settlements, together
from shield.store.primary import FULL, MISPLACED, REFUSED, Primary, nonce_verdict
from shield.store.resp import bulk, encode, evalsha
from shield.store.steps import MARKED, ONCE, OUTCOME, Forms
from shield.store.target import describe, parse_redis_url

if TYPE_CHECKING:
    from shield.clock import Clock
    from shield.core import Bucket, Charges, Purses
    from shield.guard.idempotency import Claim, Key
    from shield.request import Request
    from shield.store.breaker import Breaker
    from shield.store.key_records import Ending
    from shield.store.key_records import Outcome as Ended

# What settle.lua answers.
AGAIN, SETTLED, EXPIRED = 0, 1, 2
SECRET_BYTES: Final = 32
# Leases are given back one request at a time or by an operator: more in one call is split.
MAX_RELEASE: Final = 1000


class Servers(Protocol):
    """Where a step goes: one server, or those of a cluster."""

    @property
    def ready(self) -> bool: ...

    @property
    def up(self) -> bool:
        """Whether a connection is up."""

    async def open(self) -> None: ...

    async def close(self) -> None: ...

    def stats(self) -> dict[str, int]: ...

    async def decide(self, step: Step) -> Outcome: ...

    async def run(self, call: bytes, key: bytes, *, late: Late | None = None, lasting: bool = False) -> Any: ...

    async def ask(self, call: bytes, key: bytes) -> Any: ...

    async def each(self, call: bytes) -> list[Any]: ...


class RedisStore:
    """`redis://host:6379/0`, `rediss://...`, `unix:///path?db=0`, `redis+sentinel://host/service`: buckets on a Redis
    or Valkey server (6.2 or newer).

    Options: `prefix` (of every key, "shield"), `deadline` of a step ("20ms"), `connections` (2),
    `connect_timeout` ("1s"), `max_in_flight` requests per connection (1024; as many wait), `ttl_slack` ("60s": how much
    longer than needed a key lives, because numbers may be lowered and clocks stepped while it lies idle),
    `deny_cache` (65536 refusals, remembered for a second at most; 0 asks the server every time), `wait_replicas` (0:
    how many replicas have to confirm what a check took, or how a request with an idempotency key ended, before it
    counts; with too few of them decisions are degraded), `db`, and redis-py's `ssl_...` files (Sentinel and Cluster:
    with `tls=true`).

    `clock` (Unix nanoseconds) guesses the server's calendar day. `instant`, for tests alone: what time the
    scripts are told it is, in Unix microseconds, instead of the server's own.
    """

    name = "redis"
    local = False
    keeps_keys = True

    def __init__(self, url: str, *, clock: Clock | None = None, breaker: Breaker | None = None) -> None:
        target = parse_redis_url(url)
        self.where = target.where
        """Where the server is, without credentials."""
        self.warnings: tuple[str, ...] = ()
        """What is amiss with the server, found at `open`: one sentence each."""
        self._instants = Instants(clock)
        self._forms = Forms(target.prefix, tagged=bool(target.seeds))
        self._placing = Placing(self._forms.naming)
        self._slack_ms = target.ttl_slack_us // 1000
        self._waits = target.wait_replicas > 0
        self._servers: Servers
        if target.seeds:
            self._servers = Cluster(target, self._forms, self._instants, forget=self._forget)
        else:
            self._servers = Primary(
                target.make,
                target,
                self._forms,
                self._instants,
                where=target.where,
                forget=self._forget,
                greeting=greeting(
                    self._forms.version_key,
                    self._forms.own_key("secret"),
                    fence_key(self._forms.naming),
                    self._instants.wire,
                    self._found_unversioned,
                ),
                breaker=breaker,
            )
        self._holders = Holders(self._servers.run, self._forms.naming, self._instants.wire, slack_ms=self._slack_ms)
        self._heart = Heartbeat(self._forms.own_key("nodes"), self._servers.ask)
        self._leases = Leases(
            self._forms, self._servers.run, self._instants, nodes=lambda: self.nodes, slack_ms=self._slack_ms
        )
        self.block_log = BlockLog(target.prefix, self._servers.run, self._instants.wire)
        """What all nodes say of blocks."""
        self.exchange = RedisExchange(self._forms.own_key, self._servers.ask)
        """Where the detectors of this store's nodes meet."""
        self._denials = Denials(target.deny_cache) if target.deny_cache else None
        # A request that asks for all of a second's refusals anew has missed its deadline by then, or was lost.
        self._patience_us = 2 * target.deadline_us
        self._counts = dict.fromkeys(("checks", "failures", "oom", "denials_known", "idempotency_full"), 0)

    @property
    def instant(self) -> Callable[[], int] | None:
        """For tests alone: what time the scripts are told it is, in Unix microseconds, instead of the server's own."""
        return self._instants.fixed

    @instant.setter
    def instant(self, fixed: Callable[[], int] | None) -> None:
        self._instants.fixed = fixed

    # ---- life ----------------------------------------------------------------------------------------------

    async def open(self) -> None:
        """Connects. An unreachable server is no error: steps fail until it is there. StoreError when it
        refuses us.
        """
        self.warnings = ()
        await self._servers.open()
        if self._servers.up:
            self.warnings += await self._inspect()
        await self._heart.start()

    async def close(self) -> None:
        """Closes the connections; whoever still waits gets a StoreError."""
        await self._leases.close()
        await self._heart.stop()
        await self._servers.close()

    @property
    def ready(self) -> bool:
        """Whether a step would be tried now."""
        return self._servers.ready

    @property
    def nodes(self) -> int:
        """How many nodes used this store when it was last heard, this one included."""
        return self._heart.nodes

    def stats(self) -> dict[str, int]:
        """Counts since the start, and gauges: connections that are up, requests in flight, the breaker."""
        return {
            **self._counts,
            **self._servers.stats(),
            **self._leases.stats(),
            "nodes": self._heart.nodes,
        }

    def _found_unversioned(self) -> None:
        self.warnings += (UNVERSIONED.format(key=self._forms.version_key.decode()),)

    async def _inspect(self) -> tuple[str, ...]:
        try:
            told = [await self._servers.each(encode((b"INFO", section))) for section in (b"memory", b"server")]
        except StoreError:
            return ()  # not every account may ask
        found = [describe(b"".join(part for part in one if isinstance(part, bytes))) for one in zip(*told, strict=True)]
        return tuple(dict.fromkeys(sentence for sentences in found for sentence in sentences))

    # ---- the step ------------------------------------------------------------------------------------------

    def address(self, bucket: Bucket) -> bytes:
        """The 16 bytes that name the bucket of a charge, the same on every node."""
        return self._forms.of(bucket.limit).address(bucket.partition)

    def places(self, charges: Charges) -> Iterable[int]:
        """Which parts of the store a request needs: the slots of its keys, or the one server."""
        if not self._forms.naming.tagged:
            return (0,)
        return {slot_of(cell) for cell in self._forms.step(charges).cells}

    def place(self, address: bytes) -> int:
        """Which part of the store holds a bucket."""
        return slot_of(self._forms.naming.key(b"", address)) if self._forms.naming.tagged else 0

    def place_key(self, key: Key, request: Request) -> Key:
        """An idempotency key as this store names it: in a cluster, in its tenant's slot."""
        return self._placing.place(key, request)

    async def end(self, ending: Ending) -> Ended:
        """What became of the request that owns an idempotency key."""
        return await self._holders.end(ending, waits=self._waits)

    async def apply(self, charges: Charges, claim: Claim | None = None) -> None:
        """All charges or none, at one instant of the server's clock."""
        if len(charges) == 0 and claim is None:
            charges.resolve(self._instants.around_us(self._instants.wire()), ())
            return
        if claim is None and charges.policy.leases and await self._leases.decide(charges):
            return
        self._counts["checks"] += 1
        step = self._forms.step(charges)
        if claim is not None:
            step.claim = KeyClaim(self._forms.naming, claim)
        asked_us = self._instants.passing_us()
        if self._denials and _may_be_known(charges):
            known = self._denials.find(step, asked_us, self._patience_us)
            if known is not None:
                self._counts["denials_known"] += 1
                charges.resolve(known.now_us, known.states)
                return
        try:
            outcome = await self._servers.decide(step)
            status = outcome.status
            try:
                if step.claim is None:
                    charges.hear(outcome, nonce_verdict(status))
                else:
                    _hear_keyed(charges, step, outcome)
                    self._counts["idempotency_full"] += step.claim.crowded
            except (TypeError, ValueError, OverflowError):
                raise StoreProtocolError("the store answered a check with numbers that make no sense") from None
        except StoreError:
            self._counts["failures"] += 1
            raise
        if status == FULL:
            self._counts["oom"] += 1
        elif status == REFUSED and claim is None and self._denials is not None and step.shape.deniable:
            heard_us = self._instants.passing_us()
            self._denials.note(step, outcome.now_us, outcome.states, charges.waits(), asked_us, heard_us)

    # ---- what comes after ----------------------------------------------------------------------------------

    async def settle(self, settlement: Settlement) -> bool:
        """Refunds or charges the differences, once per receipt. False when that was done before."""
        self._forget(settlement)
        try:
            return await self._settle(settlement)
        finally:
            self._forget(settlement)  # also what was asked before it was done, and refused

    async def _settle(self, settlement: Settlement) -> bool:
        if not self._forms.naming.tagged or not settlement.entries:
            return await self._settle_by(settlement)
        # What lies in several slots is settled slot by slot, each with a mark of its own: a receipt that is told again
        # after a fault finds what was done, and does the rest.
        settled = [await self._settle_in_a_slot(part) for part in settlements(self._forms, settlement)]
        return any(settled)

    async def _settle_in_a_slot(self, settlement: Settlement) -> bool:
        try:
            return await self._settle_by(settlement)
        except Unsettled:
            # The slot is on its way, and its keys lie on two servers: the mark first, so that nothing is done twice.
            first, *_ = settlement.entries
            if not await self._settle_by(replace(settlement, entries=(replace(first, actual=first.charged),))):
                return False
            for entry in settlement.entries:
                await self._settle_by(replace(settlement, entries=(entry,)), MARKED)
            return True

    async def _settle_by(self, settlement: Settlement, mode: int = ONCE) -> bool:
        instant = self._instants.wire()
        around_us = self._instants.around_us(instant)
        for _ in range(2):
            call = settle_command(
                self._forms, settlement, instant, slack_ms=self._slack_ms, mode=mode, around_us=around_us
            )
            reply = await self._servers.run(call, self._forms.key_of(settlement))
            if type(reply) is not list or len(reply) != 2:
                raise StoreProtocolError("the store answered a settlement with something else")
            around_us, status = reply
            if status == EXPIRED:
                raise ReceiptError("the receipt has expired")
            if status in (AGAIN, SETTLED):
                return bool(status == SETTLED)
            if status != MISPLACED:
                raise StoreProtocolError("the store answered a settlement with something else")
        raise StoreProtocolError("the store's clock jumps between calendar windows")

    async def release(self, leases: Sequence[Lease]) -> int:
        """Frees places; unknown and expired leases are no-ops."""
        freed = 0
        named = [(self._forms.lease_key(lease.limit_name, lease.address), lease.lease_id.encode()) for lease in leases]
        for some in together(named, tagged=self._forms.naming.tagged, at_most=MAX_RELEASE):
            keys, ids = [key for key, _ in some], [lease_id for _, lease_id in some]
            reply = await self._servers.run(evalsha(RELEASE.sha, keys, (self._instants.wire(), *ids)), keys[0])
            if not isinstance(reply, int):
                raise StoreProtocolError("the store answered a release with something else")
            freed += reply
        return freed

    async def shared_secret(self) -> bytes:
        """32 bytes that all nodes of this prefix agree on: the first to ask makes them up, the server keeps
        them.
        """
        key = self._forms.own_key("secret")
        await self._servers.ask(encode((b"SET", key, os.urandom(SECRET_BYTES), b"NX")), key)
        secret = await self._servers.ask(encode((b"GET", key)), key)
        if not isinstance(secret, bytes) or len(secret) != SECRET_BYTES:
            raise StoreProtocolError(f"the value at {key.decode()} is no secret of {SECRET_BYTES} bytes")
        return secret

    def _forget(self, settlement: Settlement) -> None:
        """Units come back to these buckets: what was refused may be had."""
        if self._denials is not None:
            for entry in settlement.entries:
                form = self._forms.of(entry.limit)
                self._denials.forget(bulk(form.key(entry.address)), form.id, self._instants.passing_us())

    @property
    def purses(self) -> Purses:
        """What this node holds on leases: a request that needs nothing else is decided from it without waiting."""
        return self._leases.purses

    def forget_denials(self) -> None:
        """Asks the server anew for every key: after a reset, or when overrides have changed."""
        self._leases.give_back()
        if self._denials is not None:
            self._denials.clear()


def _hear_keyed(charges: Charges, step: Step, outcome: Outcome) -> None:
    """What became of a request with an idempotency key."""
    states = outcome.states
    outcomes = turn_away(charges, step, [states[at : at + OUTCOME] for at in range(0, len(states), OUTCOME)])
    charges.resolve(outcome.now_us, outcomes, nonce_verdict(outcome.status), outcome.retry_us)


def _may_be_known(charges: Charges) -> bool:
    """Nonces and idempotency keys are to be spent or found, also by a request that is refused."""
    return charges.nonce_facts is None and charges.request.idempotency is None
