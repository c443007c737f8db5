"""The store of many hosts: one atomic step per request over all its charges, answered within a deadline or not at
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
from typing import TYPE_CHECKING, Any, Final

from shield.errors import ReceiptError, StoreError, StoreProtocolError, StoreTimeout
from shield.store import Lease, Settlement
from shield.store.batch import Batcher, Outcome
from shield.store.breaker import Breaker
from shield.store.denials import Denials
from shield.store.greeting import greeting, load_command
from shield.store.heartbeat import Heartbeat
from shield.store.lane import OutOfMemory, ScriptMissing
from shield.store.late import LateReplies, has_reply, settle_command
from shield.store.link import Link
from shield.store.lua import RELEASE, SCRIPTS
from shield.store.resp import bulk, encode, evalsha
from shield.store.steps import OUTCOME, Forms, Step
from shield.store.target import describe, parse_redis_url

if TYPE_CHECKING:
    from shield.clock import Clock
    from shield.core import Bucket, Charges

# What check.lua and settle.lua begin their answers with, and a verdict.
REFUSED, TAKEN, FULL, MISPLACED, FOREIGN = 0, 1, 2, 3, 4
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
            greeting=greeting(self._forms.version_key),
        )
        self._late = LateReplies(
            self._link, self._forms, slack_ms=self._slack_ms, instant=self._instant, forget=self._forget
        )
        self._heart = Heartbeat(f"{target.prefix}:~nodes".encode(), self._ask)
        self._batcher = Batcher(
            self._link,
            slack_ms=self._slack_ms,
            max_waiting=target.connections * target.max_in_flight,
            late=self._late.came,
            around_us=self._around_us,
        )
        self._batcher.instant = self._instant
        self._denials = Denials(target.deny_cache) if target.deny_cache else None
        # A request that asks for all of a second's refusals anew has missed its deadline by then, or was lost.
        self._patience_us = 2 * target.deadline_us
        self._loading: asyncio.Task[None] | None = None
        self._counts = dict.fromkeys(
            (
                "checks",
                "failures",
                "late_taken",
                "late_given_back",
                "late_lost",
                "script_reloads",
                "oom",
                "denials_known",
            ),
            0,
        )

    # ---- life ----------------------------------------------------------------------------------------------

    async def open(self) -> None:
        """Connects. An unreachable server is no error: steps fail until it is there. StoreError when it
        refuses us.
        """
        await self._link.open()
        if self._link.up:
            self.warnings = await self._inspect()
        await self._heart.start()

    async def close(self) -> None:
        """Closes the connections; whoever still waits gets a StoreError."""
        if self._loading is not None:
            self._loading.cancel()
        await self._heart.stop()
        self._batcher.close()
        await self._link.close()

    @property
    def ready(self) -> bool:
        """Whether a step would be tried now."""
        return self._link.up > 0 and self._breaker.would_allow(self._monotonic_us())

    @property
    def nodes(self) -> int:
        """How many nodes used this store when it was last heard, this one included."""
        return self._heart.nodes

    def stats(self) -> dict[str, int]:
        """Counts since the start, and gauges: connections that are up, requests in flight, the breaker."""
        return {
            **self._counts,
            **self._late.counts,
            "timeouts": self._link.timeouts + self._batcher.expired,
            "connects": self._link.connects,
            "connections_lost": self._link.losses,
            "connections": self._link.up,
            "in_flight": self._link.in_flight,
            "nodes": self._heart.nodes,
            "waiting": self._batcher.waiting,
            "breaker_opened": self._breaker.opened,
            "breaker_open": int(self._breaker.state != "closed"),
        }

    async def _inspect(self) -> tuple[str, ...]:
        try:
            info = [await self._ask(encode((b"INFO", section))) for section in (b"memory", b"server")]
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
            charges.resolve(self._around_us(self._instant()), ())
            return
        self._counts["checks"] += 1
        step = self._forms.step(charges)
        asked_us = self._passing_us()
        if self._denials and _may_be_known(charges):
            known = self._denials.find(step, asked_us, self._patience_us)
            if known is not None:
                self._counts["denials_known"] += 1
                charges.resolve(known.now_us, known.states)
                return
        try:
            now_us, status, states = await self._decide(step)
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
            self._denials.note(step, now_us, states, charges.waits(), asked_us, self._passing_us())

    async def _decide(self, step: Step) -> Outcome:
        """What became of one request. Whatever takes more than one command still ends with the first's deadline."""
        deadline = asyncio.get_running_loop().time() + self._deadline_s
        around_us = None
        for _ in range(2):
            try:
                outcome = await self._try(step, deadline, around_us)
            except ScriptMissing:
                # It proves that nothing was done: load the scripts and ask again, once.
                async with self._until(deadline):
                    await self._reload()
                outcome = await self._try(step, deadline, around_us)
            if outcome[1] in (REFUSED, TAKEN, FULL):
                return outcome
            if outcome[1] != MISPLACED:
                raise StoreProtocolError(self._foreign(step, outcome))
            around_us = outcome[0]
        raise StoreProtocolError("the store's clock jumps between calendar windows")

    async def _try(self, step: Step, deadline: float, around_us: int | None) -> Outcome:
        asked_us = self._ask_for_leave()
        future = None
        try:
            future = self._batcher.submit(step, deadline, around_us)
            outcome = await future
        except BaseException as error:
            self._heard_of(error, asked_us)
            # The reply and the cancellation may come in the same turn of the loop.
            if isinstance(error, asyncio.CancelledError) and has_reply(future):
                self._late.came(step, future.result())
            raise
        self._breaker.success()
        return outcome

    def _foreign(self, step: Step, outcome: Outcome) -> str:
        _, status, states = outcome
        if status != FOREIGN or type(states[0]) is not int or not 1 <= states[0] <= len(step.cells):
            return "the store answered a check with something else"
        key = step.cells[states[0] - 1].split(b"\r\n")[1].decode()
        return f"the value at {key} was not written by this version of Shield; it was left alone"

    # ---- what comes after ----------------------------------------------------------------------------------

    async def settle(self, settlement: Settlement) -> bool:
        """Refunds or charges the differences, once per receipt. False when that was done before."""
        self._forget(settlement)
        try:
            return await self._settle(settlement)
        finally:
            self._forget(settlement)  # also what was asked before it was done, and refused

    async def _settle(self, settlement: Settlement) -> bool:
        instant = self._instant()
        around_us = self._around_us(instant)
        for _ in range(2):
            call = settle_command(
                self._forms, settlement, instant, slack_ms=self._slack_ms, once=True, around_us=around_us
            )
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
            reply = await self._guarded(evalsha(RELEASE.sha, keys, (self._instant(), *ids)))
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

    def _forget(self, settlement: Settlement) -> None:
        """Units come back to these buckets: what was refused may be had."""
        if self._denials is not None:
            for entry in settlement.entries:
                form = self._forms.of(entry.limit)
                self._denials.forget(bulk(form.key(entry.address)), form.id, self._passing_us())

    def forget_denials(self) -> None:
        """Asks the server anew for every key: after a reset, or when overrides have changed."""
        if self._denials is not None:
            self._denials.clear()

    # ---- asking --------------------------------------------------------------------------------------------

    async def _guarded(self, call: bytes) -> Any:
        """Runs a script if the breaker lets it. NOSCRIPT proves that nothing was done: load it and ask again,
        once.
        """
        started = asyncio.get_running_loop().time()
        try:
            return await self._ask(call)
        except ScriptMissing:
            async with self._until(started + self._deadline_s):
                await self._reload()
                return await self._ask(call)

    async def _ask(self, call: bytes) -> Any:
        """One command, one reply."""
        asked_us = self._ask_for_leave()
        try:
            reply = await self._link.request(call)
        except BaseException as error:
            self._heard_of(error, asked_us)
            raise
        self._breaker.success()
        return reply

    def _ask_for_leave(self) -> int:
        asked_us = self._monotonic_us()
        if not self._breaker.allow(asked_us):
            raise StoreError(f"not asked: the store at {self.where} has missed its deadline too often")
        return asked_us

    def _heard_of(self, error: BaseException, asked_us: int) -> None:
        """The breaker counts missed deadlines: only they cost a caller time. A refusal is an answer all the same."""
        if isinstance(error, StoreTimeout):
            self._breaker.failure(asked_us, self._monotonic_us())
        elif isinstance(error, (ScriptMissing, OutOfMemory, StoreProtocolError)):
            self._breaker.success()
        else:
            self._breaker.undecided()

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
        await asyncio.gather(*[self._link.request(load_command(script)) for script in SCRIPTS])

    # ---- time ----------------------------------------------------------------------------------------------

    def _monotonic_us(self) -> int:
        return time.monotonic_ns() // 1000

    def _passing_us(self) -> int:
        """What is remembered ages by this clock: monotonic, or the one of a test."""
        return self._monotonic_us() if self.instant is None else self.instant()

    def _instant(self) -> bytes:
        return b"" if self.instant is None else b"%d" % self.instant()

    def _around_us(self, instant: bytes) -> int:
        """About what time it is at the server."""
        if self._clock is not None:
            return self._clock() // 1000
        return int(instant) if instant else time.time_ns() // 1000


def _may_be_known(charges: Charges) -> bool:
    """Nonces and idempotency keys are to be spent or found, also by a request that is refused."""
    request = charges.request
    return request.nonce is None and request.idempotency is None


def _heard(task: asyncio.Future[Any]) -> None:
    """Takes note of a task's exception, which those who waited for it have heard of, if any still did."""
    if not task.cancelled():
        task.exception()
