"""Random histories of keys over every store, held against the oracle."""

from __future__ import annotations

import asyncio
import tempfile
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager, AsyncExitStack
from functools import partial
from pathlib import Path
from typing import ClassVar

import hypothesis.strategies as st
import pytest
from hypothesis import settings
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule, run_state_machine_as_test

from shield import ReceiptError
from tests.idempotency.keyed import LIMITS, LOCAL, Keyed, policy, redis
from tests.idempotency.oracle import Oracle
from tests.servers import Server

GUARD = """
lease = "30s"
retention = "2m"
max_keys_per_tenant = 3
strict = { path = "/pay" }
"""
KEYS = {"a": "/orders", "b": "/orders", "c": "/orders", "d": "/orders", "p": "/pay"}
Asked = tuple[str, int]
STEPS_S = st.sampled_from([0.000_001, 1.0, 29.999_999, 30.0, 60.0, 119.999_999, 120.0, 3600.0])


class Histories(RuleBasedStateMachine):
    """Requests come, some of them end in one of three ways, time passes."""

    open: ClassVar[Callable[..., AbstractAsyncContextManager[Keyed]]]

    def __init__(self) -> None:
        super().__init__()
        self.runner = asyncio.Runner()
        self.stack = AsyncExitStack()
        self.directory = tempfile.TemporaryDirectory()
        self.oracle = Oracle(burst=3, lease_us=30_000_000, retention_us=120_000_000, max_keys=3, strict=frozenset("p"))
        self.owners: dict[int, tuple[str, str]] = {}
        self.node: Keyed = self.run(
            self.stack.enter_async_context(self.open(policy(GUARD, LIMITS), directory=Path(self.directory.name)))
        )

    def run(self, coroutine):  # type: ignore[no-untyped-def]
        return self.runner.run(coroutine)

    @property
    def now_us(self) -> int:
        return self.node.clock.now_ns // 1000

    @rule(key=st.sampled_from(sorted(KEYS)), fingerprint=st.sampled_from("xy"))
    def ask(self, key: str, fingerprint: str) -> None:
        decision = self.run(self.node.ask(key, fingerprint=fingerprint, path=KEYS[key]))
        reason, more = self.oracle.ask(self.now_us, key, fingerprint)
        assert decision.reason == reason
        assert decision.allowed == (reason == "ok")
        if reason == "ok":
            assert isinstance(more, int)
            self.owners[more] = key, decision.idempotency.owner
        elif reason == "idempotency_replay":
            assert decision.response.body == more
        elif reason in ("idempotency_in_flight", "store_full"):
            assert decision.retry_after == more / 1_000_000  # type: ignore[operator]

    @precondition(lambda self: self.owners)
    @rule(data=st.data(), action=st.sampled_from(["complete", "complete", "abandon", "extend"]))
    def end(self, data: st.DataObject, action: str) -> None:
        number = data.draw(st.sampled_from(sorted(self.owners)))
        key, owner = self.owners[number]
        body = b"answer %d" % number
        shield = self.node.shield
        calls = {
            "complete": lambda: shield.complete(owner, 200, (), body),
            "abandon": lambda: shield.abandon(owner),
            "extend": lambda: shield.extend(owner),
        }
        try:
            found = "done" if self.run(calls[action]()) else "lost"
        except ReceiptError:
            found = "unknown"
        assert found == self.oracle.end(self.now_us, key, number, action, body)

    @rule(step_s=STEPS_S)
    def time_passes(self, step_s: float) -> None:
        self.node.clock.move(step_s)

    @invariant()
    def nothing_is_kept_beyond_its_bound(self) -> None:
        assert self.node.shield.stats().get("idempotency_keys", 0) <= 3

    def teardown(self) -> None:
        self.run(self.stack.aclose())
        self.runner.close()
        self.directory.cleanup()


SETTINGS = settings(max_examples=40, stateful_step_count=40, deadline=None)


@pytest.mark.parametrize("store", sorted(LOCAL))
def test_local_stores_answer_as_the_oracle_does(store: str) -> None:
    run_state_machine_as_test(type("Local", (Histories,), {"open": staticmethod(LOCAL[store])}), settings=SETTINGS)


def test_servers_answer_as_the_oracle_does(server: Server) -> None:
    machine = type("Remote", (Histories,), {"open": staticmethod(partial(redis, server=server))})
    run_state_machine_as_test(machine, settings=SETTINGS)
