"""What a policy says about detectors: plain frozen values, checked by the loader and never again."""

from __future__ import annotations

from dataclasses import dataclass, field

COUNT = "count"
DISTINCT = "distinct"
SUM = "sum"
RATIO = "ratio"
CHANGE = "change"
VALUE_CHANGE = "value-change"
TRAVEL = "travel"
MEASURES = (COUNT, DISTINCT, SUM, RATIO, CHANGE, VALUE_CHANGE, TRAVEL)

OBSERVE = "observe"
THROTTLE = "throttle"
CHALLENGE = "challenge"
BLOCK = "block"
ACTIONS = (OBSERVE, THROTTLE, CHALLENGE, BLOCK)

ENFORCE = "enforce"
SHADOW = "shadow"
DEFAULT_FACTOR = 0.1

SUBJECTS = ("ip", "network", "user", "tenant", "api_key", "session", "principal")
SEVERITIES = ("info", "low", "medium", "high", "critical")

# Where nothing else is said, an average over the past learns this much from each bin or value (100 of them: 0.6 percent
# of the oldest is left), asks for this many first, and wants this many deviations.
DEFAULT_WEIGHT = 0.05
DEFAULT_WARM_UP = 30
DEFAULT_DEVIATIONS = 4.0


@dataclass(frozen=True, slots=True)
class Condition:
    """Which events a detector looks at: all that is said must hold. Empty means every event."""

    methods: tuple[str, ...] = ()  # upper case
    paths: tuple[str, ...] = ()  # templates as written
    statuses: tuple[int, ...] = ()
    events: tuple[str, ...] = ()
    traits: tuple[str, ...] = ()  # all of them
    without: tuple[str, ...] = ()  # none of them
    agents: tuple[str, ...] = ()  # one of these texts is part of the User-Agent, without case
    countries: tuple[str, ...] = ()  # attributes.country
    asns: tuple[str, ...] = ()  # attributes.asn

    @property
    def of_outcomes(self) -> bool:
        """True when it can only be known once the request was answered."""
        return bool(self.statuses or self.events)


@dataclass(frozen=True, slots=True)
class Detector:
    """One kind of abuse: which events, counted by what, how measured, and what is done about it."""

    name: str
    on: tuple[Condition, ...]  # any of them
    failing: tuple[Condition, ...]  # which of those are failures; () where no share is asked for
    key: tuple[str, ...]  # fields; "host?" may be absent
    measure: str  # one of MEASURES
    of: str | None  # the field whose values or amounts are measured
    capacity: int  # units; change: the least that is ever too much
    leak_units: int  # reduced: this many units ...
    leak_us: int  # ... drain in so many microseconds
    share: float  # of failures; 0 asks for none
    minimum: int  # events before a share counts; bins or values before a change counts
    window_us: int  # of a share; a bin of a change
    weight: float
    deviations: float
    distance_km: int
    speed_kmh: int
    quiet_us: int  # a key that was detected is not reported again for so long
    action: str  # one of ACTIONS
    subject: str  # whom the action is about, one of SUBJECTS
    max_keys: int
    covers: tuple[str, ...]  # detectors that say nothing more of a subject that this one has just reported
    severity: str
    oat: tuple[str, ...]  # OWASP automated threats
    api: tuple[str, ...]  # OWASP API security risks
    note: str
    packaged: bool
    factor: float = field(default=DEFAULT_FACTOR, metadata={"late": True})  # throttle: of what the limits allow
    mode: str = field(default=ENFORCE, metadata={"late": True})  # SHADOW: what it would have done is only told

    @property
    def identity(self) -> str:
        """What makes two detectors the same family of states: everything but numbers and conduct."""
        return "|".join(
            (self.name, self.measure, ",".join(self.key), self.of or "", str(self.leak_units), str(self.leak_us))
        )
