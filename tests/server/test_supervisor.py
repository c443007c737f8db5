"""A supervisor in this process with real workers: what is rare or slow in the field is brought about here."""

from __future__ import annotations

import asyncio
import io
import json
import os
import signal
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from shield.errors import PolicyError
from shield.policy import Policy
from shield.server import bounds, crew, supervisor
from shield.server.control import Prepare, Prepared
from shield.server.options import ServeOptions
from shield.server.sockets import Address
from shield.server.source import PolicySource
from shield.server.supervisor import Supervisor
from tests.server.running import POLICY
from tests.servers import Server

OTHER = POLICY.replace('name = "test"', 'name = "other"').replace("burst = 3", "burst = 5")
LOCAL = Address.parse("127.0.0.1:0")


class Supervised:
    """A running supervisor and clients of it."""

    def __init__(self, running: Supervisor, out: io.StringIO, err: io.StringIO) -> None:
        self.supervisor = running
        self._out, self._err = out, err

    def events(self, name: str) -> list[dict[str, Any]]:
        events = [json.loads(line) for line in self._err.getvalue().splitlines()]
        return [event for event in events if event["event"] == name]

    async def until(self, seen: Callable[[], Any]) -> Any:
        async with asyncio.timeout(30):
            while not (answer := seen()):  # noqa: ASYNC110
                await asyncio.sleep(0.01)
        return answer

    @property
    def url(self) -> str:
        return self._out.getvalue().split(" on ")[1].split(";")[0]

    async def bursts(self) -> set[int]:
        """What the workers decide by, over many connections."""
        found = set()
        for _ in range(30):
            async with (
                aiohttp.ClientSession() as client,
                client.post(f"{self.url}/v1/check", json={"ip": "203.0.113.7"}) as answer,
            ):
                found.add((await answer.json())["limits"][0]["limit"])
        return found

    def pids(self) -> list[int]:
        return [worker.pid for worker in self.supervisor._crew.admitted()]

    async def replace(self, text: str) -> None:
        source = PolicySource(text, "toml")
        await self.supervisor.replace_policy(source, source.parse(), "admin")


@asynccontextmanager
async def supervised(tmp_path: Path, server: Server, workers: int = 2) -> AsyncIterator[Supervised]:
    (tmp_path / "policy.toml").write_text(POLICY)
    options = ServeOptions(
        version="0",
        policy=tmp_path / "policy.toml",
        store=f"{server.url}?deadline=5s&prefix=supervised-{os.urandom(4).hex()}",
        listen=(LOCAL,),
        admin=LOCAL,
        log_format="json",
        workers=workers,
    )
    out, err = io.StringIO(), io.StringIO()
    running = Supervisor(options, out=out, err=err)
    task = asyncio.create_task(running.run())
    it = Supervised(running, out, err)
    try:
        await it.until(lambda: task.done() or "try: curl" in out.getvalue())
        yield it
    finally:
        os.kill(os.getpid(), signal.SIGTERM)
        await asyncio.wait_for(task, 30)


async def test_a_worker_that_does_not_answer_a_change_is_replaced_by_one_that_knows_it(
    tmp_path: Path, any_server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(supervisor, "CHANGE_S", 0.5)
    async with supervised(tmp_path, any_server) as it:
        still, other = it.pids()
        os.kill(still, signal.SIGSTOP)
        await it.replace(OTHER)
        await it.until(lambda: len(set(it.pids()) - {still}) == 2)
        assert other in it.pids()
        assert await it.bursts() == {5}
        [died] = it.events("worker died")
        assert (died["pid"], died["cause"]) == (still, "silent")
        assert it.supervisor.policy.name == "other"


async def test_a_silent_worker_is_replaced(tmp_path: Path, any_server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(crew, "SILENT_TICKS", 5)
    async with supervised(tmp_path, any_server) as it:
        still = it.pids()[0]
        os.kill(still, signal.SIGSTOP)
        await it.until(lambda: len(set(it.pids()) - {still}) == 2)
        assert it.events("worker is quiet")
        [died] = it.events("worker died")
        assert (died["pid"], died["cause"]) == (still, "silent")


async def test_what_one_worker_refuses_none_puts_in_force(
    tmp_path: Path, any_server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with supervised(tmp_path, any_server, workers=3) as it:
        worker = it.supervisor._crew.admitted()[1]
        really_ask = worker.ask

        async def ask(kind: Any, *fields: Any, within_s: float) -> Any:
            answer = await really_ask(kind, *fields, within_s=within_s)
            return Prepared(answer.id, [("", "no room for this policy")]) if kind is Prepare else answer

        monkeypatch.setattr(worker, "ask", ask)
        with pytest.raises(PolicyError, match="no room"):
            await it.replace(OTHER)
        assert await it.bursts() == {3}
        assert it.supervisor.policy.name == "test"
        monkeypatch.undo()
        await it.replace(OTHER)
        assert await it.bursts() == {5}
        assert not it.events("worker died")


async def test_changes_come_one_after_another(tmp_path: Path, any_server: Server) -> None:
    async with supervised(tmp_path, any_server) as it:
        texts = [POLICY.replace("burst = 3", f"burst = {burst}") for burst in range(4, 14)]
        before = it.supervisor.policy.fingerprint
        sources = [PolicySource(text, "toml") for text in texts]
        changes = [it.supervisor.replace_policy(source, source.parse(), "admin", expected=before) for source in sources]
        outcomes = await asyncio.gather(*changes, return_exceptions=True)
        # All were made for the same policy, so one was in time.
        assert [isinstance(outcome, Exception) for outcome in outcomes].count(False) == 1
        [burst] = await it.bursts()
        assert it.supervisor.policy.fingerprint == Policy.parse(texts[burst - 4]).fingerprint


async def test_whoever_asked_for_a_change_may_hang_up(tmp_path: Path, any_server: Server) -> None:
    async with supervised(tmp_path, any_server) as it:
        change = asyncio.create_task(it.replace(OTHER))
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        change.cancel()
        await asyncio.gather(change, return_exceptions=True)
        await it.until(lambda: it.events("policy replaced"))
        assert await it.bursts() == {5}


def test_the_bounds_of_several_workers_go_together() -> None:
    """A worker is not killed for what it may take, and reading a policy makes it no more than quiet."""
    assert bounds.QUIET_TICKS * bounds.TICK_S < bounds.CHANGE_S < bounds.SILENT_TICKS * bounds.TICK_S
    assert bounds.MAX_POLICY_BODY_BYTES * 4 < bounds.MAX_MESSAGE_BYTES < bounds.MAX_UNSENT_BYTES
    assert bounds.RESTART_FIRST_S < bounds.RESTART_MAX_S < bounds.RESTART_STEADY_S
