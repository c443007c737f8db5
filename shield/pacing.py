"""Single limits by name: places that are held, turns that are waited for.

    async with shield.slot("exports", "acme"):      a place of a concurrency limit
        ...
    decision = await shield.wait("outbound", "acme", cost=3)      a client that paces itself

Whoever waits for one key stands in one line, in the order of arrival. The first asks the store, sleeps exactly as long
as it was told to, and asks again; the others sleep until it is their turn, so that a thousand waiters cost the store no
more than one. What is slept too long drains from the bucket meanwhile: nothing adds up. A line is of this process;
between processes the store decides.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections import Counter, deque
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any, Final

import msgspec

from shield.clock import Clock
from shield.compile import compile_policy
from shield.core import Charges, CompiledPolicy, Decision
from shield.errors import Refused, RequestError, ShieldError, StoreError
from shield.policy import Policy
from shield.policy.model import CONCURRENCY, Limit
from shield.request import Request
from shield.sequel import Sequel

MAX_WAITERS: Final = 65_536
"""Who may wait at once in a process, all keys together: a waiter holds a task, some kilobytes."""
MAX_WAITERS_PER_KEY: Final = 1_024
"""Who may wait for one key: the last one waits this many turns already."""
WAIT_S: Final = 60.0
"""How long is waited by default: about as long as whoever called waits for an answer."""

Key = str | Mapping[str, Any] | Request | None
Sleep = Callable[[float], Awaitable[object]]
_ATTRIBUTE: Final = "attributes."
_DETAIL: Final = {True: "too many are waiting for it already", False: "it was not its turn in time"}


class _Line:
    """Those who wait for one key. The first of them is at the store."""

    __slots__ = ("freed", "waiting")

    def __init__(self) -> None:
        self.waiting: deque[asyncio.Future[None]] = deque()
        self.freed = asyncio.Event()  # a place of this key came free here


class Slot:
    """A place of a concurrency limit, held for the length of an `async with`. See `Pacing.slot`."""

    def __init__(self, pacing: Pacing, name: str, key: Key, timeout_s: float) -> None:
        self._pacing = pacing
        self._asked = (name, key, timeout_s)
        self._decision: Decision | None = None
        self._address = b""

    async def __aenter__(self) -> Decision:
        name, key, timeout_s = self._asked
        compiled, request = self._pacing._singled_out(name, key, None)
        decision = await self._pacing._wait_in_line(compiled, request, timeout_s, asyncio.sleep)
        if not decision.allowed:
            raise Refused(decision)
        self._decision = decision
        self._address = decision.charges.address_of(0)
        return decision

    async def __aexit__(self, *exc: object) -> None:
        decision, self._decision = self._decision, None
        if decision is not None:
            giving = self._pacing._give_back(decision, self._address)
            # Where that takes a while, whoever is cancelled meanwhile still gives its place back.
            await (giving if self._pacing.store.local else asyncio.shield(asyncio.ensure_future(giving)))


class Pacing(Sequel):
    """The part of `shield.Shield` that decides single limits."""

    _clock: Clock | None
    _table: Any
    _in_force: Policy
    _only: dict[tuple[Limit, ...], CompiledPolicy]
    _only_for: Policy | None = None
    _of_method: dict[str, tuple[Limit, ...]]
    _of_method_for: Policy | None = None
    _lines: dict[bytes, _Line]
    _waiters: int = 0
    counts: Counter[str]
    """What did not go as it should, by name: refused turns, and what edges could not tell the store afterwards."""

    def _conclude(self, charges: Charges, decision: Decision | None = None) -> Decision:
        raise NotImplementedError

    def slot(self, name: str, key: Key = None, *, timeout_s: float = WAIT_S) -> Slot:
        """A place of the concurrency limit with this name, for the length of an `async with`.

        `key`: the value of the limit's key field, a mapping of fields where it has several, or a Request. Waits up to
        `timeout_s` for a place, 0 for not at all; Refused when there is none by then, with the decision. The place
        lapses after the limit's `ttl`, whether the block has ended or not.

        RequestError for a name that is no concurrency limit of the policy, or a key that does not fit.
        """
        limit = self._named(name)
        if limit.algorithm != CONCURRENCY:
            raise RequestError("name", f"{name!r} is no concurrency limit; a place is taken of those alone")
        return Slot(self, name, key, timeout_s)

    async def wait(
        self,
        name: str,
        key: Key = None,
        *,
        cost: int = 1,
        timeout_s: float = WAIT_S,
        sleep: Sleep = asyncio.sleep,
    ) -> Decision:
        """Takes `cost` units of the limit with this name as soon as it has them, in the order of arrival, and returns
        that decision. A refusal is returned where it would take longer than `timeout_s`, where the cost can never fit,
        and where too many wait already: at once, as far as that is known.

        `key` as for `slot`. A task that waits may be cancelled. `sleep` waits for so many seconds; time is measured by
        the shield's clock where it was given one. RequestError as for `slot`, and for a cost that is none.
        """
        if self._named(name).algorithm == CONCURRENCY:
            raise RequestError("name", f"{name!r} is a concurrency limit; use slot, which gives the place back")
        compiled, request = self._singled_out(name, key, cost)
        return await self._wait_in_line(compiled, request, timeout_s, sleep)

    async def check_only(self, limits: Sequence[Limit], request: Request) -> Decision:
        """One request against these limits alone; no guard, no identity. While the store is away its limits are
        decided as they say.
        """
        return await self._apply_only(self._compiled_only(tuple(limits)), request)

    def check_only_nowait(self, limits: Sequence[Limit], request: Request) -> Decision:
        """The same for a store that needs no I/O. ShieldError for any other."""
        if not self.store.local:
            raise ShieldError(f"{self.store.name} must be awaited: use check_only")
        charges = self._compiled_only(tuple(limits)).charges(request)
        self._table.apply(charges)
        return self._conclude(charges)

    def limits_of_method(self, method: str) -> tuple[Limit, ...]:
        """The policy's limits that name this method."""
        if self._of_method_for is not self._in_force:
            self._of_method_for, self._of_method = self._in_force, {}
        found = self._of_method.get(method)
        if found is None:
            found = tuple(limit for limit in self._in_force.limits if method in limit.methods)
            self._of_method[method] = found
        return found

    def _start_pacing(self) -> None:
        self._lines, self.counts = {}, Counter()

    def pacing_stats(self) -> dict[str, int]:
        """Counts for metrics: who waits for a turn, and `counts`."""
        return {**self.counts, "turns_waiting": self._waiters} if self._lines or self.counts else {}

    # ---- one limit -----------------------------------------------------------------------------------------------

    def _named(self, name: str) -> Limit:
        for limit in self._in_force.limits:
            if limit.name == name:
                return limit
        raise RequestError("name", f"found {name!r}; allowed: {', '.join(one.name for one in self._in_force.limits)}")

    def _compiled_only(self, limits: tuple[Limit, ...]) -> CompiledPolicy:
        if self._only_for is not self._in_force:
            self._only_for, self._only = self._in_force, {}
        compiled = self._only.get(limits)
        if compiled is None:
            # As many as the program names: limits are written down, not made of what clients send.
            policy = Policy(
                identity=self._in_force.identity,
                limits=limits,
                detectors=self._in_force.detectors,
                overrides=self._in_force.overrides,
            )
            compiled = self._only[limits] = compile_policy(policy, self._local.registry)
        return compiled

    def _singled_out(self, name: str, key: Key, cost: int | None) -> tuple[CompiledPolicy, Request]:
        """The limit by itself, and the request that it is asked with."""
        limit = self._named(name)
        changes: dict[str, Any] = {"methods": (), "paths": (), "missing": "deny", "mode": "enforce"}
        if cost is not None:
            # Asking again while it waits is no fault of the client's.
            changes |= {"cost": "request", "count_denied": False}
        return self._compiled_only((replace(limit, **changes),)), _request(limit, key, cost)

    async def _apply_only(self, compiled: CompiledPolicy, request: Request) -> Decision:
        charges = compiled.charges(request)
        if self.store.local or len(charges) == 0:
            self._table.apply(charges)
        else:
            try:
                await self.store.apply(charges)
            except StoreError:
                self._table.apply(charges, degraded=True)
            if self._handles is None and not charges.degraded:
                await self._agree_on_secret()
        return self._conclude(charges)

    # ---- lines ---------------------------------------------------------------------------------------------------

    async def _wait_in_line(
        self, compiled: CompiledPolicy, request: Request, timeout_s: float, sleep: Sleep
    ) -> Decision:
        now_ns = self._clock if self._clock is not None else time.monotonic_ns
        deadline_ns = now_ns() + int(timeout_s * 1e9)
        asked = compiled.charges(request)
        if len(asked) == 0:
            return await self._apply_only(compiled, request)  # a key or a cost that is none
        address = asked.address_of(0)
        line = self._lines.get(address)
        if line is None:
            line = self._lines[address] = _Line()
        elif len(line.waiting) >= MAX_WAITERS_PER_KEY or self._waiters >= MAX_WAITERS:
            return self._not_its_turn(compiled, request, full=True)
        else:
            turn = asyncio.get_running_loop().create_future()
            line.waiting.append(turn)
            self._waiters += 1
            try:
                async with asyncio.timeout(timeout_s):
                    await turn
            except BaseException as error:
                if turn.done() and not turn.cancelled():
                    self._next(address, line)  # it was this one's turn, and is not any more
                else:
                    with contextlib.suppress(ValueError):
                        line.waiting.remove(turn)
                if isinstance(error, TimeoutError):
                    return self._not_its_turn(compiled, request, full=False)
                raise
            finally:
                self._waiters -= 1
        try:
            while True:
                line.freed.clear()
                decision = await self._apply_only(compiled, request)
                wait_s = decision.retry_after
                if decision.allowed or wait_s is None or wait_s * 1e9 > deadline_ns - now_ns():
                    return decision
                await self._nap(line, wait_s, sleep, decision)
        finally:
            self._next(address, line)

    async def _nap(self, line: _Line, wait_s: float, sleep: Sleep, decision: Decision) -> None:
        """Until it is worth asking again: for a place that may be when another one here gives its own back."""
        if decision.reason != "concurrency":
            await sleep(wait_s)
            return
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(wait_s):
                await line.freed.wait()

    def _next(self, address: bytes, line: _Line) -> None:
        """The first of the line has gone: it is the next one's turn."""
        while line.waiting:
            turn = line.waiting.popleft()
            if not turn.done():
                turn.set_result(None)
                return
        self._lines.pop(address, None)

    def _not_its_turn(self, compiled: CompiledPolicy, request: Request, *, full: bool) -> Decision:
        """A refusal of somebody who never came to the store: nothing is taken, and nothing known of the bucket."""
        self.counts["turns_refused"] += 1
        charges = compiled.charges(request)
        charges.turn_away("limit", _DETAIL[full])
        self._table.apply(charges)
        return self._conclude(charges)

    async def _give_back(self, decision: Decision, address: bytes) -> None:
        with contextlib.suppress(StoreError):  # it lapses then
            await self.release(decision.leases)
        if (line := self._lines.get(address)) is not None:
            line.freed.set()


def _request(limit: Limit, key: Key, cost: int | None) -> Request:
    """The request that states this key."""
    if isinstance(key, Request):
        return key if cost is None else msgspec.structs.replace(key, cost=cost)
    if isinstance(key, Mapping):
        values = dict(key)
    elif key is None:
        values = {}
    elif len(limit.key) == 1:
        values = {limit.key[0]: key}
    else:
        raise RequestError("key", f"{limit.name!r} counts by {', '.join(limit.key)}; state a mapping of those")
    if values.keys() != set(limit.key):
        found = ", ".join(map(str, values)) or "nothing"
        raise RequestError("key", f"found {found}; {limit.name!r} counts by {', '.join(limit.key) or 'nothing'}")
    attributes = {name.removeprefix(_ATTRIBUTE): values.pop(name) for name in list(values) if _ATTRIBUTE in name}
    return Request(**values, attributes=attributes or None, cost=cost)
