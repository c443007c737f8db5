"""Detectors and blocks at work on one Shield's stream.

    request -> blocked? -> decision -> seen(request)     before the answer leaves
    report  -> outcome(facts, status, event)

What was detected is answered (a throttle, a challenge, a block) and then told to the listeners, in the order it was
found; where several processes share what they see, by one of them. A listener that raises is passed over for that one
detection: detecting never keeps a decision from being made.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from shield.block.block import ADDRESS, BLOCKED, CHALLENGE, KINDS, NETWORK, THROTTLE, Block, subject_of
from shield.block.ledger import BlockLedger
from shield.block.lists import BlockLists
from shield.clock import Clock
from shield.detect.detection import Detection
from shield.detect.travel import Locate
from shield.detect.watch import Watch, lightened
from shield.policy import Policy
from shield.policy import detector as model
from shield.policy.detector import ENFORCE, Detector
from shield.request import Request

Listener = Callable[[Detection], None]

_REASONS = {model.BLOCK: BLOCKED, model.CHALLENGE: CHALLENGE, model.THROTTLE: THROTTLE}
# Whom a principal is, the first that a request states.
_PRINCIPALS = ("user", "api_key", "session", "ip")


class Abuse:
    """The detectors of the policy in force, and the blocks. `locate` answers where an address is, for travel; `path` is
    a file in which blocks are kept. BlockFileError for one that cannot be used.
    """

    def __init__(self, *, clock: Clock | None, locate: Locate | None = None, path: Path | None = None) -> None:
        self._clock = clock if clock is not None else time.time_ns
        self._locate = locate
        self._watch: Watch | None = None
        self._ipv6_prefix = 64
        self._blocks_refuse = True
        self.blocks = BlockLedger(self.now_us, path)
        self._secret: bytes | None = None
        self._hold: Callable[[Detection, Request], None] | None = None
        self.listeners: list[Listener] = []
        self.refusal_listeners: list[Callable[[Block, Request, bool], None]] = []
        """Called with a block that refused a request, or with False one that would have."""
        self.listener_faults = 0
        self.refused = 0
        """Requests that blocks refused."""
        self.would_refuse = 0
        """Requests that they would have, were they not in shadow mode."""

    @property
    def watches(self) -> bool:
        """True when the policy has detectors."""
        return self._watch is not None

    @property
    def active(self) -> bool:
        """True when something wants to see requests."""
        return self._watch is not None or not self.blocks.is_empty

    def adopt(self, policy: Policy, lists: BlockLists) -> None:
        """The policy's detectors and lists from now on. Unchanged detectors go on with what they know; a changed set
        starts anew; blocks stay.
        """
        prefix = policy.identity.ipv6_prefix
        if self._watch is None or (self._watch.detectors, self._ipv6_prefix) != (policy.detectors, prefix):
            self._ipv6_prefix = prefix
            self._watch = self._new_watch(policy.detectors) if policy.detectors else None
        self._blocks_refuse = policy.blocks.mode == ENFORCE
        self.blocks.adopt(policy, lists)

    def _new_watch(self, detectors: Sequence[Detector]) -> Watch:
        watch = Watch(detectors, secret=self._secret, ipv6_prefix=self._ipv6_prefix, locate=self._locate)
        if self._secret is not None:
            watch.share()
        return watch

    def now_us(self) -> int:
        """Microseconds since 1970, by the clock that decisions are made by."""
        return self._clock() // 1000

    # ---- requests ----------------------------------------------------------------------------------------------

    def block_of_address(self, request: Request) -> Block | None:
        """The block that a request's address is under: asked before who it comes from."""
        return self.blocks.of_address(request.ip)

    def block_of_subject(self, request: Request) -> Block | None:
        """The block that its user, tenant, API key or session is under: asked when these are certain."""
        return self.blocks.book.of_subject(request, self.now_us())

    def allows(self, request: Request) -> bool:
        """Whether an allow list names it."""
        return self.blocks.book.allows(request)

    def refuses(self, block: Block, request: Request) -> bool:
        """A block is about to refuse a request: whether it does, or only would."""
        if self._blocks_refuse:
            self.refused += 1
        else:
            self.would_refuse += 1
        for listener in self.refusal_listeners:
            try:
                listener(block, request, self._blocks_refuse)
            except Exception:
                self.listener_faults += 1
        return self._blocks_refuse

    def throttle_of(self, request: Request) -> Block | None:
        """The throttle that a request is under."""
        if not self._blocks_refuse:
            return None
        book = self.blocks.book
        throttle = book.throttle_of(request, self.now_us())
        return None if throttle is None or book.allows(request) else throttle

    def seen(self, request: Request) -> Sequence[Detection]:
        """A request that was decided."""
        if self._watch is None:
            return ()
        found = self._watch.request(request, self._clock() // 1000)
        return self._heed(found, request) if found else ()

    def outcome(self, facts: Request, status: int | None, event: str | None) -> Sequence[Detection]:
        """What became of a request, with the facts that tell which it was."""
        if self._watch is None:
            return ()
        found = self._watch.outcome(facts, status, event, self._clock() // 1000)
        return self._heed(found, facts) if found else ()

    def stats(self) -> Mapping[str, Mapping[str, int]]:
        """By detector: what it holds, its bound, and what it found."""
        return {} if self._watch is None else self._watch.stats()

    def block_stats(self) -> dict[str, int]:
        """Of blocks, for metrics."""
        return {
            **self.blocks.stats(),
            "blocks_refused_requests": self.refused,
            "blocks_shadow_refusals": self.would_refuse,
        }

    # ---- several processes -------------------------------------------------------------------------------------

    def share(self, secret: bytes, hold: Callable[[Detection, Request], None]) -> None:
        """From now on other processes see the same: keys are hashed with `secret`, 16 bytes that all of them have, and
        a detection is handed to `hold` instead of being told: whose it is, is settled elsewhere. What was counted with
        another secret is forgotten.
        """
        known, self._secret, self._hold = self._secret, secret, hold
        if self._watch is not None and known != secret:
            self._watch = self._new_watch(self._watch.detectors)

    def unshare(self) -> None:
        """Detections are told at once again."""
        self._hold = None

    def say(self, now_us: int) -> bytes:
        """What other processes are to hear of since it was asked last, b"" for nothing."""
        return b"" if self._watch is None else self._watch.say(now_us)

    def hear(self, parcel: bytes, lag_us: int) -> None:
        """Takes in what another process said `lag_us` ago. ValueError for what is no parcel of this release's."""
        if self._watch is not None:
            for detection, request in self._watch.hear(parcel, self.now_us(), lag_us):
                self._heed([detection], request)

    @property
    def unsaid(self) -> int:
        """Changes that others will not hear of: more keys in a second than there is room for."""
        return 0 if self._watch is None else self._watch.unsaid

    # ---- telling -----------------------------------------------------------------------------------------------

    def _heed(self, found: Sequence[Detection], request: Request) -> Sequence[Detection]:
        if self.allows(request):
            return ()
        for detection in found:
            if self._hold is None:
                self.tell(detection, request)
            else:
                self._hold(detection, lightened(request))
        return found

    def tell(self, detection: Detection, request: Request) -> None:
        """Answers a detection, which was made on this request, and tells the listeners."""
        self._answer(detection, request)
        for listener in self.listeners:
            try:
                listener(detection)
            except Exception:
                self.listener_faults += 1

    def _answer(self, detection: Detection, request: Request) -> None:
        detector = detection.detector
        if detector.action == model.OBSERVE or detector.mode != ENFORCE or not detection.subject:
            return
        kind = detector.subject
        if kind == "principal":
            kind = next((name for name in _PRINCIPALS if getattr(request, name)), "ip")
        if kind not in KINDS:
            return
        # What a detection shows of a subject is cut off; the request has all of it.
        value = detection.subject if kind in (ADDRESS, NETWORK) else getattr(request, kind)
        try:
            subject = subject_of(kind, value, self._ipv6_prefix)
        except (TypeError, ValueError):
            return  # longer than what can be blocked, or no text
        self.blocks.answer(
            subject,
            by=f"detector:{detector.name}",
            why=f"{detection.value:g} against {detection.threshold:g}",
            reason=_REASONS[detector.action],
            factor=detector.factor if detector.action == model.THROTTLE else 1.0,
        )
