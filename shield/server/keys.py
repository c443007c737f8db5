"""/v1/keys of the admin listener: API keys are made, listed and revoked here.

The answer to making one is the only place where its text ever appears. Neither logs nor lists show it.
"""

from __future__ import annotations

import asyncio
import time
from dataclasses import asdict
from typing import Final
from urllib.parse import unquote

import msgspec

from shield.errors import RequestError
from shield.identity.api_keys import ApiKeys, KeyStoreError
from shield.server.body import read_body
from shield.server.exchange import JSON_TYPE, Answer, Ask, Handler
from shield.server.problem import Problem, encode
from shield.server.service import Front

MAX_BODY_BYTES: Final = 8_192
"""Five short texts and a date."""
METHODS: Final = frozenset({"GET", "HEAD", "POST", "DELETE"})


class NewKey(msgspec.Struct, forbid_unknown_fields=True):
    """The body of POST: whose key it is to be."""

    tenant: str | None = None
    user: str | None = None
    plan: str | None = None
    note: str | None = None
    expires: int | None = None


def keys_handler(service: Front) -> Handler:
    """GET lists, POST makes, DELETE ?id=ID revokes."""

    async def keys(http: Ask, query: str) -> Answer:
        ring = service.api_keys
        if ring is None:
            raise Problem(404, "the policy in force has no [identity.api_keys]")
        if http.method in ("POST", "DELETE") and "Origin" in http.headers:
            raise Problem(403, "keys are not managed from web pages (the request has an Origin)", close=True)
        try:
            if http.method == "POST":
                return await _make(service, ring, await read_body(http, MAX_BODY_BYTES))
            if http.method == "DELETE":
                return await _revoke(service, ring, query)
        except KeyStoreError as error:
            raise Problem(503, str(error)) from None
        ring.look(time.time_ns() // 1000)
        return Answer(200, JSON_TYPE, encode({"keys": [asdict(key) for key in ring.list()]}))

    return keys


async def _make(service: Front, ring: ApiKeys, body: bytes) -> Answer:
    try:
        wanted = msgspec.json.decode(body or b"{}", type=NewKey)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        allowed = "a JSON object with tenant, user, plan, note (texts) and expires (Unix time in whole seconds)"
        raise RequestError("", f"found something else; allowed: {allowed}") from None
    # Writing to a disk takes as long as it takes; decisions go on meanwhile.
    key, text = await asyncio.to_thread(ring.create, **msgspec.structs.asdict(wanted), now_s=int(time.time()))
    service.log.info("api key made", id=key.id, tenant=key.tenant, user=key.user, plan=key.plan)
    return Answer(201, JSON_TYPE | {"Cache-Control": "no-store"}, encode({"key": text, **asdict(key)}))


async def _revoke(service: Front, ring: ApiKeys, query: str) -> Answer:
    name, _, value = query.partition("=")
    if name != "id" or not value:
        raise Problem(400, f"found ?{query[:100]}; allowed: id=ID")
    key_id = unquote(value)
    if not await asyncio.to_thread(ring.revoke, key_id):
        raise Problem(404, "no key has this id")
    service.log.info("api key revoked", id=key_id)
    return Answer(200, JSON_TYPE, encode({"revoked": key_id}))
