"""What every middleware is given, resolved once."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from os import PathLike
from typing import Any, Final

from shield.errors import RequestError
from shield.middleware.body import MAX_RATIO, Fault
from shield.middleware.facts import MAX_BUFFERED_BYTES, Facts, NonceFields
from shield.policy import Policy
from shield.problem import Refusal, refusal
from shield.request import Request
from shield.shield import Shield

Hook = Callable[[Any, Request], Any]
"""Adds facts of the application's own (a session's tenant): from the scope, environ or request, and the facts that were
read, to the facts that count; None exempts the request. May be a coroutine function where the server is asynchronous.
"""

_STATUS: Final = {"too_large": 413, "content_type": 415, "invalid": 400}


class Settings:
    """A shield and how it is asked."""

    def __init__(
        self,
        shield: Shield | Policy | str | PathLike[str],
        *,
        store: str = "memory://",
        facts: Hook | None = None,
        gateway: bool = False,
        max_ratio: int = MAX_RATIO,
        nonce: NonceFields | None = None,
    ) -> None:
        """`shield` may also be a policy or its file, then `store` says where its buckets live. PolicyError."""
        if not isinstance(shield, Shield):
            shield = Shield(shield if isinstance(shield, Policy) else Policy.load(shield), store)
        self.shield = shield
        self.hook = facts
        self.max_ratio = max_ratio
        self._read = partial(Facts, gateway=gateway, nonce=nonce)
        self._facts = self._read(shield.policy)

    @property
    def facts(self) -> Facts:
        """For the policy in force."""
        if self._facts.policy is not self.shield.policy:
            self._facts = self._read(self.shield.policy)
        return self._facts

    def reads_body(self, request: Request) -> bool:
        """Whether the decision needs the body."""
        return self.shield.wants_body(request)


def most_read(facts: Facts) -> int:
    """How much of a body is read before the decision at most."""
    ceiling = facts.max_body_bytes
    return MAX_BUFFERED_BYTES if ceiling is None else min(MAX_BUFFERED_BYTES, ceiling)


def framed(refused: Refusal) -> tuple[tuple[str, str], ...]:
    """Its header fields, with the length of its body where a response of its status has one (RFC 9110, 8.6)."""
    if refused.status in (204, 304) or any(name.lower() == "content-length" for name, _ in refused.headers):
        return refused.headers
    return (*refused.headers, ("Content-Length", str(len(refused.body))))


def unreadable(error: RequestError) -> Refusal:
    """For headers that cannot be read: they are the client's."""
    return refusal(400, str(error), {"reason": "invalid", "field": error.field}, {})


def faulty(fault: Fault, fields: dict[str, str] | None = None, *, close: bool = False) -> Refusal:
    """For a body that is refused while it comes. `close`: on HTTP/1, where nobody will read the rest."""
    reason, detail = fault
    headers = dict(fields or {})
    if close:
        headers["Connection"] = "close"
    return refusal(_STATUS[reason], detail, {"reason": reason}, headers)
