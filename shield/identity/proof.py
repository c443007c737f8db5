"""What a signed request proves: who signed it, when, and a value that it is the only one to have.

Schemes differ in where they put it; each module reads one of them into a `Proof`. The signature is checked first and
the instant next; that the nonce was not there before is for the store to say, in the same step as the quotas.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from shield.errors import ShieldError
from shield.identity.jwt import MAX_DATE_S

Headers = Mapping[str, str | Sequence[str]]
"""Fields of a request; several values where a field was sent several times. Names in any case."""

MAX_NONCE_BYTES: Final = 256
"""Of what a client names its request: ids, UUIDs, MACs. The store keeps a hash of it."""
REASONS: Final = ("missing", "malformed", "unknown_key", "signature", "mismatch", "stale")

_SECONDS: Final = re.compile(r"0|[1-9][0-9]{0,11}")


class ProofError(ShieldError):
    """A request whose signature proves nothing. `reason` is one of REASONS; `detail` shows nothing of the request."""

    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(f"{reason}: {detail}")
        self.reason = reason
        self.detail = detail


@dataclass(frozen=True, slots=True)
class Proof:
    """A request that was signed."""

    nonce: str
    """No other request of this signer may have it."""
    timestamp_s: int | None
    """When it was signed; None: the scheme does not say, and a capture never grows stale."""
    signer: str | None
    """What the signer's key is called, or its thumbprint; None where there is one secret."""


@dataclass(frozen=True, slots=True)
class Window:
    """How old a signature may be, and how far ahead the signer's clock."""

    past_s: int = 300
    future_s: int = 30

    def check(self, timestamp_s: int, now_s: float) -> None:
        """ProofError, reason stale."""
        if timestamp_s < now_s - self.past_s:
            raise ProofError("stale", "it was signed too long ago")
        if timestamp_s > now_s + self.future_s:
            raise ProofError("stale", "it was signed in the future")


def seconds(text: str, what: str) -> int:
    """Unix time as digits: no sign, fraction or exponent, and nothing past the year 9999. ProofError."""
    if not _SECONDS.fullmatch(text) or int(text) > MAX_DATE_S:
        raise ProofError("malformed", f"{what}: allowed: Unix time in whole seconds")
    return int(text)


def nonce_of(text: str, what: str) -> str:
    """A nonce of 1 to MAX_NONCE_BYTES printable ASCII characters, so that none has two spellings. ProofError."""
    if not 1 <= len(text) <= MAX_NONCE_BYTES or not text.isascii() or not text.isprintable():
        raise ProofError("malformed", f"{what}: allowed: 1 to {MAX_NONCE_BYTES} printable ASCII characters")
    return text


def fields_of(headers: Headers) -> dict[str, list[str]]:
    """The fields by lower-case name, each with all its values in order."""
    found: dict[str, list[str]] = {}
    for name, value in headers.items():
        found.setdefault(name.lower(), []).extend([value] if isinstance(value, str) else value)
    return found


def single(fields: Mapping[str, Sequence[str]], name: str, max_chars: int) -> str:
    """The one value of a field. ProofError when it is absent, there twice, or longer than allowed."""
    values = fields.get(name.lower(), ())
    if not values or not values[0]:
        raise ProofError("missing", f"{name}: missing")
    if len(values) > 1:
        raise ProofError("malformed", f"{name}: is there {len(values)} times; allowed: once")
    if len(values[0]) > max_chars:
        raise ProofError("malformed", f"{name}: more than {max_chars:,} characters")
    return values[0].strip(" \t")
