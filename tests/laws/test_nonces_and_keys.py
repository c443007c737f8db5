"""A request with a nonce and an idempotency key: the nonce comes first, and a stored answer takes it and no charge."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest

from shield import Decision, Policy, Request, Shield
from shield.request import IdempotencyKey, Nonce
from shield.store.shared import remove_table

NOW_S = 1_763_900_000
POLICY = Policy.parse("""
version = 1
name = "both"
[[limit]]
name = "few"
key = ["user"]
rate = "1/h"
burst = 2
[guard.replay]
max_per_tenant = 40
[guard.idempotency]
methods = ["POST"]
""")


class Host:
    def __init__(self, url: str) -> None:
        self.now_s = NOW_S
        self.shield = Shield(POLICY, url, clock=lambda: self.now_s * 10**9)
        self.now_s += 31

    def ask(self, nonce: str, key: str, fingerprint: str = "sha256:1") -> Decision:
        return self.shield.check_nowait(
            Request(
                tenant="t",
                user="u",
                method="POST",
                path="/orders",
                nonce=Nonce(nonce, self.now_s),
                idempotency=IdempotencyKey(key, fingerprint),
            )
        )


@pytest.fixture(params=["memory", "shared"])
def host(request: pytest.FixtureRequest) -> Iterator[Host]:
    url = "memory://" if request.param == "memory" else f"shared://both{os.getpid()}?max_keys=1000"
    made = Host(url)
    yield made
    if request.param == "shared":
        remove_table(url)


def test_a_stored_answer_takes_the_nonce_and_no_charge(host: Host) -> None:
    first = host.ask("a", "k")
    assert first.allowed
    assert host.shield.complete_nowait(first, 201, (), b"made")
    again = host.ask("b", "k")
    assert (again.reason, again.status) == ("idempotency_replay", 201)
    assert host.ask("b", "k").reason == "replay", "its nonce was used"
    assert host.ask("b", "other").reason == "replay"
    assert host.ask("c", "other").limits[0].remaining == 0, "two were charged, the one that ran and this one"
    assert host.ask("d", "k").reason == "idempotency_replay", "and an answer that is stored needs no quota"


def test_what_an_idempotency_key_refuses_burns_no_nonce(host: Host) -> None:
    assert host.ask("a", "k").allowed
    flight = host.ask("b", "k")
    assert (flight.reason, flight.retry_after) == ("idempotency_in_flight", 60.0)
    assert host.ask("a", "k").reason == "replay", "the nonce comes first"
    assert host.ask("b", "k", "sha256:2").reason == "idempotency_mismatch"
    assert host.ask("b", "other").allowed
    assert host.ask("b", "other").reason == "replay"


def test_stored_answers_are_within_the_bound_of_a_tenant(host: Host) -> None:
    first = host.ask("a", "k")
    assert host.shield.complete_nowait(first, 201, (), b"made")
    found = [host.ask(f"n{i}", "k").reason for i in range(11)]
    assert found == ["idempotency_replay"] * 9 + ["store_full"] * 2
    assert (host.ask("x", "k").retry_after or 0) > 0
