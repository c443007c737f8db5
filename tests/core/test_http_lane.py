"""What the express lane takes, byte by byte, and how it writes answers."""

from __future__ import annotations

import json
import random
from typing import Any

import pytest

from shield.core.http_lane import BODY, HEAD_BYTES, LEAVE, MORE, PASS, TAKE, Answer, Head, Lane, render
from tests.server.lane_corpus import CORPUS


def check(request_id: str) -> bytes:
    body = json.dumps({"request_id": request_id}).encode()
    return b"POST /v1/check HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n%b" % (len(body), body)


def lane(hold_bytes: int = 65_536) -> Lane:
    return Lane(
        [(b"/v1/check", "check"), (b"/v1/report", "report")],
        [(b"/v1/authz", "authz")],
        (b"/v1/authz/envoy", "envoy"),
        hold_bytes,
    )


def test_a_whole_request_of_a_route_is_taken() -> None:
    fields = b"hOsT: a\r\nX-A:  b\t \r\nx-a:\r\nContent-Length: 2\r\nConnection: Close\r\n"
    data = b"POST /v1/check?x=1 HTTP/1.1\r\n" + fields + b"\r\n{}rest"
    head = lane().look(b"..." + data, 3)
    assert (head.verdict, head.start, head.end) == (TAKE, 3, 3 + len(data) - 4)
    assert (head.method, head.target, head.rest, head.whole, head.route) == (
        "POST",
        "/v1/check?x=1",
        "x=1",
        b"{}",
        "check",
    )
    assert head.close
    assert head.get("X-A") == "b"
    assert list(head.getall("x-A", ())) == ["b", ""]
    assert head.get("X-B", 7) == 7
    assert head.getall("X-B", ("d",)) == ("d",)
    assert "CONTENT-length" in head
    assert "Content_Length" not in head
    envoy = lane().look(b"PATCH /v1/authz/envoy/a?b HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\n\r\n")
    assert (envoy.verdict, envoy.rest, envoy.route) == (TAKE, "/a?b", "envoy")


def test_letters_alone_have_a_case() -> None:
    """`[` and `{` differ by the bit that letters of both cases differ by."""
    head = lane().look(b"GET /v1/authz HTTP/1.1\r\nHost: x\r\nX^A: 1\r\nX@B: 2\r\n\r\n".replace(b"@", b"`"))
    assert "x~A" not in head
    assert head.get("x^a") == "1"
    assert head.get("X`b") == "2"
    assert head.get("X@b") is None


def test_no_beginning_of_a_good_request_is_doubted_or_taken() -> None:
    data = check("a" * 300)
    body = data.index(b"\r\n\r\n") + 4
    for size in range(1, len(data)):
        head = lane().look(data[:size])
        assert head.verdict == (MORE if size < body else BODY), size
        assert head.end == (0 if size < body else len(data))


@pytest.mark.parametrize(
    ("data", "verdict", "why"),
    [
        (b"POST /v1/check HTTP/1.1\r\nHost: x\r\n\r\n", PASS, "no length"),
        (b"GET /v1/check HTTP/1.1\r\nHost: x\r\n\r\n", PASS, "route"),
        (b"GET /other HTTP/1.1\r\nHost: x\r\n\r\n", PASS, "route"),
        (b"POST /v1/authz HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\n\r\nhell", PASS, "no body"),
        (b"POST /v1/check HTTP/1.1\r\nHost: x\r\nContent-Length: 70000\r\n\r\n", PASS, "large"),
        (b"POST /v1/check HTTP/1.1\r\nContent-Length: 0\r\n\r\n", LEAVE, "host"),
        (b"POST /v1/check HTTP/1.0\r\nHost: x\r\nContent-Length: 0\r\n\r\n", LEAVE, "line"),
        (b"\x16\x03\x01", LEAVE, "method"),
        (b"PRI", LEAVE, "method"),
        (b"GET  /", LEAVE, "target"),
        (b"GET /v1/authz HTTP/1.1\n", LEAVE, "line"),
        (b"GET /v1/authz HTTP/1.1\r\nHost: x\r\n X: y", LEAVE, "name"),
        (b"GET /v1/authz HTTP/1.1\r\nHost: x\r\nX: \0", LEAVE, "value"),
        (b"GET /v1/authz HTTP/1.1\r\nHost: x\r\nX: " + b"a" * HEAD_BYTES, LEAVE, "long head"),
    ],
)
def test_what_is_not_taken_is_told_as_early_as_can_be(data: bytes, verdict: int, why: str) -> None:
    head = lane().look(data)
    assert (head.verdict, head.why) == (verdict, why)


