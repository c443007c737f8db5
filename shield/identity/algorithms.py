"""The signature algorithms there are, and which kind of key each takes. Nothing here depends on a token."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Final


@dataclass(frozen=True, slots=True)
class Algorithm:
    """One name of the `alg` header, as RFC 7518, RFC 8037 and RFC 9864 define it."""

    name: str
    kty: str
    hash_bits: int
    curves: tuple[str, ...] = ()

    @property
    def symmetric(self) -> bool:
        """Whoever can verify can sign as well."""
        return self.kty == "oct"


_ALL = (
    *(Algorithm(f"RS{bits}", "RSA", bits) for bits in (256, 384, 512)),
    *(Algorithm(f"PS{bits}", "RSA", bits) for bits in (256, 384, 512)),
    Algorithm("ES256", "EC", 256, ("P-256",)),
    Algorithm("ES384", "EC", 384, ("P-384",)),
    Algorithm("ES512", "EC", 512, ("P-521",)),
    Algorithm("EdDSA", "OKP", 512, ("Ed25519", "Ed448")),
    Algorithm("Ed25519", "OKP", 512, ("Ed25519",)),
    Algorithm("Ed448", "OKP", 512, ("Ed448",)),
    *(Algorithm(f"HS{bits}", "oct", bits) for bits in (256, 384, 512)),
)

ALGORITHMS: Final[Mapping[str, Algorithm]] = MappingProxyType({one.name: one for one in _ALL})
ASYMMETRIC: Final = tuple(one.name for one in _ALL if not one.symmetric)
SYMMETRIC: Final = tuple(one.name for one in _ALL if one.symmetric)

# RFC 7520 misspells the name of the algorithm in its P-521 key, and others have copied it since.
_ALIASES: Final = {"ES521": "ES512"}


def permitted_by(declared: str) -> frozenset[str]:
    """Which algorithms a key's own `alg` member permits; none where it is no signature algorithm we know.

    The very one; for RSA also the same scheme with a longer hash, never a shorter one: RFC 7520's own example
    signs with PS384 under a key that says PS256, and verifiers are expected to take it.
    """
    name = _ALIASES.get(declared, declared)
    algorithm = ALGORITHMS.get(name)
    if algorithm is None:
        return frozenset()
    if algorithm.kty == "OKP":
        return frozenset(one.name for one in _ALL if set(one.curves) & set(algorithm.curves))
    if algorithm.kty != "RSA":
        return frozenset((name,))
    return frozenset(one.name for one in _ALL if one.name[:2] == name[:2] and one.hash_bits >= algorithm.hash_bits)
