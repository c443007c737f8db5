"""Keys that signatures are verified with, out of a JWK Set (RFC 7517), a single JWK or a secret.

A key that cannot be used is left out and said (`KeySet.skipped`); a set that must not be used is refused whole.
What a key may verify is fixed when it is read: its type, its curve, its own `use`, `key_ops` and `alg`. No token
changes that.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final

from jwt.algorithms import get_default_algorithms
from jwt.exceptions import InvalidKeyError

from shield.identity.algorithms import ALGORITHMS, permitted_by
from shield.identity.jose import KeySetError, TokenError, check_kid, decode_base64url, parse_object

MAX_JWKS_BYTES: Final = 262_144
"""A hundred RSA keys of 4,096 bits with their certificates."""
MAX_KEYS: Final = 100
"""Providers publish two or three; some keep dozens of old ones."""
MIN_RSA_BITS: Final = 2_048
MAX_RSA_BITS: Final = 8_192
"""Verifying grows with the square of the modulus: 8,192 bits take 250 us."""
MAX_EXPONENT_BITS: Final = 32
"""65,537 has 17. A long exponent makes verifying as slow as signing."""
MAX_SECRET_BYTES: Final = 1_024

_NAMES: Final = {"Ed25519": "EdDSA", "Ed448": "EdDSA"}
_VERIFIERS: Final = {name: get_default_algorithms()[_NAMES.get(name, name)] for name in ALGORITHMS}
_COORDINATE_BYTES: Final = {"P-256": 32, "P-384": 48, "P-521": 66}
_OKP_BYTES: Final = {"Ed25519": 32, "Ed448": 57}
# Keys of the chips with the flaw known as ROCA (CVE-2017-15361) are powers of 65,537 modulo each of these primes.
_ROCA_PRIMES: Final = (
    *(3, 5, 7, 11, 13, 17, 19, 23, 29, 31, 37, 41, 43, 47, 53, 59, 61, 67, 71, 73, 79, 83, 89, 97, 101, 103, 107),
    *(109, 113, 127, 131, 137, 139, 149, 151, 157, 163, 167),
)


def _powers(prime: int) -> frozenset[int]:
    found, value = {1}, 65_537 % prime
    while value not in found:
        found.add(value)
        value = value * 65_537 % prime
    return frozenset(found)


_ROCA: Final = tuple((prime, _powers(prime)) for prime in _ROCA_PRIMES)


class Key:
    """One key: what it is called, which algorithms it may verify, and whether it still is in force."""

    __slots__ = ("_material", "algorithms", "digest", "kid", "live", "symmetric")

    def __init__(self, kid: str | None, algorithms: frozenset[str], material: Any, digest: bytes) -> None:
        self.kid = kid
        self.algorithms = algorithms
        self.digest = digest
        """Names the key and everything that decides about it: equal digests are the same key."""
        self.symmetric = any(ALGORITHMS[name].symmetric for name in algorithms)
        self.live = True
        """False once a rotation has removed it. What was verified with it is then worth nothing any more."""
        self._material = material

    def __repr__(self) -> str:
        return f"Key({', '.join(sorted(self.algorithms))})"

    def verifies(self, algorithm: str, signed: bytes, signature: bytes) -> bool:
        """Whether this is the key's signature over `signed`, by an algorithm that the key may be used with."""
        if algorithm not in self.algorithms:
            return False
        try:
            return bool(_VERIFIERS[algorithm].verify(signed, self._material, signature))
        except ValueError:  # a signature whose length fits no key of this kind
            return False


