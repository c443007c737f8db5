"""What a connection says about a request, as the facts that a policy counts by. Compiled once for each policy.

The client's address is the peer's, or what trusted proxies vouch for. Credentials are read from headers; everything
else that a header states about who asks is the client's own claim, so `[identity.headers]` counts only where the
application says that a gateway in front sets those and drops the client's.
"""

from __future__ import annotations

import hashlib
import re
from base64 import b64encode
from collections.abc import Iterable, Mapping
from typing import Final, NamedTuple

from msgspec.structs import force_setattr

from shield.errors import RequestError
from shield.identity.address import TrustedProxies
from shield.identity.bearer import bearer
from shield.policy import Policy
from shield.request import IdempotencyKey, Nonce, Request
from shield.shield import Shield

NonceFields = tuple[str, str]
"""Names of the header fields that hold a nonce, and the Unix time at which the client made it."""
_INSTANT: Final = re.compile(r"[0-9]{1,12}(\.[0-9]{1,9})?", re.ASCII)

FORWARDED_FOR: Final = "x-forwarded-for"
MAX_BUFFERED_BYTES: Final = 2 * 1_048_576
"""The largest body that is read before the decision, where the decision needs it: as much as the endpoint reads."""
_CREDENTIALS: Final = ("api_key", "token")
_ATTRIBUTE: Final = "attributes."
_NUMBERS: Final = ("bytes", "cost")
_READ: Final = (
    *("content-length", "content-type", "content-encoding", "transfer-encoding"),
    *("user-agent", "authorization", "idempotency-key", "host"),
)


class Head(NamedTuple):
    """What is asked before the first byte of a body."""

    request: Request
    encoding: str | None
    """Content-Encoding of the body."""
    counted: bool
    """Whether its bytes have to be counted: nothing reliable says how many there are."""


class Facts:
    """Reads requests for one policy. `gateway`: a gateway in front sets the headers of `[identity.headers]`."""

    def __init__(self, policy: Policy, *, gateway: bool = False, nonce: NonceFields | None = None) -> None:
        identity = policy.identity
        self.policy = policy
        self.max_body_bytes = None if policy.size is None else policy.size.max_body_bytes
        self._client = TrustedProxies(identity.trusted_proxies).client
        believed = {field: name.lower() for field, name in identity.headers.items() if gateway or field in _CREDENTIALS}
        self._fields = [(field, name) for field, name in believed.items() if not field.startswith(_ATTRIBUTE)]
        self._attributes = [
            (field.removeprefix(_ATTRIBUTE), name) for field, name in believed.items() if field.startswith(_ATTRIBUTE)
        ]
        self._nonce = None if nonce is None else (nonce[0].lower(), nonce[1].lower())
        self.wanted = frozenset((*_READ, *believed.values(), *(self._nonce or ())))
        """Names of the header fields that are read, in lower case; FORWARDED_FOR beside them."""
        self._wanted_bytes = {name.encode("ascii"): name for name in self.wanted}

    def of_pairs(self, pairs: Iterable[tuple[bytes, bytes]]) -> tuple[dict[str, str], list[str]]:
        """The wanted fields, and all X-Forwarded-For, of header lists as ASGI has them. RequestError for one that is
        there twice: nobody knows which of two would be believed behind here.
        """
        found: dict[str, str] = {}
        forwarded: list[str] = []
        wanted = self._wanted_bytes
        for raw, value in pairs:
            name = wanted.get(raw)
            if name is not None:
                if name in found:
                    raise RequestError(name, "is there twice; allowed: once")
                found[name] = value.decode("latin-1")
            elif raw == b"x-forwarded-for":
                forwarded.append(value.decode("latin-1"))
        return found, forwarded

    def head(
        self,
        found: Mapping[str, str],
        forwarded: list[str],
        *,
        peer: str | None,
        method: str,
        path: str,
        framed: bool,
    ) -> Head:
        """The request. `peer` is who is connected, None for a unix socket. `framed`: this is HTTP/1, where a request
        without Content-Length and Transfer-Encoding has no body, and no body is longer than it says.

        RequestError for a header field that cannot be read.
        """
        get = found.get
        length = get("content-length")
        if length is not None:
            size: int | None = _whole("content-length", length)
        else:
            size = 0 if framed and "transfer-encoding" not in found else None
        try:
            ip = self._client(peer or None, forwarded) or None
        except ValueError:
            ip = peer  # a test's or a server's own name for a client: the decision says what is wrong with it
        request = Request(
            method=method,
            path=path,
            host=get("host"),
            ip=ip,
            bytes=size,
            content_type=get("content-type"),
            user_agent=get("user-agent"),
            token=bearer(get("authorization")),
            idempotency=IdempotencyKey(key) if (key := get("idempotency-key")) else None,
        )
        if self._nonce is not None:
            value, timestamp = get(self._nonce[0]), get(self._nonce[1])
            if value is not None or timestamp is not None:
                force_setattr(request, "nonce", Nonce(value, _instant(self._nonce[1], timestamp)))
        for field, name in self._fields:
            if (value := get(name)) is not None:
                # Nobody else has seen this request yet, and a copy costs.
                force_setattr(request, field, _whole(name, value) if field in _NUMBERS else value)
        if self._attributes:
            force_setattr(
                request,
                "attributes",
                {field: value for field, name in self._attributes if (value := get(name)) is not None},
            )
        return Head(request, get("content-encoding"), size is None or not framed)


def with_body(shield: Shield, request: Request, body: bytes, query: str) -> None:
    """Adds what the decision needs of a body that was read before it: its fingerprint, with the query's, where a key
    says that the same payload may come again, and all of it where it holds GraphQL operations. Nobody else has seen the
    request yet.
    """
    key = request.idempotency
    if key is not None and not key.fingerprint:
        digest = hashlib.sha256(f"{len(query)}:{query}".encode("utf-8", "surrogatepass"))
        digest.update(body)
        force_setattr(request, "idempotency", IdempotencyKey(key.key, "sha256:" + digest.hexdigest()))
    if body and shield.wants_body(request):
        force_setattr(request, "body", b64encode(body).decode())
    if request.bytes is None:
        force_setattr(request, "bytes", len(body))


def _instant(name: str, value: str | None) -> int | float | None:
    """Unix time in seconds, in digits with or without a fraction: a float's other spellings are for nobody."""
    if value is None:
        return None
    if not _INSTANT.fullmatch(value):
        raise RequestError(name, "allowed: Unix time in seconds")
    return float(value) if "." in value else int(value)


def _whole(name: str, value: str) -> int:
    if not (value.isascii() and value.isdigit() and len(value) <= 20):
        raise RequestError(name, "allowed: a whole number")
    return int(value)
