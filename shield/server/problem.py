"""RFC 9457 bodies: how every answer that is no success looks, whoever's fault it is."""

from __future__ import annotations

from collections.abc import Mapping
from http import HTTPStatus
from typing import Any

import msgspec

from shield.server.exchange import Answer

CONTENT_TYPE = "application/problem+json"
_encode = msgspec.json.Encoder().encode


class Problem(Exception):
    """An answer other than success, raised where it is found.

    `members` are extension members of the body (`field`, `issues`). `close` ends the connection after the
    answer, for requests whose remaining bytes nobody will read.
    """

    def __init__(
        self,
        status: int,
        detail: str,
        *,
        members: Mapping[str, Any] | None = None,
        headers: Mapping[str, str] | None = None,
        close: bool = False,
    ) -> None:
        super().__init__(detail)
        self.status = status
        self.detail = detail
        self.members = members or {}
        self.headers = headers or {}
        self.close = close

    def answer(self, request_id: str) -> Answer:
        """The answer, with a request id that the log line beside it carries too."""
        headers = {"Shield-Request-Id": request_id, **self.headers}
        answer = render(self.status, self.detail, {**self.members, "request_id": request_id}, headers)
        answer.close = self.close
        return answer


def render(
    status: int,
    detail: str,
    members: Mapping[str, Any],
    headers: Mapping[str, str],
    *,
    type: str = "about:blank",
    title: str | None = None,
) -> Answer:
    """An answer whose body has `type`, `title`, `status`, `detail` and the given extension members."""
    body = {"type": type, "title": title or phrase(status), "status": status, "detail": detail, **members}
    # A name out of the caller's own input may hold what UTF-8 cannot.
    return Answer(status, {"Cache-Control": "no-store", **headers, "Content-Type": CONTENT_TYPE}, encode(body))


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
