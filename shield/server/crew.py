"""The workers of a supervisor: each slot always has one, or soon will, and each listener somebody who accepts.

Listening sockets are bound once, by the supervisor, and live as long as it does; what changes is who accepts on
them. A TCP address has one socket for each slot. While a slot's worker is dead or quiet a neighbour accepts on
the slot's socket too, or connections that the kernel puts there would wait for nobody. A unix socket is everybody's.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any

from shield.errors import ShieldError
from shield.server.backoff import Backoff
from shield.server.bounds import (
    COUNT_S,
    MAX_FIRST_STARTS,
    QUIET_TICKS,
    SILENT_TICKS,
    TICK_S,
    WORKER_END_S,
    WORKER_READY_S,
)
from shield.server.control import Accept, Count, Drain, Hurry, Leave, Start
from shield.server.counts import Counts
from shield.server.exposition import GAUGES
from shield.server.logs import Log, fault_fields
from shield.server.measures import MeetingPoint
from shield.server.sockets import Bound, StartError, UsageError
from shield.server.worker_process import CAUSES, EXIT, SIGNAL, SILENT, UNABLE, WorkerProcess

# The first message for a slot's next worker, and the generation that it is of.
Starting = Callable[[int, bool], tuple[Start, int]]
Joining = Callable[[WorkerProcess], Awaitable[None]]


@dataclass
class Slot:
    """A worker's place, and what is remembered of those that had it before. Numbers are from 1."""

    number: int
    worker: WorkerProcess | None = None
    starts: int = 0
    deaths: dict[str, int] = field(default_factory=lambda: dict.fromkeys(CAUSES, 0))
    dead: Counts = field(default_factory=Counts)
    """The counts of those who have ended."""
    backoff: Backoff = field(default_factory=Backoff)

    def counts(self) -> Counts:
        """What this slot's workers have counted, the dead ones too."""
        total = Counts()
        total.add(self.dead)
        if self.worker is not None:
            total.add(self.worker.counts)
        return total

    def bury(self, worker: WorkerProcess) -> None:
        """It has ended; what it counted stays."""
        self.dead.add(worker.counts.of_the_dead(GAUGES))
        self.worker = None


@dataclass
class Listening:
    """A bound socket, whose it is (None: everybody's), and who accepts on it now."""

    bound: Bound
    slot: Slot | None
    holders: set[WorkerProcess] = field(default_factory=set)


