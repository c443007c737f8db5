"""Who a verified request comes from, and how that is put into the request in place of what it stated."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import msgspec

from shield.identity.jose import TokenError
from shield.request import Attribute, Request

if TYPE_CHECKING:
    from shield.identity.keys import Key  # which needs the extra `jwt`

MAX_VALUE_BYTES: Final = 256
"""Of a tenant, user or plan. Real ones are ids, addresses or short names."""
NAMESPACE_MARK: Final = "|"
_NAMESPACED: Final = ("tenant", "user")
_ATTRIBUTE: Final = "attributes."


class Principal(NamedTuple):
    """What is known of whoever sent a request."""

    fields: dict[str, Any]
    """The request's fields as they are to be: tenant, user and plan always, absent ones None."""
    attributes: dict[str, Attribute] | None
    """Attributes that come from the token; None: the policy takes none from it."""
    key: Key | None
    """What it was verified with; once that is not live, nobody is this principal any more."""
    since_us: int
    until_us: int

    def applied(self, request: Request) -> Request:
        """The request as this principal's."""
        if self.attributes is None:
            return msgspec.structs.replace(request, **self.fields)
        stated: Any = request.attributes if request.attributes is not None else {}
        if not isinstance(stated, dict):
            return msgspec.structs.replace(request, **self.fields)  # malformed, which is told later
        return msgspec.structs.replace(request, **self.fields, attributes=stated | self.attributes)

    @property
    def size_bytes(self) -> int:
        """About what it takes in memory."""
        texts = (*self.fields.values(), *(self.attributes or {}).values())
        return 600 + sum(len(value) for value in texts if isinstance(value, str))


class ClaimReader:
    """Reads one issuer's claims as the policy says. `taken`: every field that any issuer's tokens decide about."""

    def __init__(self, namespace: str, claims: Mapping[str, str], taken: frozenset[str]) -> None:
        self._namespace = namespace
        plain = sorted(field for field in taken if not field.startswith(_ATTRIBUTE))
        self._fields = [(field, claims.get(field)) for field in plain]
        named = sorted(field for field in taken if field.startswith(_ATTRIBUTE))
        self._attributes = [(field.removeprefix(_ATTRIBUTE), claims.get(field)) for field in named]

    def read(self, claims: Mapping[str, Any], key: Key | None, since_us: int, until_us: int) -> Principal:
        """TokenError for a claim that is no plain value."""
        fields: dict[str, Any] = {}
        for field, claim in self._fields:
            value = None if claim is None else self._text(claims, claim)
            if value is not None and field in _NAMESPACED:
                value = f"{self._namespace}{NAMESPACE_MARK}{value}"
            fields[field] = value
        attributes = None
        if self._attributes:
            attributes = {
                name: None if claim is None else self._text(claims, claim) for name, claim in self._attributes
            }
        return Principal(fields, attributes, key, since_us, until_us)  # type: ignore[arg-type]

    def _text(self, claims: Mapping[str, Any], claim: str) -> str | None:
        """A claim's value as text; None where it is absent, null or "". Whole numbers are their digits."""
        value = find(claims, claim)
        if value is None or value == "":
            return None
        if type(value) is int and abs(value) < 2**53:
            return str(value)
        if not isinstance(value, str):
            raise TokenError("claims", f"{claim}: allowed: text or a whole number")
        try:
            size_bytes = len(value.encode())
        except UnicodeEncodeError:
            raise TokenError("claims", f"{claim}: not Unicode text") from None
        if size_bytes > MAX_VALUE_BYTES or any(ord(character) < 32 or ord(character) == 127 for character in value):
            raise TokenError("claims", f"{claim}: allowed: at most {MAX_VALUE_BYTES} bytes without control characters")
        return value


def find(claims: Mapping[str, Any], claim: str) -> Any:
    """The claim of that very name, else the one that its dots lead to; None where there is none."""
    if claim in claims:
        return claims[claim]
    value: Any = claims
    for name in claim.split("."):
        if not isinstance(value, Mapping) or name not in value:
            return None
        value = value[name]
    return value
