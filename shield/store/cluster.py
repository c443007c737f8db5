"""The servers of a Redis Cluster as one: every request goes where its keys are, also while slots and primaries move.

The law of this file: a redirect proves that nothing was done, so what was redirected is asked again elsewhere, within
its deadline; nothing else ever is. A request whose keys lie in several slots is cut into parts (see parts.py): all but
the tenant's are asked at once, the tenant's is the commit, and what they took is given back when it refuses. While a
slot is on its way from one server to another, the keys of one part may lie on both, and no server can take them at
once: then each key is a part. Replicas are never asked.

Servers have clocks of their own: a bucket counts by that of the server its slot is on. When a slot moves, or a replica
is promoted, whose clock is ahead, what was used drains sooner by the difference; a clock that is behind waits.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable
from functools import partial
from typing import TYPE_CHECKING, Any, Final, TypeVar

from shield.core import Outcome, Step
from shield.errors import StoreError, StoreProtocolError, StoreTimeout
from shield.store.greeting import introduction, version_of
from shield.store.holders import NO_ROOM, Holders
from shield.store.instants import Instants
from shield.store.lane import Late, Moved, Unsettled
from shield.store.naming import slot_of
from shield.store.parts import (
    Keys,
    before,
    by_slot,
    has_penalties,
    is_given_back,
    join,
    part_of,
    penalised,
    took,
)
from shield.store.primary import TAKEN, Primary
from shield.store.steps import Forms
from shield.store.topology import Place, Topology
from shield.store.undoing import Undoing

if TYPE_CHECKING:
    from shield.store import Settlement
    from shield.store.key_wire import KeyClaim
    from shield.store.target import Target

T = TypeVar("T")
# A slot that moves redirects once, and once more when the answer was already old; the others are for a cluster whose
# servers do not agree yet.
MAX_REDIRECTS: Final = 5
# Between two readings of the map, however many requests ask for one.
PAUSE_S: Final = 0.05
# How soon a server that is gone is noticed and the map read again; a promotion is in force that much later at most.
LOOK_EVERY_S: Final = 0.1
# The map is read again even where nothing seems wrong, so that servers that hold nothing any more are let go.
READ_EVERY_S: Final = 10.0


class Cluster:
    """All primaries of a cluster. `forget` hears of buckets that get something back."""

    def __init__(
        self, target: Target, forms: Forms, instants: Instants, *, forget: Callable[[Settlement], None]
    ) -> None:
        self.where = target.where
        """Where it is, without credentials."""
        self._target = target
        self._forms = forms
        self._instants = instants
        self._forget = forget
        self._deadline_s = target.deadline_us / 1_000_000
        slack_ms = target.ttl_slack_us // 1000
        self._holders = Holders(self.run, forms.naming, instants.wire, slack_ms=slack_ms)
        self._undoing = Undoing(self.run, self._holders, forms, instants, slack_ms=slack_ms, forget=forget)
        self._map = Topology(
            target.seeds,
            lambda host, port: target.make(host=host, port=port),
            connect_timeout_s=target.connect_timeout_us / 1_000_000,
        )
        self._primaries: dict[Place, Primary] = {}
        self._opening: dict[Place, asyncio.Task[None]] = {}
        self._watch: asyncio.Task[None] | None = None
        self._stale = asyncio.Event()
        self._known_version = False
        self._last_error = "still connecting"
        self._counts = dict.fromkeys(("redirects", "split_steps"), 0)

    # ---- life ----------------------------------------------------------------------------------------------

    async def open(self) -> None:
        """Reads the map and connects to every primary. A cluster that cannot be reached is no error: steps fail until
        it is there. StoreError when it refuses us, or is none.
        """
        if self._watch is not None:
            return
        try:
            await self._look()
        except StoreProtocolError:
            await self.close()
            raise
        except StoreError as error:
            self._last_error = str(error)
        self._watch = asyncio.get_running_loop().create_task(self._keep_looking())

    async def close(self) -> None:
        """Closes the connections; whoever still waits gets a StoreError."""
        tasks: list[asyncio.Task[Any]] = [*self._opening.values()]
        if self._watch is not None:
            tasks.append(self._watch)
            self._watch = None
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, self._undoing.close(), return_exceptions=True)
        primaries, self._primaries = self._primaries, {}
        self._opening.clear()
        for primary in primaries.values():
            await primary.close()

    async def _keep_looking(self) -> None:
        loop = asyncio.get_running_loop()
        read_at = loop.time()
        while True:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(LOOK_EVERY_S):
                    await self._stale.wait()
            if self._in_order() and loop.time() - read_at < READ_EVERY_S:
                continue
            self._stale.clear()
            try:
                await self._look()
                read_at = loop.time()
            except Exception as error:
                # Whatever servers and name services come up with, the next try may do better.
                self._last_error = str(error) or type(error).__name__
            await asyncio.sleep(PAUSE_S)

    def _in_order(self) -> bool:
        if self._stale.is_set() or self._map.unserved or not self._known_version:
            return False
        return all((one := self._primaries.get(place)) is not None and one.ready for place in self._map.primaries)

    async def _look(self) -> None:
        """Reads the map, connects to whoever is new in it and lets go of whoever holds nothing any more."""
        await self._map.read()
        await asyncio.gather(*[self._reach(place) for place in self._map.primaries], return_exceptions=True)
        for place in [place for place in self._primaries if place not in self._map.primaries]:
            primary = self._primaries[place]
            if place not in self._opening and not primary.link.in_flight:
                del self._primaries[place]
                await primary.close()
        if not self._known_version:
            await self._check_version()

    async def _check_version(self) -> None:
        for command, accept in version_of(self._forms.version_key):
            try:
                reply: Any = await self.ask(command, self._forms.version_key)
            except StoreProtocolError as error:
                reply = error
            accept(reply)
        self._known_version = True

    async def _reach(self, place: Place) -> Primary:
        """The server at a place, connected, or known to be unreachable."""
        primary = self._primaries.get(place)
        if primary is None:
            primary = self._primaries[place] = Primary(
                partial(self._target.make, host=place[0], port=place[1]),
                self._target,
                self._forms,
                self._instants,
                where=f"{place[0]}:{place[1]}",
                forget=self._forget,
                undo=self._undoing.late,
                greeting=introduction(),
            )
            self._opening[place] = asyncio.get_running_loop().create_task(primary.open())
            self._opening[place].add_done_callback(partial(self._opened, place))
        if (opening := self._opening.get(place)) is not None:
            await asyncio.shield(opening)
        return primary

    def _opened(self, place: Place, task: asyncio.Task[None]) -> None:
        self._opening.pop(place, None)
        if not task.cancelled() and (error := task.exception()) is not None:
            # It has refused us. It is asked again when the map is read again, or a request comes that needs it.
            self._last_error = str(error)
            self._primaries.pop(place, None)

    @property
    def up(self) -> bool:
        """Whether a connection is up."""
        return any(primary.up for primary in self._primaries.values())

    @property
    def ready(self) -> bool:
        """Whether a step would be tried now, wherever its keys are."""
        return self._known_version and not self._map.unserved and self._in_order()

    def stats(self) -> dict[str, int]:
        """Counts since the start, and gauges, of all servers together."""
        total: dict[str, int] = {"primaries": len(self._map.primaries), "slots_unserved": self._map.unserved}
        total["map_reads"] = self._map.reads
        for found in (self._counts, self._undoing.counts, *(primary.stats() for primary in self._primaries.values())):
            for name, value in found.items():
                total[name] = total.get(name, 0) + value
        return total

    # ---- asking --------------------------------------------------------------------------------------------

    async def _at(self, slot: int, ask: Callable[[Primary, bool], Awaitable[T]], deadline: float | None = None) -> T:
        """Asks whoever holds a slot, following redirects."""
        loop = asyncio.get_running_loop()
        if deadline is None:
            deadline = loop.time() + self._deadline_s
        place, asking = self._map.holder(slot), False
        for _ in range(MAX_REDIRECTS):
            if place is None:
                self._stale.set()
                raise StoreError(f"no server of the cluster holds slot {slot}: {self._last_error}")
            primary = self._primaries.get(place)
            if primary is None or place in self._opening:
                try:
                    async with asyncio.timeout_at(deadline):
                        primary = await self._reach(place)
                except TimeoutError:
                    raise StoreTimeout(f"no answer from the store within {self._deadline_s * 1000:g} ms") from None
            try:
                return await ask(primary, asking)
            except Moved as error:
                self._counts["redirects"] += 1
                place, asking = (error.host or place[0], error.port), error.ask
                if not asking:
                    self._map.moved(slot, place)
                    self._stale.set()
            except Unsettled:
                raise
            except StoreError:
                if not primary.up:
                    self._stale.set()
                raise
        raise StoreError(f"the servers of the cluster do not agree who holds slot {slot}")

    async def run(self, call: bytes, key: bytes, *, late: Late | None = None, lasting: bool = False) -> Any:
        """Runs a script where a key is."""
        return await self._at(
            slot_of(key), lambda primary, asking: primary.run(call, asking=asking, late=late, lasting=lasting)
        )

    async def ask(self, call: bytes, key: bytes) -> Any:
        """One command, where a key is."""
        return await self._at(slot_of(key), lambda primary, asking: primary.ask(call, asking=asking))

    async def each(self, call: bytes) -> list[Any]:
        """One command to every server."""
        return list(await asyncio.gather(*[primary.ask(call) for primary in self._primaries.values()]))

    # ---- the step ------------------------------------------------------------------------------------------

    async def decide(self, step: Step) -> Outcome:
        """What became of one request, all of whose parts took or none."""
        deadline = asyncio.get_running_loop().time() + self._deadline_s
        parts = by_slot(step)
        if len(parts) == 1:
            step.slot = parts[0][0]
            return await self._decide_at(step, deadline)
        return await self._decide_parts(step, parts, deadline)

    async def _decide_at(self, step: Step, deadline: float) -> Outcome:
        """A part whose keys all have the same slot."""
        try:
            return await self._at(
                step.slot, lambda primary, asking: primary.decide(step, deadline, asking=asking), deadline
            )
        except Unsettled:
            if step.alone:
                if step.claim is not None and not step.claim.apart:
                    return await self._decide_apart(step, step.claim, deadline)
                raise
            self._counts["split_steps"] += 1
            each: list[tuple[int, Keys]] = [(step.slot, (key,)) for key in step.keys_in_order()]
            if step.claim is not None:
                each.append((step.slot, ()))
            return await self._decide_parts(step, each, deadline, alone=True)

    async def _decide_apart(self, step: Step, claim: KeyClaim, deadline: float) -> Outcome:
        """A part that is an idempotency key alone, whose record and whose holder's set lie on two servers."""
        try:
            async with asyncio.timeout_at(deadline):
                place = await self._holders.reserve(claim)
        except TimeoutError:
            raise StoreTimeout(f"no answer from the store within {self._deadline_s * 1000:g} ms") from None
        claim.part(room=place != NO_ROOM)
        outcome = await self._decide_at(step, deadline)
        await self._holders.follow(claim, place, taken=took(step, outcome))
        return outcome

    async def _decide_parts(
        self, step: Step, parts: list[tuple[int, Keys]], deadline: float, *, alone: bool = False
    ) -> Outcome:
        *first, last = parts
        heard: list[tuple[Step, Outcome]] = []
        try:
            asked = [part_of(step, *one, alone=alone, penal=step.claim is None) for one in first]
            heard += await self._decide_all(asked, deadline)
            refused = any(outcome.status != TAKEN for _, outcome in heard)
            commit = part_of(step, *last, alone=alone, refused=refused)
            commit.claim = step.claim
            heard.append((commit, await self._decide_at(commit, deadline)))
        except BaseException:
            for part, outcome in heard:
                self._undoing.start(part, outcome)
            raise
        if not all(took(part, outcome) for part, outcome in heard):
            # Given back before the answer is: whoever is told that it cost nothing can rely on it.
            back = [is_given_back(part, outcome, step.claim) for part, outcome in heard]
            waiting = [
                self._undoing.start(*one, but_penalties=True) for one, given in zip(heard, back, strict=True) if given
            ]
            if waiting:
                await asyncio.wait(waiting, timeout=max(0.0, deadline - asyncio.get_running_loop().time()))
            heard = [(one[0], before(*one)) if given else one for one, given in zip(heard, back, strict=True)]
            if step.claim is not None and not step.claim.answered:
                owed = [i for i, one in enumerate(first) if has_penalties(step, one[1])]
                asked = [part_of(step, *first[i], alone=alone, refused=True) for i in owed]
                for i, (part, after) in zip(owed, await self._decide_all(asked, deadline), strict=True):
                    heard[i] = part, penalised(part, heard[i][1], after)
        return join(step, heard)

    async def _decide_all(self, asked: list[Step], deadline: float) -> list[tuple[Step, Outcome]]:
        """Parts side by side. When one fails the others are given back."""
        if not asked:
            return []
        if len(asked) == 1:
            return [(asked[0], await self._decide_at(asked[0], deadline))]
        tasks = [asyncio.ensure_future(self._decide_at(part, deadline)) for part in asked]
        try:
            await asyncio.wait(tasks)
        except BaseException:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            self._undoing.those(asked, tasks)
            raise
        failed = [error for task in tasks if (error := task.exception()) is not None]
        if failed:
            self._undoing.those(asked, tasks)
            raise failed[0]
        return [(part, task.result()) for part, task in zip(asked, tasks, strict=True)]
