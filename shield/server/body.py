"""Reading a body, bounded, whichever lane it comes through."""

from __future__ import annotations

from shield.server.exchange import Ask
from shield.server.problem import Problem


async def read_body(ask: Ask, max_bytes: int) -> bytes:
    """The whole body. Problem: 413 past the bound, announced or not; 408 when it does not come in time."""
    return await ask.receive(max_bytes) if ask.whole is None else body_here(ask, max_bytes)


def body_here(ask: Ask, max_bytes: int) -> bytes:
    """The whole body of a request that has arrived. Problem 413 past the bound."""
    body = ask.whole
    assert body is not None
    if len(body) > max_bytes:
        raise too_large(max_bytes)
    return body


def too_large(max_bytes: int) -> Problem:
    """For a body past its bound. The connection ends with it: nobody reads the rest."""
    detail = f"the body is larger than {max_bytes} bytes"
    return Problem(413, detail, members={"field": "body"}, close=True)


def too_slow(timeout_s: float) -> Problem:
    """For a body that did not come in time."""
    return Problem(408, f"the body did not arrive within {timeout_s:.0f} s", close=True)
