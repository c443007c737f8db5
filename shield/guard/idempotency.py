"""The guard on idempotency keys: which requests have one that counts, what it is bound to, and which answers are kept.

Nothing here remembers anything. `read` turns a request into the name of a record and a fingerprint; what the record
says is decided in the store's step, after nonces and before the limits:

    another fingerprint                         422 idempotency_mismatch
    an answer                                   idempotency_replay, the answer again; nothing is charged
    in flight, its lease alive                  409 idempotency_in_flight, until the lease ends
    in flight, its lease over, a strict route   409 idempotency_in_flight, until retention has passed
    else                                        the limits decide; whoever they admit owns the key

The draft (draft-ietf-httpapi-idempotency-key-header) wants a structured-field string; most clients send it bare, so
both are read. A bare key has no comma: that is how two fields joined into one would look.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from hashlib import blake2b
from typing import Final, NamedTuple

import msgspec

from shield.answer import StoredAnswer
from shield.errors import RequestError
from shield.policy.matcher import Matcher
from shield.policy.model import IdempotencyGuard, Routes
from shield.policy.path import normalise
from shield.request import IdempotencyKey, Request

MISSING: Final = "idempotency_missing"
INVALID: Final = "idempotency_invalid"
MISMATCH: Final = "idempotency_mismatch"
IN_FLIGHT: Final = "idempotency_in_flight"
REPLAY: Final = "idempotency_replay"

# Stripe's bound, which clients know.
MAX_KEY_CHARS: Final = 255
# A digest in whatever notation, with its name in front.
MAX_FINGERPRINT_CHARS: Final = 256
# Header fields of an answer that are kept beside its body: what most servers allow for the head of a request.
MAX_HEADER_BYTES: Final = 16_384
MAX_HEADER_FIELDS: Final = 128
DIGEST_BYTES: Final = 16

_BARE: Final = re.compile(r"[!#-+\--\[\]-~]+")  # visible ASCII without quotes, comma and backslash
_QUOTED: Final = re.compile(r'"((?:[ !#-\[\]-~]|\\["\\])+)"')  # RFC 9651, 3.3.3, and not empty
# RFC 9110, 7.6.1: they speak of one connection, not of the answer.
_HOP_BY_HOP: Final = frozenset(
    (
        *("connection", "keep-alive", "proxy-authenticate", "proxy-authorization", "proxy-connection"),
        *("te", "trailer", "transfer-encoding", "upgrade"),
    )
)
_NAME: Final = re.compile(r"[A-Za-z0-9!#$%&'*+.^_`|~-]{1,256}")
_UNSENDABLE: Final = re.compile(r"[\x00\r\n]")
_TRANSIENT: Final = frozenset((408, 425, 429))


class Key(NamedTuple):
    """One request's key: which record, whose, and for which payload."""

    address: bytes
    """Of the record: a digest over tenant, user, method, path and key."""
    holder: bytes
    """Whose keys are counted together: a digest of the tenant, of the user where there is none."""
    fingerprint: bytes
    strict: bool
    rules: IdempotencyGuard


class Claim(NamedTuple):
    """A request that would own its key."""

    key: Key
    owner: bytes
    """Random: who it is that owns the record."""

    @property
    def rules(self) -> IdempotencyGuard:
        return self.key.rules


class Refusal(NamedTuple):
    """Why a request is refused before any record is looked at."""

    reason: str
    detail: str


class KeyGuard:
    """One policy's [guard.idempotency]."""

    def __init__(self, rules: IdempotencyGuard) -> None:
        self.rules = rules
        # Index 0: where keys count; 1: where nobody takes over. Without `strict`, somewhere that no request is.
        self._matcher = Matcher((rules.match, *(() if rules.strict is None else (rules.strict,))))
        self._narrowed = rules.match != Routes()

    def read(self, request: Request) -> Key | Refusal | None:
        """The request's key; None where it has none that counts."""
        stated = request.idempotency
        if stated is None and not self.rules.required:
            return None
        try:
            return self._read(request, stated)
        except ValueError as error:
            return Refusal("invalid", str(error))

    def _read(self, request: Request, stated: IdempotencyKey | None) -> Key | Refusal | None:
        if stated is not None and not isinstance(stated, IdempotencyKey):
            raise ValueError(f"idempotency: expected an IdempotencyKey, not {type(stated).__name__}")
        key = stated.key if stated is not None else None
        if not key and not self.rules.required:
            return None
        for name in ("method", "path", "tenant", "user"):
            value = getattr(request, name)
            if value is not None and not isinstance(value, str):
                raise ValueError(f"{name}: expected text, not {type(value).__name__}")
        if not self._counts(request, stated=bool(key)):
            return None
        if not key:
            return Refusal(MISSING, "idempotency.key: missing; this request needs an Idempotency-Key")
        try:
            name = parse_key(key, quoted=self.rules.syntax == "quoted")
        except ValueError as error:
            return Refusal(INVALID, f"idempotency.key: {error}")
        assert stated is not None
        fingerprint = stated.fingerprint
        if fingerprint is not None and not isinstance(fingerprint, str):
            raise ValueError(f"idempotency.fingerprint: expected text, not {type(fingerprint).__name__}")
        if fingerprint is not None and len(fingerprint) > MAX_FINGERPRINT_CHARS:
            return Refusal(INVALID, f"idempotency.fingerprint: allowed: at most {MAX_FINGERPRINT_CHARS} characters")
        if not request.tenant and not request.user:
            return Refusal(
                "missing", "tenant: needed, or a user, by guard.idempotency: whose key it would be is unknown"
            )
        path = normalise(request.path) if request.path else ""
        who = (request.tenant or "", request.user or "")
        return Key(
            address=_digest(b"key", (*who, (request.method or "").upper(), path, name)),
            holder=_digest(b"holder", ("tenant", request.tenant) if request.tenant else ("user", request.user or "")),
            fingerprint=fingerprint_of(request, fingerprint or None),
            strict=self.rules.strict is not None and 1 in self._matcher.match(request.method, request.path),
            rules=self.rules,
        )

    def _counts(self, request: Request, *, stated: bool) -> bool:
        """Whether a key counts here. One that was stated counts where the request does not say enough to tell."""
        method = (request.method or "").upper()
        if method not in self.rules.methods and (method or not stated):
            return False
        if not self._narrowed or 0 in self._matcher.match(request.method, request.path):
            return True
        unknown = (self.rules.match.methods and not method) or (self.rules.match.paths and not request.path)
        return stated and bool(unknown)


