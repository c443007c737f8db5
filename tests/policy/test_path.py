"""Paths: no spelling of a path slips past a template, and every text has one normal form."""

from __future__ import annotations

from urllib.parse import quote

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shield.core import plain_end
from shield.policy.path import MAX_PATH, MAX_SEGMENTS, MAX_TEMPLATE, _worked_on, decode, fold, normalise, parse_template


@pytest.mark.parametrize(
    ("path", "normal"),
    [
        ("/orders/9?x=1", "/orders/9"),
        ("/orders/9#part", "/orders/9"),
        ("/a?b#c?d", "/a"),
        ("/a#b?c", "/a"),
        ("?x", "/"),
        ("", "/"),
        ("/", "/"),
        ("//", "/"),
        ("/a/", "/a"),
        ("/a//", "/a"),
        ("//a///b//", "/a/b"),
        ("a/b", "/a/b"),
        ("/a/./b/.", "/a/b"),
        ("/a/../b", "/b"),
        ("/a/b/..", "/a"),
        ("/a/b/../", "/a"),
        ("/..", "/"),
        ("/../../etc", "/etc"),
        ("/a/../../../b", "/b"),
        ("..", "/"),
        (".", "/"),
        ("/...", "/..."),
        ("/.well-known/x", "/.well-known/x"),
        ("/a..b/.c", "/a..b/.c"),
        # decoded first, then folded
        ("/a/%2e%2e/b", "/b"),
        ("/a/%2E./b", "/b"),
        ("/a%2Fb", "/a/b"),
        ("/a%2f%2Fb", "/a/b"),
        ("/a/..%2fb", "/b"),
        ("%2Fa", "/a"),
        ("/%6frders", "/orders"),
        ("/%4Frders", "/Orders"),  # case kept
        ("/a%20b", "/a b"),
        ("/a+b", "/a+b"),
        # once only
        ("/%252e%252e/b", "/%2e%2e/b"),
        ("/a%252Fb", "/a%2Fb"),
        # encoded, these belong to the path
        ("/a%3Fb", "/a?b"),
        ("/a%23b", "/a#b"),
        # no percent sequences
        ("/a%", "/a%"),
        ("/a%2", "/a%2"),
        ("/a%zz%41", "/a%zzA"),
        ("/%%41", "/%A"),
        # UTF-8, and what is none
        ("/caf%C3%A9", "/café"),
        ("/café", "/café"),
        ("/%ff%41", "/%FFA"),
        ("/\udcff", "/%FF"),
        ("/%c0%af", "/%C0%AF"),  # an overlong "/" is no "/"
        ("/%ed%a0%80", "/%ED%A0%80"),
        ("/\ud800", "/%ED%A0%80"),
        ("/\ud800\udcff", "/%ED%A0%80%ED%B3%BF"),
        ("/%C3\u00a9", "/%C3©"),
        ("/a%00b", "/a\0b"),
        # absolute form
        ("http://api.example/orders/9?x", "/orders/9"),
        ("HTTPS://api.example:443", "/"),
        ("http://api.example?x=/orders", "/"),
        ("http://user@api.example//a/../b", "/b"),
        ("//api.example/a", "/api.example/a"),
        ("/http://x/y", "/http:/x/y"),
        ("h%74tp://x/y", "/http:/x/y"),
        ("1http://x/y", "/1http:/x/y"),
        ("*", "/*"),
        # left alone
        ("/a;b=c/d", "/a;b=c/d"),
        ("/a\\..\\b", "/a\\..\\b"),
    ],
)
def test_normalise(path: str, normal: str) -> None:
    assert normalise(path) == normal


def test_a_long_path_is_refused_and_never_cut() -> None:
    assert normalise("/" + "a" * (MAX_PATH - 1))
    assert normalise("/a?" + "x" * MAX_PATH) == "/a"
    with pytest.raises(ValueError, match=f"path: found {MAX_PATH + 1} characters; allowed: at most {MAX_PATH}"):
        normalise("/" + "a" * MAX_PATH)
    with pytest.raises(ValueError, match="path"):
        normalise("/./" * MAX_PATH + "orders")


pieces = st.sampled_from(
    ["a", "B", "..", ".", "", "%2e", "%2F", "%", "%2", "%FF", "%C3%A9", "é", "\udcfe", "x y", "{id}"]
)
paths = st.one_of(
    st.lists(pieces, max_size=8).map("/".join),
    st.lists(pieces, max_size=8).map("".join),
    st.text(max_size=30),
    st.text(alphabet="/.%2eEfF?#:a\ud800\udcff", max_size=20),
)


@given(paths)
def test_normal_form(path: str) -> None:
    normal = normalise(path)
    assert normal.startswith("/")
    assert normal == "/" or not normal.endswith("/")
    assert not {"", ".", ".."} & set(normal.split("/")[1:]) or normal == "/"
    assert fold(normal) == normal
    normal.encode()  # always UTF-8


