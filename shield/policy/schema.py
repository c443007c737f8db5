"""Every key of a policy file, once: its type, default, bound and meaning.

The validator reads files by this and the reference documentation is generated from it, so neither can know a
key that the other does not. What spans several keys (a burst belongs to a token bucket) is in `validate.py`.
"""

from __future__ import annotations

import re
from typing import Any

from shield.policy import scalars
from shield.policy.abuse_schema import BLOCKS, EVENTS
from shield.policy.calendar import ALIGNMENTS
from shield.policy.detector_schema import DETECTOR, MAX_DETECTORS
from shield.policy.graphql_schema import graphql_table
from shield.policy.idempotency_schema import idempotency_table
from shield.policy.identity_schema import API_KEYS, JWT_LIST
from shield.policy.kinds import Key, ListOf, MapOf, RawList, Table, TableList
from shield.policy.model import ALGORITHMS, CONCURRENCY, FIXED_WINDOW, LOOPBACK, SLIDING_WINDOW, TOKEN_BUCKET
from shield.policy.replay_schema import replay_table, scheme_table
from shield.policy.report import suggestion
from shield.policy.scalars import Scalar, Wrong
from shield.request import MAX_COST

MAX_LIMITS = 1_024
MAX_UNITS = 10**9  # burst and limit: together with the longest period what exact store arithmetic is made for
MAX_KEY_FIELDS = 8  # the core hashes them side by side
MAX_PLACES = 1_024  # of a concurrency limit: every place is remembered by itself
NAME = r"[a-z0-9][a-z0-9_.-]{0,63}"

KEY_FIELDS = (
    *("tenant", "user", "ip", "api_key", "session", "token", "plan"),
    *("method", "path", "host", "content_type", "user_agent"),
)
_NO_KEY_FIELDS = {
    "bytes": "a size is no one",
    "cost": "a size is no one",
    "request_id": "every request has another",
    "nonce": "every request has another",
    "idempotency": "it is no plain value",
    "headers": "it is no plain value; use an attribute",
    "attributes": "name one of them: attributes.NAME",
    "body": "it is no plain value",
    "graphql": "it is no plain value",
}
# What a gateway may state in a header of its choice. Method and path come from the forwarding headers, the
# rest of the request object from headers that already have a meaning.
HEADER_FIELDS = ("tenant", "user", "ip", "host", "bytes", "plan", "cost", "api_key", "session", "request_id")
_ATTRIBUTE = re.compile(r"attributes\.[A-Za-z0-9_-]{1,64}")
COSTS = ("request", "bytes", "graphql", "graphql:type")  # what a limit may be charged beside a fixed number


def _key_field(fields: tuple[str, ...], what: str) -> Scalar:
    def parse(value: Any) -> str:
        if not isinstance(value, str):
            raise Wrong
        if value in fields or _ATTRIBUTE.fullmatch(value):
            return value
        raise Wrong(_NO_KEY_FIELDS.get(value) or suggestion(value, fields).removeprefix(", "))

    return Scalar("request field", f"{what}: {', '.join(fields)} or attributes.NAME", parse)


def _header_name() -> Scalar:
    token = re.compile(r"[A-Za-z0-9!#$%&'*+.^_`|~-]{1,64}")

    def parse(value: Any) -> str:
        if not isinstance(value, str) or not token.fullmatch(value):
            raise Wrong
        if value.lower() == "shield-authorization":
            raise Wrong("it carries the gateway's own secret")
        return value

    return Scalar("header name", "the name of an HTTP header of at most 64 characters", parse)


def _cost() -> Scalar:
    def parse(value: Any) -> int | str:
        if value in COSTS:
            return str(value)
        if type(value) is not int or not 0 <= value <= MAX_COST:
            raise Wrong
        return value

    words = ", ".join(f'"{word}"' for word in COSTS)
    return Scalar("whole number or text", f"a whole number from 0 to {MAX_COST:,}, or one of {words}", parse)


def _media_type() -> Scalar:
    word = r"[a-z0-9][a-z0-9!#$&^_.+-]{0,126}"
    whole = re.compile(rf"{word}/(?:{word}|\*)")

    def parse(value: Any) -> str:
        if not isinstance(value, str) or not whole.fullmatch(value.lower()):
            raise Wrong("parameters do not count" if isinstance(value, str) and ";" in value else "")
        return value.lower()

    return Scalar("media type", '"type/subtype" or "type/*", without parameters', parse)


_BUCKETS = (TOKEN_BUCKET, SLIDING_WINDOW, FIXED_WINDOW)

