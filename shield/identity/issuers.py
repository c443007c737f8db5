"""All issuers of a policy: whose token is this, is it good, and who does it speak for?

    Issuers(policy.identity).verify(token, now_us) -> Principal       TokenError for a token that is not accepted

Which issuer is asked is what the token says of itself, unverified; that only chooses the keys and rules it is held
against, and another issuer's signature is none of theirs. Verifying never waits: keys are fetched beside it, by
`refresh_due` in the background or, for files, on the way.
"""

from __future__ import annotations

import asyncio
from functools import partial
from hashlib import sha256
from typing import NamedTuple

from shield.errors import PolicyError, PolicyIssue
from shield.identity.cache import MAX_AGE_US, VerifiedTokens
from shield.identity.fetch import read_file, read_url
from shield.identity.jose import TokenError
from shield.identity.jws import parse
from shield.identity.jwt import Verifier, claims_of
from shield.identity.keys import MAX_JWKS_BYTES, MAX_SECRET_BYTES, KeySet
from shield.identity.paths import path_of
from shield.identity.principal import ClaimReader, Principal
from shield.identity.source import KeySource
from shield.policy.model import Identity, JwtIssuer

ALWAYS_TAKEN = frozenset({"tenant", "user", "plan"})


class Issuer(NamedTuple):
    """One [[identity.jwt]], ready to use."""

    policy: JwtIssuer
    verifier: Verifier
    source: KeySource
    claims: ClaimReader


class Issuers:
    """Verifies the tokens of a policy's issuers and remembers for a minute which were good."""

    def __init__(self, identity: Identity) -> None:
        taken = ALWAYS_TAKEN.union(*(policy.claims for policy in identity.jwt))
        self.taken = taken
        """The request fields that tokens decide about, whatever the request states."""
        self._all = [_issuer(policy, identity.directory, taken) for policy in identity.jwt]
        self._by_name = {one.policy.issuer: one for one in self._all}
        self._max_token_bytes = max(policy.max_token_bytes for policy in identity.jwt)
        self._cache = VerifiedTokens()
        self.verified = 0
        self.refused = 0

    def known(self, token: str, now_us: int) -> Principal | None:
        """Who a token speaks for that was verified within the last minute."""
        if len(token) > self._max_token_bytes or not token.isascii():
            return None
        return self._cache.get(sha256(token.encode()).digest(), now_us)

    def verify(self, token: str, now_us: int) -> Principal:
        """Who a token speaks for. TokenError."""
        try:
            principal = self._verify(token, now_us)
        except TokenError as error:
            self.refused += not error.transient
            raise
        self.verified += 1
        self._cache.put(sha256(token.encode()).digest(), principal)
        return principal

    def _verify(self, token: str, now_us: int) -> Principal:
        parsed = parse(token, max_token_bytes=self._max_token_bytes)
        claims = claims_of(parsed)
        named = claims.get("iss")
        issuer = self._by_name.get(named) if isinstance(named, str) else None
        if issuer is None:
            raise TokenError("issuer", "the token is of no issuer that is known here (iss)")
        if len(token) > issuer.policy.max_token_bytes:
            raise TokenError("too_large", f"the token has more than {issuer.policy.max_token_bytes:,} bytes")
        source = issuer.source
        if source.at_once and source.due(now_us):
            source.refresh_nowait(now_us)
        issuer.verifier.keys = source.keys(now_us)
        try:
            verified = issuer.verifier.verify_parsed(parsed, claims, now_us / 1_000_000)
        except TokenError as error:
            if error.kid is not None:
                source.want(error.kid, now_us)
            raise
        until_us = min(verified.expires_s * 1_000_000, now_us + MAX_AGE_US, source.until_us)
        return issuer.claims.read(claims, verified.key, now_us, until_us)

    # ---- keys --------------------------------------------------------------------------------------------------

    def load_files(self, now_us: int) -> None:
        """Reads every file that a policy names. PolicyError: a policy whose keys cannot be had is a wrong one."""
        issues = []
        for at, one in enumerate(self._all):
            if one.source.at_once:
                one.source.refresh_nowait(now_us)
                if one.source.why is not None:
                    key = "secret" if one.policy.jwks is None else "jwks"
                    issues.append(PolicyIssue(f"identity.jwt[{at}].{key}", one.source.why))
        if issues:
            raise PolicyError(issues)

    def due(self, now_us: int) -> list[KeySource]:
        """The sources whose keys are to be fetched now."""
        return [one.source for one in self._all if one.source.due(now_us)]

    async def refresh_due(self, now_us: int) -> None:
        """Fetches what is due, all at once. What goes wrong is in `notes`."""
        await asyncio.gather(*(source.refresh(now_us) for source in self.due(now_us)))

    def start_due(self, now_us: int) -> None:
        """The same without waiting: a slow issuer keeps no other waiting. Needs a running loop."""
        for source in self.due(now_us):
            source.start(now_us)

    async def close(self) -> None:
        """Ends what is under way."""
        await asyncio.gather(*(one.source.close() for one in self._all))

    def retry_us(self, now_us: int) -> int:
        """How long until keys that are missing may be there."""
        return min(one.source.retry_us(now_us) for one in self._all)

    def take_over(self, previous: Issuers) -> None:
        """Of the issuers of an earlier policy, what is still worth something: keys that were fetched from the same
        place by the same rules. Verified tokens are verified again.
        """
        fetched = {_origin(one.policy): one.source for one in previous._all}
        for at, one in enumerate(self._all):
            same = fetched.get(_origin(one.policy))
            if same is not None and not one.source.at_once:
                self._all[at] = one._replace(source=same)
        self._by_name = {one.policy.issuer: one for one in self._all}

    @property
    def notes(self) -> tuple[str, ...]:
        """What an operator should know about the issuers' keys."""
        return tuple(f"{one.policy.name}: {note}" for one in self._all for note in one.source.notes)

    def stats(self) -> dict[str, int]:
        """Counts for metrics."""
        return {
            "identity_tokens_verified": self.verified,
            "identity_tokens_refused": self.refused,
            "identity_tokens_cached": len(self._cache),
            "identity_key_fetches": sum(one.source.fetches for one in self._all),
            "identity_key_fetches_failed": sum(one.source.failed for one in self._all),
        }