@given(paths)
def test_what_has_nothing_to_decode_is_its_own_normal_form(path: str) -> None:
    normal = normalise(path)
    if not {"%", "?", "#"} & set(normal):
        assert normalise(normal) == normal


@given(st.text("/.%?#a\u00e9~", max_size=8) | paths)
def test_a_path_that_looks_normal_is_what_working_on_it_gives(path: str) -> None:
    end = plain_end(path)
    if end >= 0:
        assert path[:end] == _worked_on(path)
    assert normalise(path) == _worked_on(path)


def test_most_paths_are_normal_at_sight() -> None:
    assert [plain_end(path) for path in ("/", "/orders/9", "/a.b/c..d/x?y=//#z", "/#")] == [1, 9, 11, 1]
    assert [plain_end(path) for path in ("", "a", "/a/", "//", "/a//b", "/.", "/a%20", "/\u00e9", None, b"/")] == [
        -1
    ] * 10
    with pytest.raises(ValueError, match="8193 characters"):
        normalise("/" + "a" * MAX_PATH)


@given(st.lists(st.text(min_size=1, max_size=6), max_size=5))
def test_percent_encoding_makes_no_difference(segments: list[str]) -> None:
    plain = [segment.encode("utf-8", "surrogatepass").decode("utf-8", "replace") for segment in segments]
    path = "/" + "/".join(plain)
    encoded = "/" + "/".join(quote(segment, safe="") for segment in plain)
    assert normalise(encoded) == fold(path)


@given(st.binary(max_size=12))
def test_raw_and_encoded_bytes_are_the_same_path(raw: bytes) -> None:
    as_sent = "/" + raw.decode("utf-8", "surrogateescape")
    if not {"%", "?", "#"} & set(as_sent):
        assert normalise(as_sent) == normalise("/" + quote(raw, safe=""))


@given(st.lists(st.sampled_from(["a", "..", ".", ""]), max_size=10))
def test_fold_is_what_a_stack_does(segments: list[str]) -> None:
    stack: list[str] = []
    for segment in segments:
        if segment == "..":
            stack = stack[:-1]
        elif segment == "a":
            stack = [*stack, segment]
    assert fold("/" + "/".join(segments)) == "/" + "/".join(stack)


def test_decode_leaves_plain_text() -> None:
    assert decode("plain") == "plain"
    assert decode("%41%zz") == "A%zz"


@pytest.mark.parametrize(
    ("text", "segments", "rest"),
    [
        ("/", (), False),
        ("/orders", ("orders",), False),
        ("/orders/", ("orders",), False),
        ("/orders/{id}", ("orders", None), False),
        ("/{a}/{b}/c", (None, None, "c"), False),
        ("/files/{rest...}", ("files",), True),
        ("/{rest...}", (), True),
        ("/{a}/{rest...}", (None,), True),
        ("/caf%C3%A9", ("café",), False),
        ("/café", ("café",), False),
        ("/%2A", ("*",), False),
        ("/%7Bid%7D", ("{id}",), False),
        ("/a.b/.c/...", ("a.b", ".c", "..."), False),
    ],
)
def test_templates(text: str, segments: tuple[str | None, ...], rest: bool) -> None:
    template = parse_template(text)
    assert (template.segments, template.rest) == (segments, rest)


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("", "does not start"),
        ("orders", "does not start"),
        ("*", "does not start"),
        ("http://x/y", "does not start"),
        ("/a?b", "no query"),
        ("/a#b", "no query"),
        ("/a//b", "empty segment"),
        ("//", "empty segment"),
        ("/a/../b", "never occurs"),
        ("/a/./b", "never occurs"),
        ("/a/%2e%2e", "never occurs"),
        ("/a%2Fb", "never occurs"),
        ("/*", "no '*'"),
        ("/a/**", "no '*'"),
        ("/a/{", "neither"),
        ("/a/}", "neither"),
        ("/a/{}", "neither"),
        ("/a/{id", "neither"),
        ("/a/x{id}", "neither"),
        ("/a/{id}x", "neither"),
        ("/a/{id:int}", "neither"),
        ("/a/{1}", "neither"),
        ("/a/{...}", "neither"),
        ("/a/{{id}}", "neither"),
        ("/{a}/{a}", "there twice"),
        ("/{a}/{a...}", "there twice"),
        ("/{rest...}/a", "only possible at the end"),
        ("/a" * (MAX_SEGMENTS + 1), "segments"),
        ("/" + "a" * MAX_TEMPLATE, "characters"),
    ],
)
def test_refused_templates(text: str, why: str) -> None:
    with pytest.raises(ValueError) as caught:
        parse_template(text)
    assert why in str(caught.value)
    assert "allowed" in str(caught.value)
