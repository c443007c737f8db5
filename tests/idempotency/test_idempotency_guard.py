"""Keys as they are written, what they are bound to, and the rules in a policy."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shield import Policy, PolicyError
from shield.guard.idempotency import Key, KeyGuard, parse_key
from shield.policy.model import IdempotencyGuard, Routes
from tests.idempotency.keyed import policy, request

VISIBLE = "".join(map(chr, range(0x21, 0x7F)))


def key_of(guard: KeyGuard | None = None, **facts: object) -> Key:
    found = (guard or KeyGuard(IdempotencyGuard())).read(request(**facts))  # type: ignore[arg-type]
    assert isinstance(found, Key)
    return found


# ---- how a key is written --------------------------------------------------------------------------------------------


@given(st.text(st.sampled_from([c for c in VISIBLE if c not in '",\\']), min_size=1, max_size=255))
def test_bare_and_quoted_name_the_same_key(name: str) -> None:
    assert parse_key(name, quoted=False) == parse_key(f'"{name}"', quoted=True) == name


@given(st.text(st.sampled_from(" " + VISIBLE), min_size=1, max_size=255))
def test_a_structured_field_string_may_hold_any_printable_character(name: str) -> None:
    written = name.replace("\\", "\\\\").replace('"', '\\"')
    assert parse_key(f'"{written}"', quoted=True) == name


@given(st.text(max_size=300))
def test_whatever_is_no_key_is_a_value_error(text: str) -> None:
    try:
        name = parse_key(text, quoted=False)
    except ValueError:
        return
    assert 1 <= len(name) <= 255
    assert name.isascii()
    assert name.isprintable()


def test_quoted_only_where_the_policy_says_so() -> None:
    with pytest.raises(ValueError, match="in quotes"):
        parse_key("bare", quoted=True)
    assert policy('syntax = "quoted"').idempotency.syntax == "quoted"  # type: ignore[union-attr]


# ---- what it is bound to ---------------------------------------------------------------------------------------------


FACTS = st.fixed_dictionaries(
    {
        "key": st.sampled_from(["a", "ab"]),
        "tenant": st.sampled_from([None, "a", "ab", "b"]),
        "user": st.sampled_from(["a", "b", "ba"]),
        "method": st.sampled_from(["POST", "PATCH"]),
        "path": st.sampled_from(["/a", "/a/b", "/b"]),
    }
)


@given(FACTS, FACTS)
def test_two_requests_have_one_record_exactly_when_all_of_it_is_the_same(
    one: dict[str, str], two: dict[str, str]
) -> None:
    assert (key_of(**one).address == key_of(**two).address) == (one == two)


def test_the_fingerprint_is_of_the_payload() -> None:
    stated = key_of(fingerprint="sha256:aa", path="/a?x=1", bytes=5, body="eA==")
    assert stated.fingerprint == key_of(fingerprint="sha256:aa", path="/a?x=2", bytes=6).fingerprint
    seen = [
        key_of(fingerprint=None, path=path, bytes=size, body=body).fingerprint
        for path in ("/a", "/a?x=1", "/a?x=2")
        for size, body in ((None, None), (5, None), (6, None), (1, "eA=="), (1, "eQ=="))
    ]
    assert len(set(seen)) == 15
    assert key_of(fingerprint=None, path="/a").fingerprint == key_of(fingerprint="", path="//a/").fingerprint
    assert (
        key_of(fingerprint=None, body="eA==", bytes=9).fingerprint == key_of(fingerprint=None, body="eA==").fingerprint
    )


def test_strict_routes() -> None:
    guard = KeyGuard(IdempotencyGuard(strict=Routes(("PATCH",), ("/pay/{id}",))))
    assert key_of(guard, method="PATCH", path="/pay/1").strict
    assert not key_of(guard, method="POST", path="/pay/1").strict
    assert not key_of(guard, method="PATCH", path="/pay").strict
    assert not key_of(method="PATCH", path="/pay/1").strict


# ---- policy ----------------------------------------------------------------------------------------------------------


def issues(guard: str) -> dict[str, str]:
    with pytest.raises(PolicyError) as refused:
        policy(guard)
    return {issue.path.removeprefix("guard.idempotency."): issue.message for issue in refused.value.issues}


def test_defaults() -> None:
    rules = policy().idempotency
    assert rules == IdempotencyGuard()
    assert (rules.methods, rules.retention_us, rules.lease_us) == (("POST", "PATCH"), 86_400_000_000, 60_000_000)


def test_every_key_reaches_the_model() -> None:
    text = """
required = true
methods = "put"
match = { path = "/a" }
strict = { method = "PUT" }
syntax = "quoted"
retention = "2h"
lease = "5s"
keep = "final"
max_body_bytes = 1
max_keys_per_tenant = 2
max_keys = 3
max_bytes = 4
when_store_fails = "allow"
"""
    assert policy(text).idempotency == IdempotencyGuard(
        required=True,
        methods=("PUT",),
        match=Routes((), ("/a",)),
        strict=Routes(("PUT",), ()),
        syntax="quoted",
        retention_us=7_200_000_000,
        lease_us=5_000_000,
        keep="final",
        max_body_bytes=1,
        max_keys_per_tenant=2,
        max_keys=3,
        max_bytes=4,
        when_store_fails="allow",
    )


def test_what_is_wrong_is_named() -> None:
    found = issues(
        "required = 1\nmethods = []\nretention = '31d'\nlease = '1us'\nkeep = '3xx'\nmax_body_bytes = -1\n"
        "max_keys = 0\nsyntax = 'bare'\nwhen_store_fails = 'local'\nleese = 1"
    )
    assert set(found) == {
        *("required", "methods", "retention", "lease", "keep", "max_body_bytes", "max_keys", "syntax"),
        *("when_store_fails", "leese"),
    }
    assert "longer than the retention" in issues("lease = '2h'\nretention = '1h'")["lease"]
    assert "no condition" in issues("strict = {}")["strict"]
    assert "match.path[0]" in issues("match = { path = 'no/slash' }")


def test_policies_without_the_guard_keep_their_fingerprint() -> None:
    assert Policy.parse("version = 1").fingerprint != Policy.parse("version = 1\n[guard.idempotency]").fingerprint
    assert Policy.parse("version = 1").fingerprint == Policy().fingerprint
