"""The store of many hosts: one EVALSHA per request over all its charges, answered within a deadline or not at
all.

The law of this file: a step is sent once. When its reply misses the deadline the answer is StoreTimeout,
"unknown"; should the reply come after all and say that the step took, what it took is given back, under the
rule for refunds. A step whose reply never comes stays charged: too strict for an instant, never too generous.

The server's clock decides everything. This process' clock only guesses which calendar day it is there, and
the server says so when the guess is wrong.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import time
from collections.abc import AsyncIterator, Callable, Sequence
from typing import TYPE_CHECKING, Any, Final, TypeGuard

from shield.errors import ReceiptError, StoreError, StoreProtocolError, StoreTimeout
from shield.store import Lease, Settlement, SettlementEntry
from shield.store.breaker import Breaker
from shield.store.lane import Late, OutOfMemory, ScriptMissing, encode
from shield.store.link import Link
from shield.store.lua import CHECK, RELEASE, SCRIPTS, SETTLE, Script
from shield.store.steps import PLACES, Charge, Forms, pack_check, pack_settle
from shield.store.target import describe, parse_redis_url

if TYPE_CHECKING:
    from shield.clock import Clock
    from shield.core import Bucket, Charges

# What check.lua and settle.lua begin their answers with, and a verdict.
TAKEN, FULL, MISPLACED = 1, 2, 3
AGAIN, SETTLED, EXPIRED = 0, 1, 2
FITS = 0
SECRET_BYTES: Final = 32
# Leases are given back one request at a time or by an operator: more in one call is split.
MAX_RELEASE: Final = 1000


class RedisStore:
    """`redis://host:6379/0`, `rediss://...`, `unix:///path?db=0`: buckets on a Redis or Valkey server (6.2 or
    newer).

    Options: `prefix` (of every key, "shield"), `deadline` of a step ("20ms"), `connections` (2),
    `connect_timeout` ("1s"), `max_in_flight` requests per connection (1024), `ttl_slack` ("60s": how much
    longer than needed a key lives, because numbers may be lowered and clocks stepped while it lies idle),
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
        self.instant: Callable[[], int] | None = None
        self.warnings: tuple[str, ...] = ()
        """What is amiss with the server, found at `open`: one sentence each."""
        self._clock = clock
        self._forms = Forms(target.prefix)
        self._slack_ms = target.ttl_slack_us // 1000
        self._deadline_s = target.deadline_us / 1_000_000
        self._breaker = breaker or Breaker()
        self._link = Link(
            target.make,
            connections=target.connections,
            deadline_s=self._deadline_s,
            connect_timeout_s=target.connect_timeout_us / 1_000_000,
            max_in_flight=target.max_in_flight,
            greeting=[
                *((_load_command(script), _loaded) for script in SCRIPTS),
                (encode((b"ROLE",)), _is_primary),
            ],
        )
        self._loading: asyncio.Task[None] | None = None
        self._counts = dict.fromkeys(
            ("checks", "failures", "late_taken", "late_given_back", "late_lost", "script_reloads", "oom"), 0
        )

    # ---- life ----------------------------------------------------------------------------------------------

    async def open(self) -> None:
        """Connects. An unreachable server is no error: steps fail until it is there. StoreError when it
        refuses us.
        """
        await self._link.open()
        if self._link.up:
            self.warnings = await self._inspect()

    async def close(self) -> None:
        """Closes the connections; whoever still waits gets a StoreError."""
        if self._loading is not None:
            self._loading.cancel()
        await self._link.close()

    @property
    def ready(self) -> bool:
        """Whether a step would be tried now."""
        return self._link.up > 0 and self._breaker.would_allow(self._monotonic_us())

    def stats(self) -> dict[str, int]:
        """Counts since the start, and gauges: connections that are up, requests in flight, the breaker."""
        return {
            **self._counts,
            "timeouts": self._link.timeouts,
            "connects": self._link.connects,
            "connections_lost": self._link.losses,
            "connections": self._link.up,
            "in_flight": self._link.in_flight,
            "breaker_opened": self._breaker.opened,
            "breaker_open": int(self._breaker.state != "closed"),
        }

    async def _inspect(self) -> tuple[str, ...]:
        try:
            memory = await self._ask(encode((b"INFO", b"memory")))
        except StoreError:
            return ()  # not every account may ask
        return describe(memory)

    # ---- the step ------------------------------------------------------------------------------------------

    def address(self, bucket: Bucket) -> bytes:
        """The 16 bytes that name the bucket of a charge, the same on every node."""
        return self._forms.of(bucket.limit).address(bucket.partition)

    async def apply(self, charges: Charges) -> None:
        """All charges or none, at one instant of the server's clock."""
        count = len(charges)
        if count == 0:
            charges.resolve(self._around_us(self._instant()), ())
            return
        sent = []
        for i in range(count):
            bucket = charges.bucket(i)
            form = self._forms.of(bucket.limit)
            lease_id = charges.lease_id(i) if form.kind == PLACES else None
            sent.append(Charge(bucket, form, form.address(bucket.partition), lease_id))
        self._counts["checks"] += 1
        try:
            reply = await self._check(sent, charges.refused)
            outcomes = [tuple(reply[at : at + 5]) for at in range(2, 2 + 5 * count, 5)]
            try:
                charges.resolve(reply[0], outcomes)
            except (TypeError, ValueError, OverflowError):
                raise StoreProtocolError("the store answered a check with numbers that make no sense") from None
        except StoreError:
            self._counts["failures"] += 1
            raise
        if reply[1] == FULL:
            self._counts["oom"] += 1

    async def _check(self, sent: Sequence[Charge], refused: bool) -> list[int]:
        instant = self._instant()
        started = asyncio.get_running_loop().time()
        call = self._check_command(sent, refused, instant, self._around_us(instant))
        reply = await self._guarded(call, self._came_late, sent)
        if type(reply) is list and len(reply) == 2 and reply[1] == MISPLACED:
            call = self._check_command(sent, refused, instant, reply[0])
            async with self._until(started + self._deadline_s):
                reply = await self._guarded(call, self._came_late, sent)
        if type(reply) is not list or len(reply) != 2 + 5 * len(sent):
            raise StoreProtocolError("the store answered a check with something else")
        return reply

    def _check_command(self, sent: Sequence[Charge], refused: bool, instant: bytes, around_us: int) -> bytes:
        keys, blob, leases = pack_check(sent, slack_ms=self._slack_ms, refused=refused, around_us=around_us)
        return _evalsha(CHECK, keys, (blob, instant, *leases))

    # ---- what comes after ----------------------------------------------------------------------------------

    async def settle(self, settlement: Settlement) -> bool:
        """Refunds or charges the differences, once per receipt. False when that was done before."""
        instant = self._instant()
        around_us = self._around_us(instant)
        for _ in range(2):
            call = self._settle_command(settlement, instant, around_us, once=True)
            reply = await self._guarded(call)
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
            reply = await self._guarded(_evalsha(RELEASE, keys, (self._instant(), *ids)))
            if not isinstance(reply, int):
                raise StoreProtocolError("the store answered a release with something else")
            freed += reply
        return freed

    async def shared_secret(self) -> bytes:
        """32 bytes that all nodes of this prefix agree on: the first to ask makes them up, the server keeps
        them.
        """
        key = f"{self._forms.prefix}:~secret".encode()
        await self._ask(encode((b"SET", key, os.urandom(SECRET_BYTES), b"NX")))
        secret = await self._ask(encode((b"GET", key)))
        if not isinstance(secret, bytes) or len(secret) != SECRET_BYTES:
            raise StoreProtocolError(f"the value at {key.decode()} is no secret of {SECRET_BYTES} bytes")
        return secret

    def _settle_command(self, settlement: Settlement, instant: bytes, around_us: int, *, once: bool) -> bytes:
        keys, blob = pack_settle(self._forms, settlement, slack_ms=self._slack_ms, once=once, around_us=around_us)
        return _evalsha(SETTLE, keys, (blob, instant))

    # ---- late replies --------------------------------------------------------------------------------------

    def _came_late(self, reply: Any, sent: Sequence[Charge]) -> None:
        """The reply to a check that nobody waits for any more: what it took is given back. Never raises."""
        if type(reply) is not list or len(reply) != 2 + 5 * len(sent) or reply[1] != TAKEN:
            return
        self._counts["late_taken"] += 1
        entries = []
        places = []
        for charge, at in zip(sent, range(2, len(reply), 5), strict=True):
            bucket = charge.bucket
            if reply[at] != FITS or bucket.cost == 0:
                continue
            if charge.lease_id is not None:
                places.append(charge)
            else:
                entries.append(
                    SettlementEntry(bucket.limit, charge.address, bucket.cost, 0, reply[at + 3], numbers=bucket.numbers)
                )
        instant = self._instant()
        if entries:
            back = Settlement(b"", 0, reply[0], tuple(entries))
            self._give_back(self._settle_command(back, instant, reply[0], once=False))
        if places:
            keys = [charge.form.key(charge.address) for charge in places]
            ids = [(charge.lease_id or "").encode() for charge in places]
            self._give_back(_evalsha(RELEASE, keys, (instant, *ids)))

    def _give_back(self, call: bytes) -> None:
        try:
            self._link.request(call).add_done_callback(self._given_back)
        except StoreError:
            self._counts["late_lost"] += 1

    def _given_back(self, future: asyncio.Future[Any]) -> None:
        reply = future.result() if _has_reply(future) else None
        done = isinstance(reply, int) or (isinstance(reply, list) and reply[1:] == [SETTLED])
        self._counts["late_given_back" if done else "late_lost"] += 1

    # ---- asking --------------------------------------------------------------------------------------------

    async def _guarded(self, call: bytes, late: Late | None = None, context: Any = None) -> Any:
        """Runs a script if the breaker lets it. NOSCRIPT proves that nothing was done: load it and ask again,
        once.
        """
        started = asyncio.get_running_loop().time()
        try:
            return await self._ask(call, late, context)
        except ScriptMissing:
            async with self._until(started + self._deadline_s):
                await self._reload()
                return await self._ask(call, late, context)

    async def _ask(self, call: bytes, late: Late | None = None, context: Any = None) -> Any:
        """One request, one reply. The breaker counts missed deadlines: only they cost a caller time."""
        breaker = self._breaker
        asked_us = self._monotonic_us()
        if not breaker.allow(asked_us):
            raise StoreError(f"not asked: the store at {self.where} has missed its deadline too often")
        future = None
        try:
            future = self._link.request(call, late, context)
            reply = await future
        except StoreTimeout:
            breaker.failure(asked_us, self._monotonic_us())
            raise
        except (ScriptMissing, OutOfMemory, StoreProtocolError):
            breaker.success()  # an answer all the same
            raise
        except BaseException as error:
            breaker.undecided()
            # The reply and the cancellation may come in the same turn of the loop.
            if isinstance(error, asyncio.CancelledError) and late is not None and _has_reply(future):
                late(future.result(), context)
            raise
        breaker.success()
        return reply

    @contextlib.asynccontextmanager
    async def _until(self, when: float) -> AsyncIterator[None]:
        """Whatever takes more than one request still ends with the deadline of the first."""
        try:
            async with asyncio.timeout_at(when):
                yield
        except TimeoutError:
            raise StoreTimeout(f"no answer from the store within {self._deadline_s * 1000:g} ms") from None

    async def _reload(self) -> None:
        """Loads the scripts again; callers that come meanwhile wait for the same load."""
        if self._loading is None or self._loading.done():
            self._counts["script_reloads"] += 1
            self._loading = asyncio.get_running_loop().create_task(self._load_all())
            self._loading.add_done_callback(_heard)
        await asyncio.shield(self._loading)

    async def _load_all(self) -> None:
        await asyncio.gather(*[self._link.request(_load_command(script)) for script in SCRIPTS])

    # ---- time ----------------------------------------------------------------------------------------------

    def _monotonic_us(self) -> int:
        return time.monotonic_ns() // 1000

    def _instant(self) -> bytes:
        return b"" if self.instant is None else b"%d" % self.instant()

    def _around_us(self, instant: bytes) -> int:
        """About what time it is at the server."""
        if self._clock is not None:
            return self._clock() // 1000
        return int(instant) if instant else time.time_ns() // 1000


def _has_reply(future: asyncio.Future[Any] | None) -> TypeGuard[asyncio.Future[Any]]:
    return future is not None and future.done() and not future.cancelled() and future.exception() is None


def _heard(task: asyncio.Future[Any]) -> None:
    """Takes note of a task's exception, which those who waited for it have heard of, if any still did."""
    if not task.cancelled():
        task.exception()


def _loaded(reply: Any) -> None:
    if isinstance(reply, Exception):
        raise reply


def _is_primary(reply: Any) -> None:
    """A replica would answer from what it last heard. Not every account may ask; then nobody knows."""
    if isinstance(reply, list) and reply and reply[0] in (b"slave", b"sentinel"):
        raise StoreError(f"the server is a {reply[0].decode()}, not a primary")


def _load_command(script: Script) -> bytes:
    return encode((b"SCRIPT", b"LOAD", script.text))


def _evalsha(script: Script, keys: Sequence[bytes], arguments: Sequence[bytes]) -> bytes:
    return encode((b"EVALSHA", script.sha, b"%d" % len(keys), *keys, *arguments))
