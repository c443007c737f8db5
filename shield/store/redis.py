"""The store of many hosts: one atomic step per request over all its charges, answered within a deadline or not at
all.

What happens to one step is told in primary.py: it is sent once, and what a late reply took is given back.

The server's clock decides everything. This process' clock only guesses which calendar day it is there, and
the server says so when the guess is wrong.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Final

from shield.errors import ReceiptError, StoreError, StoreProtocolError
from shield.store import Lease, Settlement
from shield.store.denials import Denials
from shield.store.heartbeat import Heartbeat
from shield.store.instants import Instants
from shield.store.late import settle_command
from shield.store.lua import RELEASE
from shield.store.primary import FULL, MISPLACED, REFUSED, Primary
from shield.store.resp import bulk, encode, evalsha
from shield.store.steps import OUTCOME, Forms
from shield.store.target import describe, parse_redis_url

if TYPE_CHECKING:
    from shield.clock import Clock
    from shield.core import Bucket, Charges
    from shield.store.breaker import Breaker

# What settle.lua answers.
AGAIN, SETTLED, EXPIRED = 0, 1, 2
SECRET_BYTES: Final = 32
# Leases are given back one request at a time or by an operator: more in one call is split.
MAX_RELEASE: Final = 1000


class RedisStore:
    """`redis://host:6379/0`, `rediss://...`, `unix:///path?db=0`, `redis+sentinel://host/service`: buckets on a Redis
    or Valkey server (6.2 or newer).

    Options: `prefix` (of every key, "shield"), `deadline` of a step ("20ms"), `connections` (2),
    `connect_timeout` ("1s"), `max_in_flight` requests per connection (1024; as many wait), `ttl_slack` ("60s": how much
    longer than needed a key lives, because numbers may be lowered and clocks stepped while it lies idle),
    `deny_cache` (65536 refusals, remembered for a second at most; 0 asks the server every time),
    `db`, and redis-py's `ssl_...` files.

    `clock` (Unix nanoseconds) guesses the server's calendar day. `instant`, for tests alone: what time the
    scripts are told it is, in Unix microseconds, instead of the server's own.
    """

    name = "redis"
    local = False

    def __init__(self, url: str, *, clock: Clock | None = None, breaker: Breaker | None = None) -> None:
        target = parse_redis_url(url)
        self.where = target.where
        """Where the server is, without credentials."""
        self.warnings: tuple[str, ...] = ()
        """What is amiss with the server, found at `open`: one sentence each."""
        self._instants = Instants(clock)
        self._forms = Forms(target.prefix)
        self._slack_ms = target.ttl_slack_us // 1000
        self._primary = Primary(
            target.make,
            target,
            self._forms,
            self._instants,
            where=target.where,
            forget=self._forget,
            breaker=breaker,
        )
        self._heart = Heartbeat(f"{target.prefix}:~nodes".encode(), self._primary.ask)
        self._denials = Denials(target.deny_cache) if target.deny_cache else None
        # A request that asks for all of a second's refusals anew has missed its deadline by then, or was lost.
        self._patience_us = 2 * target.deadline_us
        self._counts = dict.fromkeys(("checks", "failures", "oom", "denials_known"), 0)

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
        await self._primary.open()
        if self._primary.link.up:
            self.warnings = await self._inspect()
        await self._heart.start()

    async def close(self) -> None:
        """Closes the connections; whoever still waits gets a StoreError."""
        await self._heart.stop()
        await self._primary.close()

    @property
    def ready(self) -> bool:
        """Whether a step would be tried now."""
        return self._primary.ready

    @property
    def nodes(self) -> int:
        """How many nodes used this store when it was last heard, this one included."""
        return self._heart.nodes

    def stats(self) -> dict[str, int]:
        """Counts since the start, and gauges: connections that are up, requests in flight, the breaker."""
        return {
            **self._counts,
            **self._primary.stats(),
            "nodes": self._heart.nodes,
        }

    async def _inspect(self) -> tuple[str, ...]:
        try:
            info = [await self._primary.ask(encode((b"INFO", section))) for section in (b"memory", b"server")]
        except StoreError:
            return ()  # not every account may ask
        return describe(b"".join(part for part in info if isinstance(part, bytes)))

    # ---- the step ------------------------------------------------------------------------------------------

    def address(self, bucket: Bucket) -> bytes:
        """The 16 bytes that name the bucket of a charge, the same on every node."""
        return self._forms.of(bucket.limit).address(bucket.partition)

    async def apply(self, charges: Charges) -> None:
        """All charges or none, at one instant of the server's clock."""
        if len(charges) == 0:
            charges.resolve(self._instants.around_us(self._instants.wire()), ())
            return
        self._counts["checks"] += 1
        step = self._forms.step(charges)
        asked_us = self._instants.passing_us()
        if self._denials and _may_be_known(charges):
            known = self._denials.find(step, asked_us, self._patience_us)
            if known is not None:
                self._counts["denials_known"] += 1
                charges.resolve(known.now_us, known.states)
                return
        try:
            now_us, status, states = await self._primary.decide(step)
            try:
                charges.resolve(now_us, [states[at : at + OUTCOME] for at in range(0, len(states), OUTCOME)])
            except (TypeError, ValueError, OverflowError):
                raise StoreProtocolError("the store answered a check with numbers that make no sense") from None
        except StoreError:
            self._counts["failures"] += 1
            raise
        if status == FULL:
            self._counts["oom"] += 1
        elif status == REFUSED and self._denials is not None and step.shape.deniable:
            self._denials.note(step, now_us, states, charges.waits(), asked_us, self._instants.passing_us())

    # ---- what comes after ----------------------------------------------------------------------------------

    async def settle(self, settlement: Settlement) -> bool:
        """Refunds or charges the differences, once per receipt. False when that was done before."""
        self._forget(settlement)
        try:
            return await self._settle(settlement)
        finally:
            self._forget(settlement)  # also what was asked before it was done, and refused

    async def _settle(self, settlement: Settlement) -> bool:
        instant = self._instants.wire()
        around_us = self._instants.around_us(instant)
        for _ in range(2):
            call = settle_command(
                self._forms, settlement, instant, slack_ms=self._slack_ms, once=True, around_us=around_us
            )
            reply = await self._primary.run(call)
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
        for at in range(0, len(leases), MAX_RELEASE):
            some = leases[at : at + MAX_RELEASE]
            keys = [self._forms.lease_key(lease.limit_name, lease.address) for lease in some]
            ids = [lease.lease_id.encode() for lease in some]
            reply = await self._primary.run(evalsha(RELEASE.sha, keys, (self._instants.wire(), *ids)))
            if not isinstance(reply, int):
                raise StoreProtocolError("the store answered a release with something else")
            freed += reply
        return freed

    async def shared_secret(self) -> bytes:
        """32 bytes that all nodes of this prefix agree on: the first to ask makes them up, the server keeps
        them.
        """
        key = f"{self._forms.prefix}:~secret".encode()
        await self._primary.ask(encode((b"SET", key, os.urandom(SECRET_BYTES), b"NX")))
        secret = await self._primary.ask(encode((b"GET", key)))
        if not isinstance(secret, bytes) or len(secret) != SECRET_BYTES:
            raise StoreProtocolError(f"the value at {key.decode()} is no secret of {SECRET_BYTES} bytes")
        return secret

    def _forget(self, settlement: Settlement) -> None:
        """Units come back to these buckets: what was refused may be had."""
        if self._denials is not None:
            for entry in settlement.entries:
                form = self._forms.of(entry.limit)
                self._denials.forget(bulk(form.key(entry.address)), form.id, self._instants.passing_us())

    def forget_denials(self) -> None:
        """Asks the server anew for every key: after a reset, or when overrides have changed."""
        if self._denials is not None:
            self._denials.clear()


def _may_be_known(charges: Charges) -> bool:
    """Nonces and idempotency keys are to be spent or found, also by a request that is refused."""
    request = charges.request
    return request.nonce is None and request.idempotency is None
