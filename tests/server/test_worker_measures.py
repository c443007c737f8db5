"""Detectors of several workers: what each sees passes by their supervisor, and a detection is told once."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import sys
from pathlib import Path

import pytest

from shield.detect.exchange import Claim, Said
from shield.errors import StoreError
from shield.server import measures
from shield.server.bounds import QUIET_TICKS
from shield.server.control import Channel, Heard, Message, Told, ToSupervisor, ToWorker
from shield.server.measures import MeetingPoint, WorkerExchange
from tests.server.process import Process, run
from tests.server.test_lifecycle import ask
from tests.server.test_workers import each, pids, total

POLICY = """
version = 1
name = "watched"
[[detector]]
name = "d"
on = {}
key = ["ip"]
measure = "count"
capacity = 40
leak = "1/m"
quiet = "10m"
"""


class Other:
    """A worker as its supervisor sees it."""

    def __init__(self) -> None:
        self.sent: list[Message] = []
        self.quiet_ticks = 0

    def send(self, message: Message) -> None:
        self.sent.append(message)


def claim(mark: bytes, owner: bytes, lasts_us: int = 60_000_000) -> tuple[bytes, bytes, int]:
    return mark, owner, lasts_us


def test_a_parcel_goes_to_all_others_who_read() -> None:
    workers = [Other(), Other(), Other()]
    workers[2].quiet_ticks = QUIET_TICKS
    MeetingPoint(lambda: workers).told(workers[0], Told(1, b"n", 7, 5, b"counts"))  # type: ignore[arg-type, return-value]
    assert [one.sent for one in workers] == [[], [Heard(b"n", 7, 5, b"counts")], []]


def test_a_claim_is_one_workers_until_it_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    now_us = 0
    monkeypatch.setattr(measures, "_passing_us", lambda: now_us)
    one, point = Other(), MeetingPoint(list)

    def won(*claims: tuple[bytes, bytes, int]) -> list[bool]:
        point.told(one, Told(1, claims=list(claims)))  # type: ignore[arg-type]
        answer = one.sent.pop()
        return answer.won  # type: ignore[attr-defined, no-any-return]

    assert won(claim(b"m", b"a"), claim(b"m", b"b"), claim(b"m", b"a"), claim(b"o", b"b")) == [True, False, True, True]
    now_us = 60_000_000
    assert won(claim(b"m", b"b")) == [True]
    monkeypatch.setattr(measures, "MAX_CLAIMS", 3)
    assert won(*(claim(bytes([i]), b"a", 1_000_000 + i) for i in range(9))) == [True] * 9, (
        "and no more are kept than that"
    )
    assert len(point._claims) == 3


async def test_a_worker_and_its_supervisor() -> None:
    ours, theirs = socket.socketpair()
    supervisor, worker = Channel(ours, ToSupervisor), Channel(theirs, ToWorker)
    exchange, point = WorkerExchange(worker), MeetingPoint(list)

    async def obey() -> None:
        while (message := await worker.receive()) is not None:
            exchange.received(message)

    async def answer() -> None:
        while (message := await supervisor.receive()) is not None:
            point.told(supervisor, message)  # type: ignore[arg-type]

    tasks = [asyncio.create_task(each) for each in (obey(), answer())]
    try:
        supervisor.send(Heard(b"other", 3, 11, b"counts"))
        swapped = await exchange.swap(Said(b"n", 1, 0, b"mine"), [Claim(b"m", b"a", 60_000_000)])
        assert swapped.won == [True]
        assert [(one.node, one.number, one.data) for one in swapped.heard] == [(b"other", 3, b"counts")]
        assert swapped.heard[0].held_us >= 11
        assert (await exchange.swap(None, [])).heard == []
        tasks[1].cancel()
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(measures, "ANSWER_S", 0.01)
            with pytest.raises(StoreError):
                await exchange.swap(None, [Claim(b"m", b"a", 60_000_000)])
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        supervisor.close()
        worker.close()


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_an_attack_over_all_workers_is_told_once(tmp_path: Path) -> None:
    """Real processes that share a table; one of them is killed in the middle of it."""
    policy = tmp_path / "policy.toml"
    policy.write_text(POLICY)
    with run(
        tmp_path, "--listen", "127.0.0.1:0", "--policy", policy, "--workers", "3", "--log-format", "json"
    ) as process:
        spread(process, "198.51.100.7", 45)
        process.until("detect", lambda: process.events("detected"))
        victim = pids(process)[1]
        os.kill(victim, signal.SIGKILL)
        process.until("start another", lambda: pids(process)[1] not in (victim, 0) and len(pids(process)) == 3)
        spread(process, "198.51.100.7", 45)  # it is quiet about this one
        spread(process, "198.51.100.8", 45)
        process.until("detect the next", lambda: len(process.events("detected")) == 2)
        assert total(process, "shield_store_sharing_said_total") > 0
        assert total(process, "shield_store_sharing_unreadable_total") == 0
        process.signal(signal.SIGTERM)
        assert process.wait() == 0
    assert len(process.events("detected")) == 2


def spread(process: Process, ip: str, most: int) -> None:
    """No worker sees more than `most` minus a few of it, and all together enough."""
    before = sum(each(process, "shield_worker_decisions_total"))
    for _ in range(most):
        assert ask(f"{process.url}/v1/check", {"ip": ip})[0] == 200  # each on a connection of its own
    assert sum(each(process, "shield_worker_decisions_total")) - before == most
