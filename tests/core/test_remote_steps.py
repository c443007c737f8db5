"""What a remote store is asked and what its reply says: compiled, and read from bytes that come from outside."""

from __future__ import annotations

import math
import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shield import Policy, Request
from shield.compile import compile_policy
from shield.core import Asked, Charges, Decision, Outcome, Registry, outcomes_in
from shield.store.steps import OUTCOME, Forms

NOW_US = 1_763_900_000_000_000
POLICY = Policy.parse(
    'version = 1\nname = "t"\n[[limit]]\nname = "b"\nkey = ["tenant", "user", "ip"]\nrate = "10/h"\ncost = "request"\n'
    '[[limit]]\nname = "w"\nkey = ["user"]\nalgorithm = "sliding-window"\nrate = "100/h"\n'
    '[[limit]]\nname = "p"\nkey = ["user"]\nalgorithm = "concurrency"\nlimit = 9\nttl = "60s"\n'
)
COMPILED = compile_policy(POLICY, Registry())
FORMS = Forms("t")
LIMITS = len(POLICY.limits)
# As many doubles as a reply has for two requests, now and then one more or less.
DOUBLES = st.lists(
    st.integers(-3, 2**54).map(float) | st.floats() | st.sampled_from([0.0, 1.0, 2.0, 0.5, -0.0, 2.0**53, 2.0**53 + 2]),
    min_size=2 * (1 + OUTCOME * LIMITS),
    max_size=2 * (1 + OUTCOME * LIMITS) + 2,
)
VALUES = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=12) | st.integers(1, 600).map(
    lambda size: "é" * size
)


def charges(**fields: object) -> Charges:
    return COMPILED.charges(Request(**{"tenant": "t", "user": "u", "ip": "192.0.2.1", **fields}))  # type: ignore[arg-type]


def asked(some: Charges) -> Asked:
    return Asked(FORMS.step(some), None, 0.0, None)


def told(*numbers: float) -> bytes:
    return struct.pack(f"<{len(numbers)}d", *numbers)


def test_a_reply_is_cut_where_its_requests_meet() -> None:
    states = [[0, i, 0, NOW_US, 0] * LIMITS for i in (1, 2)]
    reply = told(NOW_US, 1, *states[0], 0, *states[1])
    outcomes = outcomes_in(reply, [asked(charges()), asked(charges())])
    assert outcomes is not None
    assert [(one.now_us, one.status, one.retry_us) for one in outcomes] == [(NOW_US, 1, 0), (NOW_US, 0, 0)]
    assert [one.states for one in outcomes] == states


@pytest.mark.parametrize("more", [-8, -1, 1, 8])
def test_a_reply_of_another_length_is_none(more: int) -> None:
    reply = told(NOW_US, 1, *[0] * OUTCOME * LIMITS)
    reply = reply + bytes(more) if more > 0 else reply[:more]
    assert outcomes_in(reply, [asked(charges())]) is None
    assert outcomes_in(b"", [asked(charges())]) is None


@pytest.mark.parametrize("wrong", [math.nan, math.inf, -math.inf, 0.5, 2.0**53 + 2, -(2.0**63)])
def test_what_is_no_whole_number_is_none_or_an_error(wrong: float) -> None:
    states = [0, 3, 0, NOW_US, 0] * LIMITS
    assert outcomes_in(told(wrong, 1, *states), [asked(charges())]) is None
    assert outcomes_in(told(NOW_US, wrong, *states), [asked(charges())]) is None
    for i in range(len(states)):
        odd = [*states[:i], wrong, *states[i + 1 :]]
        [outcome] = outcomes_in(told(NOW_US, 1, *odd), [asked(charges())]) or []
        with pytest.raises(ValueError, match="no whole number"):
            _ = outcome.states
        with pytest.raises(ValueError, match="no whole number"):
            charges().hear(outcome)


@given(DOUBLES, st.integers(0, 4))
def test_no_reply_does_more_than_raise(numbers: list[float], verdict: int) -> None:
    some = [charges(), charges(user="v")]
    outcomes = outcomes_in(told(NOW_US, *numbers), [asked(one) for one in some])
    if outcomes is None:
        return
    for one, outcome in zip(some, outcomes, strict=True):
        try:
            one.hear(outcome, verdict)
        except ValueError:
            continue
        decision = Decision(one)
        assert decision.as_dict()["reason"] == decision.reason
        assert one.waits() is not None


def test_outcomes_of_others_are_refused() -> None:
    with pytest.raises(ValueError, match="3 outcomes for 1 charges"):
        compile_policy(
            Policy.parse('version = 1\nname = "o"\n[[limit]]\nname = "b"\nkey = ["user"]\nrate = "1/s"\n'), Registry()
        ).charges(Request(user="u")).hear(Outcome(NOW_US, 1, [0] * 15))
    with pytest.raises(ValueError, match="do not tell of whole charges"):
        Outcome(NOW_US, 1, [0] * 14)
    with pytest.raises(ValueError, match="says nothing of a nonce"):
        charges().hear(Outcome(NOW_US, 1, [0] * OUTCOME * LIMITS), 9)


@given(VALUES, VALUES)
def test_a_key_is_each_value_behind_its_length(tenant: str, user: str) -> None:
    """However long they are: the bytes that name a bucket in every release."""
    some = charges(tenant=tenant, user=user)
    values = [tenant.encode(), user.encode(), bytes([192, 0, 2, 1])]
    assert some.bucket(0).partition == b"".join(len(value).to_bytes(4, "little") + value for value in values)
    assert some.bucket(1).partition == len(values[1]).to_bytes(4, "little") + values[1]
    step, again = FORMS.step(some), FORMS.step(charges(tenant=tenant, user=user))
    assert step.cells == again.cells
    assert step.cells[0] != FORMS.step(charges(tenant=tenant + "x", user=user)).cells[0]
