"""/v1/blocks on the admin listener: who is blocked, by whom, why and until when; set and lift one.

GET lists, `?limit=1000&after=CURSOR&kind=ip`, or shows the one of `?kind=ip&value=203.0.113.7`. POST takes
`{"kind": "ip", "value": "203.0.113.7", "for": "1h" or "until": Unix seconds, "why": "...", "by": "...", "reason":
"blocked" or "challenge"}`; without `for` and `until` it lasts until it is lifted. DELETE takes
`?kind=ip&value=203.0.113.7&by=NAME`.
"""

from __future__ import annotations

from typing import Any, Final, Literal
from urllib.parse import parse_qs

import msgspec

from shield.block.block import BLOCKED, KINDS, MAX_LASTING_US, OPERATOR, subject_of
from shield.block.ledger import BlockLedger
from shield.rate import parse_duration
from shield.server.body import read_body
from shield.server.exchange import JSON_TYPE, Answer, Ask, Handler
from shield.server.problem import Problem, encode
from shield.server.service import Front

METHODS: Final = frozenset({"GET", "HEAD", "POST", "DELETE"})
MAX_BODY_BYTES: Final = 16_384
# Of one answer: 3 MB at most, and a tenth of a second.
MAX_PAGE: Final = 10_000
DEFAULT_PAGE: Final = 1_000


class Asked(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The body of POST."""

    kind: str
    value: str
    until: int | float | None = None
    lasting: str | None = msgspec.field(default=None, name="for")
    why: str = ""
    by: str = OPERATOR
    reason: Literal["blocked", "challenge"] = BLOCKED


def blocks_handler(service: Front) -> Handler:
    """GET, POST and DELETE of blocks."""

    async def blocks(http: Ask, query: str) -> Answer:
        if http.method in ("GET", "HEAD"):
            return _show(service, query)
        if "Origin" in http.headers:
            raise Problem(403, "blocks are not taken from web pages (the request has an Origin)", close=True)
        if http.method == "DELETE":
            return _lift(service, query)
        return _set(service, await read_body(http, MAX_BODY_BYTES))

    return blocks


def _show(service: Front, query: str) -> Answer:
    ledger = service.blocks
    asked = _query(query, ("limit", "after", "kind", "value"))
    if asked.get("kind", KINDS[0]) not in KINDS:
        raise Problem(400, f"kind: allowed: {', '.join(KINDS)}")
    if "value" in asked:
        return _show_one(ledger, asked)
    limit = asked.get("limit", str(DEFAULT_PAGE))
    if not (limit.isascii() and limit.isdigit() and len(limit) < 6 and 1 <= int(limit) <= MAX_PAGE):
        raise Problem(400, f"limit: found {limit[:20]!r}; allowed: 1 to {MAX_PAGE:,}")
    found = [one for one in ledger.book.all(service.now_us()) if one.kind == asked.get("kind", one.kind)]
    after = asked.get("after", "")
    page = [one for one in found if f"{one.kind}:{one.value}:{one.reason}" > after] if after else found
    shown, left = page[: int(limit)], page[int(limit) :]
    body: dict[str, Any] = {"total": len(found), "blocks": [one.as_object() for one in shown]}
    last = shown[-1] if left else None
    body["next"] = None if last is None else f"{last.kind}:{last.value}:{last.reason}"
    body |= {name: value for name, value in ledger.stats().items() if name in ("blocks_max", "blocks_pushed_out")}
    return Answer(200, JSON_TYPE, encode(body))


def _show_one(ledger: BlockLedger, asked: dict[str, str]) -> Answer:
    try:
        subject = subject_of(asked.get("kind", ""), asked["value"], ledger.book.ipv6_prefix)
    except ValueError as error:
        raise Problem(400, str(error)) from None
    block = ledger.in_force(subject)
    if block is None:
        raise Problem(404, f"{subject[0]} {subject[1]} is not blocked")
    return Answer(200, JSON_TYPE, encode(block.as_object()))


def _set(service: Front, body: bytes) -> Answer:
    try:
        asked = msgspec.json.decode(body, type=Asked)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise Problem(400, f"no block: {error}") from None
    try:
        until_us = until_of(asked.until, asked.lasting, service.now_us())
        by = name_of(asked.by)
        if not asked.why.isprintable():
            raise ValueError("why: allowed: printable text")
        block = service.blocks.block(asked.kind, asked.value, until_us, by=by, why=asked.why, reason=asked.reason)
    except ValueError as error:
        raise Problem(400, str(error)) from None
    shown = block.as_object()
    service.log.info("block set", **{name: shown[name] for name in ("kind", "value", "reason", "until", "by", "why")})
    return Answer(200, JSON_TYPE, encode(shown))


def name_of(by: str) -> str:
    """Whoever says something. ValueError."""
    if not by.isprintable() or by.startswith("detector:"):
        raise ValueError("by: allowed: printable text that does not begin with detector:")
    return by or OPERATOR


def until_of(until: float | None, lasting: str | None, now_us: int) -> int | None:
    """When something ends that lasts until an instant (Unix seconds), or for so long. ValueError."""
    if until is not None and lasting is not None:
        raise ValueError("for, until: allowed: one of them")
    if lasting is not None:
        try:
            until_us = now_us + parse_duration(lasting)
        except ValueError as error:
            raise ValueError(f"for: {error}") from None
    elif until is None:
        return None
    else:
        until_us = int(until * 1_000_000) if abs(until) < 1e12 else 0
    if not now_us < until_us <= now_us + MAX_LASTING_US:
        raise ValueError("for, until: allowed: an instant from now to a hundred years ahead")
    return until_us


def _lift(service: Front, query: str) -> Answer:
    asked = _query(query, ("kind", "value", "by"))
    if not {"kind", "value"} <= asked.keys():
        raise Problem(400, f"found ?{query[:100]}; allowed: kind=KIND&value=VALUE")
    try:
        by = name_of(asked.get("by", OPERATOR))
        ended = service.blocks.unblock(asked["kind"], asked["value"], by=by)
    except ValueError as error:
        raise Problem(400, str(error)) from None
    if ended is None:
        raise Problem(404, "it is not blocked; what stands on a block list is lifted there")
    service.log.info("block lifted", kind=ended.kind, value=ended.value, by=by, was_by=ended.by)
    return Answer(200, JSON_TYPE, encode(ended.as_object()))


def _query(query: str, allowed: tuple[str, ...]) -> dict[str, str]:
    try:
        asked = parse_qs(query, keep_blank_values=True, strict_parsing=bool(query), max_num_fields=8, errors="strict")
    except ValueError:
        asked = {"": []}
    if not asked.keys() <= set(allowed) or any(len(values) != 1 for values in asked.values()):
        raise Problem(400, f"found ?{query[:100]}; allowed: {', '.join(allowed)}, once each")
    return {name: values[0] for name, values in asked.items()}