@pytest.mark.parametrize("shape", [name for name in CORPUS if name.startswith(("cl-", "te-", "obs-", "bare-", "nul"))])
def test_no_shape_about_framing_is_taken_that_could_be_read_in_two_ways(shape: str) -> None:
    safe = {"cl-no-space", "cl-of-get", "te-odd-name", "cl-odd-name", "obs-text"}  # one reading, if an odd one
    assert (lane().look(CORPUS[shape]).verdict == TAKE) == (shape in safe - {"cl-odd-name"}), shape


def test_answers_that_would_break_their_lines_are_not_rendered() -> None:
    for headers in ({"A": "b\r\nC: d"}, {"A\n": "b"}, {"A": "\0"}, {"A": "\x7f"}):
        with pytest.raises(ValueError, match="break its line"):
            render(Answer(200, headers), False, "GET", b"", b"")
    assert render(Answer(200, {"A": "\tb"}, b"body"), True, "HEAD", b"S: s\r\n", b"D: d\r\n") == (
        b"HTTP/1.1 200 OK\r\nA: \tb\r\nS: s\r\nContent-Length: 4\r\nD: d\r\nConnection: close\r\n\r\n"
    )


# ---- many at once ------------------------------------------------------------------------------------------


def test_requests_are_served_in_order_up_to_a_bound_and_errors_come_last() -> None:
    seen: list[Any] = []

    def answer_of(head: Head) -> Answer | None:
        seen.append((head.target, head.peer))
        if head.target == "/v1/authz?wait":
            return None
        if head.target == "/v1/authz?fail":
            raise KeyError("why")
        return Answer(200, {}, head.target.encode())

    def serve(*queries: str, most: int = 10, most_bytes: int = 10_000) -> tuple[bytes, int, bool, Any]:
        data = b"".join(b"GET /v1/authz?%b HTTP/1.1\r\nHost: x\r\n\r\n" % query.encode() for query in queries)
        out, at, close, other = lane().serve(data, answer_of, None, "peer", most, most_bytes, b"", b"")
        return out or b"", data.count(b"GET", 0, at), close, other

    out, served, close, other = serve("a", "b", "c")
    assert out.index(b"?a") < out.index(b"?b") < out.index(b"?c")
    assert (served, close, other) == (3, False, None)
    assert seen == [(f"/v1/authz?{query}", "peer") for query in "abc"]
    assert serve("a", "b", "c", most=2)[1:] == (2, False, None)
    assert serve("a", "b", "c", most_bytes=10)[1:] == (1, False, None)
    out, served, close, other = serve("a", "wait", "c")
    assert (served, close, other.verdict, other.target) == (1, False, TAKE, "/v1/authz?wait")
    out, served, close, other = serve("a", "fail", "c")
    assert b"?a" in out
    assert (served, close, type(other)) == (1, False, KeyError)
    assert lane().serve(b"", answer_of, None, None, 1, 1, b"", b"") == (None, 0, False, None)


def test_random_bytes_are_looked_at_safely() -> None:
    """For the sanitizers above all: heads cut, spliced and made of anything, at any place of a buffer."""
    rng = random.Random(3)
    shapes = [*CORPUS.values(), check("r"), check("r" * 500)]
    looker = lane(2_000)
    verdicts = set()
    for _ in range(20_000):
        shape = rng.choice(shapes)
        data = bytearray(shape[: rng.randrange(1, min(len(shape), 20_000) + 2)])
        for _ in range(rng.randrange(4)):
            at = rng.randrange(len(data) + 1)
            data[at : at + rng.randrange(3)] = rng.randbytes(rng.randrange(3))
        at = rng.choice((0, 0, rng.randrange(len(data) + 1)))
        head = looker.look(bytes(data), at)
        verdicts.add(head.verdict)
        if head.verdict == TAKE:
            assert at < head.end <= len(data)
            assert len(head.whole) <= head.end - at
            assert head.get("host") is not None
            assert head.target.startswith("/")
    assert verdicts == {TAKE, MORE, BODY, PASS, LEAVE}
