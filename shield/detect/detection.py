"""What was detected: the typed record that answers, events and reports are made from."""

from __future__ import annotations

from dataclasses import dataclass

from shield.policy.detector import Detector


@dataclass(frozen=True, slots=True)
class Sample:
    """One of the last requests of a detected key."""

    at_us: int
    target: str | None  # at most 256 characters


@dataclass(frozen=True, slots=True)
class Detection:
    """A key went over what its detector allows."""

    detector: Detector
    at_us: int
    key: tuple[tuple[str, str], ...]  # field and value, in clear; what shows them decides whether it may
    subject: str  # the value that the action is about, "" where the request did not state it
    value: float  # what was measured: units in the bucket, a share, a rate, a size, km/h
    threshold: float  # what it had to pass
    events: int  # that were counted since `since_us`
    since_us: int
    repeats: int  # times that the same key was over since it was last reported
    share: float | None = None
    samples: tuple[Sample, ...] = ()
    request_id: str | None = None
    places: tuple[str, ...] = ()  # travel: where from and where to
    mark: bytes = b""  # the detector and the key, by a keyed hash: the same in all processes that share what they see

    @property
    def name(self) -> str:
        """The detector's name."""
        return self.detector.name
