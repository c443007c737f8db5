"""Fail the N-th command, in every way there is, for every N until a run is over before it fails."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import TypeVar

import pytest

from shield.errors import StoreError
from tests.servers import Server
from tests.store.wire import proxy_to, until
from tests.store.world import World, world

T = TypeVar("T")
BURST = 8
MAX_COMMANDS = 60
_runs = itertools.count()


@dataclass
class Told:
    """What the callers of one run were told. Costs of bucket "bucket"."""

    admitted: int = 0
    unknown: int = 0
    refunded: int = 0
    maybe_refunded: int = 0
    held: int = 0
    maybe_held: int = 0
    failures: list[str] = field(default_factory=list)


async def attempt(here: World, told: Told, action: Callable[[], Awaitable[T]]) -> T | None:
    """None when the store failed. The next attempt finds it connected again."""
    await until(lambda: here.store.ready)
    try:
        return await action()
    except StoreError as error:
        told.failures.append(str(error))
        return None


async def live(here: World, told: Told) -> None:
    """A short life of a store: checks one by one and together, a settlement, a release, a secret."""
    charges = here.charges(cost=3)
    settled = False
    if await attempt(here, told, lambda: _apply(here, charges)) is None:
        told.unknown += 3
        told.maybe_held += 1
    else:
        told.admitted += 3
        settlement = here.settlement(charges, b"receipt", 1)
        settled = await attempt(here, told, lambda: here.store.settle(settlement)) is not None
        told.refunded += 2 * settled
        told.maybe_refunded += 2 * (not settled)
        leases = here.leases(charges)
        released = await attempt(here, told, lambda: here.store.release(leases))
        told.held += 0 if released is not None else 1
    await attempt(here, told, here.store.shared_secret)
    await until(lambda: here.store.ready)
    outcomes = await asyncio.gather(*[here.ask() for _ in range(10)], return_exceptions=True)
    for outcome in outcomes:
        if isinstance(outcome, StoreError):
            told.failures.append(str(outcome))
            told.unknown += 1
            told.maybe_held += 1
        elif isinstance(outcome, BaseException):
            raise outcome
        else:
            told.admitted += bool(outcome)
            told.held += bool(outcome)


async def _apply(here: World, charges: object) -> bool:
    await here.store.apply(charges)  # type: ignore[arg-type]
    return True


@pytest.mark.parametrize("connections", [1, 2])
@pytest.mark.parametrize("how", ["unsent", "unheard", "torn"])
async def test_whatever_fails_nobody_hangs_and_nothing_is_minted(
    any_server: Server, how: str, connections: int
) -> None:
    for fail_at in range(1, MAX_COMMANDS):
        told = Told()
        async with proxy_to(any_server) as proxy:
            proxy.fail_at, proxy.how = fail_at, how
            prefix = f"fault{next(_runs)}"
            async with asyncio.timeout(20):
                async with world(proxy.url, prefix=prefix, connections=connections) as here:
                    await live(here, told)
                    await until(lambda here=here: here.store.ready)  # type: ignore[misc]
            if not proxy.failed:
                break
        async with world(any_server.url, prefix=prefix) as there:
            look = {status.name: status.limit - status.remaining for status in (await there.ask(cost=0)).limits}
        used, held = look["bucket"], look["places"] - 1  # the look itself holds a place
        least = told.admitted - told.refunded
        assert told.admitted - told.refunded - told.maybe_refunded <= BURST
        assert least - told.maybe_refunded <= used <= min(BURST, least + told.unknown)
        assert told.held - 1 <= held <= told.held + told.maybe_held
        assert len(told.failures) <= 11
    else:
        pytest.fail("a run that never ends")
    assert fail_at > 15
    assert told.failures == []
    assert (told.admitted, told.refunded, told.held) == (10, 2, 7)
