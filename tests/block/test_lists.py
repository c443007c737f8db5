"""Block lists: files and URLs, what is wrong with them, and that a list which cannot be read stays as it was."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from aiohttp import web

from shield import Policy, Request, Shield
from shield.block.lists import BlockLists
from shield.testing import ManualClock

HOUR = 3_600


class Site:
    """Serves one list, or fails."""

    def __init__(self) -> None:
        self.status, self.text, self.asked = 200, "198.51.100.0/24\n", 0
        self.url = ""

    async def answer(self, request: web.BaseRequest) -> web.StreamResponse:
        self.asked += 1
        return web.Response(status=self.status, text=self.text)


@asynccontextmanager
async def site() -> AsyncIterator[Site]:
    made = Site()
    runner = web.ServerRunner(web.Server(made.answer))
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    made.url = f"http://127.0.0.1:{runner.addresses[0][1]}/list.txt?token=secret"
    try:
        yield made
    finally:
        await runner.cleanup()


async def read(shield: Shield) -> None:
    """Until what is due has been read."""
    lists = shield.abuse.blocks.lists
    lists.look(shield.abuse.now_us())
    while lists._task is not None:
        await asyncio.gather(lists._task, return_exceptions=True)
        await asyncio.sleep(0)
    shield.abuse.blocks.changed()


async def test_a_url_is_read_in_the_background_and_again_when_it_is_due() -> None:
    async with site() as served:
        clock = ManualClock()
        policy = Policy.parse(f'version = 1\n[blocks]\nlists = ["{served.url}"]\nrefresh = "1h"')
        async with Shield(policy, clock=clock) as shield:
            await read(shield)
            assert shield.block_notes == ()
            assert shield.check_nowait(Request(ip="198.51.100.7")).reason == "blocked"
            assert shield.check_nowait(Request(ip="192.0.2.1")).allowed
            served.text = "192.0.2.0/24\n"
            clock.advance(s=HOUR - 1)
            await read(shield)
            assert served.asked == 1
            clock.advance(s=1)
            await read(shield)
            assert shield.check_nowait(Request(ip="198.51.100.7")).allowed
            assert shield.check_nowait(Request(ip="192.0.2.1")).reason == "blocked"


async def test_a_list_that_fails_stays_as_it_was_and_says_so() -> None:
    async with site() as served:
        clock = ManualClock()
        policy = Policy.parse(f'version = 1\n[blocks]\nlists = ["{served.url}"]')
        async with Shield(policy, clock=clock) as shield:
            await read(shield)
            for status, text, part in ((500, "", "answered 500"), (200, "<html>", "line 1: found '<html>'")):
                served.status, served.text = status, text
                clock.advance(s=HOUR)
                await read(shield)
                (note,) = shield.block_notes
                assert part in note
                assert "the old one stays" in note
                assert "secret" not in note
                assert shield.check_nowait(Request(ip="198.51.100.7")).reason == "blocked"
            served.status, served.text = 200, "192.0.2.0/24\n"
            clock.advance(s=60)  # tried again sooner than it would be due
            await read(shield)
            assert shield.block_notes == ()
            assert shield.stats()["blocks_list_failures"] == 2


async def test_a_url_that_was_never_read_blocks_nobody_and_says_so() -> None:
    async with site() as served:
        served.status = 503
        async with Shield(Policy.parse(f'version = 1\n[blocks]\nlists = ["{served.url}"]')) as shield:
            (note,) = shield.block_notes
            assert "it blocks nobody" in note
            await read(shield)
            assert shield.check_nowait(Request(ip="198.51.100.7")).allowed
            # Another policy goes on with what was read for this one.
            served.status = 200
            shield.abuse.blocks.lists._lists[0].due_us = 0
            await read(shield)
            again = Policy.parse(f'version = 1\nname = "b"\n[blocks]\nlists = ["{served.url}"]')
            await shield.replace_policy(again)
            assert shield.check_nowait(Request(ip="198.51.100.7")).reason == "blocked"


def test_a_file_is_read_again_only_when_it_is_another(tmp_path: Path) -> None:
    path = tmp_path / "list.txt"
    path.write_text("# comment\n198.51.100.0/24 ; why\n\n::1\n")
    lists = BlockLists(["file:list.txt"], str(tmp_path), HOUR * 1_000_000)
    lists.load_files(0)
    assert len(lists) == 2
    before = lists._lists[0].table
    lists._lists[0].load_file()
    assert lists._lists[0].table is before
    path.write_text("198.51.100.0/24\n192.0.2.0/25\n192.0.2.128/25\n")
    lists._lists[0].load_file()
    assert lists._lists[0].table is not before


async def test_a_list_is_read_without_the_interpreter() -> None:
    """Other threads go on while it is sorted."""
    text = "\n".join(f"10.{i >> 16 & 255}.{i >> 8 & 255}.{i & 255}/32" for i in range(0, 600_000, 3)).encode()
    turns = 0

    async def count() -> None:
        nonlocal turns
        while True:
            turns += 1
            await asyncio.sleep(0)

    from shield.core.cidr import PrefixTable

    counting = asyncio.create_task(count())
    await asyncio.sleep(0)
    before = turns
    table = await asyncio.to_thread(PrefixTable, text)
    counting.cancel()
    assert table.networks == 200_000
    assert turns - before > 100
