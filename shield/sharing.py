"""Detectors of several processes as if they were one: the loop that carries what each has counted to the others.

Once a second a process hands over a parcel of what it has counted and takes those of the others; no check waits for it.
Where parcels pass is an Exchange: the store, or the supervisor of a host's workers.

A detection is told once. Each process finds it by itself, perhaps several in the same second; before it is told it is
claimed at the exchange, which gives it to the first that asks and to nobody else while the detector is quiet about the
key. That takes as long as one request to the store. Who cannot reach the exchange tells without: at worst once in every
process, never not at all.

A parcel that may not have arrived is handed over again as it is, with its number: who has had it passes over it.
"""

from __future__ import annotations

import asyncio
import os
from collections import OrderedDict, deque
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from hashlib import blake2s
from typing import TYPE_CHECKING, Final

from shield.detect.detection import Detection
from shield.detect.exchange import OWNER_BYTES, Claim, Exchange, Said
from shield.errors import StoreError
from shield.request import Request

if TYPE_CHECKING:
    from shield.abuse import Abuse
    from shield.store import RemoteStore, Store
    from shield.store.table import TableStore

EXCHANGE_S: Final = 1.0
"""How often a process tells and hears: the lag between two of them is this, and the way there."""
CLAIM_S: Final = 0.005
"""Detections wait so long for others to be claimed along with."""
CLAIMS_AT_ONCE: Final = 256
CLAIM_TRIES: Final = 2
MIN_CLAIM_US: Final = 2_000_000
"""A detector that is never quiet still tells once of what several processes find within the lag."""
MAX_HELD: Final = 4_096
"""Detections that wait for their claim, with their requests. More are told at once, and counted."""
MAX_NODES: Final = 1_024
"""Whose last number is remembered; the one heard longest ago is forgotten first."""


@dataclass(slots=True)
class _Held:
    detection: Detection
    request: Request
    claim: Claim
    tries: int = 0


