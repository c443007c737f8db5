"""/v1/blocks on the admin listener: who is blocked, by whom, why and until when; set and lift one.

GET lists. POST takes `{"kind": "ip", "value": "203.0.113.7", "for": "1h" or "until": Unix seconds, "why": "...",
"by": "...", "reason": "blocked" or "challenge"}`; without `for` and `until` it lasts until it is lifted. DELETE takes
`?kind=ip&value=203.0.113.7`.
"""

from __future__ import annotations

from typing import Literal
from urllib.parse import parse_qs

import msgspec
from aiohttp import web

from shield.block.book import BLOCKED, OPERATOR, subject_of
from shield.block.journal import as_object
from shield.rate import parse_duration
from shield.server.listener import Handler, read_body
from shield.server.problem import Problem, encode
from shield.server.service import Service

_JSON = "application/json"
_MAX_BODY_BYTES = 16_384
# A page of an operator's, and a bound on one answer: 2 MB.
MOST_SHOWN = 10_000


class _Asked(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    kind: str
    value: str
    until: int | float | None = None
    lasting: str | None = msgspec.field(default=None, name="for")
    why: str = ""
    by: str = OPERATOR
    reason: Literal["blocked", "challenge"] = BLOCKED


_asked = msgspec.json.Decoder(_Asked)


def blocks_handler(service: Service) -> Handler:
    """GET, POST and DELETE of blocks."""

    async def blocks(http: web.BaseRequest, query: str) -> web.Response:
        if http.method in ("GET", "HEAD"):
            return _list(service, query)
        if "Origin" in http.headers:
            raise Problem(403, "blocks are not taken from web pages (the request has an Origin)", close=True)
        if http.method == "DELETE":
            return _lift(service, query)
        return _set(service, await read_body(http, _MAX_BODY_BYTES))

    return blocks


def _list(service: Service, query: str) -> web.Response:
    if query:
        raise Problem(400, f"found ?{query[:100]}; allowed: nothing")
    abuse = service.shield.abuse
    found = abuse.book.all(abuse.now_us())
    shown = [as_object(block) for block in found[:MOST_SHOWN]]
    body = {**abuse.book.stats(), "total": len(found), "blocks": shown}
    return web.Response(body=encode(body), content_type=_JSON)


def _set(service: Service, body: bytes) -> web.Response:
    try:
        asked = _asked.decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise Problem(400, f"no block: {error}") from None
    abuse = service.shield.abuse
    now_us = abuse.now_us()
    try:
        subject = subject_of(asked.kind, asked.value)
        until_us = _until_us(asked, now_us)
        if not asked.by.isprintable() or not asked.why.isprintable():
            raise ValueError("by, why: allowed: printable text")
        block = abuse.block(subject, until_us, by=asked.by or OPERATOR, why=asked.why, reason=asked.reason)
    except ValueError as error:
        raise Problem(400, str(error)) from None
    until = None if block.until_us is None else block.until_us // 10**6
    service.log.info("blocked", kind=subject[0], by=block.by, why=block.why, until=until)
    return web.Response(body=encode(as_object(block)), content_type=_JSON)


def _until_us(asked: _Asked, now_us: int) -> int | None:
    if asked.until is not None and asked.lasting is not None:
        raise ValueError("for, until: allowed: one of them")
    if asked.lasting is not None:
        try:
            lasting_us = parse_duration(asked.lasting)
        except ValueError as error:
            raise ValueError(f"for: {error}") from None
        until_us = now_us + lasting_us
    elif asked.until is None:
        return None
    else:
        until_us = int(asked.until * 1_000_000) if abs(asked.until) < 1e12 else 0
    if until_us <= now_us or until_us > now_us + 100 * 365 * 86_400_000_000:
        raise ValueError("for, until: allowed: an instant from now to a hundred years ahead")
    return until_us


def _lift(service: Service, query: str) -> web.Response:
    asked = parse_qs(query)
    if set(asked) != {"kind", "value"} or any(len(values) != 1 for values in asked.values()):
        raise Problem(400, f"found ?{query[:100]}; allowed: kind=KIND&value=VALUE")
    try:
        subject = subject_of(asked["kind"][0], asked["value"][0])
    except ValueError as error:
        raise Problem(400, str(error)) from None
    lifted = service.shield.abuse.unblock(subject)
    if lifted is None:
        raise Problem(404, f"{subject[0]} {subject[1]} is not blocked; block lists are lifted in their files")
    service.log.info("unblocked", kind=subject[0], was_by=lifted.by)
    return web.Response(body=encode(as_object(lifted)), content_type=_JSON)
