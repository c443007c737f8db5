"""Answers as the express lane sends them: the same fields that aiohttp would send, in the same order."""

from __future__ import annotations

from typing import Final

from shield.core.http_lane import date_line, render
from shield.server.exchange import SERVER, Answer

SERVER_LINE: Final = f"Server: {SERVER}\r\n".encode()


def bytes_of(answer: Answer, close: bool, method: str) -> bytes:
    """An answer to a request of this method. ValueError for a header field that cannot be sent."""
    return render(answer, close, method, SERVER_LINE, date_line())
