"""RFC 9457 bodies: how every answer that is no success looks, whoever's fault it is."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from shield.problem import CONTENT_TYPE, document, encode, phrase
from shield.server.exchange import Answer

__all__ = ["CONTENT_TYPE", "Problem", "encode", "phrase", "render"]


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
    body = document(status, detail, members, type=type, title=title)
    return Answer(status, {"Cache-Control": "no-store", **headers, "Content-Type": CONTENT_TYPE}, body)
