"""A refusal in HTTP's words: status, header fields and an RFC 9457 body, whoever sends it."""

from __future__ import annotations

from collections.abc import Mapping
from http import HTTPStatus
from typing import Any, Final, NamedTuple

import msgspec

from shield.decision import Decision
from shield.gate import NOTHING_PRESENTED

CONTENT_TYPE: Final = "application/problem+json"

_TYPES: Final = "https://iana.org/assignments/http-problem-types#"
# By status: the registered problem types that say the same.
PROBLEM_TYPES: Final = {429: _TYPES + "quota-exceeded", 503: _TYPES + "temporary-reduced-capacity"}
TITLES: Final = {429: "Quota exceeded", 503: "Temporarily reduced capacity"}
# RFC 6750, 3: without a token there is nothing wrong with one.
CHALLENGE: Final = 'Bearer realm="api"'
CHALLENGE_INVALID: Final = 'Bearer realm="api", error="invalid_token"'
DETAILS: Final = {
    "limit": "a quota of this API is used up",
    "concurrency": "too many requests are in flight",
    "idempotency_replay": "this request has been answered before",
    "store_full": "no room to count this request",
    "store_unavailable": "this request cannot be counted at present",
}

_encode = msgspec.json.Encoder().encode


class Refusal(NamedTuple):
    """An answer that is sent instead of what was asked for."""

    status: int
    headers: tuple[tuple[str, str], ...]
    body: bytes


def refusal_of(decision: Decision) -> Refusal:
    """The answer to a request that this decision refuses: for one that was answered before, that answer again."""
    stored = decision.response
    if stored is not None and stored.body is not None:
        fields = (*stored.headers, *decision.headers.items(), ("Idempotent-Replayed", "true"))
        return Refusal(stored.status, fields, stored.body)
    status, headers, members, detail = parts_of(decision)
    if decision.request_id is not None:
        members["request_id"] = decision.request_id
    return refusal(status, detail, members, headers)


def parts_of(decision: Decision) -> tuple[int, dict[str, str], dict[str, object], str]:
    """What a refusal says: its status, header fields, members of its body, and a sentence."""
    reason = decision.reason
    members: dict[str, object] = {"reason": reason}
    if violated := decision.violated:
        members["violated-policies"] = violated
    headers = dict(decision.headers)
    if reason == "identity":
        headers["WWW-Authenticate"] = CHALLENGE if decision.detail in NOTHING_PRESENTED else CHALLENGE_INVALID
    return decision.status, headers, members, decision.detail or DETAILS.get(reason) or f"refused: {reason}"


def refusal(status: int, detail: str, members: Mapping[str, object], headers: Mapping[str, str]) -> Refusal:
    """A refusal of this status, with the problem type and title that belong to it."""
    body = document(status, detail, members, type=PROBLEM_TYPES.get(status, "about:blank"), title=TITLES.get(status))
    fields = {**headers, "Cache-Control": "no-store", "Content-Type": CONTENT_TYPE}
    return Refusal(status, tuple(fields.items()), body)


def document(
    status: int, detail: str, members: Mapping[str, Any], *, type: str = "about:blank", title: str | None = None
) -> bytes:
    """A body with `type`, `title`, `status`, `detail` and the given extension members."""
    body = {"type": type, "title": title or phrase(status), "status": status, "detail": detail, **members}
    return encode(body)  # a name out of the client's own input may hold what UTF-8 cannot


def encode(value: Any) -> bytes:
    """JSON, whatever text is in it: lone surrogates become question marks."""
    try:
        return _encode(value)
    except UnicodeEncodeError:
        return _encode(_printable(value))


def _printable(value: Any) -> Any:
    if isinstance(value, str):
        return value.encode("utf-8", "replace").decode()
    if isinstance(value, Mapping):
        return {_printable(name): _printable(item) for name, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_printable(item) for item in value]
    return value


def phrase(status: int) -> str:
    """The status's own words: RFC 9457 asks for them where the type is about:blank."""
    try:
        return HTTPStatus(status).phrase
    except ValueError:
        return "Error"
