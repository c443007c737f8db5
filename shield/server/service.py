"""What the endpoints share: the shield, its policy's source, and the one way to a decision."""

from __future__ import annotations

import asyncio
import os
from abc import ABC, abstractmethod
from time import perf_counter
from typing import TYPE_CHECKING, Any

from msgspec.structs import force_setattr

from shield.core.http_lane import RequestIds
from shield.decision import Decision
from shield.errors import PolicyError, PolicyIssue, RequestError, ShieldError
from shield.policy import Policy
from shield.request import Request
from shield.server.facts import GatewayFacts
from shield.server.logs import DecisionLog, Log, shown_request_id
from shield.server.metrics import Metrics
from shield.server.pressure import Pressure
from shield.server.security_events import SecurityEvents, SinkError
from shield.server.source import PolicySource
from shield.shield import Shield

if TYPE_CHECKING:
    from shield.block.block import Block
    from shield.block.ledger import BlockLedger
    from shield.detect.detection import Detection
    from shield.identity.api_keys import ApiKeys


class PolicyChanged(ShieldError):
    """Somebody else replaced the policy first: `in_force` is the fingerprint of what runs now."""

    def __init__(self, in_force: str) -> None:
        self.in_force = in_force
        super().__init__(f"the policy in force is {in_force}")


class Front(ABC):
    """What the listeners of a process need, whether it decides by itself or supervises those that do: ids,
    counts, the log, and what an operator may ask for and change.
    """

    source: PolicySource
    """Of the policy in force."""

    def __init__(self, metrics: Metrics, log: Log, events_key: bytes | None = None) -> None:
        self.metrics = metrics
        self.log = log
        self.lines = DecisionLog(log, metrics.suppressed)
        self.pressure = Pressure(metrics.shed)
        self.security: SecurityEvents | None = None
        """Of the policy in force, if it wants any."""
        self._events_key = events_key
        self._events_before: dict[str, int] = {}
        metrics.add(self._event_stats)
        self.draining = False
        # Ids are for finding lines again, so they need to differ and nothing else.
        self.ids = RequestIds(os.urandom(4).hex())

    def next_request_id(self) -> str:
        """An id for a request that came without one that can be shown."""
        return self.ids.next()

    @property
    @abstractmethod
    def policy(self) -> Policy:
        """The one in force."""

    @property
    @abstractmethod
    def blocks(self) -> BlockLedger:
        """Who is blocked, as far as it has got about."""

    @abstractmethod
    def now_us(self) -> int:
        """The clock that blocks end by."""

    @property
    @abstractmethod
    def api_keys(self) -> ApiKeys | None:
        """The keys of the policy in force, if it has any. Whoever decides by them elsewhere on this host notices a
        change within a second.
        """

    @abstractmethod
    async def replace_policy(
        self, source: PolicySource, policy: Policy, origin: str, *, expected: str | None = None
    ) -> str:
        """Puts a valid policy in force, tells, and returns the fingerprint of the one that was replaced.

        PolicyChanged when that is not `expected`; PolicyError when the new one cannot be put in force.
        """

    @abstractmethod
    def readiness(self) -> dict[str, Any]:
        """`ready` to take requests, `draining`, `degraded`: decisions lack the store's truth; `store`."""

    @abstractmethod
    async def exposition(self, accept: str) -> tuple[bytes, str]:
        """The metrics and their content type, in the format that `accept` prefers."""

    def policy_refused(self, error: PolicyError, origin: str) -> None:
        """The running policy stays; counts it, and the log says everything that is wrong with the other one."""
        self.metrics.reloaded("refused")
        if self.security is not None:
            self.security.kept(self.policy.fingerprint, [str(issue) for issue in error.issues])
        self.log.error(
            "policy refused, the running one stays in force",
            origin=origin,
            fingerprint=self.policy.fingerprint,
            issues=[str(issue) for issue in error.issues],
        )

    def policy_replaced(self, policy: Policy, previous: str, origin: str) -> None:
        """Counts and logs that a policy was put in force."""
        self.metrics.reloaded("replaced")
        if self.security is not None:
            self.security.replaced(policy.name, policy.owner, policy.fingerprint, previous)
        self.log.info(
            "policy replaced",
            origin=origin,
            name=policy.name,
            owner=policy.owner,
            fingerprint=policy.fingerprint,
            previous=previous,
            limits=len(policy.limits),
            warnings=list(policy.warnings()),
        )

    # ---- security events -----------------------------------------------------------------------------------

    def new_events(self, policy: Policy) -> SecurityEvents | None:
        """A policy's events. PolicyError for a sink that cannot be used."""
        if policy.events is None:
            return None
        try:
            return SecurityEvents(
                policy.events,
                version=self.metrics.version,
                now_us=self.now_us,
                key=self._events_key,
                directory=policy.identity.directory,
            )
        except SinkError as error:
            field, _, why = str(error).partition(": ")
            raise PolicyError([PolicyIssue(field, why)]) from None

    def check_events(self, policy: Policy) -> None:
        """PolicyError where a policy's events cannot be written."""
        if (events := self.new_events(policy)) is not None:
            events.close()

    def adopt_events(self, policy: Policy, before: Policy | None = None) -> None:
        """A policy's events from now on; `before` had those that there are."""
        if before is not None and before.events == policy.events:
            return
        try:
            fresh = self.new_events(policy)
        except PolicyError as error:  # it could be used a moment ago
            self.log.error("security events go on as they were", issues=[str(issue) for issue in error.issues])
            return
        self.close()
        self.security = fresh

    def close(self) -> None:
        """Writes the events that wait."""
        if self.security is not None:
            self.security.close()
            self._events_before = self._event_stats()
            self.security = None

    def _event_stats(self) -> dict[str, int]:
        now = self.security.stats() if self.security is not None else {}
        return {name: now.get(name, 0) + self._events_before.get(name, 0) for name in now or self._events_before}

    def block_said(self, block: Block) -> None:
        """A block was set or lifted here."""
        if self.security is not None:
            self.security.blocked(block)

    def tick(self) -> None:
        """Every second."""
        if self.security is not None:
            self.security.tick()


