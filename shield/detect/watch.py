"""Watching one stream: requests and outcomes in, detections out. Pure: time is an argument, and nobody waits.

Between two detections this is one call of the compiled core. What stands here happens only when something was detected:
putting names to it, and keeping a general detector silent about what a more particular one has just said (`covers`).
"""

from __future__ import annotations

import hashlib
import ipaddress
import os
from collections import deque
from collections.abc import Mapping, Sequence
from typing import Any

import msgspec

from shield.detect.compile import compile_detectors
from shield.detect.detection import Detection, Sample
from shield.detect.parcel import MAX_COUNT_BYTES, MAX_LOGINS, MAX_REPORTED, Login, pack, unpack
from shield.detect.travel import Journey, Journeys, Locate
from shield.policy.detector import CHANGE, RATIO, TRAVEL, VALUE_CHANGE, Detector
from shield.request import Request

# Subjects whose last report may silence another: a detection is rare, so this holds the last minutes of a busy attack.
MAX_OPEN = 8_192
# Accounts whose last journey was reported.
_MAX_QUIET = 8_192
# Logins that others are still to hear of: five seconds of a busy hour.
MAX_LOGINS_WAITING = 1_024


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
        self._secret = secret or os.urandom(16)
        self.core = compile_detectors(self.detectors, secret=self._secret, ipv6_prefix=ipv6_prefix, locate=locate)
        self._observe = self.core.observe
        self._covered_by: dict[str, tuple[str, ...]] = {
            one.name: tuple(other.name for other in self.detectors if one.name in other.covers)
            for one in self.detectors
        }
        self._open: dict[bytes, int] = {}  # (detector, subject), keyed, and until when
        self._quiet: dict[tuple[int, bytes], int] = {}
        self._journeys = {
            at: Journeys(
                least_km=one.distance_km, speed_kmh=one.speed_kmh, keep_us=one.window_us, max_keys=one.max_keys
            )
            for at, one in enumerate(self.detectors)
            if one.measure == TRAVEL
        }
        self._shares = False
        self._logins: deque[tuple[int, Login, int, Request]] = deque()
        self._login_requests: tuple[dict[tuple[int, bytes], Request], dict[tuple[int, bytes], Request]] = ({}, {})
        self._reported: deque[tuple[bytes, int]] = deque()
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

    # ---- several processes -------------------------------------------------------------------------------------

    def share(self) -> None:
        """From now on it is noted what other processes are to hear of."""
        self._shares = True
        self.core.share(lightened)

    @property
    def unsaid(self) -> int:
        """Changes of keys that others will not hear of: more in a second than there is room for."""
        return self.core.unsaid

    def say(self, now_us: int) -> bytes:
        """A parcel of what this process has seen since the last one; b"" for nothing."""
        logins: list[Login] = []
        self._login_requests = ({}, self._login_requests[0])
        while self._logins and len(logins) < MAX_LOGINS:
            at, login, at_us, request = self._logins.popleft()
            self._login_requests[0][at, login.key] = request
            logins.append(msgspec.structs.replace(login, ago_us=max(0, now_us - at_us)))
        reported: list[tuple[bytes, int]] = []
        while self._reported and len(reported) < MAX_REPORTED:
            who, until_us = self._reported.popleft()
            if until_us > now_us:
                reported.append((who, until_us - now_us))
        return pack(self.core.say(now_us, MAX_COUNT_BYTES), logins, reported)

    def hear(self, data: bytes, now_us: int, lag_us: int) -> Sequence[tuple[Detection, Request]]:
        """Takes in a parcel of another process, of `lag_us` ago. What goes too far by it, where this process has seen
        the key as well, with the request by which it did. ValueError for what is no parcel of this release's."""
        parcel = unpack(data)
        for who, left_us in parcel.reported[:MAX_REPORTED]:
            self._note_open(who, now_us + max(0, left_us - lag_us))
        found: list[tuple[Detection, Request]] = []
        for at, evidence, request in self.core.hear(parcel.counts, now_us, lag_us):
            found += ((one, request) for one in self._told([(at, evidence)], request, now_us))
        for login in parcel.logins[:MAX_LOGINS]:
            found += self._heard_login(login, now_us, now_us - max(0, login.ago_us + lag_us))
        return found

    def _heard_login(self, login: Login, now_us: int, at_us: int) -> list[tuple[Detection, Request]]:
        for at, journeys in self._journeys.items():
            if self._keyed("travel", self.detectors[at].identity)[:8] != login.detector:
                continue
            journey = journeys.login(login.key, login.network, login.place, at_us)
            request = next((seen[at, login.key] for seen in self._own_logins() if (at, login.key) in seen), None)
            if journey is None or request is None:
                continue
            detection = self._journey(at, self.detectors[at], login.key, journey, request, now_us)
            return [(detection, request)] if detection is not None and self._counts(detection) else []
        return []

    def _own_logins(self) -> tuple[dict[tuple[int, bytes], Request], ...]:
        waiting = {(at, login.key): request for at, login, _, request in self._logins}
        return (waiting, *self._login_requests)

    def _keyed(self, *parts: str) -> bytes:
        """16 bytes that say which they are to whoever has the same secret, and nothing to others."""
        text = "\0".join(parts).encode("utf-8", "surrogatepass")
        return hashlib.blake2s(text, key=self._secret, digest_size=16).digest()

    # ---- something was detected --------------------------------------------------------------------------------

    def _told(self, found: list[tuple[int, dict[str, Any]]], request: Request, now_us: int) -> list[Detection]:
        detections = []
        for at, evidence in found:
            detector = self.detectors[at]
            if detector.measure == TRAVEL:
                detection = self._travelled(at, detector, evidence["key"], request, now_us)
            else:
                detection = self._measured(detector, evidence, request, now_us)
            if detection is not None and self._counts(detection):
                detections.append(detection)
        return detections

    def _counts(self, detection: Detection) -> bool:
        if self._is_covered(detection):
            return False
        self.detected[detection.name] += 1
        return True

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
            mark=evidence["key"],
        )

    def _travelled(self, at: int, detector: Detector, key: bytes, request: Request, now_us: int) -> Detection | None:
        place = self._locate(request.ip) if self._locate is not None and request.ip else None
        if place is None:
            return None
        network = self._keyed("network", self.shown(request, "network"))
        journey = self._journeys[at].login(key, network, place, now_us)
        if self._shares:
            if len(self._logins) >= MAX_LOGINS_WAITING:
                self._logins.popleft()
            which = self._keyed("travel", detector.identity)[:8]
            spot = (place.latitude, place.longitude, place.radius_km, place.country, place.asn)
            self._logins.append((at, Login(which, key, network, 0, *spot), now_us, lightened(request)))
        return None if journey is None else self._journey(at, detector, key, journey, request, now_us)

    def _journey(
        self, at: int, detector: Detector, key: bytes, journey: Journey, request: Request, now_us: int
    ) -> Detection | None:
        if self._quiet.get((at, key), 0) > now_us:
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
            mark=key,
        )

    def _is_covered(self, detection: Detection) -> bool:
        name, kind, subject, now_us = detection.name, detection.detector.subject, detection.subject, detection.at_us
        for other in self._covered_by[name]:
            if self._open.get(self._keyed("open", other, kind, subject), 0) > now_us:
                self.covered[name] += 1
                return True
        if detection.detector.covers:
            who, until_us = self._keyed("open", name, kind, subject), now_us + detection.detector.quiet_us
            self._note_open(who, until_us)
            if self._shares:
                if len(self._reported) >= MAX_OPEN:
                    self._reported.popleft()
                self._reported.append((who, until_us))
        return False

    def _note_open(self, who: bytes, until_us: int) -> None:
        self._open.pop(who, None)
        if len(self._open) >= MAX_OPEN:
            del self._open[next(iter(self._open))]
        self._open[who] = until_us

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


# Texts of a request that may name a key or a subject, as long as they are no longer than this.
_NAMING = ("tenant", "user", "ip", "method", "path", "host", "api_key", "session", "user_agent", "request_id")
_MAX_KEPT_CHARS = 4_096
_MAX_KEPT_ATTRIBUTES = 32


def lightened(request: Request) -> Request:
    """What is kept of a request for as long as it may have to name a key: no body, nothing long."""
    kept: dict[str, Any] = {}
    for name in _NAMING:
        value = getattr(request, name, None)
        if isinstance(value, str) and len(value) <= _MAX_KEPT_CHARS:
            kept[name] = value
    attributes = request.attributes
    if isinstance(attributes, dict):
        some = list(attributes.items())[:_MAX_KEPT_ATTRIBUTES]
        kept["attributes"] = {name: value for name, value in some if len(str(value)[:257]) <= 256}
    return Request(**kept)
