"""The client for an event loop, over aiohttp's connection pool."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, TypeVar

from shield.answer import HeaderFields
from shield.client.protocol import (
    IDLE_S,
    MAX_ANSWER_BYTES,
    Call,
    Caller,
    Decision,
    Unreachable,
    check_call,
    check_many_call,
    ending_call,
    release_call,
    report_call,
)
from shield.request import Request

if TYPE_CHECKING:
    import aiohttp

T = TypeVar("T")


class Client(Caller):
    """Asks the endpoint from an event loop. Use it as `async with Client(...)`, or call `close`. It belongs to the loop
    of its first call. The arguments are those of `Caller`.
    """

    _session: aiohttp.ClientSession | None = None

    async def __aenter__(self) -> Client:
        return self

    async def __aexit__(self, *exc: object) -> None:
        await self.close()

    async def close(self) -> None:
        """Closes the connections. A later call opens new ones."""
        session, self._session = self._session, None
        if session is not None:
            await session.close()

    async def check(self, request: Request) -> Decision:
        """One decision. RequestError for a request that is none, EndpointError when the caller itself is refused."""
        return await self._call(check_call(request))

    async def check_many(self, requests: Sequence[Request]) -> list[Decision]:
        """Up to 256 decisions, each its own step, in order."""
        return await self._call(check_many_call(requests)) if requests else []

    async def report(
        self,
        receipt: str | None = None,
        *,
        facts: Request | None = None,
        cost: int | None = None,
        bytes: int | None = None,
        type_cost: int | None = None,
        status: int | None = None,
        event: str | None = None,
    ) -> bool:
        """What became of a request: with its receipt what it really took, with its facts what detectors learn from.
        True when something was settled. Unreachable when nobody answers.
        """
        told = {"cost": cost, "bytes": bytes, "type_cost": type_cost, "status": status, "event": event}
        return await self._call(report_call(receipt, facts, told))

    async def release(self, leases: Sequence[str]) -> int:
        """Gives places back; how many came free. Unreachable when nobody answers."""
        return await self._call(release_call(leases)) if leases else 0

    async def complete(
        self, owner: str | Decision, status: int, headers: HeaderFields = (), body: bytes | None = b""
    ) -> bool:
        """What a request with an idempotency key was answered, for whoever repeats it. `owner` is the decision, or its
        `idempotency["owner"]`; `body` is None where it is too large to hand over. False when the key is not this
        owner's any more; ReceiptError for an owner of whom nothing is known; Unreachable when nobody answers.
        """
        return await self._call(ending_call(owner, "complete", status, headers, body))

    async def abandon(self, owner: str | Decision) -> bool:
        """The request did nothing: its key is as if it had never been used. Otherwise as `complete`."""
        return await self._call(ending_call(owner, "abandon"))

    async def extend(self, owner: str | Decision) -> bool:
        """The request takes longer: its lease starts anew. Otherwise as `complete`."""
        return await self._call(ending_call(owner, "extend"))

    async def _call(self, call: Call[T]) -> T:
        try:
            status, body = await self._post(call.path, call.body)
            return call.result(status, body)
        except Unreachable as error:
            return call.stand_in(self._when_unreachable, error)

    async def _post(self, path: str, body: bytes) -> tuple[int, bytes]:
        import aiohttp

        session = self._session
        if session is None:
            session = self._session = self._open()
        try:
            async with session.post(self._endpoint.prefix + path, data=body) as answer:
                read = await answer.content.read(MAX_ANSWER_BYTES + 1)
                while not answer.content.at_eof() and len(read) <= MAX_ANSWER_BYTES:
                    read += await answer.content.read(MAX_ANSWER_BYTES + 1 - len(read))
                if len(read) > MAX_ANSWER_BYTES:
                    answer.close()
                    raise Unreachable(f"the answer is longer than {MAX_ANSWER_BYTES} bytes")
                return answer.status, read
        except (aiohttp.ClientError, OSError) as error:  # TimeoutError is an OSError
            raise self._unreachable(error) from None

    def _open(self) -> aiohttp.ClientSession:
        import aiohttp

        endpoint = self._endpoint
        connector: aiohttp.BaseConnector
        if endpoint.scheme == "unix":
            connector = aiohttp.UnixConnector(endpoint.path, limit=self._pool_size, keepalive_timeout=IDLE_S)
        else:
            connector = aiohttp.TCPConnector(
                limit=self._pool_size, keepalive_timeout=IDLE_S, ssl=True if self._tls is None else self._tls
            )
        scheme = "http" if endpoint.scheme == "unix" else endpoint.scheme
        host = f"[{endpoint.host}]" if ":" in endpoint.host else endpoint.host
        port = "" if endpoint.scheme == "unix" else f":{endpoint.port}"
        return aiohttp.ClientSession(
            f"{scheme}://{host}{port}",
            connector=connector,
            headers=self._headers,
            cookie_jar=aiohttp.DummyCookieJar(),
            timeout=aiohttp.ClientTimeout(total=self._deadline_s),
        )
