"""Who asks, before anything is decided: the first thing that happens to a request of a policy that verifies identity.

    request -> passes(request) -> the same request as its verified principal's, or a refusal

A token that was verified within the last minute, an API key and a request without either are settled at once. Any other
token is verified, which costs a hundred times as much, so first the limits by address are asked, and a failure is
charged to the address: forged tokens spend nobody else's quota and are limited themselves.

What needs a store is a step that is yielded, so the same code serves stores that answer at once and those that are
awaited.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Generator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Final, NamedTuple, cast

import msgspec

from shield.clock import Clock
from shield.compile import compile_policy
from shield.core import Charges, CompiledPolicy, Decision, Registry, SharedTable, Table
from shield.errors import PolicyError, PolicyIssue, RequestError, StoreError
from shield.policy import Policy
from shield.policy.model import Identity, Limit
from shield.request import Request

if TYPE_CHECKING:
    from shield.identity.api_keys import ApiKeys
    from shield.store import Store

MISSING: Final = "a token is needed: Authorization: Bearer TOKEN"
MISSING_KEY: Final = "an API key is needed"
MISSING_EITHER: Final = "a token or an API key is needed"
NOTHING_PRESENTED: Final = (MISSING, MISSING_KEY, MISSING_EITHER)
_OF_KEYS: Final = frozenset(("tenant", "user", "plan"))
NO_KEYS: Final = "the keys of the token's issuer are not at hand yet; try again"


class Step(NamedTuple):
    """Charges to apply: in the store, or in this process's own table."""

    charges: Charges
    here: bool


Steps = Generator[Step, None, Request | Decision]


