"""What a gateway's headers say about a client's request. Compiled once for each policy."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Final

from shield.errors import RequestError
from shield.identity.address import TrustedProxies
from shield.identity.bearer import bearer
from shield.policy import Identity
from shield.request import IdempotencyKey, Request
from shield.server.exchange import Ask, Fields

_ABSENT: Final[tuple[str, ...]] = ()
_ATTRIBUTE: Final = "attributes."
_NUMBERS: Final = ("bytes", "cost")


class GatewayFacts:
    """Builds a Request from a check request of a gateway, as far as one identity section lets it."""

    def __init__(self, identity: Identity, *, signed: bool = False) -> None:
        """`signed`: signatures are verified, which may cover any field."""
        self._signed = signed
        self._proxies = TrustedProxies(identity.trusted_proxies)
        self._fields: list[tuple[str, str]] = []
        self._attributes: list[tuple[str, str]] = []
        for field, header in identity.headers.items():
            if field.startswith(_ATTRIBUTE):
                self._attributes.append((field.removeprefix(_ATTRIBUTE), header))
            else:
                self._fields.append((field, header))

    def request(self, http: Ask, *, method: str | None, path: str | None, host: str | None) -> Request:
        """The client's request. Method, path and host depend on the gateway; everything else comes from
        headers.

        RequestError for a header that is there twice or that is no number where one is needed: nobody knows
        which of two the gateway meant, so it must not count as absent.
        """
        headers = http.headers
        facts: dict[str, Any] = {
            "method": method,
            "path": path,
            "host": host,
            "ip": self._client_address(http),
            # Gateways that ask without the body say 0 (Envoy always does): that says nothing of the client's.
            "bytes": _whole(headers, "Content-Length") or None,
            "content_type": _text(single(headers, "Content-Type")),
            "user_agent": _text(single(headers, "User-Agent")),
            "token": bearer(single(headers, "Authorization")),
        }
        if (key := single(headers, "Idempotency-Key")) is not None:
            facts["idempotency"] = IdempotencyKey(key=key)
        for field, header in self._fields:
            value = single(headers, header)
            if value is not None:
                facts[field] = _whole(headers, header) if field in _NUMBERS else value
            elif field == "bytes":
                # Content-Length is that of a check without a body. The client's own stated none: unknown.
                facts["bytes"] = None
        if self._attributes:
            facts["attributes"] = {
                name: value for name, header in self._attributes if (value := single(headers, header)) is not None
            }
        if self._signed:
            facts["headers"] = signed_fields(headers)
        return Request(**facts)

    def _client_address(self, http: Ask) -> str | None:
        peer = http.peer
        # A unix socket has no peer name, or an empty one.
        host = peer[0] if isinstance(peer, tuple) else None
        return self._proxies.client(host, http.headers.getall("X-Forwarded-For", _ABSENT)) or None


def signed_fields(headers: Fields) -> dict[str, str]:
    """All fields but the gateway's own secret; one that is there several times is joined as HTTP has it."""
    names = {name.lower() for name in headers} - {"shield-authorization"}
    return {name: ", ".join(headers.getall(name, _ABSENT)) for name in names}


def single(headers: Fields, name: str) -> str | None:
    """A field that has one value; None when it is absent. RequestError when it is there twice."""
    values = headers.getall(name, _ABSENT)
    if not values:
        return None
    if len(values) > 1:
        raise RequestError(name, f"is there {len(values)} times; allowed: once")
    return values[0]


def _text(value: str | None) -> str | None:
    """Bytes that are no UTF-8, which old clients send in User-Agent, are no reason to refuse."""
    if value is None or value.isascii():
        return value
    return value.encode("utf-8", "surrogateescape").decode("utf-8", "replace")


def _whole(headers: Fields, name: str) -> int | None:
    value = single(headers, name)
    if value is None:
        return None
    if not (value.isascii() and value.isdigit() and len(value) <= 20):
        raise RequestError(name, "allowed: a whole number")
    return int(value)


HeaderReader = Callable[[Fields], tuple[str | None, str | None, str | None]]


def forwarded(headers: Fields) -> tuple[str | None, str | None, str | None]:
    """Method, path and host as Traefik, Caddy and HAProxy state them."""
    return (
        single(headers, "X-Forwarded-Method"),
        single(headers, "X-Forwarded-Uri"),
        single(headers, "X-Forwarded-Host"),
    )


def original(headers: Fields) -> tuple[str | None, str | None, str | None]:
    """Method and path as nginx is told to state them; nothing states the host."""
    return single(headers, "X-Original-Method"), single(headers, "X-Original-URI"), None


FAMILIES: Final[Mapping[str, HeaderReader]] = {"forwarded": forwarded, "original": original}