class Service(Front):
    """One running Shield and what is told about it."""

    def __init__(
        self, shield: Shield, source: PolicySource, metrics: Metrics, log: Log, events_key: bytes | None = None
    ) -> None:
        """PolicyError where the policy's security events cannot be written."""
        super().__init__(metrics, log, events_key)
        self.shield = shield
        self.source = source
        self.facts = GatewayFacts(shield.policy.identity, signed=shield.policy.signed)
        shield.abuse.listeners.append(self._detected)
        shield.abuse.refusal_listeners.append(self._would_refuse)
        shield.abuse.blocks.listeners.append(self.block_said)
        self.security = self.new_events(shield.policy)
        self._changing = asyncio.Lock()
        self._told_of_keys: tuple[str, ...] = ()
        self._told_of_blocks: tuple[str, ...] = ()

    async def decide(self, request: Request, endpoint: str) -> Decision:
        """The decision, counted and, where it is a refusal, logged. Every answer carries a request id: `request` is
        given one where it has none, so it must be the caller's own.
        """
        if not request.request_id:
            # Nobody else has seen this request yet, and a copy costs.
            force_setattr(request, "request_id", self.next_request_id())
        pressure = self.pressure
        pressure.waiting += 1
        started = perf_counter()
        try:
            decision = await self.shield.check(request)
        finally:
            pressure.waiting -= 1
        elapsed_s = perf_counter() - started
        self.judged(decision, endpoint, elapsed_s)
        return decision

    def decide_nowait(self, request: Request, endpoint: str) -> Decision:
        """`decide` where the store is in this process."""
        if not request.request_id:
            force_setattr(request, "request_id", self.next_request_id())
        started = perf_counter()
        decision = self.shield.check_nowait(request)
        elapsed_s = perf_counter() - started
        self.judged(decision, endpoint, elapsed_s)
        return decision

    def judged(self, decision: Decision, endpoint: str, elapsed_s: float) -> None:
        """Counts a decision, and logs and tells of a refusal."""
        self.metrics.decided(decision, elapsed_s)
        if not decision.allowed:
            request_id = shown_request_id(decision.request_id) or self.next_request_id()
            self.lines.refused(decision, request_id, endpoint, elapsed_s)
            if self.security is not None:
                self.security.refused(decision)

    def _detected(self, detection: Detection) -> None:
        if self.security is not None:
            self.security.detected(detection)
        self.lines.detected(detection)

    def _would_refuse(self, block: Block, request: Request, refused: bool) -> None:
        if not refused and self.security is not None:
            self.security.would_refuse(block, request)

    async def adopt(self, source: PolicySource, policy: Policy) -> None:
        """Puts a valid policy in force: for decisions, for gateway facts and for metrics."""
        before = self.policy
        await self.shield.replace_policy(policy)
        self.adopt_events(policy, before)
        self.source = source
        self.facts = GatewayFacts(policy.identity, signed=policy.signed)
        self.metrics.adopt(policy)

    # ---- for operators -------------------------------------------------------------------------------------

    @property
    def policy(self) -> Policy:
        return self.shield.policy

    @property
    def api_keys(self) -> ApiKeys | None:
        return self.shield.api_keys

    @property
    def blocks(self) -> BlockLedger:
        return self.shield.abuse.blocks

    def now_us(self) -> int:
        return self.shield.abuse.now_us()

    async def make_room(self, policy: Policy) -> None:
        """After this `adopt` with the same policy cannot fail. PolicyError."""
        self.check_events(policy)
        await self.shield.make_room(policy)

    def tick(self) -> None:
        super().tick()
        self.tell_of_keys()
        self.tell_of_blocks()

    async def replace_policy(
        self, source: PolicySource, policy: Policy, origin: str, *, expected: str | None = None
    ) -> str:
        async with self._changing:  # it may wait for keys, and who comes meanwhile has to see what it did
            previous = self.policy.fingerprint
            if expected not in (None, previous):
                raise PolicyChanged(previous)
            self.check_events(policy)
            await self.adopt(source, policy)
            self.policy_replaced(policy, previous, origin)
        return previous

    def readiness(self) -> dict[str, Any]:
        return {
            "ready": not self.draining,
            "draining": self.draining,
            "degraded": not self.shield.ready,
            "store": self.shield.store.name,
        }

    async def exposition(self, accept: str) -> tuple[bytes, str]:
        return self.metrics.render(accept)

    def tell_of_keys(self) -> tuple[str, ...]:
        """What an operator should know about keys that identity is verified with; logged when it is news."""
        notes = self.shield.identity_notes
        if notes != self._told_of_keys:
            self._told_of_keys = notes
            if notes:
                self.log.warning("keys of identity", notes=list(notes))
            else:
                self.log.info("keys of identity are all usable again")
        return notes

    def tell_of_blocks(self) -> tuple[str, ...]:
        """What an operator should know about block lists; logged when it is news."""
        notes = self.shield.block_notes
        if notes != self._told_of_blocks:
            self._told_of_blocks = notes
            if notes:
                self.log.warning("block lists", notes=list(notes))
            else:
                self.log.info("block lists are all read again")
        return notes


def field_for_log(error: RequestError) -> str | None:
    """The field an error names, if it is one of ours: names of the caller's own choice may be secrets."""
    root = error.field.rpartition("].")[2].partition(".")[0]
    return (
        root
        if root in Request.__struct_fields__
        or root in ("receipt", "leases", "status", "event", "type_cost", "owner", "action", "response")
        else None
    )
