"""POST /v1/check: one request, or a batch of them, and the decisions as values."""

from __future__ import annotations

from shield.server.body import read_body
from shield.server.bounds import MAX_BODY_BYTES
from shield.server.exchange import JSON_TYPE, Answer, Ask, Handler
from shield.server.service import Service
from shield.server.wire import decode_check


def check_handler(service: Service) -> Handler:
    """Answers 200 whenever a decision was made, whatever it is."""

    async def check(http: Ask, query: str) -> Answer:
        asked = decode_check(await read_body(http, MAX_BODY_BYTES))
        if isinstance(asked, list):
            # One after the other, so that an earlier request of the batch counts for a later one.
            answers = [(await service.decide(request, "check")).to_json() for request in asked]
            body = b"[" + b",".join(answers) + b"]"
        else:
            body = (await service.decide(asked, "check")).to_json()
        return Answer(200, JSON_TYPE, body)

    return check
