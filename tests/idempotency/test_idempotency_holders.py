"""The set of a holder's records by itself, on every server: what is asked of it while a slot is on its way."""

from __future__ import annotations

import contextlib
import uuid
from collections.abc import AsyncIterator

import pytest

from shield.errors import StoreError, StoreProtocolError
from shield.guard.idempotency import Claim, Key
from shield.policy.model import IdempotencyGuard
from shield.store.holders import DONE, NO_ROOM, THERE, Holders
from shield.store.key_records import Ending
from shield.store.key_wire import KeyClaim
from shield.store.naming import Naming
from shield.store.redis import RedisStore
from tests.idempotency.keyed import START_NS, Clock, server_url
from tests.servers import Server
from tests.store.wire import proxy_to

RULES = IdempotencyGuard(lease_us=30_000_000, retention_us=60_000_000, max_keys_per_tenant=2)


class Sets:
    """One holder's set on a server, at an instant that only the test moves."""

    def __init__(self, store: RedisStore, prefix: str) -> None:
        self.clock = Clock()
        self.naming = Naming(prefix)
        self.holders = Holders(
            store._servers.run, self.naming, lambda: b"%d" % (self.clock.now_ns // 1000), slack_ms=1000
        )
        self.key = KeyClaim(self.naming, self.claim("a").claim).keys[1].split(b"\r\n")[1]

    def claim(self, name: str, owner: bytes = b"o" * 16) -> KeyClaim:
        key = Key(name.encode() * 16, b"h" * 16, b"f" * 16, False, RULES)
        return KeyClaim(self.naming, Claim(key, owner))


@contextlib.asynccontextmanager
async def sets(url: str, prefix: str) -> AsyncIterator[Sets]:
    store = RedisStore(url)
    await store.open()
    try:
        yield Sets(store, prefix)
    finally:
        await store.close()


async def test_places_are_bounded_kept_and_given_back(server: Server) -> None:
    prefix = f"t{uuid.uuid4().hex[:12]}"
    client = server.client()
    async with sets(server_url(server, prefix), prefix) as here:
        reserve, follow, claim = here.holders.reserve, here.holders.follow, here.claim
        assert await reserve(claim("a")) == DONE
        assert client.pttl(here.key) in range(60_000, 61_001)
        await follow(claim("a"), DONE, taken=True)
        here.clock.move(10)
        assert await reserve(claim("a")) == THERE
        assert await reserve(claim("b")) == DONE
        assert await reserve(claim("c")) == NO_ROOM
        assert client.zrange(here.key, 0, -1) == [b"a" * 16, b"b" * 16 + b"o" * 16]
        # One that was there and is taken over stays for as long as the new record; one that was not taken leaves.
        await follow(claim("a"), THERE, taken=True)
        await follow(claim("a"), THERE, taken=False)
        await follow(claim("b"), DONE, taken=True)
        await follow(claim("c"), NO_ROOM, taken=False)
        assert client.zrange(here.key, 0, -1) == [b"a" * 16, b"b" * 16]
        here.clock.move(59.999_999)
        assert await reserve(claim("c")) == NO_ROOM
        here.clock.move(0.000_001)
        assert await reserve(claim("a")) == DONE, "its time was over"
        assert await reserve(claim("c")) == DONE
        assert await reserve(claim("b")) == NO_ROOM
        await follow(claim("c"), DONE, taken=False)
        assert await reserve(claim("b")) == DONE
        assert client.zscore(here.key, b"a" * 16 + b"o" * 16) == START_NS // 1000 + 130_000_000
    client.close()


async def test_nobody_gives_back_the_place_of_another(server: Server) -> None:
    """Two want the same record: the one that does not get it leaves what the other has."""
    prefix = f"t{uuid.uuid4().hex[:12]}"
    client = server.client()
    async with sets(server_url(server, prefix), prefix) as here:
        one, other = here.claim("a"), here.claim("a", b"another's owner!")
        assert [await here.holders.reserve(each) for each in (one, other)] == [DONE, DONE]
        await here.holders.follow(other, DONE, taken=True)
        await here.holders.follow(one, DONE, taken=False)
        assert client.zrange(here.key, 0, -1) == [b"a" * 16]
    client.close()


async def test_what_is_not_a_set_is_left_alone(server: Server) -> None:
    prefix = f"t{uuid.uuid4().hex[:12]}"
    client = server.client()
    async with sets(server_url(server, prefix), prefix) as here:
        client.set(here.key, b"somebody's")
        with pytest.raises(StoreError, match="left alone"):
            await here.holders.reserve(here.claim("a"))
        await here.holders.follow(here.claim("a"), DONE, taken=False)
        assert client.get(here.key) == b"somebody's"
    client.close()


async def test_a_set_that_answers_something_else(any_server: Server) -> None:
    async with proxy_to(any_server) as proxy, sets(f"{proxy.url}?deadline=5s&prefix=x", "x") as here:
        for garbage in (b":7\r\n", b"$1\r\nx\r\n", b"*0\r\n"):
            proxy.corrupt_next = garbage
            with pytest.raises(StoreProtocolError, match="what a holder has"):
                await here.holders.reserve(here.claim("a"))


async def test_without_memory_there_is_no_place_and_no_trace(server: Server) -> None:
    prefix = f"t{uuid.uuid4().hex[:12]}"
    client = server.client()
    async with sets(server_url(server, prefix), prefix) as here:
        client.config_set("maxmemory", 1)
        try:
            with pytest.raises(StoreError, match="out of memory"):
                await here.holders.reserve(here.claim("a"))
        finally:
            client.config_set("maxmemory", 0)
        assert not client.exists(here.key)
        assert await here.holders.end(Ending(here.claim("a").held, "abandon", RULES)) == "unknown"
    client.close()
