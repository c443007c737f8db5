"""The keys of [guard.replay]."""

from __future__ import annotations

import re
from typing import Any
from urllib.parse import urlsplit

from shield.policy import scalars
from shield.policy.identity_schema import file_name
from shield.policy.kinds import Key, Kind, ListOf, MapOf, Table, TableList
from shield.policy.scalars import Scalar, Wrong

# Each nonce takes 50 to 120 bytes in a store, whoever sent it. A hundred thousand are 200 requests a second at the
# default window.
MAX_PER_TENANT = 100_000


# Of one scheme, and of a policy: a rotation has two, a platform a few dozen clients.
MAX_SECRETS = 8
MAX_KEYS = 1_024
MAX_SCHEMES = 32
SCHEMES = ("http-signature", "dpop", "standard-webhooks", "stripe", "slack", "github")


def _keyid() -> Scalar:
    return scalars.text("keyid", "printable text of 1 to 256 characters", r".+", 256)


def _origin() -> Scalar:
    def parse(value: Any) -> str:
        if not isinstance(value, str) or not re.fullmatch(r"https?://[A-Za-z0-9.\[\]:-]{1,253}", value):
            raise Wrong
        try:
            if not urlsplit(value).hostname or urlsplit(value).port == 0:
                raise Wrong
        except ValueError:
            raise Wrong from None
        return value

    return Scalar("origin", 'scheme, host and port such as "https://api.example:8443"', parse)


def scheme_table(match: Kind) -> Table:
    return Table(
        "guard.replay.scheme",
        "A kind of signature whose nonce and instant are used, written [[guard.replay.scheme]]. It is verified from "
        "the request's `headers` and `body`; what the request states as its `nonce` is ignored then. A wrong signature "
        "is answered 401 (`identity`) and charged to its address (`identity-failures`).",
        (
            Key("use", scalars.choice(*SCHEMES), "Which kind.", required=True),
            Key(
                "secrets",
                ListOf(file_name("file"), MAX_SECRETS),
                "Files with the secrets of a webhook, the present one and those it takes the place of.",
                default=[],
            ),
            Key(
                "keys",
                MapOf(_keyid(), file_name("file"), MAX_KEYS),
                "For http-signature: keyid = file, with an Ed25519 public key in PEM or a secret for HMAC-SHA256.",
                default={},
            ),
            Key(
                "origin",
                _origin(),
                "What clients sign as scheme, host and port.",
                default_doc="https and the request's host",
            ),
            Key("match", match, "Which requests it is for.", default_doc="every request"),
        ),
    )


def replay_table(match: Kind, scheme: Table) -> Table:
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
            Key("scheme", TableList(scheme, MAX_SCHEMES), "See [[guard.replay.scheme]].", default=[]),
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
