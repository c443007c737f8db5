"""Bytes to requests: each kind of bad input gets an error that names the field."""

from __future__ import annotations

import json
from typing import Any

import pytest

from shield.errors import RequestError
from shield.request import Request
from shield.server.wire import decode_check, decode_release, decode_report

BAD = [
    # body, field, a part of the message
    (b"", "", "empty"),
    (b" \n", "", "empty"),
    (b"{", "", "ends too early"),
    (b"nonsense", "", "byte"),
    (b'{"user":"a"}}', "user", "near byte"),
    (b"\xef\xbb\xbf{}", "", "byte 0"),
    (b'"x"', "", "found a string; allowed: an object"),
    (b"null", "", "found null"),
    (b'{"tennant":"x"}', "tennant", "did you mean 'tenant'"),
    (b'{"Tenant":"x"}', "Tenant", "unknown field"),
    (b'{"user":1}', "user", "found a whole number; allowed: a string or null"),
    (b'{"user":["a"]}', "user", "found an array"),
    (b'{"cost":"1"}', "cost", "found a string"),
    (b'{"cost":1.5}', "cost", "found a number"),
    (b'{"cost":true}', "cost", "found true or false"),
    (b'{"cost":NaN}', "cost", "byte 8"),
    (b'{"cost":Infinity}', "cost", "byte 8"),
    (b'{"cost":-1}', "cost", "allowed: a whole number from 0 to 9007199254740991"),
    (b'{"cost":4611686018427387904}', "cost", "4611686018427387904"),
    (b'{"cost":' + b"9" * 5000 + b"}", "cost", "a"),
    (b'{"user":"\\ud800"}', "user", "unpaired surrogate"),
    (b'{"ip":"1.2.3.4","user":"a\\udc00b"}', "user", "unpaired surrogate"),
    (b'{"user":"\xff"}', "user", "not UTF-8 at byte 9"),
    (b'{"user":"a\x00b"}', "user", "byte 10"),
    (b'{"user":"a\nb"}', "user", "byte 10"),
    (b'{"user":"a","user":"b"}', "user", "twice"),
    (b'{"user":"a","us\\u0065r":"b"}', "user", "twice"),
    (b'{"attributes":{"a":1,"a":2}}', "a", "twice"),
    (b'{"attributes":{"fine":"x","wrong":[]}}', "attributes.wrong", "found an array"),
    (b'{"headers":{"x":1}}', "headers.x", "allowed: a string"),
    (b'{"headers":[]}', "headers", "found an array"),
    (b'{"idempotency":{"kee":"x"}}', "idempotency.kee", "unknown field"),
    (b'{"graphql":[{"query":"{a}"},{"query":1}]}', "graphql[1].query", "found a whole number"),
    (b'{"graphql":{"variables":{"a":' + b"[" * 10_000 + b"]" * 10_000 + b"}}}", "", "nested too deeply"),
    (b"[" * 10_000 + b"]" * 10_000, "", "nested too deeply"),
    (b"[" * 10_000, "", "nested too deeply"),
    (b"[" + b",".join([b"{}"] * 257) + b"]", "", "257 requests; allowed: at most 256"),
    (b'[{"ip":"1.2.3.4"},{},{},{"tennant":"x"}]', "[3].tennant", "did you mean 'tenant'"),
    (b'[{"ip":"1.2.3.4"},{"cost":-1}]', "[1].cost", "found -1"),
    (b'[{"ip":"1.2.3.4"},{"user":"a","user":"b"}]', "[1].user", "twice"),
    (b'[{"attributes":{"k":{}}}]', "[0].attributes.k", "found an object"),
    (b"[{},1]", "[1]", "found a whole number"),
    (b"[[]]", "[0]", "found an array"),
]


@pytest.mark.parametrize(("body", "field", "message"), BAD, ids=range(len(BAD)))
def test_a_bad_request_is_refused_by_the_name_of_its_field(body: bytes, field: str, message: str) -> None:
    with pytest.raises(RequestError) as caught:
        decode_check(body)
    assert caught.value.field == field
    assert message in str(caught.value)
    assert len(str(caught.value)) < 300


