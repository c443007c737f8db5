"""Where the detectors of one host's workers meet: at their supervisor, which passes on what each says to the others and
remembers who tells of what was detected. A worker that dies loses what it had not said, at most a second of it.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence
from itertools import count
from typing import TYPE_CHECKING, Final

from shield.detect.exchange import Claim, Said, Swapped
from shield.errors import StoreError
from shield.server.bounds import QUIET_TICKS
from shield.server.control import Channel, Claimed, ControlError, Heard, Told

if TYPE_CHECKING:
    from shield.server.worker_process import WorkerProcess

ANSWER_S: Final = 1.0
"""What a worker waits for its supervisor, who has nothing else to do; then it tells of detections by itself."""
MAX_WAITING: Final = 1_024
"""Parcels of other workers that one has not taken in yet: four seconds of 256 of them. The oldest go first."""
MAX_CLAIMS: Final = 65_536
"""Remembered by the supervisor, 150 bytes each; the one that ends first goes first."""


class WorkerExchange:
    """A worker's end. `received` is given what its supervisor sends."""

    def __init__(self, channel: Channel) -> None:
        self._channel = channel
        self._ids = count(1)
        self._asked: dict[int, asyncio.Future[Sequence[bool]]] = {}
        self._waiting: list[tuple[int, Heard]] = []

    async def swap(self, said: Said | None, claims: Sequence[Claim]) -> Swapped:
        """StoreError when the supervisor does not answer in time."""
        id = next(self._ids)
        told = Told(id, claims=[(claim.mark, claim.owner, claim.lasts_us) for claim in claims])
        if said is not None:
            told.node, told.number, told.held_us, told.data = said.node, said.number, said.held_us, said.data
        won: Sequence[bool] = ()
        if claims:
            won = await self._answer(id, told)
        elif said is not None:
            self._send(told)
        waiting, self._waiting = self._waiting, []
        now_us = _passing_us()
        return Swapped(won, [Said(one.node, one.number, one.held_us + now_us - at, one.data) for at, one in waiting])

    async def _answer(self, id: int, told: Told) -> Sequence[bool]:
        answer: asyncio.Future[Sequence[bool]] = asyncio.get_running_loop().create_future()
        self._asked[id] = answer
        try:
            self._send(told)
            async with asyncio.timeout(ANSWER_S):
                return await answer
        except TimeoutError:
            raise StoreError("the supervisor did not say in time who tells of a detection") from None
        finally:
            del self._asked[id]

    def _send(self, told: Told) -> None:
        try:
            self._channel.send(told)
        except ControlError as error:
            raise StoreError(f"the supervisor cannot be told: {error}") from None

    def received(self, message: Heard | Claimed) -> None:
        """What the supervisor sent."""
        if isinstance(message, Heard):
            self._waiting.append((_passing_us(), message))
            del self._waiting[:-MAX_WAITING]
        elif (answer := self._asked.get(message.id)) is not None and not answer.done():
            answer.set_result(message.won)


class MeetingPoint:
    """The supervisor's end. `workers` answers with those who decide."""

    def __init__(self, workers: Callable[[], Sequence[WorkerProcess]]) -> None:
        self._workers = workers
        self._claims: dict[bytes, tuple[int, bytes]] = {}

    def told(self, worker: WorkerProcess, told: Told) -> None:
        """Passes on what a worker said, and answers its claims."""
        if told.data:
            heard = Heard(told.node, told.number, told.held_us, told.data)
            for other in self._workers():
                # One that stands still is not sent what it does not read.
                if other is not worker and other.quiet_ticks < QUIET_TICKS:
                    other.send(heard)
        if told.claims:
            now_us = _passing_us()
            worker.send(Claimed(told.id, [self._claim(now_us, *claim) for claim in told.claims]))

    def _claim(self, now_us: int, mark: bytes, owner: bytes, lasts_us: int) -> bool:
        until_us, holder = self._claims.get(mark, (0, b""))
        if until_us > now_us:
            return holder == owner
        if len(self._claims) >= MAX_CLAIMS:
            self._claims = {mark: one for mark, one in self._claims.items() if one[0] > now_us}
            if len(self._claims) >= MAX_CLAIMS:
                del self._claims[min(self._claims, key=lambda mark: self._claims[mark][0])]
        self._claims[mark] = now_us + lasts_us, owner
        return True


def _passing_us() -> int:
    return time.monotonic_ns() // 1000
