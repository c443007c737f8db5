"""Tokens in Authorization fields."""

from __future__ import annotations


def bearer(authorization: str | None) -> str | None:
    """The token of `Bearer TOKEN`; None for another scheme or none at all."""
    if authorization is None:
        return None
    scheme, _, token = authorization.strip().partition(" ")
    token = token.strip()
    return token if token and scheme.lower() == "bearer" else None
