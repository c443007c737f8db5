"""A limit of a function's own: behind a middleware, in threads beside its loop, and with no middleware at all."""

from __future__ import annotations

import httpx
import pytest
from starlette.applications import Starlette
from starlette.responses import PlainTextResponse
from starlette.routing import Route

from shield import Policy, PolicyError, Refused, Shield, ShieldError
from shield.middleware import cost, current, exempt, limit
from shield.middleware.asgi import ShieldMiddleware
from shield.middleware.limiting import _name_of
from shield.testing import FailingStore, ManualClock
from tests.middleware.serving import uvicorn_serving


async def test_a_function_by_itself():
    @limit("2/h", key=lambda city, **_: city)
    async def geocode(city, unit="m"):
        return city, unit

    assert await geocode("Oslo") == ("Oslo", "m")
    assert await geocode("Oslo", unit="ft") == ("Oslo", "ft")
    with pytest.raises(Refused) as refused:
        await geocode("Oslo")
    assert refused.value.decision.status == 429
    assert 1799 < refused.value.decision.retry_after <= 1800
    assert await geocode("Bergen") == ("Bergen", "m")
    for nobody in (None, ""):
        with pytest.raises(Refused) as refused:
            await geocode(nobody)
        assert refused.value.decision.reason == "missing"


def test_a_function_that_is_not_async():
    @limit("1/h", key=str, burst=3)
    def send(number):
        return number

    assert [send(7) for _ in range(3)] == [7, 7, 7]
    with pytest.raises(Refused):
        send(7)
    assert send(8) == 8
    assert current() is None


async def test_a_shield_of_ones_own_keeps_the_bucket():
    clock = ManualClock()
    shield = Shield(Policy(), clock=clock)

    def limited():
        @limit("1/h", key=lambda: "all", name="shared-name", shield=shield)
        async def call():
            return True

        return call

    first, second = limited(), limited()
    assert await first()
    with pytest.raises(Refused):
        await second()  # of the same name, so it is the same limit
    clock.advance(s=3600)
    assert await second()


async def test_a_store_that_has_to_be_waited_for_needs_an_async_function():
    shield = Shield(Policy(), FailingStore(Shield(Policy()).store))

    @limit("1/h", key=str, shield=shield)
    def call(number):
        return number

    with pytest.raises(ShieldError, match="must be awaited"):
        call(7)


@pytest.mark.parametrize("store", ["memory", "redis"])
async def test_handlers_in_threads(store, request):
    @limit("2/h", key="ip")
    def in_thread(request):
        return PlainTextResponse("from a thread")

    url = "memory://" if store == "memory" else request.getfixturevalue("valkey").url + "?prefix=threads&deadline=5s"
    app = ShieldMiddleware(Starlette(routes=[Route("/", in_thread)]), Policy(), store=url)
    async with uvicorn_serving(app) as at, httpx.AsyncClient(base_url=at) as client:
        answers = [await client.get("/") for _ in range(3)]
    assert [answer.status_code for answer in answers] == [200, 200, 429]
    assert "in_thread" in answers[0].headers["ratelimit"]


@pytest.mark.parametrize(
    ("rate", "key", "field"), [("often", "ip", "rate"), ("1/h", "shoe_size", "key"), ("0/h", "ip", "rate")]
)
def test_limits_that_are_none(rate, key, field):
    with pytest.raises(PolicyError, match=field):
        limit(rate, key=key)(lambda: None)


@pytest.mark.parametrize("units", [-1, 1.5, True, 2**53])
def test_costs_that_are_none(units):
    with pytest.raises(ValueError, match="allowed"):
        cost(units)


def test_names_of_functions_are_names_of_limits():
    def short(): ...

    short.__qualname__ = "Orders.list<locals>.\u00e9"
    assert _name_of(short) == "test_limit_decorator.orders.list-locals"
    short.__qualname__ = "x" * 300
    other = _name_of(short)
    short.__qualname__ = "y" + "x" * 299
    assert len(other) <= 64
    assert other != _name_of(short)


def test_marks_add_up():
    from shield.middleware.marks import mark_of

    @exempt
    @cost(3)
    def handler(): ...

    mark = mark_of(handler)
    assert (mark.exempt, mark.cost) == (True, 3)
    assert mark_of(object()) is None
