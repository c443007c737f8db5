"""POST /v1/check: one request, or a batch of them, and the decisions as values."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from shield.core.http_lane import Head, PlainCheck
from shield.decision import Decision
from shield.request import Request
from shield.server.body import body_here, read_body
from shield.server.bounds import MAX_BODY_BYTES
from shield.server.exchange import JSON_TYPE, Answer, Ask, AtOnce, Handler
from shield.server.service import Service
from shield.server.wire import decode_check, decode_request


def check_handler(service: Service) -> Handler:
    """Answers 200 whenever a decision was made, whatever it is."""

    async def check(http: Ask, query: str) -> Answer:
        asked = decode_check(await read_body(http, MAX_BODY_BYTES))
        if isinstance(asked, list):
            # One after the other, so that an earlier request of the batch counts for a later one.
            return _batch([await service.decide(request, "check") for request in asked])
        return Answer(200, JSON_TYPE, (await service.decide(asked, "check")).to_json())

    return check


def check_at_once(service: Service) -> AtOnce:
    """The same, without waiting."""
    decide = service.decide_nowait

    def check(http: Ask, query: str) -> Answer:
        asked = decode_check(body_here(http, MAX_BODY_BYTES))
        if isinstance(asked, list):
            return _batch([decide(request, "check") for request in asked])
        return Answer(200, JSON_TYPE, decide(asked, "check").to_json())

    return check


def plain_check(
    service: Service,
    route: object,
    failed: Callable[[Exception], Answer],
    knows: Callable[[Head], bool] | None,
) -> PlainCheck:
    """The same for single requests in which nothing is special. `failed` makes an answer where there is no decision;
    `knows` tells whose requests are answered, None: everybody's.
    """
    return PlainCheck(
        route,
        MAX_BODY_BYTES,
        kind=Request,
        decode=decode_request,
        shield=service.shield,
        ids=service.ids,
        tally=service.metrics.tally,
        judged=lambda decision, elapsed_s: service.judged(decision, "check", elapsed_s),
        failed=failed,
        knows=knows,
    )


def _batch(decisions: Sequence[Decision]) -> Answer:
    return Answer(200, JSON_TYPE, b"[" + b",".join(decision.to_json() for decision in decisions) + b"]")