class Crew:
    """Keeps `workers` of them running. `starting` says what the next one of a slot is told (`True`: it is the
    slot's first); `joining` admits one that is ready.
    """

    def __init__(self, workers: int, starting: Starting, joining: Joining, log: Log) -> None:
        self.slots = [Slot(number) for number in range(1, workers + 1)]
        self.started = False
        self._starting = starting
        self._joining = joining
        self._log = log
        self._meeting_point = MeetingPoint(self.admitted)
        self._listening: list[Listening] = []
        self._tasks: list[asyncio.Task[None]] = []
        self._ending = asyncio.Event()

    def admitted(self) -> list[WorkerProcess]:
        """Those who may decide."""
        return [slot.worker for slot in self.slots if slot.worker is not None and slot.worker.admitted]

    def listen(self, bound: Bound, worker: int | None) -> None:
        """A socket to accept on, for the worker of this index or for all."""
        self._listening.append(Listening(bound, self.slots[worker] if worker is not None else None))

    # ---- life ----------------------------------------------------------------------------------------------

    async def start(self) -> None:
        """Returns when all decide. StartError when one cannot; UsageError when it was told what cannot be right."""
        all_admitted = asyncio.get_running_loop().create_future()
        self._all_admitted: asyncio.Future[None] = all_admitted
        self._tasks = [asyncio.create_task(self._keep(slot)) for slot in self.slots]
        self._tasks.append(asyncio.create_task(self._watch()))
        ending = asyncio.create_task(self._ending.wait())
        await asyncio.wait((all_admitted, ending), return_when=asyncio.FIRST_COMPLETED)
        ending.cancel()
        if all_admitted.done():
            all_admitted.result()

    def admit(self, worker: WorkerProcess) -> None:
        """It knows all that the others know. At the start nobody accepts before everybody can."""
        if worker.gone or self._ending.is_set():
            return
        worker.admitted = True
        if not self.started and len(self.admitted()) == len(self.slots):
            self.started = True
            if not self._all_admitted.done():
                self._all_admitted.set_result(None)
        self._assign()

    async def _keep(self, slot: Slot) -> None:
        loop = asyncio.get_running_loop()
        while not self._ending.is_set():
            pid: int | None = None
            lived_s = 0.0
            unable: ShieldError | None = None
            slot.starts += 1
            try:
                worker = slot.worker = WorkerProcess(*self._starting(slot.number, slot.starts == 1))
            except OSError as error:
                why: dict[str, Any] = {"cause": UNABLE, "why": error.strerror or str(error)}
            else:
                pid = worker.pid
                worker.on_told = self._meeting_point.told
                why = await self._live(worker)
                lived_s = loop.time() - worker.ready_s if worker.ready is not None else 0.0
                if worker.unable is not None:
                    unable = (UsageError if worker.unable.misuse else StartError)(worker.unable.why)
                slot.bury(worker)
            if self._ending.is_set():
                if why["cause"] in (SIGNAL, EXIT) and why.get("exit") != 0:
                    self._log.error("worker died", worker=slot.number, pid=pid, **why)
                return
            slot.deaths[why["cause"]] += 1
            self._assign()
            if not self.started and (unable is not None or slot.starts >= MAX_FIRST_STARTS):
                self._give_up(slot, unable, why)
                return
            pause_s = slot.backoff.pause_s(lived_s)
            self._log.error(
                "worker died",
                worker=slot.number,
                pid=pid,
                **why,
                lived_s=round(lived_s, 3),
                next_in_s=round(pause_s, 3),
            )
            await self._pause(pause_s)

    async def _live(self, worker: WorkerProcess) -> dict[str, Any]:
        """A worker's life; how it ended."""
        following = asyncio.create_task(worker.follow())
        try:
            async with asyncio.timeout(WORKER_READY_S):
                await worker.spoken.wait()
        except TimeoutError:
            worker.kill(SILENT)
        try:
            if worker.ready is not None:
                await self._joining(worker)
        except Exception as error:
            self._log.error("worker cannot join", worker=worker.number, **fault_fields(error))
            worker.kill(UNABLE)
        await following
        return await worker.exit()

    def _give_up(self, slot: Slot, unable: ShieldError | None, why: dict[str, Any]) -> None:
        if unable is None:
            last = ", ".join(f"{name} {value}" for name, value in why.items())
            unable = StartError(
                f"worker {slot.number} ended {slot.starts} times before it could decide, at last by {last}; "
                "its own lines on standard error say more"
            )
        if not self._all_admitted.done():
            self._all_admitted.set_exception(unable)

    async def _pause(self, pause_s: float) -> None:
        try:
            async with asyncio.timeout(pause_s):
                await self._ending.wait()
        except TimeoutError:
            pass

    async def _watch(self) -> None:
        """Counts the silence of workers in ticks of this loop: one that slept through it has not waited."""
        while True:
            await asyncio.sleep(TICK_S)
            for worker in self.admitted():
                worker.quiet_ticks += 1
                if worker.quiet_ticks == QUIET_TICKS:
                    self._log.warning("worker is quiet", worker=worker.number, pid=worker.pid)
                if worker.quiet_ticks >= SILENT_TICKS:
                    worker.kill(SILENT)
            self._assign()

    # ---- who accepts on what -------------------------------------------------------------------------------

    def _assign(self) -> None:
        if not self.started or self._ending.is_set():
            return
        ready = self.admitted()
        able = [worker for worker in ready if worker.quiet_ticks < QUIET_TICKS] or ready
        load = dict.fromkeys(able, 0)
        for listening in self._listening:
            for holder in listening.holders & load.keys():
                load[holder] += 1
        for key, listening in enumerate(self._listening):
            wanted = self._wanted(listening, ready, able, load)
            for worker in listening.holders - wanted:
                worker.send(Leave(key))
            for worker in wanted - listening.holders:
                worker.send(Accept(key), listening.bound.socket)
                load[worker] = load.get(worker, 0) + 1
            listening.holders = wanted

    def _wanted(
        self,
        listening: Listening,
        ready: list[WorkerProcess],
        able: list[WorkerProcess],
        load: dict[WorkerProcess, int],
    ) -> set[WorkerProcess]:
        if listening.slot is None:
            return set(ready)
        own = listening.slot.worker
        wanted = {own} if own is not None and own in ready else set()
        if able and not wanted & set(able):
            minding = listening.holders & set(able)
            wanted |= minding or {min(able, key=lambda worker: (load[worker], worker.number))}
        return wanted

    # ---- counts --------------------------------------------------------------------------------------------

    async def count(self) -> None:
        """Asks for the counts of now. Whoever does not answer in time is shown as it was last."""
        asked = [worker for worker in self.admitted() if worker.quiet_ticks < QUIET_TICKS]
        await asyncio.gather(*(worker.ask(Count, within_s=COUNT_S) for worker in asked))

    # ---- ending --------------------------------------------------------------------------------------------

    async def drain(self, grace_s: float, hurry: asyncio.Event) -> None:
        """Nobody accepts any more, what is in flight finishes, and all end; at most `grace_s`, or until `hurry`."""
        self._ending.set()
        # A socket whose last holder stops accepting must be closed then, or who connects later would wait in it.
        self._close_sockets()
        for slot in self.slots:
            if slot.worker is not None and slot.worker.admitted:
                slot.worker.send(Drain(grace_s))
        await self._end(grace_s + WORKER_END_S, hurry)

    async def close(self) -> None:
        """Ends whatever is left, also after a start that failed half-way."""
        self._ending.set()
        self._close_sockets()
        now = asyncio.Event()
        now.set()
        await self._end(0.0, now)

    async def _end(self, timeout_s: float, hurry: asyncio.Event) -> None:
        for slot in self.slots:
            if slot.worker is not None and not slot.worker.admitted:
                slot.worker.kill(SILENT)  # it starts, and has nothing to finish
        keeping = self._tasks[:-1]
        if not keeping:
            return
        ended = asyncio.gather(*keeping, return_exceptions=True)
        hurried = asyncio.create_task(hurry.wait())
        await asyncio.wait((ended, hurried), timeout=timeout_s, return_when=asyncio.FIRST_COMPLETED)
        hurried.cancel()
        if not ended.done():
            for slot in self.slots:
                if slot.worker is not None:
                    slot.worker.send(Hurry())
                    slot.worker.send(Drain(0.0))
            await asyncio.wait((ended,), timeout=WORKER_END_S)
        for slot in self.slots:
            if slot.worker is not None:
                self._log.error("worker did not end and is killed", worker=slot.number, pid=slot.worker.pid)
                slot.worker.kill(SILENT)
        await ended
        self._tasks[-1].cancel()
        self._tasks = []

    def _close_sockets(self) -> None:
        for listening in self._listening:
            listening.bound.close()
        self._listening.clear()
