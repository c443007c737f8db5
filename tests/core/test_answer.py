"""Answers are written by hand: the bytes must say what `as_dict` says in its order, header fields what the limits say.

Random policies and histories: refusals of every kind, shadow limits, plans, full tables, stores that are away, clocks
that step back, guards, and texts with anything in them.
"""

from __future__ import annotations

import dataclasses
import json
import math
import random
import re
from decimal import Decimal

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shield import Decision, Request
from shield.compile import compile_policy
from shield.core import Registry, Table
from shield.policy import Limit, Numbers, Policy
from tests.laws.against_oracle import DAY_US, random_policy

SECONDS = re.compile(r"[0-9]+\.[0-9]{1,6}")
TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=40) | st.sampled_from(
    ['"', "\\", "\0\x1f\x7f\n", "é中🙂"]
)


def exact(text: str) -> float:
    assert SECONDS.fullmatch(text), text
    return float(text)


def read(answer: bytes) -> str:
    """What a reader of JSON makes of it, members in their order, floats by their shortest digits."""
    return json.dumps(json.loads(answer, parse_float=exact))


@settings(max_examples=300, deadline=None)
@given(
    seed=st.integers(0, 2**32),
    request_id=st.none() | TEXT,
    receipt=st.none() | TEXT,
    leases=st.lists(TEXT, max_size=3),
)
def test_the_bytes_say_what_the_members_say(seed, request_id, receipt, leases):
    source = random.Random(seed)
    policy = with_conduct(source, random_policy(source))
    registry = Registry()
    compiled = compile_policy(policy, registry)
    table = Table(registry, max_keys=source.choice([1, 3, 1000]), max_leases=source.choice([1, 1000]))
    now_us = 50 * DAY_US
    for _ in range(12):
        now_us = max(40 * DAY_US, now_us + source.choice([0, 1, 1_234_567, 90_000_000, DAY_US, -1, -40 * DAY_US]))
        charges = compiled.charges(
            Request(
                user=source.choice(["u1", "u2", "u3", None]),
                tenant=source.choice(["t1", None]),
                ip=source.choice(["192.0.2.1", "2001:db8::1", "nowhere"]),
                plan=source.choice([None, "pro"]),
                bytes=source.choice([10, 1001]),
                cost=source.choice([0, 1, 2, 10**9, 2**53 - 1]),
                request_id=request_id,
            )
        )
        table.apply(charges, degraded=source.random() < 0.2, now_us=now_us)
        decision = Decision(charges)
        if decision.has_sequel:
            decision.attach(receipt, leases)
        assert read(decision.to_json()) == json.dumps(decision.as_dict())
        assert decision.headers == fields_of(decision, policy, registry, table)


def with_conduct(source: random.Random, policy: Policy) -> Policy:
    """The same limits with everything that changes how they answer."""
    limits = tuple(
        dataclasses.replace(
            limit,
            when_full=source.choice(["share", "deny", "allow"]),
            when_store_fails=source.choice(["local", "deny", "allow"]),
            missing=source.choice(["skip", "skip", "deny"]),
        )
        for limit in policy.limits
    )
    return dataclasses.replace(policy, limits=limits)


def fields_of(decision: Decision, policy: Policy, registry: Registry, table: Table) -> dict[str, str]:
    """The header fields as the contract words them, from the statuses. `t` is asked for: a step that costs one unit
    more than remains is denied, and says when it would not be."""
    charges, fields = decision.charges, {}
    statuses = {status.name: status for status in decision.limits}
    shown = [limit for limit in policy.limits if limit.name in statuses and limit.mode == "enforce"]
    named = [limit for limit in shown if decision.allowed or not statuses[limit.name].allowed]
    if shown:
        plan = charges.plan
        fields["RateLimit-Policy"] = ", ".join(
            f'"{limit.name}";q={limit.numbers_for(plan).limit}{parameters(limit, limit.numbers_for(plan))}'
            for limit in shown
        )
    if named:
        fields["RateLimit"] = ", ".join(
            f'"{limit.name}";r={statuses[limit.name].remaining}{wait(decision, limit, registry, table)}'
            for limit in named
        )
    if not decision.allowed and decision.retry_after is not None:
        # Of some millions of years a float does not hold the last second.
        told = json.loads(decision.to_json(), parse_float=Decimal)["retry_after"]
        assert float(told) == decision.retry_after
        fields["Retry-After"] = str(math.ceil(told))
    return fields


def parameters(limit: Limit, numbers: Numbers) -> str:
    if limit.algorithm == "concurrency":
        return ';qu="concurrent-requests"'
    unit = ';qu="content-bytes"' if limit.cost == "bytes" else ""
    window_us = limit.window_us or 0
    if limit.algorithm == "token-bucket":
        window_us = -(-numbers.limit * numbers.refill_us // numbers.refill_units)
    return unit + (f";w={-(-window_us // 1_000_000)}" if window_us >= 1_000_000 else "")


def wait(decision: Decision, limit: Limit, registry: Registry, table: Table) -> str:
    charges = decision.charges
    told = next(told for told in charges.trace() if told["limit"] == limit.name)
    if told["verdict"] >= 2:
        return ";t=1"
    if limit.algorithm == "concurrency" or told["remaining"] >= told["numbers"][0]:
        return ""
    if told["shared"]:  # another step, by itself, may find room for a bucket of its own: take the field's own word
        return next(iter(re.findall(rf'"{limit.name}";r=[0-9]+(;t=[0-9]+)?', decision.headers["RateLimit"])))
    more = dataclasses.replace(limit, cost=told["remaining"] + 1, count_denied=False, when_store_fails="local")
    asked = compile_policy(Policy(limits=(more,)), registry).charges(charges.request)
    table.apply(asked, now_us=charges.now_us)
    (denied,) = asked.trace()
    assert denied["verdict"] == 1
    return f";t={-(-denied['retry_after_us'] // 1_000_000)}"


@pytest.mark.parametrize(
    ("us", "text"),
    [
        (1, "0.000001"),
        (10_000, "0.01"),
        (1_500_000, "1.5"),
        (2_000_000, "2.0"),
        (10**9 * 30 * DAY_US, "2592000000000000.0"),
    ],
)
def test_seconds_are_decimal_fractions_without_exponents(us, text):
    """A bucket of `us` microseconds to the unit, emptied: so long until it is full."""
    limit = Limit("one", ("user",), "token-bucket", Numbers(1, 1, us), cost=1)
    if us > 30 * DAY_US:
        limit = Limit("one", ("user",), "token-bucket", Numbers(10**9, 1, 30 * DAY_US), cost=10**9)
    registry = Registry()
    charges = compile_policy(Policy(limits=(limit,)), registry).charges(Request(user="u"))
    Table(registry).apply(charges, now_us=DAY_US)
    assert f'"reset_after":{text},"retry_after":0.0'.encode() in Decision(charges).to_json()


def test_answers_that_outgrow_the_stack_are_whole():
    limits = tuple(Limit(f"limit-{i}", ("user",), "token-bucket", Numbers(10**9, 1, 30 * DAY_US)) for i in range(300))
    registry = Registry()
    charges = compile_policy(Policy(limits=limits), registry).charges(Request(user="u", request_id="\1" * 1024))
    Table(registry).apply(charges, now_us=DAY_US)
    decision = Decision(charges)
    assert read(decision.to_json()) == json.dumps(decision.as_dict())
    assert decision.headers["RateLimit"].count(";t=") == 300
