"""A request and an answer, whichever lane they travel in: what endpoints see of HTTP.

Framing, connections and sockets are a lane's business. A handler takes an Ask, returns an Answer or raises
Problem, and cannot tell who carried it.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterator, Sequence
from typing import Any, Final, Protocol

from shield.core.http_lane import Answer

__all__ = ["JSON_TYPE", "SERVER", "Answer", "Ask", "AtOnce", "Fields", "Handler"]

JSON_TYPE: Final[dict[str, str]] = {"Content-Type": "application/json"}


SERVER: Final = "shield"
"""Gateways hand a refusal on with all its fields; what we are built from is nobody's business."""


class Fields(Protocol):
    """Header fields; names are found in any case. Bytes that are no UTF-8 are lone surrogates in values."""

    def get(self, name: str, default: Any = None, /) -> Any:
        """The first value of a field."""

    def getall(self, name: str, default: Sequence[str], /) -> Sequence[str]:
        """Every value of a field, in order; `default` when it is absent."""

    def __contains__(self, name: object, /) -> bool: ...

    def __iter__(self) -> Iterator[str]:
        """The names, some perhaps several times."""


class Ask(Protocol):
    """One request."""

    @property
    def method(self) -> str: ...

    @property
    def target(self) -> str:
        """Path and query as they were sent, without a scheme and an authority."""

    @property
    def headers(self) -> Fields: ...

    @property
    def peer(self) -> Any:
        """The socket's other end as `getpeername` tells it; nothing of use for a unix socket."""

    @property
    def whole(self) -> bytes | None:
        """The body, if all of it is here; None while some of it must be waited for."""

    async def receive(self, max_bytes: int) -> bytes:
        """The whole body. Problem: 413 past the bound; 408 when it does not come in time; 400 for bad framing."""


Handler = Callable[[Ask, str], Awaitable[Answer]]
"""Gets the query, or behind a prefix the rest of the target, as it was sent."""

AtOnce = Callable[[Ask, str], Answer]
"""The same for requests whose body is here, where the store is in this process: it waits for nothing."""
