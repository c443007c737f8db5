"""Impossible travel: two logins to one account from places that no journey joins in the time between them.

Great-circle distance by the haversine formula on a sphere of radius 6,371.0088 km (the mean radius of WGS 84). A place
is only known to an accuracy radius; both radii are taken off the distance. Too far is at least `distance_km`, too fast
more than `speed_kmh`, with never less than a minute between two logins. Events may come out of order: each is compared
with the logins before and after it by their own times.

Bounds: `max_keys` accounts, the one seen longest ago is dropped first and counted; of each the last PLACES_KEPT places.
"""

from __future__ import annotations

from bisect import bisect_left
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from math import asin, cos, radians, sin, sqrt

EARTH_RADIUS_KM = 6_371.0088
DEFAULT_RADIUS_KM = 50
MIN_ELAPSED_US = 60_000_000
PLACES_KEPT = 4


@dataclass(frozen=True, slots=True)
class Place:
    """Where an address is, as far as a database knows."""

    latitude: float
    longitude: float
    radius_km: float = DEFAULT_RADIUS_KM
    country: str | None = None
    asn: str | None = None

    def __str__(self) -> str:
        where = f"{self.latitude:.2f},{self.longitude:.2f}"
        return f"{self.country} {where}" if self.country else where


Locate = Callable[[str], Place | None]


@dataclass(frozen=True, slots=True)
class Journey:
    """One that cannot have been."""

    before: Place
    after: Place
    distance_km: float
    speed_kmh: float
    elapsed_us: int


def distance_km(one: Place, other: Place) -> float:
    """Great-circle distance, 0 to half the circumference."""
    latitude, other_latitude = radians(one.latitude), radians(other.latitude)
    half_chord = (
        sin((other_latitude - latitude) / 2) ** 2
        + cos(latitude) * cos(other_latitude) * sin(radians(other.longitude - one.longitude) / 2) ** 2
    )
    return 2 * EARTH_RADIUS_KM * asin(min(1.0, sqrt(half_chord)))


class Journeys:
    """The last places of each account of one detector."""

    def __init__(self, *, least_km: float, speed_kmh: float, keep_us: int, max_keys: int) -> None:
        self._least_km = least_km
        self._speed_kmh = speed_kmh
        self._keep_us = keep_us
        self._max_keys = max_keys
        self._seen: OrderedDict[bytes, list[tuple[int, bytes, Place]]] = OrderedDict()
        self.pushed_out = 0

    def __len__(self) -> int:
        return len(self._seen)

    def login(self, key: bytes, network: bytes, place: Place, at_us: int) -> Journey | None:
        """A login of `key` from `network` (of the address's /24 or /48) at `place`. Of the two journeys it is part of,
        the worse impossible one."""
        if place.latitude == 0 and place.longitude == 0:
            return None  # what databases say where they know nothing
        seen = self._seen.pop(key, [])
        seen = [one for one in seen if one[0] > at_us - self._keep_us]
        at = bisect_left(seen, at_us, key=lambda one: one[0])
        found = [
            journey
            for other in (*seen[max(0, at - 1) : at], *seen[at : at + 1])
            if (journey := self._impossible(other, (at_us, network, place))) is not None
        ]
        seen.insert(at, (at_us, network, place))
        self._seen[key] = seen[-PLACES_KEPT:]
        if len(self._seen) > self._max_keys:
            self._seen.popitem(last=False)
            self.pushed_out += 1
        return max(found, key=lambda one: one.speed_kmh, default=None)

    def _impossible(self, one: tuple[int, bytes, Place], other: tuple[int, bytes, Place]) -> Journey | None:
        before, after = (one, other) if one[0] <= other[0] else (other, one)
        if before[1] == after[1] or (before[2].asn is not None and before[2].asn == after[2].asn):
            return None  # one network serves both: the database is wrong, or the network moves its addresses about
        far_km = distance_km(before[2], after[2]) - before[2].radius_km - after[2].radius_km
        elapsed_us = max(after[0] - before[0], MIN_ELAPSED_US)
        speed_kmh = far_km / (elapsed_us / 3_600_000_000)
        if far_km < self._least_km or speed_kmh <= self._speed_kmh:
            return None
        return Journey(before[2], after[2], far_km, speed_kmh, after[0] - before[0])
