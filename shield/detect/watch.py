"""Watching one stream: requests and outcomes in, detections out. Pure: time is an argument, and nobody waits.

Between two detections this is one call of the compiled core. What stands here happens only when something was detected:
putting names to it, and keeping a general detector silent about what a more particular one has just said (`covers`).
"""

from __future__ import annotations

import ipaddress
import os
from collections.abc import Mapping, Sequence
from typing import Any

from shield.detect.compile import compile_detectors
from shield.detect.detection import Detection, Sample
from shield.detect.travel import Journeys, Locate
from shield.policy.detector import CHANGE, RATIO, TRAVEL, VALUE_CHANGE, Detector
from shield.request import Request

# Subjects whose last report may silence another: a detection is rare, so this holds the last minutes of a busy attack.
MAX_OPEN = 8_192
# Accounts whose last journey was reported.
_MAX_QUIET = 8_192


class Watch:
    """The detectors of one policy and what they remember.

    `secret`: 16 bytes that keys are hashed with; nodes that merge what they saw need the same. `locate` answers where
    an address is; without it `travel` stays silent.
    """

    def __init__(
        self,
        detectors: Sequence[Detector],
        *,
        secret: bytes | None = None,
        ipv6_prefix: int = 64,
        locate: Locate | None = None,
    ) -> None:
        self.detectors = tuple(detectors)
        self._ipv6_prefix = ipv6_prefix
        self._locate = locate
        self.core = compile_detectors(self.detectors, secret=secret or os.urandom(16), ipv6_prefix=ipv6_prefix)
        self._observe = self.core.observe
        self._covered_by: dict[str, tuple[str, ...]] = {
            one.name: tuple(other.name for other in self.detectors if one.name in other.covers)
            for one in self.detectors
        }
        self._open: dict[tuple[str, str, str], int] = {}
        self._quiet: dict[tuple[int, bytes], int] = {}
        self._journeys = {
            at: Journeys(
                least_km=one.distance_km, speed_kmh=one.speed_kmh, keep_us=one.window_us, max_keys=one.max_keys
            )
            for at, one in enumerate(self.detectors)
            if one.measure == TRAVEL
        }
        self.detected = dict.fromkeys((one.name for one in self.detectors), 0)
        self.covered = dict.fromkeys((one.name for one in self.detectors), 0)

    def request(self, request: Request, now_us: int) -> Sequence[Detection]:
        """One request, before it is answered."""
        found = self._observe(request, False, None, None, now_us)
        return () if found is None else self._told(found, request, now_us)

    def outcome(self, facts: Request, status: int | None, event: str | None, now_us: int) -> Sequence[Detection]:
        """What became of one request."""
        found = self._observe(facts, True, status, event, now_us)
        return () if found is None else self._told(found, facts, now_us)

    def stats(self) -> dict[str, Mapping[str, int]]:
        """By detector: keys, pushed_out (keys dropped while they still counted: its bound was reached), size_bytes,
        max_keys, detected, covered."""
        out: dict[str, Mapping[str, int]] = {}
        for at, (detector, counts) in enumerate(zip(self.detectors, self.core.stats(), strict=True)):
            if at in self._journeys:
                journeys = self._journeys[at]
                counts = {**counts, "keys": len(journeys), "pushed_out": journeys.pushed_out}
            name = detector.name
            out[name] = {**counts, "detected": self.detected[name], "covered": self.covered[name]}
        return out

    # ---- something was detected --------------------------------------------------------------------------------

    def _told(self, found: list[tuple[int, dict[str, Any]]], request: Request, now_us: int) -> list[Detection]:
        detections = []
        for at, evidence in found:
            detector = self.detectors[at]
            if detector.measure == TRAVEL:
                detection = self._travelled(at, detector, evidence["key"], request, now_us)
            else:
                detection = self._measured(detector, evidence, request, now_us)
            if detection is not None and not self._is_covered(detection):
                self.detected[detector.name] += 1
                detections.append(detection)
        return detections

    def _measured(self, detector: Detector, evidence: dict[str, Any], request: Request, now_us: int) -> Detection:
        threshold: float = detector.capacity
        if detector.measure == RATIO:
            threshold = detector.share
        elif detector.measure in (CHANGE, VALUE_CHANGE):
            threshold = max(threshold, evidence["baseline"])
        return Detection(
            detector=detector,
            at_us=now_us,
            key=self._key(detector, request),
            subject=self.shown(request, detector.subject),
            value=evidence["value"],
            threshold=threshold,
            events=evidence["events"],
            since_us=evidence["since_us"],
            repeats=evidence["repeats"],
            share=evidence["share"],
            samples=tuple(Sample(at_us, target) for at_us, target in evidence["samples"]),
            request_id=request.request_id,
        )

    def _travelled(self, at: int, detector: Detector, key: bytes, request: Request, now_us: int) -> Detection | None:
        place = self._locate(request.ip) if self._locate is not None and request.ip else None
        if place is None:
            return None
        journey = self._journeys[at].login(key, self.shown(request, "network"), place, now_us)
        if journey is None or self._quiet.get((at, key), 0) > now_us:
            return None
        if len(self._quiet) >= _MAX_QUIET:
            del self._quiet[next(iter(self._quiet))]
        self._quiet[at, key] = now_us + detector.quiet_us
        return Detection(
            detector=detector,
            at_us=now_us,
            key=self._key(detector, request),
            subject=self.shown(request, detector.subject),
            value=round(journey.speed_kmh, 1),
            threshold=detector.speed_kmh,
            events=2,
            since_us=now_us - journey.elapsed_us,
            repeats=0,
            request_id=request.request_id,
            places=(str(journey.before), str(journey.after)),
        )

    def _is_covered(self, detection: Detection) -> bool:
        name, kind, subject, now_us = detection.name, detection.detector.subject, detection.subject, detection.at_us
        for other in self._covered_by[name]:
            if self._open.get((other, kind, subject), 0) > now_us:
                self.covered[name] += 1
                return True
        if detection.detector.covers:
            self._open.pop((name, kind, subject), None)
            if len(self._open) >= MAX_OPEN:
                del self._open[next(iter(self._open))]
            self._open[name, kind, subject] = now_us + detection.detector.quiet_us
        return False

    def _key(self, detector: Detector, request: Request) -> tuple[tuple[str, str], ...]:
        fields = (field.removesuffix("?") for field in detector.key)
        return tuple((field, self.shown(request, field)) for field in fields)

    def shown(self, request: Request, field: str) -> str:
        """A field's value as people write it; "" where it is absent. Addresses with the prefix that they count by."""
        if field == "principal":
            field = next((name for name in ("user", "api_key", "session", "ip") if getattr(request, name)), "ip")
        value = self.core.value(request, field)
        if isinstance(value, bytes):
            address = ipaddress.ip_address(value)
            if field == "network":
                return f"{address}/{24 if len(value) == 4 else 48}"
            return str(address) if len(value) == 4 or self._ipv6_prefix == 128 else f"{address}/{self._ipv6_prefix}"
        return "" if value is None else str(value)[:256]
