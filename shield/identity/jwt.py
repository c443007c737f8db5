"""One issuer's tokens (RFC 7519, RFC 8725): signature first, then who issued it, for whom, and when.

    verifier = Verifier(jwks, issuer="https://id.example", audience="orders", algorithms=["ES256"])
    verified = verifier.verify(token, now_s=1_763_900_000)      # TokenError(reason, detail) for anything else
    signed = verifier.verify_signature(token)                   # the signature alone; the payload may be any bytes

`jwks` is a JWK Set (text, bytes or an object), one JWK, a list of them, or a `KeySet`. Everything that decides is
given here and nothing by the token: the algorithms, the keys and what each may be used for, issuer and audience.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Final, NamedTuple

from shield.identity import jws
from shield.identity.jose import TokenError, parse_object
from shield.identity.jws import MAX_HEADER_BYTES, MAX_TOKEN_BYTES, Parsed, Signed
from shield.identity.keys import Key, KeySet

__all__ = ["KeySet", "Signed", "TokenError", "Verified", "Verifier"]

MAX_DATE_S: Final = 253_402_300_799
"""The end of the year 9999. What lies later is a mistake (milliseconds, for one) or meant to overflow something."""
DEFAULT_LEEWAY_S: Final = 30
"""How far the issuer's clock may be off from ours."""
MAX_AUDIENCES: Final = 64


class Verified(NamedTuple):
    """A token that was found good at one instant."""

    issuer: str
    claims: dict[str, Any]
    header: dict[str, Any]
    key: Key
    expires_s: int


class Verifier:
    """Verifies the tokens of one issuer. `keys` may be replaced at any time; None: there are none yet."""

    def __init__(
        self,
        keys: Any,
        *,
        issuer: str,
        audience: str | Iterable[str],
        algorithms: Iterable[str],
        leeway_s: float = DEFAULT_LEEWAY_S,
        typ: str | None = None,
        max_token_bytes: int = MAX_TOKEN_BYTES,
        max_header_bytes: int = MAX_HEADER_BYTES,
    ) -> None:
        """`typ`: what the header's typ must be, such as "at+jwt"; None accepts any. ValueError for arguments that
        cannot be right, KeySetError for keys that cannot be used at all.
        """
        self.algorithms = jws.check_algorithms(algorithms)
        self.issuer = issuer
        self.audiences = frozenset((audience,) if isinstance(audience, str) else audience)
        if not issuer or not self.audiences or "" in self.audiences:
            raise ValueError("issuer and audience are needed: without them anybody's token would do")
        self.keys: KeySet | None = None if keys is None else KeySet.read(keys)
        self._leeway_s = leeway_s
        self._typ = None if typ is None else _media_type(typ)
        self._max_token_bytes = max_token_bytes
        self._max_header_bytes = max_header_bytes

    def verify(self, token: Any, now_s: float) -> Verified:
        """The claims of a good token. TokenError for any other. `now_s`: Unix time in seconds."""
        parsed = self.parse(token)
        return self.verify_parsed(parsed, claims_of(parsed), now_s)

    def verify_signature(self, token: Any) -> Signed:
        """Only that a key of the issuer signed this, whatever it is. TokenError."""
        parsed = self.parse(token)
        return Signed(parsed.header, parsed.payload, self._signer(parsed))

    def parse(self, token: Any) -> Parsed:
        """The token's parts, within this issuer's bounds. TokenError."""
        return jws.parse(token, max_token_bytes=self._max_token_bytes, max_header_bytes=self._max_header_bytes)

    def verify_parsed(self, parsed: Parsed, claims: dict[str, Any], now_s: float) -> Verified:
        """The same for a token that was parsed before, to find out whose it is. TokenError."""
        if self._typ is not None and (parsed.typ is None or _media_type(parsed.typ) != self._typ):
            raise TokenError("type", "the token is of another type (typ)")
        key = self._signer(parsed)
        self._check_parties(claims)
        expires_s = self._check_times(claims, now_s)
        return Verified(self.issuer, claims, parsed.header, key, expires_s)

    def _signer(self, parsed: Parsed) -> Key:
        if self.keys is None:
            raise TokenError("no_keys", "the issuer's keys are not at hand yet; try again", transient=True)
        return jws.verify_parsed(parsed, self.keys, self.algorithms)

    def _check_parties(self, claims: dict[str, Any]) -> None:
        if claims.get("iss") != self.issuer:
            raise TokenError("issuer", "the token is of another issuer (iss)")
        audience = claims.get("aud")
        named = [audience] if isinstance(audience, str) else audience
        if not isinstance(named, list) or len(named) > MAX_AUDIENCES or not all(isinstance(one, str) for one in named):
            raise TokenError("audience", f"aud: allowed: text, or a list of at most {MAX_AUDIENCES} texts")
        if self.audiences.isdisjoint(named):
            raise TokenError("audience", "the token is not for this service (aud)")

    def _check_times(self, claims: dict[str, Any], now_s: float) -> int:
        """When it expires. A clock behind the issuer's by less than the leeway is no reason to refuse."""
        expires_s = _date(claims, "exp")
        if expires_s is None:
            raise TokenError("claims", "exp: missing; a token without an end is not accepted")
        starts_s, issued_s = _date(claims, "nbf"), _date(claims, "iat")
        if now_s >= expires_s + self._leeway_s:
            raise TokenError("expired", "the token has expired (exp)")
        if starts_s is not None and now_s < starts_s - self._leeway_s:
            raise TokenError("not_yet_valid", "the token is not valid yet (nbf)")
        if issued_s is not None and now_s < issued_s - self._leeway_s:
            raise TokenError("not_yet_valid", "the token was issued in the future (iat)")
        return expires_s


def claims_of(parsed: Parsed) -> dict[str, Any]:
    """The claims a token states, believed or not. TokenError when the payload is no JSON object."""
    try:
        return parse_object(parsed.payload)
    except ValueError as error:
        raise TokenError("malformed", f"the token's claims are {error}") from None


def _date(claims: dict[str, Any], name: str) -> int | None:
    """A NumericDate in whole seconds. true, "1e9", 1.5, NaN and the year 300,000 are none."""
    value = claims.get(name)
    if name not in claims:
        return None
    if type(value) is not int or not 0 <= value <= MAX_DATE_S:
        raise TokenError("claims", f"{name}: allowed: Unix time in whole seconds, up to the year 9999")
    return value


def _media_type(typ: str) -> str:
    """RFC 7515, 4.1.9: compared without case, and "application/" may be left out."""
    return typ.lower().removeprefix("application/")
