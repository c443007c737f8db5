"""The facts stated about one API call."""

from __future__ import annotations

from typing import Any

import msgspec

MAX_COST = 2**53 - 1
"""The largest cost or size: whole numbers up to here are exact in JSON and in Lua."""

Attribute = str | int | float | bool | None


class GraphQL(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One GraphQL operation: its document, or the hash of a registered one."""

    query: str | None = None
    variables: dict[str, Any] | None = None
    operation_name: str | None = None
    hash: str | None = None


class Nonce(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A value that may be used once, and the Unix time in seconds at which the client made it."""

    value: str | None = None
    timestamp: int | float | str | None = None
    """A number. Text is what a client said and no number: it is refused, as any other malformed value."""


class IdempotencyKey(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The client's key for one write, and a fingerprint of its payload."""

    key: str | None = None
    fingerprint: str | None = None


class Request(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Every field is optional; None and "" mean absent.

    Nothing is checked here. A malformed value (an address that is none, a negative cost) is the client's doing, so
    `Shield.check` answers it with a refusal, reason `invalid`, that names the field.
    """

    tenant: str | None = None
    user: str | None = None
    ip: str | None = None
    method: str | None = None
    path: str | None = None
    host: str | None = None
    bytes: int | None = None
    """Size of the request's body."""
    content_type: str | None = None
    plan: str | None = None
    cost: int | None = None
    """Units for limits with `cost = "request"`. 0 is a peek."""
    api_key: str | None = None
    session: str | None = None
    user_agent: str | None = None
    token: str | None = None
    headers: dict[str, str] | None = None
    body: str | None = None
    """Base64."""
    attributes: dict[str, Attribute] | None = None
    request_id: str | None = None
    graphql: GraphQL | list[GraphQL] | None = None
    nonce: Nonce | None = None
    idempotency: IdempotencyKey | None = None