class KeySet:
    """The keys of one issuer. Immutable; a refresh makes another one."""

    __slots__ = ("_ambiguous", "_by_kid", "_nameless", "_notes", "_taken", "keys", "skipped")

    def __init__(self, keys: Iterable[Key], skipped: Sequence[str] = (), taken: Iterable[str] = ()) -> None:
        """KeySetError where symmetric and asymmetric keys are mixed: then a public key could pass for a secret.

        `taken`: ids that keys left out had. One that is there twice names nobody, even if only one key is usable.
        """
        self.keys = tuple({key.digest: key for key in keys}.values())
        self._notes = notes = list(skipped)
        if len({key.symmetric for key in self.keys}) > 1:
            raise KeySetError("secrets and public keys in one set; allowed: one kind")
        self._by_kid: dict[str, list[Key]] = {}
        self._nameless = []
        for key in self.keys:
            if key.kid is None:
                self._nameless.append(key)
            else:
                self._by_kid.setdefault(key.kid, []).append(key)
        self._taken = frozenset(taken)
        self._ambiguous = {kid for kid, same in self._by_kid.items() if kid in self._taken or _overlap(same)}
        notes = notes + ["several keys share one kid: none of them is used"] * len(self._ambiguous)
        self.skipped: tuple[str, ...] = tuple(notes)
        """One sentence for each key that is not used."""

    def __len__(self) -> int:
        return sum(key.kid not in self._ambiguous for key in self.keys)

    def key_for(self, algorithm: str, kid: str | None) -> Key:
        """The one key that a token with this header is verified with. TokenError when there is none, or several."""
        if kid is None:
            fitting = [key for key in self.keys if algorithm in key.algorithms and key.kid not in self._ambiguous]
            if len(fitting) == 1:
                return fitting[0]
            if fitting:
                raise TokenError("ambiguous_key", "the token does not say which of several keys signed it")
            raise TokenError("unknown_key", f"there is no key for {algorithm}")
        if kid in self._ambiguous:
            raise TokenError("ambiguous_key", "several keys have the token's kid")
        named = self._by_kid.get(kid)
        # A key without an id of its own (a secret's file has none) may be called anything.
        fitting = [key for key in named or self._nameless if algorithm in key.algorithms]
        if len(fitting) == 1:
            return fitting[0]
        if fitting:
            raise TokenError("ambiguous_key", "the token does not say which of several keys signed it")
        if named:
            raise TokenError("algorithm", f"the token's key is not one for {algorithm}")
        raise TokenError("unknown_key", "no key has the token's kid", kid=kid)

    def succeed(self, previous: KeySet | None) -> KeySet:
        """This set in the place of another: keys that stay are the same objects, those that went are not live."""
        if previous is None:
            return self
        old = {key.digest: key for key in previous.keys}
        stay = [old.get(key.digest, key) for key in self.keys]
        kept = {key.digest for key in stay}
        for key in previous.keys:
            if key.digest not in kept:
                key.live = False
        return KeySet(stay, self._notes, self._taken)

    # ---- reading -----------------------------------------------------------------------------------------------

    @classmethod
    def read(cls, source: KeySet | bytes | str | Mapping[str, Any] | Sequence[Mapping[str, Any]]) -> KeySet:
        """A JWK Set as text or as an object, one JWK, or a list of JWKs. KeySetError."""
        if isinstance(source, KeySet):
            return source
        if isinstance(source, (bytes, str)):
            data = source.encode("utf-8", "surrogatepass") if isinstance(source, str) else source
            if len(data) > MAX_JWKS_BYTES:
                raise KeySetError(f"more than {MAX_JWKS_BYTES:,} bytes")
            try:
                source = parse_object(data)
            except ValueError as error:
                raise KeySetError(str(error)) from None
        if isinstance(source, Mapping):
            if "keys" in source:
                entries = source["keys"]
            elif "kty" in source:
                entries = [source]
            else:
                raise KeySetError('no member "keys"')
        else:
            entries = source
        if not isinstance(entries, (list, tuple)):
            raise KeySetError('"keys" is no list')
        if len(entries) > MAX_KEYS:
            raise KeySetError(f"{len(entries)} keys; allowed: at most {MAX_KEYS}")
        keys, skipped, taken = [], [], []
        for at, entry in enumerate(entries):
            try:
                keys.append(read_key(entry))
            except ValueError as error:
                skipped.append(f"keys[{at}] is not used: {error}")
                if (
                    isinstance(entry, Mapping)
                    and entry.get("use", "sig") == "sig"
                    and isinstance(entry.get("kid"), str)
                ):
                    taken.append(entry["kid"])
        return cls(keys, skipped, taken)

    @classmethod
    def of_secret(cls, secret: bytes, algorithms: Iterable[str]) -> KeySet:
        """A shared secret for HMAC. ValueError where it is shorter than the hash of one of the algorithms."""
        names = frozenset(algorithms)
        for name in sorted(names):
            need = ALGORITHMS[name].hash_bits // 8
            if len(secret) < need:
                raise ValueError(f"found {len(secret)} bytes; allowed: at least {need} for {name}")
        if len(secret) > MAX_SECRET_BYTES:
            raise ValueError(f"found {len(secret)} bytes; allowed: at most {MAX_SECRET_BYTES:,}")
        return cls([Key(None, names, secret, _digest(None, names, secret))])


def _overlap(keys: Sequence[Key]) -> bool:
    """Whether two keys of one name could both be meant."""
    return any(one.algorithms & other.algorithms for at, one in enumerate(keys) for other in keys[at + 1 :])


