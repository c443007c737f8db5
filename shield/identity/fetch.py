"""Reads key sets and lists from where a policy says they are: a file beside it, or an HTTPS endpoint.

Whatever answers is bounded: how long it may take, how much it may send, where it may send us. FetchError says what
went wrong in words that are safe to log, without a URL's query.
"""

from __future__ import annotations

import asyncio
import ssl
from pathlib import Path
from typing import TYPE_CHECKING, Final
from urllib.parse import urljoin, urlsplit

from shield.errors import ShieldError

if TYPE_CHECKING:
    import aiohttp

FETCH_TIMEOUT_S: Final = 5.0
"""From the name's look-up to the last byte. Nobody waits for it: a check goes on with the keys it has."""
MAX_REDIRECTS: Final = 3
KEY_SET: Final = "application/jwk-set+json, application/json"
_REDIRECTS: Final = frozenset({301, 302, 303, 307, 308})


class FetchError(ShieldError):
    """Keys could not be had; those that are in use stay."""

    transient = True


def read_file(path: Path, max_bytes: int) -> bytes:
    """A file of at most `max_bytes`. FetchError."""
    try:
        with path.open("rb") as file:
            data = file.read(max_bytes + 1)
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) and error.strerror else "not a file name"
        raise FetchError(f"{path.name} cannot be read: {reason}") from None
    if len(data) > max_bytes:
        raise FetchError(f"{path.name} has more than {max_bytes:,} bytes")
    return data


async def read_url(
    url: str,
    max_bytes: int,
    *,
    timeout_s: float = FETCH_TIMEOUT_S,
    tls: ssl.SSLContext | None = None,
    accept: str = KEY_SET,
) -> bytes:
    """The body of a 200 answer, of at most `max_bytes`. Redirects are followed within the origin. FetchError."""
    try:
        async with asyncio.timeout(timeout_s):
            return await _read_url(url, max_bytes, tls, accept)
    except TimeoutError:
        raise FetchError(f"{_shown(url)}: no whole answer within {timeout_s:g} s") from None


async def _read_url(url: str, max_bytes: int, tls: ssl.SSLContext | None, accept: str) -> bytes:
    import aiohttp

    origin, where = _origin(url), url
    headers = {"Accept": accept, "Accept-Encoding": "identity"}
    try:
        async with aiohttp.ClientSession(
            # What an answer says of cookies, compression and proxies is no business of ours.
            cookie_jar=aiohttp.DummyCookieJar(),
            auto_decompress=False,
            trust_env=False,
            connector=aiohttp.TCPConnector(force_close=True, limit=1, ssl=tls if tls is not None else True),
        ) as session:
            for _ in range(MAX_REDIRECTS + 1):
                async with session.get(where, headers=headers, allow_redirects=False) as answer:
                    if answer.status in _REDIRECTS:
                        where = _target(where, answer.headers.get("Location", ""))
                        if _origin(where) != origin:
                            raise FetchError(f"{_shown(url)}: sends us to another host")
                        continue
                    return await _body(answer, url, max_bytes)
    except aiohttp.ClientError as error:
        raise FetchError(f"{_shown(url)}: {_reason(error)}") from None
    raise FetchError(f"{_shown(url)}: more than {MAX_REDIRECTS} redirects")


async def _body(answer: aiohttp.ClientResponse, url: str, max_bytes: int) -> bytes:
    if answer.status != 200:
        raise FetchError(f"{_shown(url)}: answered {answer.status}")
    if answer.headers.get("Content-Encoding", "identity").lower() != "identity":
        raise FetchError(f"{_shown(url)}: the answer is compressed")
    body = bytearray()
    async for chunk in answer.content.iter_any():
        body += chunk
        if len(body) > max_bytes:
            raise FetchError(f"{_shown(url)}: the answer has more than {max_bytes:,} bytes")
    return bytes(body)


def _target(where: str, location: str) -> str:
    try:
        return urljoin(where, location)
    except ValueError:
        return ""


def _origin(url: str) -> tuple[str, str | None, int | None]:
    try:
        parts = urlsplit(url)
        return parts.scheme, parts.hostname, parts.port or {"https": 443, "http": 80}.get(parts.scheme)
    except ValueError:
        return "", None, None


def _shown(url: str) -> str:
    parts = urlsplit(url)
    return f"{parts.scheme}://{parts.netloc}{parts.path}"


def _reason(error: Exception) -> str:
    import aiohttp

    if isinstance(error, aiohttp.ClientConnectorCertificateError):
        return "its certificate is not accepted"
    if isinstance(error, aiohttp.ClientConnectorError):
        return f"cannot connect: {error.os_error.strerror or 'no address'}"
    return f"no HTTP answer ({type(error).__name__})"
