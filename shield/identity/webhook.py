"""Signed webhooks: one reading of four schemes that differ only in where they put things.

Every scheme is an HMAC-SHA256 over a text that the table describes. Facts: the Standard Webhooks specification, and
the documentation of Stripe, Slack and GitHub. The nonce of a scheme without signed id is a hash of what was signed,
another one for every other instant or body. GitHub's delivery id is not signed, so it would be the replayer's choice.
"""

from __future__ import annotations

import binascii
import hashlib
import hmac
from base64 import b64decode
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Final

from shield.identity.proof import Headers, Proof, ProofError, Window, fields_of, nonce_of, seconds, single

MAX_HEADER_CHARS: Final = 4_096
MAX_SIGNATURES: Final = 16
"""In one header: a few during a rotation of secrets."""
MAX_SECRETS: Final = 8
_MAC_BYTES: Final = 32


@dataclass(frozen=True, slots=True)
class Scheme:
    """Where one scheme puts what."""

    name: str
    signature: str
    """The field with the signatures."""
    signed: str
    """What the MAC is over: {id}, {timestamp} and the body behind it."""
    version: str
    """Stands before each signature that counts; others are of versions we do not know."""
    separator: str
    """Between version and signature."""
    between: str
    """Between several signatures; empty: there is one."""
    encoding: str
    """"hex" or "base64"."""
    id: str | None = None
    timestamp: str | None = None
    """The field with the instant; "t" inside of the signature's field for Stripe; None: there is no instant."""
    secret_prefix: str = ""
    """What stands before a secret that is base64; empty: secrets are taken as they are."""


STANDARD: Final = Scheme(
    "standard-webhooks",
    signature="webhook-signature",
    signed="{id}.{timestamp}.",
    version="v1",
    separator=",",
    between=" ",
    encoding="base64",
    id="webhook-id",
    timestamp="webhook-timestamp",
    secret_prefix="whsec_",
)
STRIPE: Final = Scheme(
    "stripe",
    signature="stripe-signature",
    signed="{timestamp}.",
    version="v1",
    separator="=",
    between=",",
    encoding="hex",
    timestamp="t",
)
SLACK: Final = Scheme(
    "slack",
    signature="x-slack-signature",
    signed="v0:{timestamp}:",
    version="v0",
    separator="=",
    between="",
    encoding="hex",
    timestamp="x-slack-request-timestamp",
)
GITHUB: Final = Scheme(
    "github", signature="x-hub-signature-256", signed="", version="sha256", separator="=", between="", encoding="hex"
)
SCHEMES: Final[Mapping[str, Scheme]] = MappingProxyType({one.name: one for one in (STANDARD, STRIPE, SLACK, GITHUB)})


def read_secret(scheme: Scheme, text: str) -> bytes:
    """The bytes of a secret as its service shows it. ValueError, which shows nothing of it."""
    if scheme.secret_prefix:
        try:
            secret = b64decode(text.removeprefix(scheme.secret_prefix), validate=True)
        except (binascii.Error, ValueError):
            raise ValueError(f"a secret of {scheme.name} is base64 behind {scheme.secret_prefix}") from None
        if not 24 <= len(secret) <= 64:
            raise ValueError(f"a secret of {scheme.name} has 24 to 64 bytes, this one {len(secret)}")
        return secret
    if not 16 <= len(text) <= 256:
        raise ValueError(f"a secret of {scheme.name} has 16 to 256 characters, this one {len(text)}")
    return text.encode()


def verify(
    scheme: Scheme,
    headers: Headers,
    body: bytes,
    secrets: Sequence[bytes],
    now_s: float,
    *,
    window: Window = Window(300, 300),  # noqa: B008 - frozen
) -> Proof:
    """What a webhook proves. `secrets`: the present one and, during a rotation, others; at most MAX_SECRETS.

    ProofError for a request that is not signed, not by one of them, or not within the window.
    """
    if not 1 <= len(secrets) <= MAX_SECRETS:
        raise ValueError(f"found {len(secrets)} secrets; allowed: 1 to {MAX_SECRETS}")
    fields = fields_of(headers)
    parts = _parts(scheme, single(fields, scheme.signature, MAX_HEADER_CHARS))
    given = {"id": "", "timestamp": ""}
    if scheme.id is not None:
        given["id"] = nonce_of(single(fields, scheme.id, MAX_HEADER_CHARS), scheme.id)
    timestamp_s = None
    if scheme.timestamp is not None:
        given["timestamp"] = _timestamp(scheme, scheme.timestamp, parts, fields)
        timestamp_s = seconds(given["timestamp"], scheme.timestamp)
    macs = [_decode(scheme, value) for version, value in parts if version == scheme.version]
    if not macs:
        raise ProofError("missing", f"{scheme.signature}: no signature of version {scheme.version}")
    signed = scheme.signed.format(**given).encode() + body
    if not _is_signed(signed, macs, secrets):
        raise ProofError("signature", "no signature is that of a secret")
    if timestamp_s is not None:
        window.check(timestamp_s, now_s)
    nonce = given["id"] or hashlib.sha256(signed).hexdigest()
    return Proof(nonce, timestamp_s, None)


def _parts(scheme: Scheme, text: str) -> list[tuple[str, str]]:
    """(version, value) of each signature. One without a separator is an error and no crash."""
    items = text.split(scheme.between) if scheme.between else [text]
    if len(items) > MAX_SIGNATURES:
        raise ProofError("malformed", f"{scheme.signature}: more than {MAX_SIGNATURES} signatures")
    parts = []
    for item in items:
        version, separator, value = item.strip(" \t").partition(scheme.separator)
        if not separator or not version or not value:
            raise ProofError("malformed", f"{scheme.signature}: allowed: VERSION{scheme.separator}VALUE")
        parts.append((version, value))
    return parts


def _timestamp(scheme: Scheme, where: str, parts: list[tuple[str, str]], fields: Mapping[str, Sequence[str]]) -> str:
    if where != "t":
        return single(fields, where, 64)
    stated = [value for version, value in parts if version == "t"]
    if len(stated) != 1:
        raise ProofError("malformed", f"{scheme.signature}: allowed: one t=TIMESTAMP")
    return stated[0]


def _decode(scheme: Scheme, text: str) -> bytes:
    try:
        if scheme.encoding == "hex":
            # fromhex would skip white space.
            mac = bytes.fromhex(text) if len(text) == 2 * _MAC_BYTES else b""
        else:
            mac = b64decode(text, validate=True)
    except (binascii.Error, ValueError):
        mac = b""
    if len(mac) != _MAC_BYTES:
        raise ProofError("malformed", f"{scheme.signature}: a signature is {_MAC_BYTES} bytes in {scheme.encoding}")
    return mac


def _is_signed(signed: bytes, macs: Sequence[bytes], secrets: Sequence[bytes]) -> bool:
    """Compares all with all, whatever it finds, so that the time tells nothing."""
    found = False
    for secret in secrets:
        expected = hmac.digest(secret, signed, "sha256")
        for mac in macs:
            found |= hmac.compare_digest(expected, mac)
    return found