class Sharing:
    """Shares what `abuse` sees through `exchange`. `secret` answers with what all of its processes agree on."""

    def __init__(self, abuse: Abuse, exchange: Exchange, secret: Callable[[], Awaitable[bytes]]) -> None:
        self._abuse = abuse
        self._exchange = exchange
        self._secret = secret
        self._agreed = False
        self._node = os.urandom(8)
        self._number = 0
        self._claims = 0
        self._unheard: tuple[int, int, bytes] | None = None  # number, instant and parcel that nobody may have yet
        self._held: deque[_Held] = deque()
        self._numbers: OrderedDict[bytes, int] = OrderedDict()
        self._news = asyncio.Event()
        self._task: asyncio.Task[None] | None = None
        names = "said", "heard", "unreadable", "failures", "told_elsewhere", "told_unclaimed"
        self._counts = dict.fromkeys(names, 0)

    def stats(self) -> dict[str, int]:
        """Counts since the start; `unsaid`: changes of keys that there was no room for; `nodes`: others heard of."""
        return {**self._counts, "unsaid": self._abuse.unsaid, "nodes": len(self._numbers)}

    async def start(self) -> None:
        """Meets the others once, so that from now on it hears of what happens, and goes on by itself."""
        if self._task is None:
            await self.swap(counts=False)
            self._task = asyncio.get_running_loop().create_task(self._run())

    async def stop(self) -> None:
        """Ends. Detections that still wait are told."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
            self._task = None
        self._abuse.unshare()
        while self._held:
            self._tell(self._held.popleft())

    async def _run(self) -> None:
        loop = asyncio.get_running_loop()
        due = loop.time() + EXCHANGE_S
        while True:
            try:
                async with asyncio.timeout_at(due):
                    await self._news.wait()
                await asyncio.sleep(CLAIM_S)
            except TimeoutError:
                pass
            self._news.clear()
            full = loop.time() >= due
            if full:
                due = loop.time() + EXCHANGE_S
            await self.swap(counts=full)

    async def swap(self, *, counts: bool = True) -> None:
        """One exchange. `counts`: what was counted is handed over too; without, claims alone, and what is heard."""
        if not self._abuse.watches:
            return
        try:
            await self._agree()
            claims = [self._held[at] for at in range(min(len(self._held), CLAIMS_AT_ONCE))]
            swapped = await self._exchange.swap(self._said(counts), [one.claim for one in claims])
        except Exception as error:  # whatever it is, the next second is another one
            if not isinstance(error, StoreError):
                asyncio.get_running_loop().call_exception_handler(
                    {"message": "detectors cannot share what they see", "exception": error}
                )
            self._counts["failures"] += 1
            self._give_up()
            return
        if counts and self._unheard is not None:
            self._unheard = None
            self._counts["said"] += 1
        for won in swapped.won[: len(claims)]:
            held = self._held.popleft()
            if won:
                self._abuse.tell(held.detection, held.request)
            else:
                self._counts["told_elsewhere"] += 1
        for said in swapped.heard:
            self._hear(said)
        if self._held:
            self._news.set()

    async def _agree(self) -> None:
        if not self._agreed:
            secret = await self._secret()
            self._abuse.share(blake2s(secret, person=b"detect", digest_size=16).digest(), self._hold)
            self._agreed = True

    def _said(self, counts: bool) -> Said | None:
        if not counts:
            return None
        now_us = self._abuse.now_us()
        if self._unheard is None:
            data = self._abuse.say(now_us)
            if data:
                self._number += 1
                self._unheard = self._number, now_us, data
        if self._unheard is None:
            return None
        number, made_us, data = self._unheard
        return Said(self._node, number, max(0, now_us - made_us), data)

    def _hear(self, said: Said) -> None:
        last = self._numbers.pop(said.node, -1)
        if len(self._numbers) >= MAX_NODES:
            self._numbers.popitem(last=False)
        self._numbers[said.node] = max(last, said.number)
        if said.node == self._node or said.number <= last:
            if said.node == self._node:
                del self._numbers[said.node]
            return
        self._counts["heard"] += 1
        try:
            self._abuse.hear(said.data, said.held_us)
        except ValueError:
            self._counts["unreadable"] += 1

    # ---- detections ------------------------------------------------------------------------------------------

    def _hold(self, detection: Detection, request: Request) -> None:
        """A detection, until it is known who tells of it."""
        self._claims += 1
        owner = self._node + self._claims.to_bytes(OWNER_BYTES - len(self._node), "big")
        lasts_us = max(detection.detector.quiet_us, MIN_CLAIM_US)
        held = _Held(detection, request, Claim(detection.mark, owner, lasts_us))
        if len(self._held) >= MAX_HELD:
            self._tell(held)
            return
        self._held.append(held)
        self._news.set()

    def _tell(self, held: _Held) -> None:
        self._counts["told_unclaimed"] += 1
        self._abuse.tell(held.detection, held.request)

    def _give_up(self) -> None:
        """The exchange cannot be reached: what was tried often enough is told by whoever found it."""
        for held in self._held:
            held.tries += 1
        while self._held and self._held[0].tries >= CLAIM_TRIES:
            self._tell(self._held.popleft())
        if self._held:
            self._news.set()


class SharedDetectors:
    """The part of `shield.Shield` that shares what its detectors see."""

    abuse: Abuse
    _local: TableStore
    _remote: RemoteStore | None
    _secret: bytes | None
    store: Store
    _exchange: Exchange | None = None
    _sharing: Sharing | None = None

    def share_through(self, exchange: Exchange) -> None:
        """Detectors share what they see with the processes that meet there. To be called before `open`; a remote store
        is such a place by itself.
        """
        self._exchange = exchange

    async def _start_sharing(self) -> None:
        exchange = self._exchange or getattr(self.store, "exchange", None)
        if exchange is not None and self._sharing is None:
            self._sharing = Sharing(self.abuse, exchange, self._secret_of_all)
            await self._sharing.start()

    async def _stop_sharing(self) -> None:
        if self._sharing is not None:
            await self._sharing.stop()
            self._sharing = None

    async def _secret_of_all(self) -> bytes:
        """What the processes that share detectors agree on. StoreError."""
        if self._secret is not None:
            return self._secret
        return self._local.secret if self._remote is None else await self._remote.shared_secret()

    def _abuse_stats(self) -> dict[str, int]:
        sharing = {} if self._sharing is None else self._sharing.stats()
        return {**self.abuse.block_stats(), **{f"sharing_{name}": count for name, count in sharing.items()}}
