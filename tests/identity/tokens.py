"""Makes keys and tokens, good ones and wrong ones, with cryptography and nothing of Shield's."""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
from dataclasses import dataclass
from typing import Any

from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed448, ed25519, padding, rsa
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature

ISSUER = "https://id.example"
AUDIENCE = "orders"
NOW_S = 1_763_900_000

_HASHES = {"256": hashes.SHA256, "384": hashes.SHA384, "512": hashes.SHA512}
_CURVES = {
    "ES256": (ec.SECP256R1, "P-256", 32),
    "ES384": (ec.SECP384R1, "P-384", 48),
    "ES512": (ec.SECP521R1, "P-521", 66),
}
_RSA: dict[int, rsa.RSAPrivateKey] = {}


def b64(raw: bytes) -> str:
    return base64.urlsafe_b64encode(raw).rstrip(b"=").decode()


def number(value: int) -> str:
    return b64(value.to_bytes((value.bit_length() + 7) // 8, "big"))


@dataclass(frozen=True)
class Signer:
    """A private key, and the JWK that verifies it."""

    algorithm: str
    private: Any
    jwk: dict[str, Any]

    def sign(self, data: bytes, algorithm: str | None = None) -> bytes:
        name = algorithm or self.algorithm
        if name.startswith("HS"):
            return hmac.digest(self.private, data, f"sha{name[2:]}")
        if name.startswith("RS"):
            return self.private.sign(data, padding.PKCS1v15(), _HASHES[name[2:]]())
        if name.startswith("PS"):
            digest = _HASHES[name[2:]]()
            return self.private.sign(data, padding.PSS(padding.MGF1(digest), digest.digest_size), digest)
        if name.startswith("ES"):
            r, s = decode_dss_signature(self.private.sign(data, ec.ECDSA(_HASHES[name[2:]]())))
            size = _CURVES[name][2]
            return r.to_bytes(size, "big") + s.to_bytes(size, "big")
        return self.private.sign(data)

    def token(self, claims: dict[str, Any] | bytes | None = None, header: dict[str, Any] | bytes | None = None) -> str:
        """A token; `claims` and `header` are merged over good ones, or are taken as they are when they are bytes."""
        if not isinstance(header, bytes):
            full = {"alg": self.algorithm, "kid": self.jwk.get("kid")} | (header or {})
            header = json.dumps({name: value for name, value in full.items() if value is not None}).encode()
        if not isinstance(claims, bytes):
            claims = json.dumps(good_claims() | (claims or {})).encode()
        signed = f"{b64(header)}.{b64(claims)}"
        return f"{signed}.{b64(self.sign(signed.encode()))}"


def good_claims() -> dict[str, Any]:
    return {
        "iss": ISSUER,
        "aud": AUDIENCE,
        "exp": NOW_S + 600,
        "iat": NOW_S,
        "sub": "u-17",
        "org_id": "acme",
        "plan": "pro",
    }


def rsa_private(bits: int = 2048) -> rsa.RSAPrivateKey:
    """One key of each size serves all tests: making one takes a while."""
    if bits not in _RSA:
        _RSA[bits] = rsa.generate_private_key(65_537, bits)
    return _RSA[bits]


def make(algorithm: str, kid: str | None = "key-1", **more: Any) -> Signer:
    """A new key. `more` is merged into its JWK."""
    named = {} if kid is None else {"kid": kid}
    if algorithm.startswith("HS"):
        secret = hashlib.sha512(f"{kid}".encode()).digest()
        return Signer(algorithm, secret, {"kty": "oct", "k": b64(secret), **named, **more})
    if algorithm[:2] in ("RS", "PS"):
        private = rsa_private()
        numbers = private.public_key().public_numbers()
        return Signer(
            algorithm, private, {"kty": "RSA", "n": number(numbers.n), "e": number(numbers.e), **named, **more}
        )
    if algorithm.startswith("ES"):
        curve, crv, size = _CURVES[algorithm]
        private = ec.generate_private_key(curve())
        point = private.public_key().public_numbers()
        x, y = (b64(value.to_bytes(size, "big")) for value in (point.x, point.y))
        return Signer(algorithm, private, {"kty": "EC", "crv": crv, "x": x, "y": y, **named, **more})
    private = ed448.Ed448PrivateKey.generate() if algorithm == "Ed448" else ed25519.Ed25519PrivateKey.generate()
    raw = private.public_key().public_bytes(serialization.Encoding.Raw, serialization.PublicFormat.Raw)
    crv = "Ed448" if algorithm == "Ed448" else "Ed25519"
    return Signer(algorithm, private, {"kty": "OKP", "crv": crv, "x": b64(raw), **named, **more})
