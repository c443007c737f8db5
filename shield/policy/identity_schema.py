"""The keys of [[identity.jwt]] and [identity.api_keys]: whose word is taken for who a request comes from."""

from __future__ import annotations

import re
from ipaddress import ip_address
from typing import Any, Final
from urllib.parse import urlsplit

from shield.policy import scalars
from shield.policy.kinds import Key, ListOf, MapOf, Table, TableList
from shield.policy.model import TOKEN_ALGORITHMS
from shield.policy.scalars import Scalar, Wrong

MAX_ISSUERS: Final = 32
"""A platform has one or two, a hub of partners a dozen. Each costs a refresh of its keys every few minutes."""
MAX_CLAIM_DEPTH: Final = 8
NAMESPACE_MARK: Final = "|"
"""Stands between a namespace and a tenant or user. No namespace holds it, so the first one in a value is that one."""

_FILE: Final = re.compile(r"file:[^\x00-\x1f\x7f]{1,1024}")
_ATTRIBUTE: Final = re.compile(r"attributes\.[A-Za-z0-9_-]{1,64}")
CLAIM_FIELDS: Final = ("tenant", "user", "plan", "session")


def file_name(what: str) -> Scalar:
    """ "file:NAME". The message shows nothing of what was found: it may be the secret itself."""
    allowed = '"file:NAME", relative to the policy file'

    def parse(value: Any) -> str:
        if not isinstance(value, str) or not _FILE.fullmatch(value):
            raise ValueError(f"found something that names no file; allowed: {allowed}")
        return value

    return Scalar(what, allowed, parse)


def file_or_url() -> Scalar:
    """Where something is read from. A URL that anybody on the way could answer for is none."""
    allowed = '"file:NAME" relative to the policy file, or "https://..." (http:// for loopback only)'

    def parse(value: Any) -> str:
        if not isinstance(value, str) or len(value) > 2_048 or not value.isprintable() or " " in value:
            raise Wrong
        if _FILE.fullmatch(value):
            return value
        try:
            parts = urlsplit(value)
            host, _ = parts.hostname, parts.port
        except ValueError:
            raise Wrong from None
        if parts.username is not None or parts.password is not None:
            raise ValueError(f"found a URL with a name or password in it; allowed: {allowed}")
        if not host or parts.fragment or parts.scheme not in ("https", "http"):
            raise Wrong
        if parts.scheme == "http" and not _is_loopback(host):
            raise Wrong("whoever is on the way could put something of their own there")
        return value

    return Scalar("file or URL", allowed, parse)


def _is_loopback(host: str) -> bool:
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _issuer() -> Scalar:
    def parse(value: Any) -> str:
        if not isinstance(value, str) or not 1 <= len(value) <= 256 or not value.isprintable() or " " in value:
            raise Wrong
        if NAMESPACE_MARK in value:
            raise Wrong(f"{NAMESPACE_MARK} is what separates it from its tenants")
        return value

    return Scalar("text", f"text of 1 to 256 characters without spaces and {NAMESPACE_MARK}", parse)


def _claim_field() -> Scalar:
    def parse(value: Any) -> str:
        if isinstance(value, str) and (value in CLAIM_FIELDS or _ATTRIBUTE.fullmatch(value)):
            return value
        raise Wrong

    return Scalar("request field", f"one of: {', '.join(CLAIM_FIELDS)} or attributes.NAME", parse)


def _claim() -> Scalar:
    def parse(value: Any) -> str:
        if not isinstance(value, str) or not 1 <= len(value) <= 256 or not value.isprintable():
            raise Wrong
        if value.count(".") >= MAX_CLAIM_DEPTH and "://" not in value:
            raise Wrong
        return value

    return Scalar(
        "claim",
        f"the name of a claim, or up to {MAX_CLAIM_DEPTH} names with dots in between for one inside another",
        parse,
    )


JWT: Final = Table(
    "identity.jwt",
    "An issuer whose tokens are believed, written [[identity.jwt]]. Then tenant, user and plan come from the "
    "verified token alone: what the request states is ignored, also from an authenticated gateway. Tenants and users "
    "carry their issuer in front (`NAME|acme`), so no issuer can speak for another's.",
    (
        Key("issuer", _issuer(), "What the claim iss must be, exactly. Unique.", required=True),
        Key(
            "name",
            scalars.text("name", "text that matches [a-z0-9][a-z0-9_.-]{0,63}", r"[a-z0-9][a-z0-9_.-]{0,63}", 64),
            "What stands in front of its tenants and users. Changing it gives every one of them new buckets. Unique.",
            default_doc="the issuer",
        ),
        Key(
            "audience",
            ListOf(scalars.text("text", "printable text of 1 to 256 characters", r".+", 256), 16, 1, single=True),
            "What the claim aud must be, or one of it.",
            required=True,
        ),
        Key("jwks", file_or_url(), "The issuer's public keys, a JWK Set. Either this or secret.", default_doc="none"),
        Key(
            "secret",
            file_name("file"),
            "A file with a secret shared with the issuer, for HS256, HS384 and HS512: at least as many bytes as the "
            "hash has. White space at its ends does not count.",
            default_doc="none",
        ),
        Key(
            "algorithms",
            ListOf(scalars.choice(*TOKEN_ALGORITHMS), len(TOKEN_ALGORITHMS), 1, single=True),
            "How its tokens may be signed. HS... goes with secret, everything else with jwks.",
            required=True,
        ),
        Key(
            "claims",
            MapOf(_claim_field(), _claim(), 64),
            "Which claim says what: request field = claim. A claim of that very name, else names with dots in between. "
            "A claim that is absent leaves its field absent.",
            default={"user": "sub"},
            default_doc='`{ user = "sub" }`',
        ),
        Key(
            "leeway",
            scalars.duration("0s", "5m"),
            "How far the issuer's clock may be off, for exp, nbf and iat.",
            default="30s",
        ),
        Key(
            "typ",
            scalars.text("text", "a media type such as at+jwt", r"[A-Za-z0-9!#$&^_.+/-]+", 128),
            "What the header's typ must be, compared without case and application/.",
            default_doc="any",
        ),
        Key(
            "max_token_bytes",
            scalars.integer(256, 16_384),
            "Longer tokens are refused before anything of them is read.",
            default=8_192,
        ),
        Key(
            "refresh",
            scalars.duration("10s", "24h"),
            "How old keys get before they are fetched again, in the background. A removed key is refused so much later "
            "at most.",
            default="5m",
        ),
        Key(
            "keep",
            scalars.duration("1m", "30d"),
            "How long keys stay in use while they cannot be fetched again.",
            default="24h",
        ),
    ),
)

API_KEYS: Final = Table(
    "identity.api_keys",
    "Keys that this service hands out itself (`POST /v1/keys` of the admin listener), presented in the request field "
    "api_key. Tenant, user and plan are those the key was made with.",
    (
        Key(
            "store",
            file_name("file"),
            "Where keyed hashes of the keys are kept. It is made when the first key is.",
            required=True,
        ),
        Key(
            "secret",
            file_name("file"),
            "A file with the secret that the hashes are keyed with, at least 16 bytes. It is made with the first key.",
            default_doc='store with ".secret" behind it',
        ),
    ),
)

JWT_LIST: Final = TableList(JWT, MAX_ISSUERS)