def test_every_field_of_the_contract_is_read() -> None:
    asked = {
        "tenant": "acme", "user": "u-17", "ip": "203.0.113.7", "method": "POST", "path": "/orders/9?x=1",
        "host": "api.example", "bytes": 512, "content_type": "application/json", "plan": "pro", "cost": 1,
        "api_key": "k", "session": "s", "user_agent": "a", "token": "eyJ", "headers": {"name": "value"},
        "body": "base64", "attributes": {"country": "NO", "vip": True, "age": 3}, "request_id": "c0ffee",
        "graphql": {"query": "{a}", "variables": {}, "operation_name": None, "hash": None},
        "nonce": {"value": "n", "timestamp": 1763900000},
        "idempotency": {"key": "k", "fingerprint": "sha256:00"},
    }  # fmt: skip
    request = decode_check(json.dumps(asked).encode())
    assert isinstance(request, Request)
    assert request.tenant == "acme"
    assert request.nonce is not None
    assert request.nonce.timestamp == 1763900000
    assert set(asked) == set(Request.__struct_fields__)


@pytest.mark.parametrize("body", [b"{}", b' {"user":null}', b'{"user":""}'])
def test_null_and_nothing_are_no_error(body: bytes) -> None:
    assert isinstance(decode_check(body), Request)


def test_values_that_clients_choose_are_left_to_the_decision() -> None:
    """A malformed address or size is a refusal, not a fault of the caller's."""
    hostile: list[Any] = [
        {"ip": "not an address"},
        {"bytes": -1},
        {"bytes": 2**62},
        {"user": "x" * 1_000_000},
        {"user": "a\0b"},
        {"method": "GET\r\nX: y"},
        {"path": "/%00/../../etc"},
        {"user_agent": 'a "quote": and \\ more'},
    ]
    assert len(decode_check(json.dumps(hostile).encode())) == len(hostile)  # type: ignore[arg-type]


def test_batches_keep_their_order_and_may_be_empty() -> None:
    requests = decode_check(b' [{"user":"a"}, {"user":"b"} ]')
    assert isinstance(requests, list)
    assert [request.user for request in requests] == ["a", "b"]
    assert decode_check(b"[]") == []
    full = decode_check(b"[" + b",".join([b"{}"] * 256) + b"]")
    assert isinstance(full, list)
    assert len(full) == 256


def test_reports_need_a_receipt_or_facts() -> None:
    assert decode_report(b'{"receipt":"r","cost":3,"bytes":9,"status":200}').receipt == "r"
    assert decode_report(b'{"user":"u","event":"login_failed","status":401}').event == "login_failed"
    for body, field in [
        (b"{}", "receipt"),
        (b'{"status":200,"event":"x"}', "receipt"),
        (b'{"receipt":1}', "receipt"),
        (b'{"receipt":"r","cost":-1}', "cost"),
        (b'{"receipt":"r","costs":1}', "costs"),
        (b"[]", ""),
    ]:
        with pytest.raises(RequestError) as caught:
            decode_report(body)
        assert caught.value.field == field


def test_releases_are_bounded() -> None:
    assert decode_release(b'{"leases":["a","b"]}') == ["a", "b"]
    for body, field in [
        (b"{}", "leases"),
        (b'{"leases":"a"}', "leases"),
        (b'{"leases":[1]}', "leases[0]"),
        (b'{"lease":["a"]}', "lease"),
        (json.dumps({"leases": ["x"] * 1025}).encode(), "leases"),
    ]:
        with pytest.raises(RequestError) as caught:
            decode_release(body)
        assert caught.value.field == field, caught.value


@pytest.mark.parametrize("field", ["attributes", "headers"])
@pytest.mark.parametrize("value", ["deep object", "deep array", "not UTF-8 behind it"])
def test_a_bomb_inside_a_map_is_the_callers_error(field: str, value: str) -> None:
    values = {
        "deep object": b'{"a":' * 10_000 + b"1" + b"}" * 10_000,
        "deep array": b"[" * 10_000 + b"]" * 10_000,
        "not UTF-8 behind it": b'[],"b":"\xff"',
    }
    with pytest.raises(RequestError):
        decode_check(b'{"%s":{"x":%s}}' % (field.encode(), values[value]))