MATCH = Table(
    "limit.match",
    "Which requests a limit or guard is for. A request without a method or path does not meet a condition on it.",
    (
        Key(
            "method",
            ListOf(scalars.method(), 32, 1, single=True),
            "Methods, compared in upper case.",
            default_doc="every method",
        ),
        Key(
            "path",
            ListOf(scalars.path_template(), 64, 1, single=True),
            "Path templates, compared with the normalised path: query dropped, percent-decoded once, dot "
            "segments, double and trailing slashes folded, case kept.",
            default_doc="every path",
        ),
    ),
)

PLAN = Table(
    "limit.plans.NAME",
    "Numbers for requests of one plan; what is left out is as in the limit itself. Other plans get the limit's own.",
    (
        Key(
            "rate",
            scalars.rate(),
            "As the limit's. A window keeps its period. On a token bucket without a burst beside it, the "
            "burst is the count in this rate.",
            only=_BUCKETS,
            default_doc="the limit's",
        ),
        Key(
            "burst",
            scalars.integer(1, MAX_UNITS),
            "As the limit's.",
            only=(TOKEN_BUCKET,),
            default_doc="see rate",
        ),
        Key(
            "limit",
            scalars.integer(1, MAX_PLACES),
            "As the limit's.",
            only=(CONCURRENCY,),
            default_doc="the limit's",
        ),
    ),
    may_be_empty=False,
)

LIMIT = Table(
    "limit",
    "A named quota, written [[limit]]. Name, algorithm, key, window length, align and timezone are its "
    "identity: change one and its buckets start anew. Everything else may change under a bucket.",
    (
        Key(
            "name",
            scalars.text("name", f"text that matches {NAME}", NAME, 64),
            "Unique in the policy.",
            required=True,
        ),
        Key(
            "key",
            ListOf(_key_field(KEY_FIELDS, "one of"), MAX_KEY_FIELDS, 1),
            "What the limit counts by.",
            required=True,
        ),
        Key("algorithm", scalars.choice(*ALGORITHMS), "How the limit counts.", default=TOKEN_BUCKET),
        Key(
            "rate",
            scalars.rate(),
            "Refill of a token bucket; count and length of a window. Required but for concurrency. "
            '"N/month" goes with align = "month" only.',
            only=_BUCKETS,
        ),
        Key(
            "burst",
            scalars.integer(1, MAX_UNITS),
            "What a full token bucket holds.",
            only=(TOKEN_BUCKET,),
            default_doc="the count in rate",
        ),
        Key(
            "align",
            scalars.choice(*ALIGNMENTS),
            "Windows of the calendar, from the first instant with a local date to the next such. The rate's "
            "period must be the same.",
            only=(FIXED_WINDOW,),
            default_doc="windows from the epoch",
        ),
        Key(
            "timezone",
            scalars.timezone(),
            "Whose calendar. Goes with align.",
            only=(FIXED_WINDOW,),
            default_doc='"UTC" when aligned',
        ),
        Key("limit", scalars.integer(1, MAX_PLACES), "Places in flight. Required.", only=(CONCURRENCY,)),
        Key(
            "ttl",
            scalars.duration("1ms", "24h"),
            "When a place that nobody released is free again.",
            only=(CONCURRENCY,),
            default_doc='"60s"',
        ),
        Key("match", MATCH, "Which requests the limit is for.", default_doc="every request"),
        Key(
            "missing",
            scalars.choice("skip", "deny"),
            'A key field is absent: the limit does not match, or the request is refused ("deny", 400).',
            default="skip",
        ),
        Key(
            "when_store_fails",
            scalars.choice("local", "allow", "deny"),
            "The store does not answer: count in this process, allow, or refuse. The first two are degraded decisions.",
            default="local",
        ),
        Key(
            "when_full",
            scalars.choice("share", "deny", "allow"),
            "The store has no room for a new bucket: newcomers share one, are refused, or are allowed "
            "(degraded). Concurrency always refuses.",
            default_doc='"share"; concurrency: "deny"',
        ),
        Key(
            "count_denied",
            scalars.boolean(),
            "Charge refused requests too, never beyond empty. Concurrency limits never are.",
            default=False,
        ),
        Key(
            "lease",
            scalars.choice("off", "auto"),
            '"auto": with a Redis store each node takes units in advance for keys that are often asked for, and spends '
            "them without a round trip; the limit holds over all nodes together. Remaining units are then an estimate "
            "and retry_after is an upper bound. Requests that also meet a limit without it, or have a nonce or an "
            "idempotency key, ask the store. Other stores have no round trip to save: there it changes nothing. Not "
            "together with count_denied.",
            only=(TOKEN_BUCKET,),
            default_doc='"off"',
        ),
        Key(
            "mode",
            scalars.choice("enforce", "shadow"),
            '"shadow" decides and reports but never refuses, and is charged only when the request is admitted.',
            default="enforce",
        ),
        Key(
            "cost",
            _cost(),
            'Units a request takes. "request": what the caller says; "bytes": the size of the body; "graphql" and '
            '"graphql:type": the cost and the type cost of its operations, 0 where it has none (the last three not for '
            "concurrency). A batch of GraphQL operations takes a whole number once for each. 0 is always allowed and "
            "changes nothing.",
            default=1,
        ),
        Key(
            "plans",
            MapOf(scalars.text("plan name", "printable text of 1 to 64 characters", r".+", 64), PLAN, 256),
            "Other numbers for requests of a plan.",
            default={},
        ),
    ),
)

