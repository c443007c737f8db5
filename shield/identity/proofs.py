"""The nonce of a signed request, by the schemes that a policy names: verified first, and taken in the store's step.

A scheme is for the requests it matches; of several that match, the first whose fields are there decides. What it
extracts takes the place of what the request states as its nonce, whoever states it. Where none is there the request has
no nonce: `required` says what becomes of it.
"""

from __future__ import annotations

import binascii
import hashlib
from base64 import b64decode
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Final

import msgspec

from shield.errors import PolicyError, PolicyIssue, RequestError
from shield.identity import dpop, http_signature, webhook
from shield.identity.jose import TokenError
from shield.identity.jws import parse
from shield.identity.jwt import claims_of
from shield.identity.paths import path_of
from shield.identity.proof import Proof, ProofError, Window
from shield.policy.matcher import Matcher
from shield.request import Nonce, Request

if TYPE_CHECKING:
    from collections.abc import Callable

    from shield.policy.replay import ReplayGuard, ReplayScheme

    Verify = Callable[[Request, float], Proof]

# Secrets and public keys are a line; a PEM of an Ed25519 key has 113 bytes.
MAX_FILE_BYTES: Final = 4_096
# The store judges the instant, by its own clock.
ALWAYS: Final = Window(1 << 60, 1 << 60)


class Proofs:
    """The schemes of one policy, with their keys."""

    def __init__(self, guard: ReplayGuard, directory: str | None) -> None:
        """PolicyError where a file of keys cannot be used."""
        issues: list[PolicyIssue] = []
        self._matcher = Matcher(guard.schemes)
        self._verify: list[Verify] = []
        for at, scheme in enumerate(guard.schemes):
            try:
                self._verify.append(_verifier(scheme, directory))
            except (OSError, ValueError) as error:
                why = error.strerror if isinstance(error, OSError) else str(error)
                issues.append(PolicyIssue(f"guard.replay.scheme[{at}]", f"its keys cannot be used: {why}"))
        if issues:
            raise PolicyError(issues)

    def wants(self, request: Request) -> bool:
        """Whether a scheme is for the request."""
        try:
            return bool(self._matcher.match(request.method, request.path))
        except ValueError:
            return False  # it is about to be refused

    def applied(self, request: Request, now_s: float) -> Request:
        """The request with the nonce that its signature proves, or with none. ProofError for a wrong signature,
        RequestError for a body that is no base64.
        """
        for at in self._matcher.match(request.method, request.path):
            try:
                proof = self._verify[at](request, now_s)
            except ProofError as error:
                if error.reason == "missing":
                    continue
                raise
            # Whoever signed it and by which scheme: one signer's nonce is not another's.
            text = "\n".join((str(at), proof.signer or "", proof.nonce))
            stamp = now_s if proof.timestamp_s is None else proof.timestamp_s
            nonce = Nonce(hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest(), stamp)
            return msgspec.structs.replace(request, nonce=nonce)
        return msgspec.structs.replace(request, nonce=None)


def _verifier(scheme: ReplayScheme, directory: str | None) -> Verify:
    if scheme.use == "dpop":
        return lambda request, now_s: _dpop(scheme, request, now_s)
    if scheme.use == "http-signature":
        keys = {name: _signing_key(path_of(file, directory)) for name, file in scheme.keys.items()}
        return lambda request, now_s: _http_signature(scheme, keys, request, now_s)
    form = webhook.SCHEMES[scheme.use]
    secrets = [webhook.read_secret(form, _read(path_of(file, directory)).decode()) for file in scheme.secrets]
    return lambda request, now_s: webhook.verify(
        form, _headers(request), _body(request) or b"", secrets, now_s, window=ALWAYS
    )


def _dpop(scheme: ReplayScheme, request: Request, now_s: float) -> Proof:
    proofs = [value for name, value in _headers(request).items() if name.lower() == "dpop"]
    bound_to = None
    if request.token and proofs:
        # It has been verified already, where the policy verifies tokens.
        try:
            bound = claims_of(parse(request.token)).get("cnf")
        except TokenError:
            bound = None
        bound_to = bound.get("jkt") if isinstance(bound, dict) else None
    return dpop.verify(
        proofs,
        method=request.method or "",
        url=_url(scheme, request),
        now_s=now_s,
        window=ALWAYS,
        access_token=request.token if isinstance(bound_to, str) else None,
        bound_to=bound_to if isinstance(bound_to, str) else None,
    )


def _http_signature(
    scheme: ReplayScheme, keys: Mapping[str, http_signature.SigningKey], request: Request, now_s: float
) -> Proof:
    signed = http_signature.Request(request.method or "", _url(scheme, request), _headers(request), _body(request))
    return http_signature.verify(signed, keys, now_s, window=ALWAYS)


def _headers(request: Request) -> dict[str, str]:
    headers = request.headers
    if headers is None:
        return {}
    if not isinstance(headers, dict) or not all(
        isinstance(name, str) and isinstance(value, str) for name, value in headers.items()
    ):
        raise RequestError("headers", "expected an object of texts")
    return headers


def _body(request: Request) -> bytes | None:
    """The bytes that arrived; None where there were none. ProofError where only whoever asks has them."""
    if request.body:
        try:
            return b64decode(request.body, validate=True)
        except (binascii.Error, ValueError, TypeError):
            raise RequestError("body", "expected base64") from None
    if request.bytes:
        raise ProofError("mismatch", "body: it is not at hand, and the signature speaks of it")
    return None


def _url(scheme: ReplayScheme, request: Request) -> str:
    return (scheme.origin or f"https://{request.host or ''}") + (request.path or "/")


def _read(path: Path) -> bytes:
    with path.open("rb") as file:
        raw = file.read(MAX_FILE_BYTES + 1)
    if len(raw) > MAX_FILE_BYTES:
        raise ValueError(f"more than {MAX_FILE_BYTES:,} bytes")
    return raw.strip()


def _signing_key(path: Path) -> http_signature.SigningKey:
    """An Ed25519 public key in PEM, or a secret for HMAC."""
    raw = _read(path)
    if not raw.startswith(b"-----BEGIN"):
        return http_signature.SigningKey(http_signature.HMAC_SHA256, raw)
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
    from cryptography.hazmat.primitives.serialization import load_pem_public_key

    key = load_pem_public_key(raw)
    if not isinstance(key, Ed25519PublicKey):
        raise ValueError("a PEM of another kind of key; allowed: an Ed25519 public key")
    return http_signature.SigningKey(http_signature.ED25519, key.public_bytes_raw())
