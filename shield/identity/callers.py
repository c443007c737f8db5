"""Which calling services may ask, by their certificates: SPIFFE ids (X.509-SVID), DNS names or common names.

The TLS layer has verified the certificate against the operator's authority before any of this is looked at. A SPIFFE
certificate has exactly one URI among its alternative names; one with several says two things and is nobody's.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any, Final, NamedTuple

MAX_PATTERNS: Final = 256
"""Each costs a comparison for a connection."""
ALLOWED: Final = '"spiffe://DOMAIN/PATH" (with "/*" at its end: everything below), "dns:NAME" or "cn:NAME"'

# The SPIFFE ID standard, 2: lower case, no user, port, query or fragment, no empty, "." or ".." segment.
_SPIFFE: Final = re.compile(r"spiffe://[a-z0-9._-]{1,255}(?:/(?!\.{1,2}(?:/|$))[A-Za-z0-9._-]+)*")
MAX_SPIFFE_BYTES: Final = 2_048


class Caller(NamedTuple):
    """What a verified certificate says of whoever holds it."""

    spiffe: str | None
    dns: tuple[str, ...]
    common_name: str | None


def caller_of(certificate: Mapping[str, Any]) -> Caller:
    """Reads a certificate in the form of `ssl.SSLSocket.getpeercert`."""
    uris: list[str] = []
    dns: list[str] = []
    for kind, value in certificate.get("subjectAltName", ()):
        if kind == "URI":
            uris.append(value)
        elif kind == "DNS":
            dns.append(value.lower())
    names = [value for part in certificate.get("subject", ()) for kind, value in part if kind == "commonName"]
    spiffe = uris[0] if len(uris) == 1 and is_spiffe(uris[0]) else None
    return Caller(spiffe, tuple(dns), names[0] if len(names) == 1 else None)


def is_spiffe(text: str) -> bool:
    """Whether this is a well-formed SPIFFE id."""
    return len(text) <= MAX_SPIFFE_BYTES and _SPIFFE.fullmatch(text) is not None


class AllowedCallers:
    """A list of callers. `patterns` are of the forms in ALLOWED; ValueError for any other."""

    def __init__(self, patterns: Iterable[str]) -> None:
        self.patterns = tuple(patterns)
        self._exact: set[str] = set()
        self._below: list[str] = []
        for count, pattern in enumerate(self.patterns, 1):
            if count > MAX_PATTERNS:
                raise ValueError(f"found more than {MAX_PATTERNS} callers")
            self._add(pattern)

    def _add(self, pattern: str) -> None:
        kind, colon, name = pattern.partition(":")
        if kind == "spiffe" and pattern.endswith("/*") and is_spiffe(pattern[:-2]):
            self._below.append(pattern[:-1])
        elif is_spiffe(pattern):
            self._exact.add(pattern)
        elif kind in ("dns", "cn") and colon and name and name.isprintable() and len(name) <= 255 and "*" not in name:
            self._exact.add(f"dns:{name.lower()}" if kind == "dns" else pattern)
        else:
            raise ValueError(f"found {pattern[:100]!r}; allowed: {ALLOWED}")

    def allows(self, certificate: Mapping[str, Any] | None) -> bool:
        """Whether the holder of this certificate is on the list; nobody without one is."""
        if not certificate:
            return False
        caller = caller_of(certificate)
        if caller.spiffe is not None:
            # A SPIFFE id is the whole of who somebody is: the other names of its certificate say nothing.
            return caller.spiffe in self._exact or any(caller.spiffe.startswith(below) for below in self._below)
        named = {f"dns:{name}" for name in caller.dns}
        if caller.common_name is not None:
            named.add(f"cn:{caller.common_name}")
        return not named.isdisjoint(self._exact)
