"""Tokens that were verified a moment ago, by their SHA-256: verifying takes a hundred times as long as looking here.

Only verified tokens are kept, so nobody without some can fill it; it is bounded all the same, and the oldest goes
first. The digest is the whole of a token's text, and no token can be read back from here.
"""

from __future__ import annotations

from typing import Final

from shield.identity.principal import Principal

MAX_AGE_US: Final = 60_000_000
"""A token whose key was removed or whose user was locked out is looked at again within a minute."""
MAX_ENTRIES: Final = 65_536
MAX_BYTES: Final = 64 * 1_048_576
"""An entry takes 600 bytes and its texts."""


class VerifiedTokens:
    """By digest. Instants are Unix time in microseconds."""

    def __init__(self, *, max_entries: int = MAX_ENTRIES, max_bytes: int = MAX_BYTES) -> None:
        self._entries: dict[bytes, Principal] = {}
        self._max_entries = max_entries
        self._max_bytes = max_bytes
        self._bytes = 0

    def __len__(self) -> int:
        return len(self._entries)

    def get(self, digest: bytes, now_us: int) -> Principal | None:
        """Who it is, if that still holds: not expired, its key in force, and the clock not set back."""
        found = self._entries.get(digest)
        if found is None:
            return None
        if found.since_us <= now_us < found.until_us and (found.key is None or found.key.live):
            return found
        self._drop(digest, found)
        return None

    def put(self, digest: bytes, principal: Principal) -> None:
        """Keeps it until its `until_us`, or until it has to make room."""
        self._bytes += principal.size_bytes
        previous = self._entries.pop(digest, None)
        if previous is not None:
            self._bytes -= previous.size_bytes
        self._entries[digest] = principal
        while len(self._entries) > self._max_entries or self._bytes > self._max_bytes:
            oldest = next(iter(self._entries))
            self._drop(oldest, self._entries[oldest])

    def _drop(self, digest: bytes, principal: Principal) -> None:
        if self._entries.pop(digest, None) is not None:
            self._bytes -= principal.size_bytes
