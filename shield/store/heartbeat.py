"""How many nodes share a store: each says once a second that it lives, and hears how many do.

What is heard last stands while the store is away: a node that decides alone then takes its share of every limit.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections.abc import Awaitable, Callable
from typing import Any, Final

from shield.errors import StoreError
from shield.store.resp import encode

INTERVAL_S: Final = 1.0
# A node that was not heard of for this long is gone. Until then it is counted, and the others take less than they may.
LIFETIME_US: Final = 5_000_000

# KEYS[1] a sorted set of nodes by the instant (us) they were last heard of; ARGV: this node's id ("" only counts), the
# lifetime in us. Returns how many live.
_SCRIPT: Final = b"""
local time = redis.call('TIME')
local now = time[1] * 1000000 + time[2]
if ARGV[1] ~= '' then redis.call('ZADD', KEYS[1], string.format('%.0f', now), ARGV[1]) end
redis.call('ZREMRANGEBYSCORE', KEYS[1], '-inf', string.format('%.0f', now - ARGV[2]))
redis.call('PEXPIRE', KEYS[1], math.ceil(ARGV[2] / 1000))
return redis.call('ZCARD', KEYS[1])
"""


class Heartbeat:
    """This node's sign of life. `ask` sends one encoded command about a key and brings its reply, or a
    StoreError.
    """

    def __init__(self, key: bytes, ask: Callable[[bytes, bytes], Awaitable[Any]]) -> None:
        self._key = key
        self._ask = ask
        self._id = os.urandom(8).hex().encode()
        self._task: asyncio.Task[None] | None = None
        self.nodes = 1
        """How many lived when it was last heard, this one included."""

    async def start(self) -> None:
        """Says it once, so that the number is known, and goes on by itself."""
        if self._task is None:
            await self.beat()
            self._task = asyncio.get_running_loop().create_task(self._run())

    async def stop(self) -> None:
        """The others hear of it when the lifetime is over, or sooner: it says goodbye if it can."""
        task, self._task = self._task, None
        if task is not None:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
            with contextlib.suppress(StoreError):
                await self._ask(encode((b"ZREM", self._key, self._id)), self._key)

    async def beat(self) -> None:
        """One sign of life."""
        lifetime = b"%d" % LIFETIME_US
        with contextlib.suppress(StoreError):
            count = await self._ask(encode((b"EVAL", _SCRIPT, b"1", self._key, self._id, lifetime)), self._key)
            if isinstance(count, int) and count > 0:
                self.nodes = count

    async def _run(self) -> None:
        while True:
            await asyncio.sleep(INTERVAL_S)
            await self.beat()
