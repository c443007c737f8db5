"""One signature in compact form (RFC 7515): bounded, read strictly, verified by a fixed list of algorithms.

    verify(token, keys, algorithms=["ES256"]) -> Signed

The payload is handed back as bytes and need not be JSON; `shield.identity.jwt` reads claims out of it. Of the header
only `alg`, `kid` and `typ` are looked at: `jwk`, `jku`, `x5u`, `x5c` and `x5t` are what the sender says about its own
key and are ignored. `crit` and `b64` change what the signature means, so a token with one is refused, as is one
without a signature, in JSON form, or with a payload that is elsewhere.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Final, NamedTuple

from shield.identity.algorithms import ALGORITHMS
from shield.identity.jose import TokenError, check_kid, decode_base64url, parse_object
from shield.identity.keys import Key, KeySet

MAX_TOKEN_BYTES: Final = 8_192
"""What gateways accept in one header field. Tokens with many groups in them reach 4 KiB."""
MAX_HEADER_BYTES: Final = 2_048
"""alg, kid and typ take 100; some issuers add a certificate's hash or a URL."""
MAX_SIGNATURE_BYTES: Final = 1_024
"""RSA with 8,192 bits."""


class Parsed(NamedTuple):
    """A token whose form is right. Nothing in it is to be believed."""

    algorithm: str
    kid: str | None
    typ: str | None
    header: dict[str, Any]
    payload: bytes
    signed: bytes
    signature: bytes


class Signed(NamedTuple):
    """A payload that one of the keys has signed."""

    header: dict[str, Any]
    payload: bytes
    key: Key


def parse(token: Any, *, max_token_bytes: int = MAX_TOKEN_BYTES, max_header_bytes: int = MAX_HEADER_BYTES) -> Parsed:
    """The parts of a compact token. TokenError for whatever is none; the bounds are looked at before anything else."""
    if not isinstance(token, str):
        raise TokenError("malformed", f"expected text, not {type(token).__name__}")
    if len(token) > max_token_bytes:
        raise TokenError("too_large", f"the token has more than {max_token_bytes:,} bytes")
    if not token.isascii() or token.count(".") != 2:
        raise TokenError("malformed", "not three parts with dots in between")
    signed, _, signature = token.encode().rpartition(b".")
    header_text, _, payload_text = signed.partition(b".")
    if len(header_text) > (max_header_bytes * 4 + 2) // 3:
        raise TokenError("too_large", f"the token's header has more than {max_header_bytes:,} bytes")
    if len(signature) > (MAX_SIGNATURE_BYTES * 4 + 2) // 3:
        raise TokenError("too_large", f"the token's signature has more than {MAX_SIGNATURE_BYTES:,} bytes")
    if not header_text or not signature:
        raise TokenError("malformed", "the token has no header or no signature")
    try:
        header = parse_object(decode_base64url(header_text))
        payload, raw_signature = decode_base64url(payload_text), decode_base64url(signature)
    except ValueError as error:
        raise TokenError("malformed", f"a part of the token is {error}") from None
    return Parsed(*_header(header), header, payload, signed, raw_signature)


def _header(header: dict[str, Any]) -> tuple[str, str | None, str | None]:
    for name in ("crit", "b64"):
        if name in header:
            raise TokenError("critical", f"tokens with a {name} header are not accepted")
    algorithm, kid, typ = header.get("alg"), header.get("kid"), header.get("typ")
    if not isinstance(algorithm, str) or algorithm not in ALGORITHMS:
        raise TokenError("algorithm", "the token's alg is no signature algorithm that is known here")
    if kid is not None:
        try:
            check_kid(kid)
        except ValueError as error:
            raise TokenError("malformed", str(error)) from None
    if typ is not None and (not isinstance(typ, str) or len(typ) > 128):
        raise TokenError("malformed", "typ: allowed: text of at most 128 characters")
    return algorithm, kid, typ


def verify_parsed(parsed: Parsed, keys: KeySet, algorithms: frozenset[str]) -> Key:
    """The key whose signature it is. TokenError."""
    if parsed.algorithm not in algorithms:
        raise TokenError("algorithm", f"tokens signed with {parsed.algorithm} are not accepted")
    key = keys.key_for(parsed.algorithm, parsed.kid)
    if not key.verifies(parsed.algorithm, parsed.signed, parsed.signature):
        raise TokenError("signature", "the signature is not that of the key")
    return key


def check_algorithms(algorithms: Iterable[str]) -> frozenset[str]:
    """A list of algorithms to allow. ValueError for an empty one and for names that are not of the list."""
    names = frozenset([algorithms] if isinstance(algorithms, str) else algorithms)
    unknown = sorted(str(name) for name in names if name not in ALGORITHMS)
    if unknown or not names:
        found = ", ".join(unknown) if unknown else "nothing"
        raise ValueError(f"algorithms: found {found}; allowed: {', '.join(ALGORITHMS)}")
    return names


def verify(token: Any, keys: Any, *, algorithms: Iterable[str]) -> Signed:
    """Checks one compact JWS. `keys`: a KeySet or whatever `KeySet.read` takes. TokenError for what is not accepted,
    ValueError for an algorithm that does not exist.
    """
    allowed = check_algorithms(algorithms)
    parsed = parse(token)
    key = verify_parsed(parsed, KeySet.read(keys), allowed)
    return Signed(parsed.header, parsed.payload, key)