def read_key(entry: Any) -> Key:
    """One JWK; private parts are not looked at. ValueError says why it cannot be used, and shows nothing of it."""
    if not isinstance(entry, Mapping):
        raise ValueError("it is no object")
    kid = check_kid(entry["kid"]) if entry.get("kid") is not None else None
    if entry.get("use", "sig") != "sig":
        raise ValueError("its use is not sig")
    if "key_ops" in entry:
        operations = entry["key_ops"]
        if not isinstance(operations, (list, tuple)) or "verify" not in operations:
            raise ValueError("its key_ops do not include verify")
    declared = entry.get("alg")
    if declared is not None and not isinstance(declared, str):
        raise ValueError("its alg is no text")
    read = _READERS.get(entry["kty"]) if isinstance(entry.get("kty"), str) else None
    if read is None:
        raise ValueError("its kty is none of RSA, EC, OKP and oct")
    fitting, public, raw = read(entry)
    algorithms = frozenset(fitting)
    if declared is not None:
        algorithms &= permitted_by(declared)
        if not algorithms:
            raise ValueError("its alg is no signature algorithm that its type and curve allow")
    if not algorithms:
        raise ValueError("it is too short for any algorithm")
    try:
        material = _VERIFIERS[min(algorithms)].from_jwk(json.dumps(public))
    except (InvalidKeyError, ValueError):
        raise ValueError("its numbers are no key") from None
    return Key(kid, algorithms, material, _digest(kid, algorithms, raw))


Material = tuple[Iterable[str], dict[str, str], bytes]
"""Which algorithms a key fits by its type, its public members, and the bytes that make it that key."""


def _rsa(entry: Mapping[str, Any]) -> Material:
    modulus, exponent = _number(entry, "n"), _number(entry, "e")
    bits = modulus.bit_length()
    if not MIN_RSA_BITS <= bits <= MAX_RSA_BITS:
        raise ValueError(f"its modulus has {bits} bits; allowed: {MIN_RSA_BITS:,} to {MAX_RSA_BITS:,}")
    if exponent < 3 or exponent % 2 == 0 or exponent.bit_length() > MAX_EXPONENT_BITS:
        raise ValueError(f"its exponent is not an odd number from 3 to 2**{MAX_EXPONENT_BITS}")
    if all(modulus % prime in powers for prime, powers in _ROCA):
        raise ValueError("it was made by a chip whose keys can be factored (CVE-2017-15361)")
    public = {"kty": "RSA", "n": entry["n"], "e": entry["e"]}
    return _of_type("RSA"), public, b"RSA" + _bytes(entry, "n") + b"." + _bytes(entry, "e")


def _ec(entry: Mapping[str, Any]) -> Material:
    curve = entry.get("crv")
    size = _COORDINATE_BYTES.get(curve) if isinstance(curve, str) else None
    if size is None:
        raise ValueError("its crv is none of P-256, P-384 and P-521")
    x, y = _bytes(entry, "x"), _bytes(entry, "y")
    if len(x) != size or len(y) != size:
        raise ValueError("its coordinates do not have the length of its curve")
    public = {"kty": "EC", "crv": str(curve), "x": entry["x"], "y": entry["y"]}
    return _of_type("EC", curve), public, f"EC{curve}".encode() + x + y


def _okp(entry: Mapping[str, Any]) -> Material:
    curve = entry.get("crv")
    size = _OKP_BYTES.get(curve) if isinstance(curve, str) else None
    if size is None:
        raise ValueError("its crv is none of Ed25519 and Ed448")
    x = _bytes(entry, "x")
    if len(x) != size:
        raise ValueError("its x does not have the length of its curve")
    return _of_type("OKP", curve), {"kty": "OKP", "crv": str(curve), "x": entry["x"]}, f"OKP{curve}".encode() + x


def _oct(entry: Mapping[str, Any]) -> Material:
    secret = _bytes(entry, "k")
    if len(secret) > MAX_SECRET_BYTES:
        raise ValueError(f"it is longer than {MAX_SECRET_BYTES:,} bytes")
    fitting = [name for name in _of_type("oct") if len(secret) * 8 >= ALGORITHMS[name].hash_bits]
    return fitting, {"kty": "oct", "k": entry["k"]}, b"oct" + secret


_READERS: Final = {"RSA": _rsa, "EC": _ec, "OKP": _okp, "oct": _oct}


def _of_type(kty: str, curve: str | None = None) -> list[str]:
    return [one.name for one in ALGORITHMS.values() if one.kty == kty and (curve is None or curve in one.curves)]


def _bytes(entry: Mapping[str, Any], name: str) -> bytes:
    value = entry.get(name)
    if not isinstance(value, str) or not value.isascii():
        raise ValueError(f"its {name} is no base64url")
    try:
        return decode_base64url(value.encode())
    except ValueError:
        raise ValueError(f"its {name} is no base64url") from None


def _number(entry: Mapping[str, Any], name: str) -> int:
    return int.from_bytes(_bytes(entry, name), "big")


def _digest(kid: str | None, algorithms: frozenset[str], raw: bytes) -> bytes:
    parts = (kid or "", "kid" if kid is not None else "", ",".join(sorted(algorithms)))
    return hashlib.sha256("\0".join(parts).encode() + b"\0" + raw).digest()
