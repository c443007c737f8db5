"""Answers as the express lane sends them: the same fields that aiohttp would send, in the same order."""

from __future__ import annotations

from email.utils import formatdate
from time import time
from typing import Final

from shield.core.http_lane import render
from shield.server.exchange import SERVER, Answer

SERVER_LINE: Final = f"Server: {SERVER}\r\n".encode()


class _Date:
    """The line of this second."""

    second = -1
    line = b""


def date_line() -> bytes:
    """When what is sent now was made."""
    second = int(time())
    if second != _Date.second:
        _Date.second, _Date.line = second, f"Date: {formatdate(second, usegmt=True)}\r\n".encode()
    return _Date.line


def bytes_of(answer: Answer, close: bool, method: str) -> bytes:
    """An answer to a request of this method. ValueError for a header field that cannot be sent."""
    return render(answer, close, method, SERVER_LINE, date_line())
