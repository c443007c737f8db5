"""Where a request's GraphQL operations are found, and what is refused because two parsers may read it differently."""

from __future__ import annotations

import base64
import json
from urllib.parse import urlencode

import pytest

from shield import Request
from shield.guard.graphql import MAX_PARAMETERS, Unreadable, operations
from shield.request import GraphQL


def post(body: bytes | str, content_type: str | None = "application/json", path: str = "/graphql") -> Request:
    raw = body.encode() if isinstance(body, str) else body
    return Request(method="POST", path=path, content_type=content_type, body=base64.b64encode(raw).decode())


def get(**parameters: str) -> Request:
    return Request(method="GET", path=f"/graphql?{urlencode(parameters)}")


def refusal(request: Request) -> str:
    with pytest.raises(Unreadable) as found:
        operations(request)
    return str(found.value)


def test_what_the_caller_states_comes_first() -> None:
    stated = GraphQL(query="{a}")
    assert operations(Request(graphql=stated, method="POST", body="!")) is stated


@pytest.mark.parametrize(
    "content_type", ["application/json", "Application/JSON; charset=utf-8", "application/graphql+json"]
)
def test_json(content_type: str) -> None:
    body = {"query": "query A{a}", "variables": {"n": 3}, "operationName": "A", "more": [1]}
    assert operations(post(json.dumps(body), content_type)) == GraphQL("query A{a}", {"n": 3}, "A")


def test_a_json_array_is_a_batch() -> None:
    assert operations(post('[{"query":"{a}"},{"query":"{b}"}]')) == [GraphQL("{a}"), GraphQL("{b}")]
    assert operations(post("[]")) == []


@pytest.mark.parametrize(
    "body",
    [
        {"extensions": {"persistedQuery": {"version": 1, "sha256Hash": "ab"}}},
        {"documentId": "ab"},
        {"query": None, "documentId": "ab", "extensions": {"persistedQuery": {"sha256Hash": "ab"}}},
    ],
)
def test_persisted_operations(body: object) -> None:
    assert operations(post(json.dumps(body))) == GraphQL(hash="ab")


def test_application_graphql_takes_the_rest_from_the_query_string() -> None:
    request = post("query A{a}", "application/graphql", '/graphql?variables={"n":1}&operationName=A')
    assert operations(request) == GraphQL("query A{a}", {"n": 1}, "A")


def test_form() -> None:
    body = urlencode({"query": "query A{a}", "variables": '{"n":1}', "operationName": "A", "other": "x"})
    assert operations(post(body, "application/x-www-form-urlencoded")) == GraphQL("query A{a}", {"n": 1}, "A")


def test_query_string() -> None:
    assert operations(get(query="query A{a}", variables='{"n":1}', operationName="A")) == GraphQL(
        "query A{a}", {"n": 1}, "A"
    )
    persisted = get(extensions='{"persistedQuery":{"version":1,"sha256Hash":"ab"}}')
    assert operations(persisted) == GraphQL(hash="ab")


@pytest.mark.parametrize(
    "request_",
    [
        Request(method="GET", path="/graphql"),
        Request(method="GET", path="/graphql?theme=dark"),
        Request(method="OPTIONS", path="/graphql"),
        Request(method="get", path="/graphql?query="),
    ],
)
def test_pages_and_preflights_carry_none(request_: Request) -> None:
    assert operations(request_) is None


@pytest.mark.parametrize(
    ("request_", "what"),
    [
        (Request(method="POST", path="/graphql"), "no operation"),
        (Request(path="/graphql"), "no operation"),
        (Request(method="GET", path="/graphql", bytes=10), "no operation"),
        (Request(method="POST", path="/graphql", body="#"), "body: not base64"),
        (post(b"\xff"), "body: not UTF-8 at byte 0"),
        (post("{"), "body: not JSON"),
        (post('{"query":"{a}","n":NaN}'), "NaN"),
        (post("1"), "body: a GraphQL request is an object"),
        (post('[{"query":"{a}"},1]'), "body[1]: a GraphQL request is an object"),
        (post("{}"), "body.query: missing"),
        (post('{"query":1}'), "body.query: allowed: text"),
        (post('{"query":"{a}","variables":[]}'), "body.variables: allowed: an object"),
        (post('{"query":"{a}","variables":"{}"}'), "body.variables: allowed: an object"),
        (post('{"query":"{a}","operationName":1}'), "body.operationName: allowed: text"),
        (post('{"query":"{a}","query":"{b}"}'), "'query' is there twice"),
        (post('{"query":"{a}","qu\\u0065ry":"{b}"}'), "'query' is there twice"),
        (post('{"query":"{a}","variables":{"n":1,"n":2}}'), "'n' is there twice"),
        (post('{"documentId":"a","extensions":{"persistedQuery":{"sha256Hash":"b"}}}'), "two documents"),
        (post("[" * 100_000), "nested too deeply"),
        (post('{"query":"{a}"}', "multipart/form-data; boundary=x"), "content_type: found multipart/form-data"),
        (post('{"query":"{a}"}', None), "content_type: found none"),
        (post('{"query":"{a}"}', path="/graphql?query={b}"), "both in the query string and in the body"),
        (post('[{"query":"{a}"}]', path="/graphql?query={b}"), "both in the query string and in the body"),
        (post('{"query":"{a}"}', path="/graphql?operationName=B"), "both in the query string and in the body"),
        (post("{a}", "application/graphql", "/graphql?query={b}"), "both in the query string and in the body"),
        (post("{a}", "application/graphql", "/graphql?documentId=b"), "both in the query string and in the body"),
        (post("a=b", "application/x-www-form-urlencoded"), "a form without a query"),
        (post("query={a}&query={b}", "application/x-www-form-urlencoded"), "query is there twice"),
        (Request(method="GET", path="/graphql?query={a}&query={b}"), "query is there twice"),
        (get(query="{a}", variables="["), "variables is not JSON"),
        (get(query="{a}", variables="[]"), "variables is no JSON object"),
        (Request(method="GET", path="/graphql?query=%ff"), "not UTF-8"),
        (Request(method="GET", path="/graphql?" + "a=b&" * (MAX_PARAMETERS + 1)), "parameters"),
    ],
)
def test_what_cannot_be_priced_is_refused(request_: Request, what: str) -> None:
    assert what in refusal(request_)
