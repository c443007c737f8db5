"""/v1/overrides on the admin listener: a customer's own numbers in place of a limit's; set and lift them.

GET lists. POST takes `{"limit": "user-burst", "key": {"tenant": "acme", "user": "ada"}, "rate": "200/s", "burst": 400,
"for": "24h" or "until": Unix seconds, "why": "...", "by": "..."}`: `rate` and `burst`, or `places` of a concurrency
limit, as `plans` have them. Without `for` and `until` it lasts until it is lifted. DELETE takes the same `limit` and
`key`, and `by`.
"""

from __future__ import annotations

from typing import Any, Final

import msgspec

from shield.block.block import OPERATOR
from shield.server.blocks import name_of, until_of
from shield.server.body import read_body
from shield.server.exchange import JSON_TYPE, Answer, Ask, Handler
from shield.server.problem import Problem, encode
from shield.server.service import Front

METHODS: Final = frozenset({"GET", "HEAD", "POST", "DELETE"})
MAX_BODY_BYTES: Final = 65_536
"""Eight values of a key, each as long as may be, and what is said of it."""


class Asked(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The body of POST, and of DELETE without the numbers."""

    limit: str
    key: dict[str, str]
    rate: str | None = None
    burst: int | None = None
    places: int | None = None
    until: int | float | None = None
    lasting: str | None = msgspec.field(default=None, name="for")
    why: str = ""
    by: str = OPERATOR


def overrides_handler(service: Front) -> Handler:
    """GET, POST and DELETE of overrides."""

    async def overrides(http: Ask, query: str) -> Answer:
        if query:
            raise Problem(400, f"found ?{query[:100]}; allowed: nothing")
        if http.method in ("GET", "HEAD"):
            return _list(service)
        if "Origin" in http.headers:
            raise Problem(403, "overrides are not taken from web pages (the request has an Origin)", close=True)
        body = await read_body(http, MAX_BODY_BYTES)
        try:
            asked = msgspec.json.decode(body, type=Asked)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
            raise Problem(400, f"no override: {error}") from None
        try:
            return _lift(service, asked) if http.method == "DELETE" else _set(service, asked)
        except ValueError as error:
            raise Problem(400, str(error)) from None

    return overrides


def _list(service: Front) -> Answer:
    found = service.blocks.overrides.in_force(service.now_us())
    return Answer(200, JSON_TYPE, encode({"total": len(found), "overrides": [_shown(service, one) for one in found]}))


def _shown(service: Front, one: Any) -> dict[str, object]:
    limit = next((limit for limit in service.policy.limits if limit.name == one.limit), None)
    shown: dict[str, object] = one.as_object(limit.key if limit is not None else None)
    return shown


def _set(service: Front, asked: Asked) -> Answer:
    numbers = {"rate": asked.rate, "burst": asked.burst, "limit": asked.places}
    until_us = until_of(asked.until, asked.lasting, service.now_us())
    if not asked.why.isprintable():
        raise ValueError("why: allowed: printable text")
    by = name_of(asked.by)
    said = service.blocks.override(
        service.policy, asked.limit, asked.key, numbers, until_us=until_us, by=by, why=asked.why
    )
    shown = _shown(service, said)
    told = {name: shown[name] for name in ("limit", "rate", "burst", "places", "until", "by", "why") if name in shown}
    service.log.info("override set", key=shown["key"], **told)
    return Answer(200, JSON_TYPE, encode(shown))


def _lift(service: Front, asked: Asked) -> Answer:
    if not service.blocks.lift_override(service.policy, asked.limit, asked.key, by=name_of(asked.by)):
        raise Problem(404, "this key has no numbers of its own")
    service.log.info("override lifted", limit=asked.limit, key=asked.key, by=asked.by)
    return Answer(200, JSON_TYPE, encode({"limit": asked.limit, "key": asked.key, "lifted": True}))
