"""Keeps issuers' keys fresh while a Shield is open: one task that looks every second, and at once when a token has
shown that a key is missing. Checks never wait for it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from shield.gate import Gate

TICK_S: Final = 1.0
"""How often it is looked whether keys are due."""


class Keeper:
    """`gate` answers with the gate in force, None where there is nothing to keep."""

    def __init__(self, gate: Callable[[], Gate | None]) -> None:
        self._gate = gate
        self._task: asyncio.Task[None] | None = None
        self._news = asyncio.Event()

    def start(self) -> None:
        """Begins, unless it has begun or there is nothing to keep. Needs a running loop."""
        gate = self._gate()
        if gate is None:
            return
        gate.on_unknown_key = self._news.set
        if self._task is None:
            self._task = asyncio.get_running_loop().create_task(self._run())

    async def stop(self) -> None:
        """Ends, and what it has begun with it."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
            self._task = None
        gate = self._gate()
        if gate is not None:
            gate.on_unknown_key = None
            await gate.close()

    async def _run(self) -> None:
        while True:
            try:
                async with asyncio.timeout(TICK_S):
                    await self._news.wait()
            except TimeoutError:
                pass
            self._news.clear()
            gate = self._gate()
            if gate is not None:
                gate.look()
