"""A primary, its replica and a Sentinel: real ones, and what a failover does to decisions."""

from __future__ import annotations

import asyncio
import contextlib
import subprocess
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
import redis

from shield import Policy, Request, Shield
from shield.store import StoreURLError, open_store
from shield.store.redis import RedisStore
from shield.store.sentinel import parse_sentinel_address
from tests.servers import Server, _die_with_parent, _end, binaries, free_port, run_server

KIND, BINARY = next(iter(binaries().items()))
POLICY = Policy.parse('version = 1\nname = "s"\n[[limit]]\nname = "b"\nkey = ["user"]\nrate = "5/h"\n')
PATIENCE_S = 30.0


def wait_for(condition: object) -> None:
    """Until another process has got so far."""
    ends = time.monotonic() + PATIENCE_S
    while True:
        with contextlib.suppress(redis.RedisError, KeyError):
            if condition():  # type: ignore[operator]
                return
        assert time.monotonic() < ends, "it never happened"
        time.sleep(0.02)


@pytest.fixture
def watched(tmp_path: Path) -> Iterator[tuple[Server, Server, redis.Redis, str]]:
    """(primary, replica, a client of the Sentinel, its URL)."""
    port = free_port()
    with run_server(KIND, BINARY, tcp=True) as primary, run_server(KIND, BINARY, tcp=True) as replica:
        replica.client().execute_command("REPLICAOF", "127.0.0.1", str(primary.port))
        wait_for(lambda: replica.client().info("replication")["master_link_status"] == "up")
        config = tmp_path / "sentinel.conf"
        config.write_text(
            f"port {port}\nbind 127.0.0.1\ndir {tmp_path}\nsentinel monitor orders 127.0.0.1 {primary.port} 1\n"
            "sentinel down-after-milliseconds orders 300\nsentinel failover-timeout orders 2000\n"
        )
        with (tmp_path / "log").open("wb") as log:
            process = subprocess.Popen(
                [str(BINARY), str(config), "--sentinel"], stdout=log, stderr=log, preexec_fn=_die_with_parent
            )
        try:
            client = redis.Redis(port=port)
            wait_for(lambda: int(client.sentinel_master("orders")["num-slaves"]) == 1)
            yield primary, replica, client, f"redis+sentinel://127.0.0.1:{port}/orders"
            client.close()
        finally:
            _end(process)


@contextlib.asynccontextmanager
async def shielded(url: str) -> AsyncIterator[Shield]:
    async with Shield(POLICY, f"{url}?deadline=5s&prefix=sen") as shield:
        yield shield


async def normal(shield: Shield, user: str) -> None:
    async with asyncio.timeout(PATIENCE_S):
        while True:
            if not (await shield.check(Request(user=user))).degraded:  # every request gets a decision meanwhile
                return
            await asyncio.sleep(0.01)


async def test_the_primary_is_found_and_its_replica_after_it(watched: tuple[Server, Server, redis.Redis, str]) -> None:
    primary, replica, _, url = watched
    async with shielded(url) as shield:
        assert not (await shield.check(Request(user="u"))).degraded
        assert any(b"~" not in key for key in primary.client().keys("sen:*"))
        primary.client().wait(1, 5000)
        primary.kill()
        await normal(shield, "other")
        assert replica.client().info("replication")["role"] == "master"
        look = await shield.check(Request(user="u"))
        assert (look.degraded, look.limits[0].remaining) == (False, 3), "what was replicated was not forgotten"


async def test_a_planned_failover_is_followed(watched: tuple[Server, Server, redis.Redis, str]) -> None:
    primary, replica, sentinel, url = watched
    async with shielded(url) as shield:
        await shield.check(Request(user="u"))
        # It refuses until it has looked at the replica a moment ago.
        await asyncio.to_thread(wait_for, lambda: sentinel.execute_command("SENTINEL", "FAILOVER", "orders"))
        await asyncio.to_thread(wait_for, lambda: replica.client().info("replication")["role"] == "master")
        await asyncio.to_thread(wait_for, lambda: primary.client().info("replication")["role"] == "slave")
        await normal(shield, "other")
        assert any(b"~" not in key for key in replica.client().keys("sen:*"))
        store = shield.store
        assert isinstance(store, RedisStore)
        assert store.where == f"orders of {url.split('/')[2]} db 0"


async def test_an_unknown_service_and_an_absent_sentinel_are_no_error_but_degraded() -> None:
    async with shielded("redis+sentinel://127.0.0.1:1/orders") as shield:
        assert (await shield.check(Request(user="u"))).degraded
        assert not shield.ready


def test_addresses() -> None:
    parsed = parse_sentinel_address("us%40er:p%40ss@one,two:1,[::1]:26380", "/orders")
    assert parsed == (
        {"username": "us@er", "password": "p@ss"},
        (("one", 26379), ("two", 1), ("::1", 26380)),
        "orders",
    )


@pytest.mark.parametrize(
    "url",
    [
        "redis+sentinel://:s3cret@h",
        "redis+sentinel://:s3cret@h/",
        "redis+sentinel://:s3cret@h/a/b",
        "redis+sentinel://:s3cret@/orders",
        "redis+sentinel://:s3cret@h:0/orders",
        "redis+sentinel://:s3cret@h:port/orders",
        "redis+sentinel://:s3:cret@h/orders",
        "redis+sentinel://:s3cret@h,,i/orders",
        "redis+sentinel://:s3cret@h/orders?nope=1",
        "redis+sentinel://:s3cret@" + ",".join(["h"] * 17) + "/orders",
    ],
)
def test_wrong_addresses_are_named_without_a_password(url: str) -> None:
    with pytest.raises(StoreURLError) as caught:
        open_store(url)
    assert "s3" not in str(caught.value)
