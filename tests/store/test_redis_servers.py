"""The Redis store and servers that refuse, that are full, that talk nonsense, or that want a password."""

from __future__ import annotations

import asyncio
import struct

import pytest

from shield.errors import StoreError, StoreProtocolError
from shield.store import Lease
from shield.store.steps import VERSION
from tests.servers import Server, binaries, run_server
from tests.store.wire import fake_server, saying, until
from tests.store.world import World, world

# ---- a server that answers nonsense


@pytest.mark.parametrize(
    "reply",
    [b"+OK\r\n", b"$-1\r\n", b":1\r\n", b"*0\r\n", b"*2\r\n:1\r\n:9\r\n", b"*2\r\n:1\r\n:3\r\n", b"*-1\r\n",
     b"*22\r\n" + b"$1\r\nx\r\n" * 22, b"*22\r\n" + b":-1\r\n" * 22, b"$176\r\n" + b"\xff" * 176 + b"\r\n",
     b"$176\r\n" + struct.pack("<22d", 1.0, 1.0, *[0.5] * 20) + b"\r\n", b"$8\r\n" + bytes(8) + b"\r\n"],
)  # fmt: skip
async def test_nonsense_is_no_permission(reply: bytes) -> None:
    async with fake_server() as fake, world(fake.url) as here:
        fake.behaviour = saying(reply, to=b"EVALSHA")
        charges = here.charges()
        with pytest.raises(StoreProtocolError):
            await here.store.apply(charges)
        with pytest.raises(StoreProtocolError):
            await here.store.settle(here.settlement(charges, b"r", 0))
        if not reply.startswith(b":"):
            with pytest.raises(StoreProtocolError):
                await here.store.release([Lease("places", b"\0" * 16, "0")])


async def test_a_foreign_value_is_an_error_and_not_a_fresh_bucket(server: Server) -> None:
    async with world(server.url, prefix="foreign") as here:
        await here.ask(cost=8)
        with server.client() as client:
            key = next(key for key in client.keys("foreign:*") if key.count(b":") == 1 and b"~" not in key)
            client.set(key, "something else")
        with pytest.raises(StoreProtocolError, match=f"value at {key.decode()} was not written by this version"):
            await here.ask()
        assert here.store.ready


async def test_states_of_another_layout_are_refused_clearly(server: Server) -> None:
    """Two releases that differ in how states lie on the server do not share a prefix, and say so at the start."""
    async with world(server.url, prefix="layout") as here:
        assert (await here.ask()).allowed
    with server.client() as client:
        assert client.get("layout:~version") == b"%d" % VERSION
        client.set("layout:~version", VERSION + 1)
        with pytest.raises(StoreError, match=f"have layout {VERSION + 1}, this release reads {VERSION}"):
            async with world(server.url, prefix="layout"):
                pass
        client.set("layout:~version", VERSION)
    async with world(server.url, prefix="layout") as here:
        assert await here.used("bucket") == 1


async def test_states_without_a_layout_are_told_of_and_not_read(server: Server) -> None:
    """A prefix that an older release has used: its secret is there, and its buckets, which are other keys."""
    with server.client() as client:
        client.set("old:~secret", b"s" * 32)
        client.set("old:bucket:AAAAAAAAAAAAAAAAAAAAAA", b"\x11" + b"\0" * 32)
        async with world(server.url, prefix="old") as here:
            (warning,) = [one for one in here.store.warnings if "layout" in one]
            assert "old:~version" in warning
            assert await here.used("bucket") == 0
            assert await here.store.shared_secret() == b"s" * 32
        assert client.get("old:bucket:AAAAAAAAAAAAAAAAAAAAAA") == b"\x11" + b"\0" * 32
        async with world(server.url, prefix="old") as here:
            assert not [one for one in here.store.warnings if "layout" in one], "told once"
        async with world(server.url, prefix="brand-new") as here:
            await here.store.shared_secret()
            assert not [one for one in here.store.warnings if "layout" in one]


async def test_a_replica_is_not_asked(any_server: Server) -> None:
    """It would answer from what it last heard: a peek or a refusal is no write, so nothing else would stop it."""
    async with fake_server() as fake:

        async def behave(command: list[bytes], writer: asyncio.StreamWriter) -> bool:
            if command[0] == b"ROLE":
                writer.write(b"*2\r\n$5\r\nslave\r\n:1\r\n")
            return command[0] == b"ROLE"

        fake.behaviour = behave
        async with world(fake.url) as here:
            assert not here.store.ready
            with pytest.raises(StoreError, match="the server is a slave"):
                await here.ask()
            fake.behaviour = saying(b"-NOPERM this user has no permissions\r\n", to=b"ROLE")
            await until(lambda: here.store.ready)


async def test_a_server_out_of_memory_says_so() -> None:
    kind, binary = next(iter(binaries().items()))
    with run_server(kind, binary) as full:
        async with world(full.url) as here:
            full.client().config_set("maxmemory", 1)
            decision = await here.ask()
            assert (decision.allowed, decision.status, decision.reason) == (False, 503, "store_full")
            assert here.store.stats()["oom"] == 1


async def test_an_eviction_policy_that_forgets_is_warned_about() -> None:
    kind, binary = next(iter(binaries().items()))
    options = ["--maxmemory", "64mb", "--maxmemory-policy", "allkeys-lru"]
    with run_server(kind, binary, args=options) as forgetful:
        async with world(forgetful.url) as here:
            assert "allkeys-lru" in here.store.warnings[0]
            forgetful.client().config_set("maxmemory-policy", "noeviction")
        async with world(forgetful.url) as here:
            assert here.store.warnings == ()


async def test_a_store_can_be_opened_again(any_server: Server) -> None:
    here = World(any_server.url)
    for _ in range(2):
        await here.store.open()
        await here.store.open()
        assert (await here.ask()).allowed
        await here.store.close()
        assert not here.store.ready
        with pytest.raises(StoreError, match="not open"):
            await here.ask()
    assert await _used_later(here) == 2


async def _used_later(here: World) -> int:
    await here.store.open()
    try:
        return await here.used("bucket")
    finally:
        await here.store.close()


# ---- getting in


async def test_a_password_lets_in_and_a_wrong_one_is_an_error() -> None:
    kind, binary = next(iter(binaries().items()))
    with run_server(kind, binary, tcp=True, args=["--requirepass", "p@ss/wörd"]) as locked:
        place = locked.url.removeprefix("redis://")
        async with world(f"redis://:p%40ss%2Fw%C3%B6rd@{place}") as here:
            assert (await here.ask()).allowed
        for wrong in ("", "default:nope@"):
            with pytest.raises(StoreError, match="refused the connection") as caught:
                async with world(f"redis://{wrong}{place}"):
                    pass
            assert "nope" not in str(caught.value)


async def test_a_database_is_selected(any_server: Server) -> None:
    async with world(any_server.url.replace("/0", "/5"), prefix="db5") as here:
        await here.ask()
    with any_server.client() as client:
        assert client.keys("db5:*") == []
        client.select(5)
        assert len(client.keys("db5:*")) == 4, "a cell, places, the version, the fence of nonces; the node said goodbye"
    with pytest.raises(StoreError, match="refused the connection"):
        async with world(any_server.url.replace("/0", "/999")):
            pass


async def test_tls_is_verified(tls_server: Server) -> None:
    async with world(tls_server.url, ssl_ca_certs=tls_server.ca_file) as here:
        assert (await here.ask()).allowed
    async with world(tls_server.url) as here:
        assert not here.store.ready
        with pytest.raises(StoreError, match="certificate"):
            await here.ask()
