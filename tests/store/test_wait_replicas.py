"""What was taken counts when a replica has it: a failover forgets nothing then, and a lone primary is not enough."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from shield.errors import StoreError
from tests.servers import Server, binaries, run_server
from tests.store.clusters import wait_for
from tests.store.wire import until
from tests.store.world import world

KIND, BINARY = next(iter(binaries().items()))
OPTIONS = ("--repl-diskless-sync-delay", "0")


@pytest.fixture
def pair() -> Iterator[tuple[Server, Server]]:
    """A primary and its replica."""
    with (
        run_server(KIND, BINARY, tcp=True, args=OPTIONS) as primary,
        run_server(KIND, BINARY, tcp=True, args=OPTIONS) as replica,
    ):
        replica.client().execute_command("REPLICAOF", "127.0.0.1", str(primary.port))
        wait_for(lambda: replica.client().info("replication")["master_link_status"] == "up")
        yield primary, replica


async def test_what_was_admitted_is_on_the_replica(pair: tuple[Server, Server]) -> None:
    primary, replica = pair
    async with world(primary.url, prefix="wait", wait_replicas=1) as here:
        for spent in range(1, 6):
            assert (await here.ask(cost=1)).allowed
            assert await here.used("bucket") == spent
        primary.kill()
    replica.client().execute_command("REPLICAOF", "NO", "ONE")
    async with world(replica.url, prefix="wait") as here:
        assert await here.used("bucket") == 5


async def test_what_no_replica_confirms_is_given_back(pair: tuple[Server, Server]) -> None:
    primary, replica = pair
    async with world(primary.url, prefix="back", wait_replicas=1, deadline="500ms") as here:
        assert (await here.ask(cost=1)).allowed
        replica.pause()
        for lost in range(1, 4):
            with pytest.raises(StoreError, match="not as many replicas"):
                await here.ask(cost=2)
            await until(lambda lost=lost: here.store.stats()["late_given_back"] == 2 * lost)  # type: ignore[misc]
        replica.resume()
        await until(lambda: here.store.ready)
        assert await here.used("bucket") == 1


async def test_a_refusal_needs_nobody(pair: tuple[Server, Server]) -> None:
    primary, replica = pair
    async with world(primary.url, prefix="no", wait_replicas=1, deadline="500ms", deny_cache=0) as here:
        await here.ask(cost=8)
        replica.pause()
        assert (await here.ask(cost=1)).violated == ["bucket"]
        replica.resume()
