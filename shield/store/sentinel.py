"""A primary that Sentinel names: `redis+sentinel://HOST[:PORT][,HOST[:PORT]...]/SERVICE`.

The law of this file: each connection asks anew who the primary is, and a connection to a server that is no primary is
none: so a failover ends with the first connection made after it. Asking is redis-py's.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any, Final, cast
from urllib.parse import unquote

from redis.asyncio.sentinel import Sentinel

from shield.errors import StoreError
from shield.store.lane import Transport
from shield.store.url import StoreURLError

DEFAULT_PORT: Final = 26379
CLUSTER_PORT: Final = 6379
# More than anybody names; each is asked in turn until one answers.
MAX_HOSTS: Final = 16


class SentinelTransport:
    """A connection to whoever is the primary when it connects."""

    def __init__(
        self,
        sentinels: tuple[tuple[str, int], ...],
        service: str,
        make: Callable[..., Transport],
        sentinel_options: dict[str, Any],
    ) -> None:
        self._sentinels = sentinels
        self._service = service
        self._make = make
        self._sentinel_options = sentinel_options
        self._connection: Transport | None = None

    async def connect(self) -> None:
        sentinel = cast(Any, Sentinel)(self._sentinels, sentinel_kwargs=self._sentinel_options)
        try:
            host, port = await sentinel.discover_master(self._service)
        finally:
            for client in sentinel.sentinels:
                await client.aclose()
        self._connection = self._make(host=host, port=port)
        await self._connection.connect()

    async def disconnect(self, nowait: bool = False) -> None:
        if self._connection is not None:
            await self._connection.disconnect(nowait)

    async def send_packed_command(self, command: bytes, check_health: bool = True) -> None:
        await self._connected().send_packed_command(command, check_health)

    async def read_response(self, *, disconnect_on_error: bool = True) -> Any:
        return await self._connected().read_response(disconnect_on_error=disconnect_on_error)

    def _connected(self) -> Transport:
        if self._connection is None:
            raise StoreError("not connected")
        return self._connection


def parse_sentinel_address(netloc: str, path: str) -> tuple[dict[str, Any], tuple[tuple[str, int], ...], str]:
    """(credentials for the primary, sentinels, service). StoreURLError says what is wrong, without credentials."""
    credentials, sentinels = _hosts("redis+sentinel", netloc, DEFAULT_PORT)
    service = re.fullmatch(r"/([A-Za-z0-9_.-]{1,64})/?", path)
    if service is None:
        raise StoreURLError(
            "redis+sentinel://: what follows the hosts is /SERVICE, the name of the primary at Sentinel"
        )
    return credentials, sentinels, service[1]


def parse_cluster_address(netloc: str, path: str) -> tuple[dict[str, Any], tuple[tuple[str, int], ...]]:
    """(credentials, servers to ask for the others). StoreURLError says what is wrong, without credentials."""
    if path.strip("/"):
        raise StoreURLError("redis+cluster://: nothing follows the hosts; a cluster has no numbered databases")
    return _hosts("redis+cluster", netloc, CLUSTER_PORT)


def _hosts(scheme: str, netloc: str, default_port: int) -> tuple[dict[str, Any], tuple[tuple[str, int], ...]]:
    account, _, hosts = netloc.rpartition("@")
    if account.count(":") > 1 or "/" in account:
        raise StoreURLError(f"{scheme}://: special characters in a user name or password are percent-encoded")
    user, _, password = account.partition(":")
    credentials = {name: unquote(text) for name, text in (("username", user), ("password", password)) if text}
    found = []
    for part in hosts.split(","):
        match = re.fullmatch(r"(\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9_.-]+)(?::([0-9]{1,5}))?", part)
        if match is None or not 1 <= int(match[2] or default_port) <= 65535:
            raise StoreURLError(f"{scheme}://: expected HOST[:PORT], several with commas between them")
        found.append((match[1].strip("[]"), int(match[2] or default_port)))
    if len(found) > MAX_HOSTS:
        raise StoreURLError(f"{scheme}://: at most {MAX_HOSTS} hosts")
    return credentials, tuple(found)


def make_through(
    sentinels: tuple[tuple[str, int], ...], service: str, make: Callable[..., Transport], options: dict[str, Any]
) -> Callable[[], Transport]:
    """A maker of connections to whoever is the primary."""
    return lambda: cast(Transport, SentinelTransport(sentinels, service, make, options))
