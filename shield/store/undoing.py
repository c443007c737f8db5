"""What parts of a request took in a cluster that the whole must not keep: given back where it lies.

The law of this file: what a part took is given back at most once, and never more than has not drained since. What
cannot be given back stays charged, and is counted where it came late.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from shield.core import Outcome, Step
from shield.store.holders import Holders, Run
from shield.store.instants import Instants
from shield.store.key_records import Ending
from shield.store.lane import Unsettled
from shield.store.late import settle_command, what_it_took
from shield.store.lua import RELEASE
from shield.store.parts import settlements, together
from shield.store.primary import TAKEN
from shield.store.resp import evalsha
from shield.store.steps import UNDO, Forms

if TYPE_CHECKING:
    from shield.store import Settlement


class Undoing:
    """Gives back by `run`. `forget` hears of buckets that get something back."""

    def __init__(
        self,
        run: Run,
        holders: Holders,
        forms: Forms,
        instants: Instants,
        *,
        slack_ms: int,
        forget: Callable[[Settlement], None],
    ) -> None:
        self._run = run
        self._holders = holders
        self._forms = forms
        self._instants = instants
        self._slack_ms = slack_ms
        self._forget = forget
        self._tasks: set[asyncio.Task[bool]] = set()
        self.counts = dict.fromkeys(("late_taken", "late_given_back", "late_lost"), 0)

    def __len__(self) -> int:
        """How much is being given back."""
        return len(self._tasks)

    async def close(self) -> None:
        """What has not been given back stays charged."""
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def those(self, parts: list[Step], tasks: Sequence[asyncio.Future[Outcome]]) -> None:
        """What some of several parts took, of which others failed."""
        for part, task in zip(parts, tasks, strict=True):
            if not task.cancelled() and task.exception() is None:
                self.start(part, task.result())

    def late(self, step: Step, outcome: Outcome) -> None:
        """What a request took that nobody waits for any more."""
        if outcome.status == TAKEN:
            self.counts["late_taken"] += 1
            self.start(step, outcome).add_done_callback(self._given_back_late)

    def _given_back_late(self, task: asyncio.Task[bool]) -> None:
        done = not task.cancelled() and task.exception() is None and task.result()
        self.counts["late_given_back" if done else "late_lost"] += 1

    def start(self, part: Step, outcome: Outcome, *, but_penalties: bool = False) -> asyncio.Task[bool]:
        """What one part took. `but_penalties`: not what its limits take from a refused request as well."""
        task = asyncio.get_running_loop().create_task(self._undo(part, outcome, but_penalties))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    async def _undo(self, part: Step, outcome: Outcome, but_penalties: bool) -> bool:
        """Whether all of it could be given back."""
        if outcome.status != TAKEN:
            return True
        back, places = what_it_took(self._forms, part, outcome, but_penalties=but_penalties)
        calls: list[Awaitable[Any]] = []
        instant = self._instants.wire()
        if back is not None:
            self._forget(back)
            calls += [self._give_back(one, instant) for one in settlements(self._forms, back)]
        for some in together(places, tagged=True, at_most=len(places)):
            keys, ids = [key for key, _ in some], [lease_id for _, lease_id in some]
            calls.append(self._run(evalsha(RELEASE.sha, keys, (instant, *ids)), keys[0]))
        if part.claim is not None and part.claim.taken:
            calls.append(self._holders.end(Ending(part.claim.held, "abandon", part.claim.claim.rules)))
        replies = await asyncio.gather(*calls, return_exceptions=True)
        if back is not None:
            self._forget(back)
        return not any(isinstance(reply, BaseException) for reply in replies)

    async def _give_back(self, back: Settlement, instant: bytes) -> None:
        call = settle_command(
            self._forms, back, instant, slack_ms=self._slack_ms, mode=UNDO, around_us=back.charged_at_us
        )
        try:
            await self._run(call, self._forms.key_of(back))
        except Unsettled:
            for entry in back.entries:
                await self._give_back(replace(back, entries=(entry,)), instant)
