"""Handles for what comes after a decision: receipts (what was charged), leases (places that are held) and owners (of an
idempotency key).

A handle carries all it needs and a MAC, so any node that shares the secret accepts it and none has to remember the
request. Format, version 1: base64url without padding of MAC || masked msgpack. The MAC is 16 bytes of keyed BLAKE2b
over a purpose byte and the msgpack, so that a receipt is never taken for a lease; the mask is a keyed BLAKE2b stream
that starts from the MAC (the construction of SIV, RFC 5297): where a bucket lies in the table is nobody else's to know,
or keys could be chosen that crowd one place.
"""

from __future__ import annotations

import base64
import binascii
import hmac
from hashlib import blake2b
from typing import Final, TypeVar

import msgspec

from shield.errors import ReceiptError

T = TypeVar("T")

MAC_BYTES: Final = 16
# A receipt over all of a policy's 1,024 limits is about 100 KB. Longer ones are not ours, and are not even decoded.
MAX_HANDLE_CHARS: Final = 262_144


class Charged(msgspec.Struct, frozen=True, array_like=True):
    """One charge that may be settled."""

    limit: bytes
    """Which limit: a digest of its identity. One that has the name but counts otherwise is another."""
    plan: str | None
    address: bytes
    """Where the bucket lives: 16 bytes, the store's own."""
    kind: str
    """Which actual figure settles it: "cost" or "bytes"."""
    cost: int
    window_start_us: int | None


class Receipt(msgspec.Struct, frozen=True, array_like=True):
    """What one decision took that may turn out to be more or less."""

    id: bytes
    expires_us: int
    charged_us: int
    charges: tuple[Charged, ...]


class HeldLease(msgspec.Struct, frozen=True, array_like=True):
    """Places of one concurrency limit."""

    limit: str
    address: bytes
    lease_id: str


class HeldKey(msgspec.Struct, frozen=True, array_like=True):
    """The record of one idempotency key, and who owns it."""

    address: bytes
    holder: bytes
    owner: bytes


class Handles:
    """Seals and opens handles with one secret of at least 16 bytes."""

    def __init__(self, secret: bytes) -> None:
        if len(secret) < 16:
            raise ValueError("the secret for receipts needs at least 16 bytes")
        self._key = blake2b(secret, digest_size=32, person=b"shield-handles").digest()
        self._mask_key = blake2b(secret, digest_size=32, person=b"shield-mask").digest()

    def seal_receipt(self, receipt: Receipt) -> str:
        return self._seal(b"r", msgspec.msgpack.encode(receipt))

    def open_receipt(self, text: str) -> Receipt:
        """ReceiptError for whatever this secret did not seal. Expiry is the caller's to judge."""
        return self._open(b"r", text, Receipt, "receipt")

    def seal_lease(self, lease: HeldLease) -> str:
        return self._seal(b"l", msgspec.msgpack.encode(lease))

    def open_lease(self, text: str) -> HeldLease:
        return self._open(b"l", text, HeldLease, "lease")

    def seal_key(self, key: HeldKey) -> str:
        return self._seal(b"k", msgspec.msgpack.encode(key))

    def open_key(self, text: str) -> HeldKey:
        """ReceiptError for whatever this secret did not seal."""
        return self._open(b"k", text, HeldKey, "owner")

    def _mac(self, purpose: bytes, payload: bytes) -> bytes:
        return blake2b(purpose + payload, digest_size=MAC_BYTES, key=self._key).digest()

    def _masked(self, mac: bytes, payload: bytes) -> bytes:
        """The payload under a stream that only this secret and this MAC give; its own inverse."""
        blocks = range(0, len(payload), 64)
        stream = b"".join(
            blake2b(mac + i.to_bytes(4, "big"), digest_size=64, key=self._mask_key).digest() for i in blocks
        )
        size = len(payload)
        return (int.from_bytes(payload, "big") ^ int.from_bytes(stream[:size], "big")).to_bytes(size, "big")

    def _seal(self, purpose: bytes, payload: bytes) -> str:
        mac = self._mac(purpose, payload)
        return base64.urlsafe_b64encode(mac + self._masked(mac, payload)).rstrip(b"=").decode()

    def _open(self, purpose: bytes, text: str, kind: type[T], word: str) -> T:
        if not isinstance(text, str) or not 0 < len(text) <= MAX_HANDLE_CHARS:
            raise ReceiptError(f"not a {word}")
        try:
            raw = base64.b64decode(text.encode("ascii") + b"=" * (-len(text) % 4), altchars=b"-_", validate=True)
        except (UnicodeEncodeError, binascii.Error):
            raise ReceiptError(f"not a {word}") from None
        mac, masked = raw[:MAC_BYTES], raw[MAC_BYTES:]
        payload = self._masked(mac, masked)
        if not hmac.compare_digest(mac, self._mac(purpose, payload)):
            raise ReceiptError(f"not a {word} of this service, or altered")
        try:
            return msgspec.msgpack.decode(payload, type=kind)
        except msgspec.DecodeError:
            raise ReceiptError(f"a {word} of another version") from None


def limit_digest(identity: str) -> bytes:
    """The 8 bytes by which a receipt names a limit."""
    return blake2b(identity.encode(), digest_size=8).digest()
