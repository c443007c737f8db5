"""The lane that speaks all of HTTP: aiohttp's requests as Asks, Answers as aiohttp's responses."""

from __future__ import annotations

import asyncio
from typing import Any, cast

from aiohttp import web

from shield.server.body import too_large, too_slow
from shield.server.bounds import BODY_TIMEOUT_S
from shield.server.exchange import SERVER, Answer, Fields
from shield.server.problem import Problem


class AiohttpAsk:
    """A request that aiohttp has parsed; its body may still be on its way."""

    __slots__ = ("_http", "headers", "method", "target")

    def __init__(self, http: web.BaseRequest) -> None:
        self._http = http
        self.method: str = http.method
        self.headers = cast(Fields, http.headers)
        target = http.raw_path
        self.target: str = target if target.startswith("/") else http.rel_url.raw_path_qs

    @property
    def peer(self) -> Any:
        transport = self._http.transport
        return None if transport is None else transport.get_extra_info("peername")

    @property
    def whole(self) -> bytes | None:
        return None

    async def receive(self, max_bytes: int) -> bytes:
        """The whole body. Problem: 413 past the bound; 408 when it does not come in time; 400 for bad framing."""
        http = self._http
        content = http.content
        length = http.content_length
        if length is not None and length > max_bytes:
            raise too_large(max_bytes)
        if content.is_eof():
            body = content.read_nowait()
            if len(body) > max_bytes:
                raise too_large(max_bytes)
            return body
        if http.headers.get("Expect", "").lower() == "100-continue":
            await http.writer.write(b"HTTP/1.1 100 Continue\r\n\r\n")
            http.writer.output_size = 0  # it counts as no answer yet
        received = bytearray()
        try:
            async with asyncio.timeout(BODY_TIMEOUT_S):
                while chunk := await content.readany():
                    received += chunk
                    if len(received) > max_bytes:
                        raise too_large(max_bytes)
        except TimeoutError:
            raise too_slow(BODY_TIMEOUT_S) from None
        except web.RequestPayloadError:
            raise Problem(400, "the body's framing is broken", close=True) from None
        return bytes(received)


def response_of(answer: Answer, http: web.BaseRequest) -> web.Response:
    """The answer for aiohttp to send."""
    response = web.Response(status=answer.status, headers=answer.headers, body=answer.body)
    # Bytes of a body that did not arrive would be taken for the next request's head, or the other way
    # round: an auth_request of nginx announces a body that it never sends.
    if answer.close or not http.content.is_eof():
        response.force_close()
    response.headers["Server"] = SERVER
    return response
