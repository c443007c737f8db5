"""The guard on size and type: 413 before 415, and what an absent fact means."""

from __future__ import annotations

import pytest

from shield.guard.size import check_size
from shield.policy import SizeGuard

JSON = SizeGuard(1_000, ("application/json", "image/*"))


@pytest.mark.parametrize(
    ("request_bytes", "content_type", "reason"),
    [
        (0, None, None),
        (1_000, "application/json", None),
        (1_001, "application/json", "too_large"),
        (1_001, "text/html", "too_large"),  # size first
        (1_001, None, "too_large"),
        (1, "text/html", "content_type"),
        (1, None, "content_type"),  # a body without a type
        (1, "", "content_type"),
        (0, "text/html", None),  # no body, nothing to judge
        (None, None, None),
        (None, "text/html", "content_type"),  # there may be a body
        (None, "application/json", None),
        (1, "Application/JSON", None),
        (1, "application/json; charset=utf-8", None),
        (1, "application/json ;charset=utf-8", None),
        (1, "application/json;", None),
        (1, "image/png", None),
        (1, "IMAGE/svg+xml; a=b", None),
        (1, "image", "content_type"),
        (1, "image/", "content_type"),
        (1, "image/*", "content_type"),  # a range is no type
        (1, "image/png/x", "content_type"),
        (1, "image/png, text/html", "content_type"),
        (1, "image /png", "content_type"),
        (1, "application/json, text/html", "content_type"),
        (1, "text/html; a=application/json", "content_type"),
        (1, "text/html, application/json", "content_type"),
        (1, "/json", "content_type"),
        (1, "image/p\u00f1g", "content_type"),
        (1, "\ud800/x", "content_type"),
    ],
)
def test_check(request_bytes: int | None, content_type: str | None, reason: str | None) -> None:
    refusal = check_size(JSON, request_bytes, content_type)
    if reason is None:
        assert refusal is None
    else:
        assert refusal is not None
        assert refusal[0] == reason
        assert ("bytes:" if reason == "too_large" else "content_type:") in refusal[1]
        refusal[1].encode()


def test_each_half_alone() -> None:
    assert check_size(SizeGuard(10, ()), 11, None) == ("too_large", "bytes: found 11; allowed: at most 10")
    assert check_size(SizeGuard(10, ()), 10, "what/ever") is None
    assert check_size(SizeGuard(None, ("text/plain",)), 2**53 - 1, "text/plain") is None
    assert check_size(SizeGuard(0, ()), 0, None) is None
    assert check_size(SizeGuard(0, ()), 1, None) is not None
    assert check_size(SizeGuard(), 2**53 - 1, None) is None


def test_detail_is_short_whatever_was_sent() -> None:
    refusal = check_size(JSON, 1, "x" * 100_000)
    assert refusal is not None
    assert len(refusal[1]) < 200
