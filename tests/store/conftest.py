"""What the store's tests share: the scripts beside the oracle, and a proxy in front of a server."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator

import pytest

from tests.servers import Server
from tests.store.scripts import Both, Scripts
from tests.store.wire import Proxy, proxy_to


@pytest.fixture
def both(server: Server) -> Iterator[Both]:
    """The scripts on each server, held against the oracle."""
    with server.client() as client:
        yield Both(Scripts(client))


@pytest.fixture
def scripts(both: Both) -> Scripts:
    """The scripts alone."""
    return both.scripts


@pytest.fixture
async def proxy(any_server: Server) -> AsyncIterator[Proxy]:
    """Between a store and a server, to hold and to cut."""
    async with proxy_to(any_server) as made:
        yield made
