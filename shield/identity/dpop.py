"""DPoP proofs (RFC 9449): a key shows that it is there, for this method, this URL and this instant.

The twelve checks of section 4.3, in order, are those of `verify`; the store then sees to it that a `jti` is there once
for its key and URL. Unlike a token, a proof brings its own key along: what counts is whose it is, the thumbprint that
an access token is bound to (`cnf.jkt`).
"""

from __future__ import annotations

import hashlib
import hmac
import json
import re
from collections.abc import Collection, Mapping, Sequence
from typing import Any, Final
from urllib.parse import urlsplit

from shield.identity import jws
from shield.identity.algorithms import ALGORITHMS, ASYMMETRIC
from shield.identity.jose import TokenError, encode_base64url
from shield.identity.jwt import MAX_DATE_S, claims_of
from shield.identity.keys import KeySet, read_key
from shield.identity.proof import Proof, ProofError, Window, nonce_of

MAX_PROOF_BYTES: Final = 4_096
"""With an RSA key of 4,096 bits in its header a proof has 2,300."""
_PRIVATE: Final = ("d", "p", "q", "dp", "dq", "qi", "oth", "k")
_REQUIRED: Final = {"RSA": ("e", "kty", "n"), "EC": ("crv", "kty", "x", "y"), "OKP": ("crv", "kty", "x")}
_DEFAULT_PORTS: Final = {"http": 80, "https": 443}
_UNRESERVED: Final = re.compile(r"[A-Za-z0-9._~-]")
_PERCENT: Final = re.compile(r"%([0-9A-Fa-f]{2})")


def verify(
    proofs: Sequence[str],
    *,
    method: str,
    url: str,
    now_s: float,
    window: Window,
    algorithms: Collection[str] = ASYMMETRIC,
    access_token: str | None = None,
    bound_to: str | None = None,
    nonces: Collection[str] | None = None,
) -> Proof:
    """What the DPoP fields of a request prove; the proof's signer is the key's thumbprint, its nonce the `jti`.

    `access_token` is the token that came along and `bound_to` the thumbprint it is bound to (its cnf.jkt); both or
    neither. `nonces`: those this server handed out and still accepts; None when it hands out none. ProofError.
    """
    if (access_token is None) != (bound_to is None):
        raise ValueError("access_token and bound_to go together: a token that is bound to no key needs no proof")
    if not proofs:
        raise ProofError("missing", "DPoP: missing")
    if len(proofs) > 1:  # 1: one field
        raise ProofError("malformed", f"DPoP: is there {len(proofs)} times; allowed: once")
    try:
        parsed = jws.parse(proofs[0], max_token_bytes=MAX_PROOF_BYTES)  # 2: one well-formed JWT
        claims = claims_of(parsed)
    except TokenError as error:
        raise ProofError("malformed", f"DPoP: {error.detail}") from None
    jti, issued_s = _claims(claims)  # 3: its claims
    if parsed.typ != "dpop+jwt":  # 4: its type
        raise ProofError("malformed", "DPoP: its typ is not dpop+jwt")
    if parsed.algorithm not in algorithms or ALGORITHMS[parsed.algorithm].symmetric:  # 5: an asymmetric algorithm
        raise ProofError("malformed", "DPoP: its algorithm is not accepted")
    thumbprint = _check_signature(parsed)  # 6 and 7: by the key in it, which is a public one
    if claims["htm"] != method:  # 8: this method
        raise ProofError("mismatch", "DPoP: it is for another method (htm)")
    if normalised(claims["htu"]) != normalised(url):  # 9: this URL
        raise ProofError("mismatch", "DPoP: it is for another URL (htu)")
    if nonces is not None:  # 10: a nonce of this server's
        stated = claims.get("nonce")
        if not isinstance(stated, str) or stated not in nonces:
            raise ProofError("mismatch", "DPoP: it needs a nonce that this server has handed out (use_dpop_nonce)")
    window.check(issued_s, now_s)  # 11: now
    if access_token is not None and bound_to is not None:  # 12: this token, by the key it is bound to
        _check_binding(claims, access_token, bound_to, thumbprint)
    return Proof(jti, issued_s, thumbprint)


