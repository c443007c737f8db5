"""The strict parts that tokens and key sets are read with: base64url, JSON objects, bounded text.

Laxness here is how forged tokens get past libraries: padding, foreign characters and unused bits give one signature
several spellings, and of two members with one name two parsers believe different ones. So all of these are refused.
"""

from __future__ import annotations

import json
from base64 import urlsafe_b64decode, urlsafe_b64encode
from binascii import Error
from typing import Any, Final, NoReturn

from shield.errors import ShieldError

MAX_KID_BYTES: Final = 256
"""A key's id is a lookup key and nothing else. Real ones are hashes, UUIDs or URLs."""


class TokenError(ShieldError):
    """A token, key or key set that is not accepted.

    `reason` is one word of a closed list (REASONS), `detail` a sentence that never holds anything of the token.
    `kid` is what the token named its key, where the key was not found. `transient`: the fault is ours (no keys at
    hand yet), and the same token may be accepted later.
    """

    def __init__(self, reason: str, detail: str, *, kid: str | None = None, transient: bool = False) -> None:
        super().__init__(f"{reason}: {detail}")
        self.reason = reason
        self.detail = detail
        self.kid = kid
        self.transient = transient


REASONS: Final = (
    *("malformed", "too_large", "algorithm", "critical", "type", "unknown_key", "ambiguous_key", "key_set"),
    *("signature", "issuer", "audience", "expired", "not_yet_valid", "claims", "no_keys"),
)


class KeySetError(TokenError):
    """A key set that cannot be used at all: no JSON, too large, or keys that must not be in one set."""

    def __init__(self, detail: str) -> None:
        super().__init__("key_set", detail)


def decode_base64url(text: bytes) -> bytes:
    """RFC 7515, section 2: no padding, no foreign character, no unused bit set. ValueError."""
    try:
        raw = urlsafe_b64decode(text + b"=" * (-len(text) % 4))
    except Error:
        raise ValueError("not base64url") from None
    # The decoder drops what it does not know and ignores bits that mean nothing: then this spelling is another.
    if urlsafe_b64encode(raw).rstrip(b"=") != text:
        raise ValueError("not base64url")
    return raw


def encode_base64url(raw: bytes) -> str:
    """The one spelling that `decode_base64url` takes."""
    return urlsafe_b64encode(raw).rstrip(b"=").decode()


def parse_object(data: bytes) -> dict[str, Any]:
    """A JSON object in UTF-8 whose members have different names, at every depth. ValueError says what is wrong."""
    try:
        value = json.loads(data.decode(), object_pairs_hook=_unique, parse_constant=_no_constant)
    except UnicodeDecodeError:
        raise ValueError("not UTF-8") from None
    except json.JSONDecodeError:
        raise ValueError("not JSON") from None
    except RecursionError:
        raise ValueError("nested too deeply") from None
    if not isinstance(value, dict):
        raise ValueError("not a JSON object")
    return value


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    members = dict(pairs)
    if len(members) != len(pairs):
        raise ValueError("a member name is there twice")
    return members


def _no_constant(name: str) -> NoReturn:
    raise ValueError("not JSON")


def check_kid(value: Any) -> str:
    """An id of a key: text of 1 to MAX_KID_BYTES bytes of UTF-8. ValueError."""
    if not isinstance(value, str) or not value or len(value) > MAX_KID_BYTES:
        raise ValueError(f"kid: allowed: text of 1 to {MAX_KID_BYTES} bytes")
    try:
        size_bytes = len(value.encode())
    except UnicodeEncodeError:
        raise ValueError("kid: not Unicode text") from None
    if size_bytes > MAX_KID_BYTES:
        raise ValueError(f"kid: allowed: text of 1 to {MAX_KID_BYTES} bytes")
    return value
