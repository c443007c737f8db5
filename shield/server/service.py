"""What the endpoints share: the shield, its policy's source, and the one way to a decision."""

from __future__ import annotations

import os
from itertools import count
from time import perf_counter

import msgspec

from shield.block import Block
from shield.decision import Decision
from shield.detect.detection import Detection
from shield.errors import PolicyError, PolicyIssue, RequestError
from shield.policy import Policy
from shield.request import Request
from shield.server.abuse_metrics import AbuseMetrics
from shield.server.facts import GatewayFacts
from shield.server.logs import DecisionLog, Log, shown_request_id
from shield.server.metrics import Metrics
from shield.server.security_events import SecurityEvents, SinkError
from shield.server.source import PolicySource
from shield.shield import Shield


class Service:
    """One running Shield and what is told about it."""

    def __init__(self, shield: Shield, source: PolicySource, metrics: Metrics, log: Log) -> None:
        self.shield = shield
        self.source = source
        self.metrics = metrics
        self.log = log
        self.lines = DecisionLog(log, metrics.suppressed)
        self.facts = GatewayFacts(shield.policy.identity)
        self.draining = False
        metrics.add(AbuseMetrics(shield.abuse))
        shield.abuse.listeners.append(self._detected)
        shield.abuse.block_listeners.append(self._blocked)
        self.security: SecurityEvents | None = self._new_events(shield.policy)
        # Ids are for finding lines again, so they need to differ and nothing else.
        self._id_prefix = os.urandom(4).hex()
        self._ids = count(1)

    def _new_events(self, policy: Policy) -> SecurityEvents | None:
        """The policy's events. PolicyError for a sink that cannot be used."""
        if policy.events is None:
            return None
        try:
            return SecurityEvents(policy.events, version=self.metrics.version, now_us=self.shield.abuse.now_us)
        except SinkError as error:
            field, _, why = str(error).partition(": ")
            raise PolicyError([PolicyIssue(field, why)]) from None

    def close(self) -> None:
        """Writes the events that wait."""
        if self.security is not None:
            self.security.close()
            self.security = None

    def _blocked(self, block: Block, lifted: bool) -> None:
        if self.security is not None:
            self.security.blocked(block, lifted)

    def _detected(self, detection: Detection) -> None:
        if self.security is not None:
            self.security.detected(detection)
        self._log_detection(detection)

    def _log_detection(self, detection: Detection) -> None:
        """A line of the log: whom it is about stands in the security event, not here."""
        detector = detection.detector
        self.log.warning(
            "detected",
            detector=detector.name,
            owasp=[*detector.oat, *detector.api],
            severity=detector.severity,
            action=detector.action,
            mode=detector.mode,
            subject=detector.subject,
            value=round(detection.value, 3),
            threshold=round(detection.threshold, 3),
            events=detection.events,
            repeats=detection.repeats,
            request_id=shown_request_id(detection.request_id) if detection.request_id else None,
        )

    def next_request_id(self) -> str:
        """An id for a request that came without one that can be shown."""
        return f"{self._id_prefix}-{next(self._ids):x}"

    async def decide(self, request: Request, endpoint: str) -> Decision:
        """The decision, counted and, where it is a refusal, logged. Every answer carries a request id."""
        if not request.request_id:
            request = msgspec.structs.replace(request, request_id=self.next_request_id())
        started = perf_counter()
        decision = await self.shield.check(request)
        elapsed_s = perf_counter() - started
        self.metrics.decided(decision, elapsed_s)
        if not decision.allowed:
            request_id = shown_request_id(request.request_id) or self.next_request_id()
            self.lines.refused(decision, request_id, endpoint, elapsed_s)
            if self.security is not None:
                self.security.refused(decision, request)
        return decision

    async def replace_policy(self, source: PolicySource, policy: Policy, origin: str) -> None:
        """Puts a valid policy in force: for decisions, for gateway facts and for metrics."""
        previous, changed = self.shield.policy.fingerprint, policy.events != self.shield.policy.events
        fresh = self._new_events(policy) if changed else None
        try:
            await self.shield.replace_policy(policy)
        except BaseException:
            if fresh is not None:
                fresh.close()
            raise
        if changed:
            self.close()
            self.security = fresh
        if self.security is not None:
            self.security.replaced(policy.name, policy.owner, policy.fingerprint, previous)
        self.source = source
        self.facts = GatewayFacts(policy.identity)
        self.metrics.adopt(policy)
        self.metrics.reloaded("replaced")
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

    def policy_refused(self, error: PolicyError, origin: str) -> None:
        """The running policy stays; the log says everything that is wrong with the other one."""
        self.metrics.reloaded("refused")
        self.log.error(
            "policy refused, the running one stays in force",
            origin=origin,
            fingerprint=self.shield.policy.fingerprint,
            issues=[str(issue) for issue in error.issues],
        )


def field_for_log(error: RequestError) -> str | None:
    """The field an error names, if it is one of ours: names of the caller's own choice may be secrets."""
    root = error.field.rpartition("].")[2].partition(".")[0]
    return root if root in Request.__struct_fields__ or root in ("receipt", "leases", "status", "event") else None
