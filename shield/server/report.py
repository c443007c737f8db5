"""POST /v1/report and /v1/release: what became of a request that was allowed."""

from __future__ import annotations

from shield.server.body import read_body
from shield.server.bounds import MAX_BODY_BYTES
from shield.server.exchange import JSON_TYPE, Answer, Ask, Handler
from shield.server.problem import encode
from shield.server.service import Service
from shield.server.wire import decode_release, decode_report


def report_handler(service: Service) -> Handler:
    """202 with `settled`: false when the receipt was settled before, or when there was none."""

    async def report(http: Ask, query: str) -> Answer:
        told = decode_report(await read_body(http, MAX_BODY_BYTES))
        settled = False
        if told.status is not None or told.event is not None:
            service.shield.abuse.outcome(told, told.status, told.event)
        if told.receipt is not None:
            settled = await service.shield.report(
                told.receipt, cost=told.cost, bytes=told.bytes, type_cost=told.type_cost
            )
        return Answer(202, JSON_TYPE, encode({"settled": settled}))

    return report


def release_handler(service: Service) -> Handler:
    """200 with `released`: how many places came free."""

    async def release(http: Ask, query: str) -> Answer:
        leases = decode_release(await read_body(http, MAX_BODY_BYTES))
        return Answer(200, JSON_TYPE, encode({"released": await service.shield.release(leases)}))

    return release
