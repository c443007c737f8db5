"""What a remote store needs to know about one charge."""

from __future__ import annotations

from typing import Any, NamedTuple


class Bucket(NamedTuple):
    """One charge of a request, in the words of the policy."""

    limit: Any
    """The shield.policy.Limit."""
    numbers: Any
    """The shield.policy.Numbers that hold for this request's plan."""
    cost: int
    partition: bytes
    """The key's canonical bytes: every field behind its length. As long as the client made it: hash it."""
    enforced: bool
    count_denied: bool
