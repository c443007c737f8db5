"""The keys of [guard.idempotency]: whose keys count, and what is kept for how long."""

from __future__ import annotations

from typing import Final

from shield.policy import scalars
from shield.policy.kinds import Key, ListOf, Table

# An answer travels to /v1/idempotency in base64, beside its header fields, within the server's bound on bodies.
MAX_BODY_BYTES: Final = 1_048_576
MAX_KEYS: Final = 100_000_000
MAX_TOTAL_BYTES: Final = 2**40


def idempotency_table(match: Table) -> Table:
    """`match` is the table that limits have too."""
    return Table(
        "guard.idempotency",
        "A request with an Idempotency-Key runs once; who repeats it gets the first answer again. The key is bound to "
        "tenant, user, method and path, and counts only for the payload it came with first.",
        (
            Key("required", scalars.boolean(), "Refuse a request that has no key (400).", default=False),
            Key(
                "methods",
                ListOf(scalars.method(), 32, 1, single=True),
                "Methods whose keys count; with others a key means nothing.",
                default=["POST", "PATCH"],
            ),
            Key("match", match, "Requests whose keys count, further narrowed.", default_doc="every request"),
            Key(
                "strict",
                match,
                "Where nobody takes over: a request whose owner was not heard of again is refused (409) until "
                "retention has passed, because nobody knows whether it ran. Elsewhere its lease decides.",
                default_doc="nowhere",
            ),
            Key(
                "syntax",
                scalars.choice("any", "quoted"),
                "How a key is written: bare or as a structured-field string in quotes, or the latter only.",
                default="any",
            ),
            Key(
                "retention",
                scalars.duration("1s", "30d"),
                "How long a key and its answer are kept, from the answer on.",
                default="24h",
            ),
            Key(
                "lease",
                scalars.duration("100ms", "24h"),
                "How long whoever runs a request is waited for, unless it extends that.",
                default="60s",
            ),
            Key(
                "keep",
                scalars.choice("all", "final", "2xx"),
                'Which answers are kept: all; "final": all but 408, 425, 429 and 5xx; "2xx". After another one the key '
                "is as if it had never been used.",
                default="all",
            ),
            Key(
                "max_body_bytes",
                scalars.integer(0, MAX_BODY_BYTES),
                "The largest body that is kept. Of an answer beyond it status and header fields are kept, and whoever "
                "repeats the request is told so (409).",
                default=65_536,
            ),
            Key(
                "max_keys_per_tenant",
                scalars.integer(1, MAX_KEYS),
                "Keys that one tenant, or one user without a tenant, may have at a time; beyond: 503, store_full.",
                default=100_000,
            ),
            Key(
                "max_keys",
                scalars.integer(1, MAX_KEYS),
                "Keys in the memory of a process or host; beyond: 503, store_full. A Redis has its own bound.",
                default=250_000,
            ),
            Key(
                "max_bytes",
                scalars.integer(0, MAX_TOTAL_BYTES),
                "Bytes of all answers in the memory of a process or host; what finds no room is not kept. A Redis has "
                "its own bound.",
                default=67_108_864,
            ),
            Key(
                "when_store_fails",
                scalars.choice("deny", "allow"),
                "The store does not answer: refuse (503), or run the request as if it had no key (degraded).",
                default="deny",
            ),
        ),
    )
