"""Random histories of keys over every store, held against the oracle."""

from __future__ import annotations

import asyncio
import tempfile
from contextlib import AsyncExitStack
from pathlib import Path
from typing import ClassVar

import hypothesis.strategies as st
from hypothesis import settings
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from shield import ReceiptError
from tests.idempotency.keyed import LIMITS, STORES, Keyed, policy
from tests.idempotency.oracle import Oracle

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

    store: ClassVar[str]

    def __init__(self) -> None:
        super().__init__()
        self.runner = asyncio.Runner()
        self.stack = AsyncExitStack()
        self.directory = tempfile.TemporaryDirectory()
        self.oracle = Oracle(burst=3, lease_us=30_000_000, retention_us=120_000_000, max_keys=3, strict=frozenset("p"))
        self.owners: dict[int, tuple[str, str]] = {}
        self.node: Keyed = self.run(
            self.stack.enter_async_context(STORES[self.store](policy(GUARD, LIMITS), Path(self.directory.name)))
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
        if self.store in ("memory", "shared"):
            assert self.node.shield.stats()["idempotency_keys"] <= 3

    def teardown(self) -> None:
        self.run(self.stack.aclose())
        self.runner.close()
        self.directory.cleanup()


def _case(name: str) -> type[RuleBasedStateMachine.TestCase]:
    machine = type(f"Histories{name.title()}", (Histories,), {"store": name})
    machine.TestCase.settings = settings(max_examples=40, stateful_step_count=40, deadline=None)
    return machine.TestCase


TestMemory = _case("memory")
TestShared = _case("shared")