IDENTITY = Table(
    "identity",
    "Who a request comes from, and whom Shield believes about that.",
    (
        Key(
            "trusted_proxies",
            ListOf(scalars.network(), 1_024),
            "Networks whose word in X-Forwarded-For counts, from the right as far as they vouch. Unix "
            "sockets are always trusted.",
            default=list(LOOPBACK),
        ),
        Key(
            "ipv6_prefix",
            scalars.integer(32, 128),
            "Bits of an IPv6 address that make one subject: one customer has a whole network. IPv4 "
            "addresses count whole.",
            default=64,
        ),
        Key(
            "anonymous",
            scalars.boolean(),
            "May a request come without a token or API key, when some are configured? Then it has no tenant, user and "
            "plan. A wrong one is refused all the same.",
            default=True,
        ),
        Key(
            "headers",
            MapOf(_key_field(HEADER_FIELDS, "one of"), _header_name(), 64),
            "Where the forward-auth endpoints find facts: request field = header name. Only an "
            "authenticated gateway is believed.",
            default={},
        ),
        Key("jwt", JWT_LIST, "See [[identity.jwt]].", default=[]),
        Key("api_keys", API_KEYS, "See [identity.api_keys].", default_doc="none"),
    ),
)

GUARD_MODE = Key(
    "mode",
    scalars.choice("enforce", "shadow"),
    '"shadow" reports what it would have refused and refuses nothing.',
    default="enforce",
)

SIZE = Table(
    "guard.size",
    "How large a body may be, and of what type. A body that is too large is answered 413, a type that is "
    "not listed 415.",
    (
        Key("max_body_bytes", scalars.integer(0, MAX_COST), "The largest body.", default_doc="no ceiling"),
        Key(
            "content_types",
            ListOf(_media_type(), 64),
            "Types that a body may have, compared without case and parameters. A body without a type is "
            "refused once this is set; a request without a body never is.",
            default=[],
            default_doc="any",
        ),
        GUARD_MODE,
    ),
)

GRAPHQL = graphql_table(MATCH, GUARD_MODE)
REPLAY_SCHEME = scheme_table(MATCH)
REPLAY = replay_table(MATCH, REPLAY_SCHEME)
IDEMPOTENCY = idempotency_table(MATCH)

GUARD = Table(
    "guard",
    "Checks that are no quota.",
    (
        Key("size", SIZE, "Body size and content type.", default_doc="no check"),
        Key("graphql", GRAPHQL, "Cost and structure of GraphQL operations.", default_doc="no check"),
        Key("replay", REPLAY, "Nonces: a request is let through once.", default_doc="no check"),
        Key("idempotency", IDEMPOTENCY, "Retried writes that happen once.", default_doc="keys mean nothing"),
    ),
)

POLICY = Table(
    "policy",
    "The top level of a policy file.",
    (
        Key("version", scalars.integer(1, 1), "The version of this format.", default=1),
        Key(
            "name",
            scalars.text("name", f"text that matches {NAME}", NAME, 64),
            "The policy's name.",
            default="default",
        ),
        Key(
            "owner",
            scalars.text("text", "printable text of 1 to 128 characters", r".+", 128),
            "Who answers for it; shown in metrics, decisions and the audit line of a reload.",
        ),
        Key("settle_within", scalars.duration("1s", "24h"), "How long a receipt can be settled.", default="5m"),
        Key("identity", IDENTITY, "See [identity].", default_doc="its defaults"),
        Key("limit", TableList(LIMIT, MAX_LIMITS), "See [[limit]].", default=[]),
        Key(
            "guard",
            GUARD,
            "See [guard.size], [guard.graphql], [guard.replay] and [guard.idempotency].",
            default_doc="no guards",
        ),
        Key("detector", RawList(TableList(DETECTOR, MAX_DETECTORS)), "See [[detector]].", default=[]),
        Key("blocks", BLOCKS, "See [blocks].", default_doc="its defaults"),
        Key("events", EVENTS, "See [events].", default_doc="none"),
    ),
)