def _origin(policy: JwtIssuer) -> tuple[object, ...]:
    return policy.jwks, policy.algorithms, policy.refresh_us, policy.keep_us


def _issuer(policy: JwtIssuer, directory: str | None, taken: frozenset[str]) -> Issuer:
    verifier = Verifier(
        None,
        issuer=policy.issuer,
        audience=policy.audiences,
        algorithms=policy.algorithms,
        leeway_s=policy.leeway_us / 1_000_000,
        typ=policy.typ,
        max_token_bytes=policy.max_token_bytes,
    )
    return Issuer(policy, verifier, _source(policy, directory), ClaimReader(policy.name, policy.claims, taken))


def _source(policy: JwtIssuer, directory: str | None) -> KeySource:
    where = policy.jwks if policy.jwks is not None else policy.secret
    assert where is not None
    source = partial(KeySource, where, refresh_us=policy.refresh_us, keep_us=policy.keep_us)
    if policy.jwks is None:
        path = path_of(where, directory)
        return source(partial(_secret, policy), load=partial(read_file, path, MAX_SECRET_BYTES + 64))
    if where.startswith("file:"):
        return source(partial(_public, policy), load=partial(read_file, path_of(where, directory), MAX_JWKS_BYTES))
    return source(partial(_public, policy), fetch=partial(read_url, where, MAX_JWKS_BYTES))


def _public(policy: JwtIssuer, data: bytes) -> KeySet:
    """Public keys; a secret among them is a mistake of whoever published it, and is not used."""
    keys = KeySet.read(data)
    if any(key.symmetric for key in keys.keys):
        raise TokenError("key_set", "it holds a shared secret; allowed: public keys")
    if keys and not any(key.algorithms & frozenset(policy.algorithms) for key in keys.keys):
        raise TokenError("key_set", f"it holds no key for {', '.join(policy.algorithms)}")
    return keys


def _secret(policy: JwtIssuer, data: bytes) -> KeySet:
    return KeySet.of_secret(data.strip(), policy.algorithms)