class Gate:
    """Settles who a request comes from, for one policy. `local`: the store answers at once."""

    def __init__(self, policy: Policy, registry: Registry, *, clock: Clock | None, local: bool) -> None:
        """PolicyError where a file that the policy names cannot be used, or where what verifying needs is missing."""
        identity = policy.identity
        self._clock = clock if clock is not None else time.time_ns
        self._anonymous = identity.anonymous
        self._registry = registry
        self._local = local
        self.issuers = None
        if identity.jwt:
            try:
                from shield.identity.issuers import Issuers
            except ImportError as error:
                raise PolicyError([PolicyIssue("identity.jwt", _NEEDS.format(error.name))]) from None
            self.issuers = Issuers(identity)
            self.issuers.load_files(self.now_us())
        self.api_keys = open_api_keys(identity)
        self.proofs = None
        if policy.replay is not None and policy.replay.schemes:
            try:
                from shield.identity.proofs import Proofs
            except ImportError as error:
                raise PolicyError([PolicyIssue("guard.replay.scheme", _NEEDS.format(error.name))]) from None
            self.proofs = Proofs(policy.replay, identity.directory)
        self.on_unknown_key: Callable[[], None] | None = None
        """Called when a token has named a key that is not there."""
        self._missing = (
            (MISSING if self.api_keys is None else MISSING_EITHER) if self.issuers is not None else MISSING_KEY
        )
        taken = self.issuers.taken if self.issuers is not None else _OF_KEYS if identity.api_keys else frozenset()
        self._fields = {name: None for name in taken if not name.startswith("attributes.")}
        self._attributes = {name.removeprefix("attributes."): None for name in taken if name not in self._fields}
        self.compile(policy)

    def compile(self, policy: Policy) -> None:
        """What is asked before a token is verified, and what is charged after. Again, where another policy has been
        compiled for the same registry since.
        """
        failures = policy.identity.failures
        assert failures is not None
        compiled = partial(_compiled, policy, self._registry)
        # Numbers by plan are not known before: such a limit has its say with all the others.
        asked = [one for one in policy.limits if one.key == ("ip",) and one.mode == "enforce" and not one.plans]
        fined = tuple(one for one in asked if one.count_denied)
        questions = tuple(replace(one, count_denied=False) for one in (*asked, failures))
        self._asking = compiled(questions)
        self._denying = compiled((*asked, replace(failures, count_denied=False))) if fined else None
        self._failing = compiled((*fined, failures))
        self._refusing = compiled(fined)
        # Malformed values are refused before anything else. Guards come after identity: GraphQL is not priced for
        # somebody who may not ask.
        self._stated = compiled(policy.limits)
        # What this process charged, the store was charged too: once that alone is too much, no store need be asked.
        self._asking_here = None if self._local else compiled(questions[-1:])
        self._failing_here = None if self._local else compiled((failures,))

    def now_us(self) -> int:
        """The clock that tokens are judged by."""
        return self._clock() // 1000

    # ---- one request -------------------------------------------------------------------------------------------

    def known(self, request: Request) -> Request | None:
        """The request as its principal's, where that needs no verification and refuses nobody; else None."""
        if self.proofs is not None and self.proofs.wants(request):
            return None
        return self._known(request)

    def _known(self, request: Request) -> Request | None:
        token = request.token
        if token and self.issuers is not None:
            if type(token) is not str:
                return None
            principal = self.issuers.known(token, self._clock() // 1000)
            return None if principal is None else principal.applied(request)
        key = request.api_key
        if key and self.api_keys is not None:
            if type(key) is not str:
                return None
            principal = self.api_keys.find(key, self.now_us())
            return None if principal is None else principal.applied(request)
        return self._bare(request) if self._anonymous else None

    def passes(self, request: Request) -> Steps:
        """The same for any request: the request as its principal's, or the decision that refuses it."""
        bare = self._bare(request)
        planned = self._stated.charges(bare)
        presented: tuple[tuple[str, object], ...] = ("token", request.token), ("api_key", request.api_key)
        for name, value in presented:
            if value is not None and not isinstance(value, str) and planned.reason != "invalid":
                planned = self._refusing.charges(bare)
                planned.turn_away("invalid", f"{name}: expected text, not {type(value).__name__}")
        if planned.reason == "invalid":
            yield Step(planned, False)
            return Decision(planned)
        if not self._presents(request) and not self._anonymous:
            return (yield from self._refuse(self._refusing, bare, self._missing))
        if self._asking_here is not None:
            asking = self._asking_here.charges(bare)
            asking.ask()
            yield Step(asking, True)
            if not asking.fits():
                return Decision(asking)
        # A signature alone costs no round trip: what this process has counted decides.
        if self._local or self._known(request) is None:
            asking = self._asking.charges(bare)
            asking.ask()
            yield Step(asking, False)
            if not asking.fits():
                return (yield from self._deny(asking, bare))
        return (yield from self._verify(request, bare))

    def pass_nowait(self, request: Request, table: Table | SharedTable) -> Request | Decision:
        """`passes` with a store that answers at once."""
        steps = self.passes(request)
        try:
            while True:
                table.apply(next(steps).charges)
        except StopIteration as done:
            return cast("Request | Decision", done.value)

    async def pass_through(self, request: Request, table: Table | SharedTable, store: Store) -> Request | Decision:
        """`passes` with any store; while it is away, the limits do what their when_store_fails says."""
        steps = self.passes(request)
        try:
            while True:
                charges, here = next(steps)
                if here:
                    table.apply(charges)
                    continue
                try:
                    await store.apply(charges)
                except StoreError:
                    table.apply(charges, degraded=True)
        except StopIteration as done:
            return cast("Request | Decision", done.value)

    def _verify(self, request: Request, bare: Request) -> Steps:
        from shield.identity.jose import TokenError

        try:
            passed = self.identify(request)
            return passed if self.proofs is None else self._prove(passed)
        except RequestError as error:
            return (yield from self._refuse(self._refusing, bare, str(error), reason="invalid"))
        except TokenError as error:
            if error.reason == "stale":  # of a signature that says itself how long it is good
                return (yield from self._refuse(self._refusing, bare, error.detail, reason="stale"))
            if error.kid is not None and self.on_unknown_key is not None:
                self.on_unknown_key()
            if error.transient and self.issuers is not None:
                retry_us = self.issuers.retry_us(self.now_us())
                return (yield from self._refuse(self._refusing, bare, NO_KEYS, retry_us))
            refused = yield from self._refuse(self._failing, bare, error.detail)
            # Where the store was away, it has been charged here already.
            if self._failing_here is not None and not refused.degraded:
                yield from self._refuse(self._failing_here, bare, error.detail, here=True)
            return refused

    def _prove(self, request: Request) -> Request:
        """The request with the nonce that it was signed with. TokenError for a wrong signature, RequestError."""
        from shield.identity.jose import TokenError
        from shield.identity.proof import ProofError

        assert self.proofs is not None
        try:
            return self.proofs.applied(request, self._clock() / 1e9)
        except ProofError as error:
            raise TokenError(error.reason, error.detail) from None

    def wants_body(self, request: Request) -> bool:
        """Whether a signature is verified that may speak of the body."""
        return self.proofs is not None and self.proofs.wants(request)

    def identify(self, request: Request) -> Request:
        """The request as its principal's, whatever that costs and whoever asks. TokenError."""
        from shield.identity.jose import TokenError

        if request.token and self.issuers is not None:
            return self.issuers.verify(request.token, self.now_us()).applied(request)
        if request.api_key and self.api_keys is not None:
            principal = self.api_keys.find(request.api_key, self.now_us())
            if principal is None:
                raise TokenError("unknown_key", "the API key is unknown, revoked or expired")
            return principal.applied(request)
        if not self._anonymous:
            raise TokenError("malformed", self._missing)
        return self._bare(request)

    def _presents(self, request: Request) -> bool:
        return bool((request.token and self.issuers is not None) or (request.api_key and self.api_keys is not None))

    def _bare(self, request: Request) -> Request:
        """The request without what only a token may say."""
        if not self._fields and not self._attributes:
            return request
        attributes = request.attributes
        if self._attributes and isinstance(attributes, dict) and not self._attributes.keys().isdisjoint(attributes):
            attributes = {name: value for name, value in attributes.items() if name not in self._attributes}
            return msgspec.structs.replace(request, **self._fields, attributes=attributes)
        if request.tenant is None and request.user is None and request.plan is None and len(self._fields) == 3:
            return request
        return msgspec.structs.replace(request, **self._fields)

    def _refuse(
        self,
        compiled: CompiledPolicy,
        bare: Request,
        detail: str,
        retry_us: int = 0,
        *,
        here: bool = False,
        reason: str = "identity",
    ) -> Generator[Step, None, Decision]:
        charges = compiled.charges(bare)
        charges.turn_away(reason, detail, retry_us)
        yield Step(charges, here)
        return Decision(charges)

    def _deny(self, asked: Charges, bare: Request) -> Steps:
        """A limit by address refuses. Limits that count refusals are charged, so they are asked again in earnest."""
        if self._denying is None:
            return Decision(asked)
        charges = self._denying.charges(bare)
        yield Step(charges, False)
        return Decision(charges)

    # ---- keys --------------------------------------------------------------------------------------------------

    def take_over(self, previous: Gate | None) -> None:
        """Keys that were fetched for the policy before this one."""
        if self.issuers is not None and previous is not None and previous.issuers is not None:
            self.issuers.take_over(previous.issuers)

    async def refresh(self) -> None:
        """Fetches the keys that are due. What goes wrong is in `notes`."""
        if self.issuers is not None:
            await self.issuers.refresh_due(self.now_us())

    def look(self) -> None:
        """Begins to fetch what is due, and reads API keys that another process has changed. Needs a running loop."""
        if self.issuers is not None:
            self.issuers.start_due(self.now_us())
        if self.api_keys is not None:
            self.api_keys.look(self.now_us())

    async def close(self) -> None:
        """Ends what is under way."""
        if self.issuers is not None:
            await self.issuers.close()

    @property
    def notes(self) -> tuple[str, ...]:
        """What an operator should know about keys, one sentence each."""
        mine = self.issuers.notes if self.issuers is not None else ()
        why = self.api_keys.why if self.api_keys is not None else None
        return mine if why is None else (*mine, why)

    def stats(self) -> dict[str, int]:
        """Counts for metrics."""
        counts = self.issuers.stats() if self.issuers is not None else {}
        if self.api_keys is not None:
            counts["identity_api_keys"] = len(self.api_keys)
        return counts


def open_api_keys(identity: Identity) -> ApiKeys | None:
    """The keys that a policy has handed out. PolicyError where they cannot be read."""
    if identity.api_keys is None:
        return None
    from shield.identity.api_keys import ApiKeys, KeyStoreError
    from shield.identity.paths import path_of

    store, secret = identity.api_keys.store, identity.api_keys.secret
    try:
        return ApiKeys(path_of(store, identity.directory), path_of(secret, identity.directory))
    except KeyStoreError as error:
        raise PolicyError([PolicyIssue("identity.api_keys.store", str(error))]) from None


_NEEDS: Final = "{} is not installed; install it with: pip install 'shield-limiter[jwt]'"


def _compiled(policy: Policy, registry: Registry, limits: tuple[Limit, ...]) -> CompiledPolicy:
    """Some limits of a policy and none of its guards."""
    return compile_policy(
        Policy(identity=policy.identity, limits=limits, detectors=policy.detectors, overrides=policy.overrides),
        registry,
    )


def load_checked(path: Path) -> Policy:
    """The policy in a file, together with the files of keys that it names. PolicyError."""
    policy = Policy.load(path)
    if policy.identity.failures is not None:
        Gate(policy, Registry(), clock=None, local=True)
    return policy
