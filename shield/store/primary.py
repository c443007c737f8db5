"""One server that holds state: how it is reached, whether it is worth asking, and what became of what it was asked.

The law of this file: a step is sent once. When its reply misses the deadline the answer is StoreTimeout, "unknown";
should the reply come after all and say that the step took, what it took is given back, under the rule for refunds. A
step whose reply never comes stays charged: too strict for an instant, never too generous.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable, Sequence
from typing import TYPE_CHECKING, Any, Final

from shield.core import Outcome, Step
from shield.errors import StoreError, StoreProtocolError, StoreTimeout
from shield.store.batch import Batcher
from shield.store.breaker import Breaker
from shield.store.greeting import load_command
from shield.store.instants import Instants, monotonic_us
from shield.store.lane import Greeting, Late, Moved, OutOfMemory, ScriptMissing, Transport, Unsettled, wait_for
from shield.store.late import LateReplies, has_reply
from shield.store.link import Link
from shield.store.lua import SCRIPTS
from shield.store.steps import Forms

if TYPE_CHECKING:
    from shield.store import Settlement
    from shield.store.target import Target

# What check.lua begins its answers with.
REFUSED, TAKEN, FULL, MISPLACED, FOREIGN = 0, 1, 2, 3, 4
USED, TOO_OLD, TOO_EARLY, LOST = 5, 6, 7, 8  # of the nonce
ANSWERS: Final = (REFUSED, TAKEN, FULL, USED, TOO_OLD, TOO_EARLY, LOST)


class Primary:
    """A server, by a few connections. `make` makes one of them, `greeting` is what each begins with; `forget` hears of
    buckets that get something back. `undo` gives back what a late reply took, where that is not for this server alone.
    """

    def __init__(
        self,
        make: Callable[[], Transport],
        target: Target,
        forms: Forms,
        instants: Instants,
        *,
        where: str,
        forget: Callable[[Settlement], None],
        undo: Callable[[Step, Outcome], None] | None = None,
        greeting: Sequence[Greeting],
        breaker: Breaker | None = None,
    ) -> None:
        self.where = where
        """Where it is, without credentials."""
        self._deadline_s = target.deadline_us / 1_000_000
        self.breaker = breaker or Breaker()
        self.link = Link(
            make,
            connections=target.connections,
            deadline_s=self._deadline_s,
            connect_timeout_s=target.connect_timeout_us / 1_000_000,
            max_in_flight=target.max_in_flight,
            greeting=greeting,
        )
        slack_ms = target.ttl_slack_us // 1000
        self.late = LateReplies(self.link, forms, slack_ms=slack_ms, instant=instants.wire, forget=forget)
        self.batcher = Batcher(
            self.link,
            slack_ms=slack_ms,
            max_waiting=target.connections * target.max_in_flight,
            late=self._came_late,
            around_us=instants.around_us,
        )
        self.batcher.instant = instants.wire
        self.batcher.wait = wait_for(target.wait_replicas, max(1, target.deadline_us // 2000))
        self._undo = undo
        self._loading: asyncio.Task[None] | None = None
        self.script_reloads = 0

    # ---- life ----------------------------------------------------------------------------------------------

    async def open(self) -> None:
        """Connects. An unreachable server is no error: steps fail until it is there. StoreError when it refuses us."""
        await self.link.open()

    async def close(self) -> None:
        """Closes the connections; whoever still waits gets a StoreError."""
        if self._loading is not None:
            self._loading.cancel()
        self.batcher.close()
        await self.link.close()

    @property
    def up(self) -> bool:
        """Whether a connection is up."""
        return self.link.up > 0

    @property
    def ready(self) -> bool:
        """Whether a step would be tried now."""
        return self.link.up > 0 and self.breaker.would_allow(monotonic_us())

    def stats(self) -> dict[str, int]:
        """Counts since the start, and gauges: connections that are up, requests in flight, the breaker."""
        return {
            **self.late.counts,
            "script_reloads": self.script_reloads,
            "timeouts": self.link.timeouts + self.batcher.expired,
            "connects": self.link.connects,
            "connections_lost": self.link.losses,
            "connections": self.link.up,
            "in_flight": self.link.in_flight,
            "waiting": self.batcher.waiting,
            "breaker_opened": self.breaker.opened,
            "breaker_open": int(self.breaker.state != "closed"),
        }

    # ---- the step ------------------------------------------------------------------------------------------

    async def decide(self, step: Step, deadline: float | None = None, *, asking: bool = False) -> Outcome:
        """What became of one request. Whatever takes more than one command still ends with the first's deadline."""
        if deadline is None:
            deadline = asyncio.get_running_loop().time() + self._deadline_s
        around_us, tries, may_reload = None, 2, True
        while tries:
            asked_us = self._ask_for_leave()
            future = None
            try:
                future = self.batcher.submit(step, deadline, around_us, asking=asking)
                outcome = await future
            except BaseException as error:
                self._heard_of(error, asked_us)
                # The reply and the cancellation may come in the same turn of the loop.
                if isinstance(error, asyncio.CancelledError) and has_reply(future):
                    self._came_late(step, future.result())
                if not isinstance(error, ScriptMissing) or not may_reload:
                    raise
                # It proves that nothing was done: load the scripts and ask again, once.
                may_reload = False
                async with self._until(deadline):
                    await self._reload()
                continue
            self.breaker.success()
            status = outcome.status
            if status in ANSWERS:
                return outcome
            if status != MISPLACED:
                raise StoreProtocolError(_foreign(step, outcome))
            around_us, tries = outcome.now_us, tries - 1
        raise StoreProtocolError("the store's clock jumps between calendar windows")

    def _came_late(self, step: Step, outcome: Outcome) -> None:
        (self._undo or self.late.came)(step, outcome)

    # ---- asking --------------------------------------------------------------------------------------------

    async def run(
        self, call: bytes, key: bytes = b"", *, asking: bool = False, late: Late | None = None, lasting: bool = False
    ) -> Any:
        """Runs a script if the breaker lets it. NOSCRIPT proves that nothing was done: load it and ask again, once."""
        started = asyncio.get_running_loop().time()
        try:
            return await self.ask(call, key, asking=asking, late=late, lasting=lasting)
        except ScriptMissing:
            async with self._until(started + self._deadline_s):
                await self._reload()
                return await self.ask(call, key, asking=asking, late=late, lasting=lasting)

    async def ask(
        self, call: bytes, key: bytes = b"", *, asking: bool = False, late: Late | None = None, lasting: bool = False
    ) -> Any:
        """One command, one reply. `key`: one of those it names, for whoever has several servers. One that takes
        something has `late(reply, None)`, which hears of a reply that nobody waits for any more; where replicas have to
        confirm what was taken, it counts only then. So does what is `lasting`: Unconfirmed when too few have.
        """
        asked_us = self._ask_for_leave()
        try:
            wait = self.batcher.wait if lasting or late is not None else None
            reply = await self.link.request(call, late, asking=asking, wait=wait)
        except BaseException as error:
            self._heard_of(error, asked_us)
            raise
        self.breaker.success()
        return reply

    async def each(self, call: bytes) -> list[Any]:
        """One command to every server."""
        return [await self.ask(call)]

    def _ask_for_leave(self) -> int:
        asked_us = monotonic_us()
        if not self.breaker.allow(asked_us):
            raise StoreError(f"not asked: the store at {self.where} has missed its deadline too often")
        return asked_us

    def _heard_of(self, error: BaseException, asked_us: int) -> None:
        """The breaker counts missed deadlines: only they cost a caller time. A refusal is an answer all the same."""
        if isinstance(error, StoreTimeout):
            self.breaker.failure(asked_us, monotonic_us())
        elif isinstance(error, (ScriptMissing, OutOfMemory, Moved, Unsettled, StoreProtocolError)):
            self.breaker.success()
        else:
            self.breaker.undecided()

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
            self.script_reloads += 1
            self._loading = asyncio.get_running_loop().create_task(self._load_all())
            self._loading.add_done_callback(_heard)
        await asyncio.shield(self._loading)

    async def _load_all(self) -> None:
        await asyncio.gather(*[self.link.request(load_command(script)) for script in SCRIPTS])


def nonce_verdict(status: int) -> int:
    """What a status of check.lua says of a request's nonce, in the words of `Charges.resolve`."""
    return 0 if status < USED else status + 1 - USED


def _foreign(step: Step, outcome: Outcome) -> str:
    states = outcome.states
    if outcome.status != FOREIGN or not 1 <= states[0] <= len(step.cells):
        return "the store answered a check with something else"
    key = step.cells[states[0] - 1].split(b"\r\n")[1].decode()
    return f"the value at {key} was not written by this version of Shield; it was left alone"


def _heard(task: asyncio.Future[Any]) -> None:
    """Takes note of a task's exception, which those who waited for it have heard of, if any still did."""
    if not task.cancelled():
        task.exception()
