"""The keys of [guard.replay]."""

from __future__ import annotations

from shield.policy import scalars
from shield.policy.kinds import Key, Kind, Table

# Each nonce takes 50 to 120 bytes in a store, whoever sent it. A hundred thousand are 200 requests a second at the
# default window.
MAX_PER_TENANT = 100_000


def replay_table(match: Kind) -> Table:
    return Table(
        "guard.replay",
        "A captured request cannot be sent twice: a request with a nonce is let through once. The nonce and the "
        "instant at which it was made come in the request's `nonce` field. A nonce that was used is answered 409 "
        "(`replay`), an instant outside the window 401 (`stale`).",
        (
            Key(
                "required", scalars.boolean(), "Refuse requests without a nonce (`nonce_missing`, 401).", default=False
            ),
            Key("window", scalars.duration("1s", "24h"), "How old a request may be.", default="5m"),
            Key(
                "future_skew",
                scalars.duration("0s", "1h"),
                "How far ahead of the clock here a client's clock may be. After a store was lost nonces are refused "
                "for as long.",
                default="30s",
            ),
            Key("match", match, "Which requests it is for.", default_doc="every request"),
            Key(
                "max_per_tenant",
                scalars.integer(4, 10_000_000),
                "How many nonces of one tenant are held at most, and of all requests without one: a quarter of them at "
                "once, the others as evenly as they run out. Beyond that: `store_full`.",
                default=MAX_PER_TENANT,
            ),
            Key(
                "when_store_fails",
                scalars.choice("deny", "allow"),
                "The store does not answer: refuse requests with a nonce (`store_unavailable`), or let them through "
                "unseen (degraded).",
                default="deny",
            ),
        ),
    )
