"""Detectors that meet at a real server: counts arrive, claims are one node's, faults lose a second at most."""

from __future__ import annotations

import asyncio
import os

import pytest

from shield import Policy, Request, Shield
from shield.detect.exchange import Claim, Said
from shield.errors import StoreError
from shield.store.exchange import MAX_ENTRIES
from shield.store.redis import RedisStore
from tests.servers import Server
from tests.store.wire import proxy_to, until
from tests.test_sharing_loop import POLICY


def url(server: Server, **options: str) -> str:
    more = "".join(f"&{name}={value}" for name, value in options.items())
    return f"{server.url}?deadline=5s&prefix=d{os.urandom(4).hex()}{more}"


def said(number: int, node: bytes = b"node-one", data: bytes = b"x") -> Said:
    return Said(node, number, 5, data)


async def test_what_one_says_the_others_hear_once_and_in_order(server: Server) -> None:
    where = url(server)
    here, there = RedisStore(where), RedisStore(where)
    await here.open()
    await there.open()
    try:
        await there.exchange.swap(None, [])
        for number in range(1, 4):
            await here.exchange.swap(said(number), [])
        swapped = await there.exchange.swap(None, [])
        assert [(one.node, one.number, one.data) for one in swapped.heard] == [
            (b"node-one", i, b"x") for i in (1, 2, 3)
        ]
        assert all(5 <= one.held_us < 5_000_000 for one in swapped.heard), "how long it was under way"
        assert (await there.exchange.swap(None, [])).heard == []
        with server.client() as client:
            key = where.partition("prefix=")[2] + ":~measures"
            assert 0 < client.pttl(key) <= 60_000
            for number in range(2 * MAX_ENTRIES):
                client.xadd(key, {"n": "x", "s": number, "h": 0, "d": ""}, maxlen=MAX_ENTRIES)
            assert client.xlen(key) < 3 * MAX_ENTRIES
    finally:
        await here.close()
        await there.close()


async def test_a_claim_is_one_nodes_and_again_its_own(server: Server) -> None:
    where = url(server)
    here, there = RedisStore(where), RedisStore(where)
    await here.open()
    await there.open()
    try:
        mine, other = Claim(b"m" * 16, b"a" * 16, 60_000_000), Claim(b"m" * 16, b"b" * 16, 60_000_000)
        assert (await here.exchange.swap(None, [mine])).won == [True]
        assert (await there.exchange.swap(said(1), [other, Claim(b"n" * 16, b"b" * 16, 2_000_000)])).won == [
            False,
            True,
        ]
        assert (await here.exchange.swap(None, [mine])).won == [True]
        with server.client() as client:
            client.delete(*client.keys(where.partition("prefix=")[2] + ":~{claim}:*"))
        assert (await there.exchange.swap(None, [other])).won == [True], "a server that was flushed has forgotten"
    finally:
        await here.close()
        await there.close()


async def test_nodes_of_one_server_find_together_what_none_finds_alone(server: Server) -> None:
    """Through the facade as it is opened: nothing is called by hand."""
    where = url(server)
    shields = [Shield(Policy.parse(POLICY), where) for _ in range(3)]
    found: list[str] = []
    for shield in shields:
        shield.abuse.listeners.append(lambda detection: found.append(detection.subject))
        await shield.open()
    try:
        for shield in shields:
            for _ in range(2):
                await shield.check(Request(ip="203.0.113.9"))
        for _ in range(100):
            if found:
                break
            await asyncio.sleep(0.05)
        assert found == ["203.0.113.9"]
        assert shields[0].stats()["sharing_failures"] == 0
    finally:
        for shield in shields:
            await shield.close()


async def test_a_server_that_is_slow_or_answers_strangely_is_an_error_and_the_next_exchange_goes_on(
    any_server: Server,
) -> None:
    prefix = f"d{os.urandom(4).hex()}"
    async with proxy_to(any_server) as proxy:
        store = RedisStore(f"{proxy.url}?deadline=200ms&prefix={prefix}")
        await store.open()
        try:
            await store.exchange.swap(said(1), [])
            proxy.replies.clear()
            with pytest.raises(StoreError):
                await store.exchange.swap(said(2), [Claim(b"m" * 16, b"a" * 16, 1_000_000)])
            proxy.replies.set()
            await until(lambda: store.ready)
            await asyncio.sleep(0.05)
            swapped = await store.exchange.swap(said(2), [Claim(b"m" * 16, b"a" * 16, 1_000_000)])
            assert swapped.won == [True], "the claim that nobody heard of is still its own"
            assert {one.number for one in swapped.heard} <= {1, 2}
        finally:
            await store.close()
    store = RedisStore(f"{any_server.url}?deadline=5s&prefix={prefix}2")
    await store.open()
    try:
        with any_server.client() as client:
            client.set(f"{prefix}2:~measures", "no stream")
        with pytest.raises(StoreError):
            await store.exchange.swap(said(1), [])
    finally:
        await store.close()
