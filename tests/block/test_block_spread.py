"""Blocks between nodes of one Redis: within a second, for those who come late, and when it has lost everything."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

import pytest

from shield import Policy, Request, Shield
from shield.block.block import LIFTED, Block
from shield.block.book import LIFTED_US
from shield.block.ledger import POLL_S
from shield.policy.abuse import Blocks
from shield.store import block_log
from tests.servers import Server

POLICY = Policy.parse("""
version = 1
[[limit]]
name = "address"
key = ["ip"]
rate = "1000/s"
[[detector]]
use = "user-agent-switching"
action = "block"
""")
prefixes = (f"spread{n}" for n in itertools.count())


@asynccontextmanager
async def nodes(url: str, n: int = 2) -> AsyncIterator[list[Shield]]:
    made = [Shield(POLICY, url) for _ in range(n)]
    for shield in made:
        await shield.open()
    try:
        yield made
    finally:
        for shield in made:
            await shield.close()


@pytest.fixture
def url(any_server: Server) -> str:
    return f"{any_server.url}?prefix={next(prefixes)}&deadline=5s"


async def within_a_second(seen: Callable[[], bool], patience: int = 1) -> None:
    """Half of a second is what two polls take; a busy machine is given the other half, and asked `patience` times."""
    for _ in range(int(patience / POLL_S) + 1):
        if seen():
            return
        await asyncio.sleep(POLL_S)
    raise AssertionError("it has not been heard of")


async def test_a_detectors_block_is_everywhere_within_a_second(url: str) -> None:
    async with nodes(url) as (one, other):
        for i in range(12):
            await one.check(Request(ip="203.0.113.7", user_agent=f"a{i}"))
        await within_a_second(lambda: len(other.abuse.blocks.book) == 1)
        assert (await other.check(Request(ip="203.0.113.7"))).reason == "blocked"
        other.abuse.blocks.unblock("ip", "203.0.113.7", by="operator")
        await within_a_second(lambda: len(one.abuse.blocks.book) == 0)
        assert (await one.check(Request(ip="203.0.113.7"))).allowed


async def test_who_comes_late_knows_before_it_decides(url: str) -> None:
    async with nodes(url, 1) as (one,):
        for i in range(1_203):  # more than one page
            one.abuse.blocks.block("user", f"u{i}", None, by="operator")
        one.abuse.blocks.unblock("user", "u7", by="operator")
        await one.abuse.blocks.turn()
    async with nodes(url, 1) as (late,):
        assert len(late.abuse.blocks.book) == 1_202
        assert (await late.check(Request(ip="192.0.2.1", user="u1202"))).reason == "blocked"
        assert (await late.check(Request(ip="192.0.2.1", user="u7"))).allowed


async def test_a_store_that_lost_everything_is_filled_again(any_server: Server, url: str) -> None:
    async with nodes(url) as (one, other):
        one.abuse.blocks.block("user", "mallory", None, by="operator")
        await within_a_second(lambda: len(other.abuse.blocks.book) == 1)
        with any_server.client() as client:
            for key in client.keys("*~blocks*"):
                client.delete(key)
        for shield in (one, other):
            await shield.abuse.blocks.turn()
        async with nodes(url, 1) as (late,):
            assert len(late.abuse.blocks.book) == 1


async def test_a_store_that_is_away_hears_of_it_when_it_is_back(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    async with nodes(url) as (one, other):
        log = one.abuse.blocks._log
        assert log is not None
        call = log._call

        async def away(command: bytes, key: bytes) -> object:
            from shield.errors import StoreTimeout

            await call(command, key)  # it was done, and nobody heard
            raise StoreTimeout("no answer")

        monkeypatch.setattr(log, "_call", away)
        one.abuse.blocks.block("user", "mallory", None, by="operator")
        await one.abuse.blocks.turn()
        assert (await one.check(Request(ip="192.0.2.1", user="mallory"))).reason == "blocked"
        monkeypatch.setattr(log, "_call", call)
        await one.abuse.blocks.turn()
        assert one.abuse.blocks._unsent == {}
        await within_a_second(lambda: len(other.abuse.blocks.book) == 1)


async def test_the_script_keeps_the_greater_and_forgets_what_is_over(server: Server) -> None:
    from shield.store.lua import BLOCKS

    prefix = next(prefixes)
    with server.client() as client:
        client.script_load(BLOCKS.text)
        now_us = 1_700_000_000_000_000

        async def call(command: bytes, key: bytes) -> object:
            words = command.split(b"\r\n")[2::2]
            return client.execute_command(*words)

        log = block_log.BlockLog(prefix, call, lambda: b"%d" % now_us)

        def said(stamp_us: int, until_us: int | None, value: str = "ada", reason: str = "blocked") -> block_log.Said:
            block = Block("user", value, stamp_us, reason, "operator", stamp_us, until_us)  # type: ignore[arg-type]
            forget_us = stamp_us + LIFTED_US if reason == LIFTED else until_us
            return block_log.Said(f"o|{value}".encode(), block.order.encode(), value.encode(), forget_us)

        most = Blocks().max_blocks
        heard, lost = await log.exchange([said(5, None), said(4, None), said(6, now_us + 1_000)], most)
        assert (heard, lost) == ([b"ada"], True)
        assert (await log.exchange([said(5, None)], most)) == ([], False)
        assert client.hlen(f"{prefix}:{{~blocks}}:places") == 3
        now_us += 2_000
        heard, _ = await log.exchange([said(now_us, None, f"n{i}") for i in range(20)], 10)
        assert len(heard) == 20, "what is kept for good does not make room"
        heard, _ = await log.exchange([said(now_us, now_us + i, f"m{i}") for i in range(10, 30)], 25)
        assert client.hlen(f"{prefix}:{{~blocks}}:places") == 2 + 25
        assert client.zcard(f"{prefix}:{{~blocks}}:ends") == 5
        assert client.zscore(f"{prefix}:{{~blocks}}:ends", "o|m29") is not None, "those that end first do"
