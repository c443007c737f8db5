"""Answers as the express lane sends them: the same fields that aiohttp would send, in the same order."""

from __future__ import annotations

from email.utils import formatdate
from functools import lru_cache
from time import time
from typing import Final

from shield.core.http_lane import render
from shield.server.exchange import SERVER, Answer

_SERVER_LINE: Final = f"Server: {SERVER}\r\n".encode()


@lru_cache(maxsize=2)
def _date_line(second: int) -> bytes:
    return f"Date: {formatdate(second, usegmt=True)}\r\n".encode()


def bytes_of(answer: Answer, *, close: bool, method: str) -> bytes:
    """An answer to a request of this method. ValueError for a header field that cannot be sent."""
    headers = answer.headers
    if type(headers) is not dict:
        headers = dict(headers)
    return render(answer.status, headers, answer.body, close, method == "HEAD", _SERVER_LINE, _date_line(int(time())))