def _claims(claims: Mapping[str, Any]) -> tuple[str, int]:
    for name in ("jti", "htm", "htu"):
        if not isinstance(claims.get(name), str) or not claims[name]:
            raise ProofError("malformed", f"DPoP: {name}: missing; allowed: text")
    issued_s = claims.get("iat")
    if type(issued_s) is not int or not 0 <= issued_s <= MAX_DATE_S:
        raise ProofError("malformed", "DPoP: iat: allowed: Unix time in whole seconds")
    return nonce_of(claims["jti"], "DPoP: jti"), issued_s


def _check_signature(parsed: jws.Parsed) -> str:
    """The thumbprint of the key that signed it."""
    jwk = parsed.header.get("jwk")
    if not isinstance(jwk, dict) or any(name in jwk for name in _PRIVATE):
        raise ProofError("malformed", "DPoP: its jwk is no public key")
    try:
        key = read_key({name: value for name, value in jwk.items() if name != "kid"})
        jws.verify_parsed(parsed._replace(kid=None), KeySet([key]), frozenset((parsed.algorithm,)))
    except ValueError as error:
        raise ProofError("malformed", f"DPoP: its jwk cannot be used: {error}") from None
    except TokenError:
        raise ProofError("signature", "DPoP: it is not signed by its own key") from None
    return thumbprint_of(jwk)


def _check_binding(claims: Mapping[str, Any], access_token: str, bound_to: str, thumbprint: str) -> None:
    stated = claims.get("ath")
    expected = encode_base64url(hashlib.sha256(access_token.encode("utf-8", "surrogatepass")).digest())
    if not isinstance(stated, str) or not hmac.compare_digest(stated.encode("utf-8", "replace"), expected.encode()):
        raise ProofError("mismatch", "DPoP: it is not for the access token (ath)")
    if not hmac.compare_digest(bound_to.encode("utf-8", "replace"), thumbprint.encode()):
        raise ProofError("mismatch", "DPoP: the access token is bound to another key")


def thumbprint_of(jwk: Mapping[str, Any]) -> str:
    """RFC 7638, SHA-256, in base64url: what cnf.jkt holds. KeyError for a key that lacks a part."""
    needed = {name: jwk[name] for name in _REQUIRED[jwk["kty"]]}
    return encode_base64url(hashlib.sha256(json.dumps(needed, sort_keys=True, separators=(",", ":")).encode()).digest())


def normalised(url: str) -> tuple[str, str, int, str]:
    """Scheme, host, port and path by RFC 3986, 6.2.2 and 6.2.3; query and fragment do not count. ProofError."""
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError:
        raise ProofError("malformed", "DPoP: htu is no URL") from None
    scheme = parts.scheme.lower()
    if scheme not in _DEFAULT_PORTS or not parts.hostname or parts.username is not None:
        raise ProofError("malformed", "DPoP: htu is no http or https URL")
    path = _PERCENT.sub(_normal_escape, parts.path)
    return scheme, parts.hostname.lower(), port or _DEFAULT_PORTS[scheme], _without_dots(path) or "/"


def _normal_escape(match: re.Match[str]) -> str:
    character = chr(int(match[1], 16))
    return character if _UNRESERVED.fullmatch(character) else f"%{match[1].upper()}"


def _without_dots(path: str) -> str:
    """RFC 3986, 5.2.4."""
    kept: list[str] = []
    segments = path.split("/")
    for at, segment in enumerate(segments):
        last = at == len(segments) - 1
        if segment == ".":
            if last:
                kept.append("")
        elif segment == "..":
            if len(kept) > 1:
                kept.pop()
            if last:
                kept.append("")
        else:
            kept.append(segment)
    return "/".join(kept)
