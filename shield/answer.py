"""An answer that was kept for an idempotency key, and the right to give one."""

from __future__ import annotations

from base64 import b64encode
from collections.abc import Iterable, Mapping
from typing import Any, Final

import msgspec

from shield.errors import RequestError

NOT_KEPT: Final = 409
"""What a repeated request gets whose first answer is known but was not kept whole: nothing that looks like it."""

HeaderFields = Mapping[str, str | list[str]] | Mapping[str, str] | Iterable[tuple[str, str]]
"""Header fields as users have them: by name, a field that is there several times as a list; or as pairs."""


class StoredAnswer(msgspec.Struct, frozen=True, array_like=True):
    """What a request with an idempotency key was answered the first time."""

    status: int
    headers: tuple[tuple[str, str], ...] = ()
    """In their order; a name may be there several times."""
    body: bytes | None = b""
    """None: it was not kept, because it was larger than the policy allows, or the store had no room for it."""

    @property
    def retained(self) -> bool:
        """Whether it can be given again as it was."""
        return self.body is not None

    @property
    def shown_status(self) -> int:
        """The status of the decision: that of the answer, or a conflict where the answer cannot be given."""
        return self.status if self.retained else NOT_KEPT

    def as_dict(self) -> dict[str, Any]:
        """As on the wire."""
        headers: dict[str, Any] = {}
        for name, value in self.headers:
            held = headers.get(name)
            if held is None:
                headers[name] = value
            else:
                headers[name] = [*held, value] if isinstance(held, list) else [held, value]
        body = None if self.body is None else b64encode(self.body).decode()
        return {"status": self.status, "headers": headers, "body_b64": body, "retained": self.retained}


class Ownership(msgspec.Struct, frozen=True):
    """The request runs, and nobody else's with its idempotency key. Whoever runs it says how it ended."""

    owner: str
    """What `complete`, `abandon` and `extend` want to see: opaque, and nobody else can make one."""
    lease_s: float
    """For how long: then somebody else may take over, unless it was extended."""
    retention_s: float
    """How long the answer is kept once there is one."""

    def as_dict(self) -> dict[str, Any]:
        """As on the wire."""
        return {"owner": self.owner, "lease_s": self.lease_s, "retention_s": self.retention_s}


def pairs_of(headers: HeaderFields) -> tuple[tuple[str, str], ...]:
    """Header fields as pairs. RequestError for names or values that are no text."""
    found: list[tuple[str, str]] = []
    for name, value in headers.items() if isinstance(headers, Mapping) else headers:
        found += [(name, one) for one in (value if isinstance(value, list | tuple) else [value])]
    for name, value in found:
        if not isinstance(name, str) or not isinstance(value, str):
            raise RequestError("headers", "expected text in names and values")
    # Frameworks have texts of their own for names, which no store knows how to write.
    return tuple((str(name), str(value)) for name, value in found)
