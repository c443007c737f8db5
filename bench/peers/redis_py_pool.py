"""redis-py's asyncio client in its usual form: a pool of connections, one command in flight on each."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from typing import Any

NAME = "redis-py's pool, one EVALSHA a check"


def make(url: str, connections: int) -> tuple[Callable[[bytes, Sequence[bytes], Sequence[bytes]], Awaitable[Any]], Any]:
    """(ask(sha, keys, arguments), client to be closed)."""
    from redis.asyncio import BlockingConnectionPool, Redis

    client = Redis(connection_pool=BlockingConnectionPool.from_url(url, max_connections=connections, timeout=None))

    async def ask(sha: bytes, keys: Sequence[bytes], arguments: Sequence[bytes]) -> Any:
        return await client.evalsha(sha.decode(), len(keys), *keys, *arguments)

    return ask, client