def parse_key(text: object, *, quoted: bool) -> str:
    """The key that a field's value names, bare or in quotes. ValueError says what is wrong with it."""
    if not isinstance(text, str):
        raise ValueError(f"expected text, not {type(text).__name__}")
    # Every character may be escaped.
    if len(text) > 2 * MAX_KEY_CHARS + 2:
        raise ValueError(f"found {len(text)} characters; allowed: at most {MAX_KEY_CHARS}")
    if text.startswith('"'):
        match = _QUOTED.fullmatch(text)
        if match is None:
            raise ValueError("not a structured-field string: printable ASCII in quotes, quotes and backslashes escaped")
        name = re.sub(r"\\(.)", r"\1", match[1])
    elif quoted:
        raise ValueError('allowed: a string in quotes, such as "8e03978e-40d5-43e8-bc93-6894a57f9324"')
    elif not _BARE.fullmatch(text):
        raise ValueError("allowed: visible ASCII characters without comma, quotes and backslash")
    else:
        name = text
    if len(name) > MAX_KEY_CHARS:
        raise ValueError(f"found {len(name)} characters; allowed: at most {MAX_KEY_CHARS}")
    return name


def fingerprint_of(request: Request, stated: str | None) -> bytes:
    """What is repeated must be the same. A fingerprint that was stated is of the payload; else it is what is known of
    it: the query, the body or, where nobody sees it, its size.
    """
    query = (request.path or "").partition("?")[2].partition("#")[0]
    if stated is not None:
        return _digest(b"stated", (stated,))
    if request.body:
        return _digest(b"body", (query, request.body))
    size = "" if not request.bytes else str(request.bytes)
    return _digest(b"known", (query, size))


def _digest(kind: bytes, parts: Iterable[str]) -> bytes:
    digest = blake2b(kind, digest_size=DIGEST_BYTES, person=b"shield-idem-key")
    for part in parts:
        raw = part.encode("utf-8", "surrogatepass")
        digest.update(len(raw).to_bytes(8, "little"))
        digest.update(raw)
    return digest.digest()


# ---- answers ---------------------------------------------------------------------------------------------------------


def keeps(rules: IdempotencyGuard, status: int) -> bool:
    """Whether an answer with this status is kept; else the key is free again."""
    if rules.keep == "2xx":
        return 200 <= status <= 299
    return rules.keep == "all" or (status < 500 and status not in _TRANSIENT)


def kept_answer(status: int, headers: tuple[tuple[str, str], ...], body: bytes | None) -> StoredAnswer:
    """What is kept of an answer, whose body is None where it is too large: not the header fields of the connection.

    RequestError for a status that is none, and for fields that could not be sent again.
    """
    if not isinstance(status, int) or isinstance(status, bool) or not 200 <= status <= 599:
        raise RequestError("status", "allowed: a final HTTP status, from 200 to 599")
    for name, value in headers:
        if not _NAME.fullmatch(name):
            raise RequestError("headers", "a name that is none")
        if _UNSENDABLE.search(value):
            raise RequestError("headers", f"{name}: a value that cannot be sent")
    headers = tuple((name, value) for name, value in headers if name.lower() not in _HOP_BY_HOP)
    if len(headers) > MAX_HEADER_FIELDS or sum(len(name) + len(value) for name, value in headers) > MAX_HEADER_BYTES:
        # An answer without some of its fields is another answer.
        return StoredAnswer(status, (), None)
    return StoredAnswer(status, headers, body)


_pack = msgspec.msgpack.Encoder().encode
_unpack = msgspec.msgpack.Decoder(StoredAnswer).decode


def pack_answer(answer: StoredAnswer) -> bytes:
    """As stores keep it."""
    return _pack(answer)


def unpack_answer(raw: bytes) -> StoredAnswer:
    """ValueError for what `pack_answer` did not write."""
    try:
        return _unpack(raw)
    except msgspec.DecodeError:
        raise ValueError("not an answer that was kept by this version of Shield") from None
