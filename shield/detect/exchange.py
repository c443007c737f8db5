"""Where the processes that share what their detectors see meet: what they hand over, and what they take."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, Protocol

OWNER_BYTES: Final = 16


@dataclass(frozen=True, slots=True)
class Said:
    """One parcel. `held_us`: for how long it has been ready when it was handed over, or had when it was taken."""

    node: bytes
    number: int
    held_us: int
    data: bytes


@dataclass(frozen=True, slots=True)
class Claim:
    """That `owner` tells of `mark`, for so long."""

    mark: bytes
    owner: bytes
    lasts_us: int


@dataclass(frozen=True, slots=True)
class Swapped:
    """Which claims are the asker's own, and what others said."""

    won: Sequence[bool]
    heard: Sequence[Said]


class Exchange(Protocol):
    """Where processes meet."""

    async def swap(self, said: Said | None, claims: Sequence[Claim]) -> Swapped:
        """Hands over and takes. A claim that is made again by its owner is still its own. StoreError."""
