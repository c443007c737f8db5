"""Which server of a cluster holds which slot: what CLUSTER SLOTS answered last, and what redirects have said since.

The law of this file: a map is never trusted, only used: a server that does not hold a slot says so and does nothing.
All servers that are known are asked at once, so that one that hangs costs nothing; the first answer counts. Connecting,
TLS and authentication are redis-py's.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Iterable
from typing import Any, Final

from shield.errors import StoreError, StoreProtocolError
from shield.store.lane import Transport, is_for_good, reason
from shield.store.naming import SLOTS
from shield.store.resp import encode

Place = tuple[str, int]
"""Host and port."""
# A cluster has at most a thousand servers by Redis' own advice, and an answer names their replicas, too.
MAX_PLACES: Final = 1_000
# Who of them is asked when the map is read again: those who are there answer within a round trip.
MAX_ASKED: Final = 8
_ASK: Final = encode((b"CLUSTER", b"SLOTS"))


class Topology:
    """The map of one cluster. `make(host, port)` is a connection that is not connected yet."""

    def __init__(
        self, seeds: Iterable[Place], make: Callable[[str, int], Transport], *, connect_timeout_s: float
    ) -> None:
        self._seeds = tuple(seeds)
        self._make = make
        self._timeout_s = connect_timeout_s
        self._slots: list[Place | None] = [None] * SLOTS
        self.primaries: frozenset[Place] = frozenset()
        """Whoever holds a slot."""
        self.unserved = SLOTS
        """Slots that nobody holds, as far as is known."""
        self.reads = 0
        """How often the map was read."""

    def holder(self, slot: int) -> Place | None:
        """Who holds a slot, as far as is known."""
        return self._slots[slot]

    def moved(self, slot: int, place: Place) -> None:
        """What a server said that does not hold it any more."""
        if 0 <= slot < SLOTS:
            self._slots[slot] = place

    async def read(self) -> None:
        """Asks for the map anew. StoreError when nobody answers; StoreProtocolError when none is part of a cluster."""
        asked = list(dict.fromkeys((*self.primaries, *self._seeds)))[:MAX_ASKED]
        tasks = [asyncio.create_task(self._ask(place)) for place in asked]
        problem: Exception | None = None
        try:
            for earliest in asyncio.as_completed(tasks):
                try:
                    self._adopt(await earliest)
                    return
                except Exception as error:
                    # Whatever one of them comes up with, another may know better.
                    if problem is None or is_for_good(error):
                        problem = error
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
        if isinstance(problem, StoreProtocolError):
            raise problem
        if problem is not None and is_for_good(problem):
            raise StoreProtocolError(f"the server refused the connection: {reason(problem)}")
        raise StoreError(f"not connected to the cluster: {reason(problem)}")

    async def _ask(self, place: Place) -> list[tuple[int, int, Place]]:
        connection = self._make(*place)
        try:
            async with asyncio.timeout(self._timeout_s):
                await connection.connect()
                await connection.send_packed_command(_ASK, check_health=False)
                reply = await connection.read_response(disconnect_on_error=False)
        finally:
            with contextlib.suppress(Exception):
                await connection.disconnect(nowait=True)
        return read_slots(reply, place[0])

    def _adopt(self, ranges: list[tuple[int, int, Place]]) -> None:
        slots: list[Place | None] = [None] * SLOTS
        for first, last, place in ranges:
            slots[first : last + 1] = [place] * (last - first + 1)
        self._slots = slots
        self.primaries = frozenset(place for place in slots if place is not None)
        self.unserved = slots.count(None)
        self.reads += 1


def read_slots(reply: Any, asked: str) -> list[tuple[int, int, Place]]:
    """(first slot, last slot, primary) from an answer to CLUSTER SLOTS. A server that does not know its own address
    means the one it was `asked` by. StoreError for an answer without slots, StoreProtocolError for any other.
    """
    try:
        ranges = []
        for first, last, primary, *_ in reply:
            host = primary[0].decode() if primary[0] else asked
            host = asked if host == "?" else host
            port = int(primary[1])
            if not (0 <= first <= last < SLOTS and 0 < port < 65536):
                raise ValueError("a slot that cannot be")
            ranges.append((first, last, (host, port)))
    except (TypeError, ValueError, AttributeError, IndexError, UnicodeDecodeError):
        raise StoreProtocolError("the server answered CLUSTER SLOTS with something else") from None
    if len({place for _, _, place in ranges}) > MAX_PLACES:
        raise StoreProtocolError(f"the cluster has more than {MAX_PLACES} primaries")
    if not ranges:
        raise StoreError("the cluster has assigned no slots yet")
    return ranges
