"""POST /v1/idempotency: how a request ended that owns its idempotency key."""

from __future__ import annotations

from shield.errors import ReceiptError, RequestError
from shield.server.body import read_body
from shield.server.bounds import MAX_BODY_BYTES
from shield.server.exchange import JSON_TYPE, Answer, Ask, Handler
from shield.server.problem import Problem, encode
from shield.server.service import Service
from shield.server.wire import Ended, decode_ended, detail_of

LOST = "the key is not this owner's any more: it was ended before, or somebody has taken over"


def idempotency_handler(service: Service) -> Handler:
    """200 when it was written; 409 when somebody else owns the key by now, or it was ended before; 404 for an owner of
    whom nothing is known.
    """

    async def idempotency(http: Ask, query: str) -> Answer:
        ended = decode_ended(await read_body(http, MAX_BODY_BYTES))
        try:
            written = await _write(service, ended)
        except ReceiptError as error:
            raise Problem(404, str(error), members={"field": "owner"}) from None
        if not written:
            raise Problem(409, LOST, members={"field": "owner"})
        return Answer(200, JSON_TYPE, encode({"done": True}))

    return idempotency


async def _write(service: Service, ended: Ended) -> bool:
    shield = service.shield
    if ended.action == "abandon":
        return await shield.abandon(ended.owner)
    if ended.action == "extend":
        return await shield.extend(ended.owner)
    answered = ended.response
    assert answered is not None
    try:
        return await shield.complete(ended.owner, answered.status, answered.headers, ended.body)
    except RequestError as error:
        field = error.field if error.field.startswith("response") else f"response.{error.field}"
        raise RequestError(field, detail_of(error)) from None
