"""Idempotency keys in front of one token bucket, written to be read: what every store must answer."""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction


@dataclass
class Kept:
    """One key."""

    state: str  # "running", "completed" or "abandoned"
    owner: int
    fingerprint: str
    lease_until_us: int
    expires_us: int
    answer: bytes | None = None


class Oracle:
    """One tenant, whose writes share a bucket of `burst`, refilled at one an hour."""

    def __init__(self, *, burst: int, lease_us: int, retention_us: int, max_keys: int, strict: frozenset[str]) -> None:
        self.burst, self.lease_us, self.retention_us = burst, lease_us, retention_us
        self.max_keys, self.strict = max_keys, strict
        self.keys: dict[str, Kept] = {}
        self.used = Fraction(0)
        self.at_us: int | None = None
        self.owners = 0

    def ask(self, now_us: int, key: str, fingerprint: str) -> tuple[str, object]:
        """(reason, what goes with it): the owner's number, the answer, or microseconds to wait."""
        self._pass(now_us)
        kept = self.keys.get(key)
        if kept is not None and kept.state != "abandoned":
            if kept.fingerprint != fingerprint:
                return "idempotency_mismatch", None
            if kept.state == "completed":
                return "idempotency_replay", kept.answer
            if now_us < kept.lease_until_us:
                return "idempotency_in_flight", kept.lease_until_us - now_us
            if key in self.strict:
                return "idempotency_in_flight", kept.expires_us - now_us
        if kept is None and len(self.keys) >= self.max_keys:
            return "store_full", 1_000_000
        if self.used + 1 > self.burst:
            return "limit", None
        self.used += 1
        self.owners += 1
        expires_us = now_us + max(self.lease_us, self.retention_us)
        self.keys[key] = Kept("running", self.owners, fingerprint, now_us + self.lease_us, expires_us)
        return "ok", self.owners

    def end(self, now_us: int, key: str, owner: int, action: str, answer: bytes = b"") -> str:
        """ "done", "lost" or "unknown"."""
        self._pass(now_us)
        kept = self.keys.get(key)
        if kept is None:
            return "unknown"
        if kept.owner != owner or kept.state != "running":
            return "lost"
        if action == "extend":
            kept.lease_until_us = now_us + self.lease_us
            kept.expires_us = max(kept.expires_us, kept.lease_until_us)
        elif action == "abandon":
            kept.state, kept.expires_us = "abandoned", now_us + self.lease_us
        else:
            kept.state, kept.answer, kept.expires_us = "completed", answer, now_us + self.retention_us
        return "done"

    def _pass(self, now_us: int) -> None:
        if self.at_us is not None:
            self.used = max(Fraction(0), self.used - Fraction(now_us - self.at_us, 3_600_000_000))
        self.at_us = now_us
        self.keys = {name: kept for name, kept in self.keys.items() if kept.expires_us > now_us}
