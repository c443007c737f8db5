"""Where addresses are: databases in MaxMind's format, read through `maxminddb` (the `geo` extra).

A database of places (City, Enterprise, Insights) says where; beside it, or alone, one of countries (Country) and one of
networks (ASN, ISP) may be given. Files are looked at again every CHECK_S: a new one is taken, one that is broken or
gone is told of once and the old one stays. Replace a file by renaming another onto it: it is mapped, not read.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Sequence
from os import PathLike, fspath
from typing import Any, Final

from shield.detect.travel import DEFAULT_RADIUS_KM, Place

CHECK_S: Final = 10.0
MAX_REMEMBERED: Final = 16_384
"""Addresses whose place is kept at hand; then they are looked up anew."""
PLACES, COUNTRIES, NETWORKS = "places", "countries", "networks"
_KINDS: Final = (
    (PLACES, ("City", "Location", "Insights", "Enterprise")),
    (COUNTRIES, ("Country",)),
    (NETWORKS, ("ASN", "ISP")),
)


class Places:
    """Answers where an address is, by one database of each kind. `report` is told what is wrong with one that changed.

    ValueError for a file that is missing, unreadable, of another kind, or of the same kind as another.
    """

    def __init__(
        self,
        *paths: str | PathLike[str],
        report: Callable[[str], None] | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._paths: Sequence[str] = [fspath(path) for path in paths]
        self._report = report
        self._clock = clock
        self._readers: dict[str, Any] = {}
        self._seen: dict[str, tuple[int, int, int] | None] = {}
        self._remembered: dict[str, Place | None] = {}
        self.faults = 0
        for path in self._paths:
            kind, reader = _open(path)
            if kind in self._readers:
                raise ValueError(f"{path}: found a second database of {kind}; allowed: one of each kind")
            self._readers[kind] = reader
            self._seen[path] = _state(path)
        self._due_s = clock() + CHECK_S

    def __call__(self, ip: str) -> Place | None:
        """The place of an address, None where nothing is known of it."""
        if self._clock() >= self._due_s:
            self.refresh()
        if ip not in self._remembered:
            if len(self._remembered) >= MAX_REMEMBERED:
                self._remembered.clear()
            self._remembered[ip] = self._look_up(ip)
        return self._remembered[ip]

    def refresh(self) -> None:
        """Takes files that have changed."""
        self._due_s = self._clock() + CHECK_S
        for path in self._paths:
            state = _state(path)
            if state == self._seen[path]:
                continue
            self._seen[path] = state
            try:
                kind, reader = _open(path)
                if kind not in self._readers:
                    raise ValueError(f"{path}: found a database of {kind}, which it was not before")
            except ValueError as error:
                self.faults += 1
                if self._report is not None:
                    self._report(f"{error}; the one that was read before stays in use")
            else:
                self._readers[kind] = reader
                self._remembered.clear()

    def _look_up(self, ip: str) -> Place | None:
        found = {kind: self._facts(kind, ip) for kind in self._readers}
        if not any(found.values()):
            return None
        place = found.get(PLACES) or {}
        latitude, longitude, radius_km = _spot(place)
        country = _country(place) or _country(found.get(COUNTRIES) or {})
        asn = _asn(found.get(NETWORKS) or {}) or _asn(place) or _asn(_table(place, "traits"))
        return Place(latitude, longitude, radius_km, country, asn)

    def _facts(self, kind: str, ip: str) -> dict[str, Any] | None:
        try:
            found = self._readers[kind].get(ip)
        except (ValueError, OSError):  # no address; or a file that was written over while it was read
            return None
        return found if isinstance(found, dict) else None


def _open(path: str) -> tuple[str, Any]:
    try:
        import maxminddb
    except ImportError:
        raise ValueError("maxminddb is not installed; install it with: pip install 'shield-limiter[geo]'") from None
    try:
        reader = maxminddb.open_database(path)
    except FileNotFoundError:
        raise ValueError(f"{path}: no such file") from None
    except (OSError, ValueError, maxminddb.InvalidDatabaseError) as error:
        raise ValueError(f"{path}: no MaxMind-format database: {' '.join(str(error).split())[:200]}") from None
    found = reader.metadata().database_type
    for kind, words in _KINDS:
        if any(word in found for word in words):
            return kind, reader
    raise ValueError(f"{path}: found a database of type {found!r}; allowed: one of places, countries or networks")


def _state(path: str) -> tuple[int, int, int] | None:
    """What changes when a file does; None when there is none."""
    try:
        stat = os.stat(path)
    except OSError:
        return None
    return stat.st_ino, stat.st_size, stat.st_mtime_ns


def _spot(place: dict[str, Any]) -> tuple[float, float, float]:
    """Latitude, longitude and accuracy radius; 0, 0 where it is not known, which no journey is reckoned from."""
    location = _table(place, "location")
    latitude, longitude = location.get("latitude"), location.get("longitude")
    radius = location.get("accuracy_radius")
    if not isinstance(latitude, (int, float)) or not isinstance(longitude, (int, float)):
        return 0.0, 0.0, DEFAULT_RADIUS_KM
    if not (-90 <= latitude <= 90 and -180 <= longitude <= 180):
        return 0.0, 0.0, DEFAULT_RADIUS_KM
    return float(latitude), float(longitude), float(radius) if isinstance(radius, (int, float)) else DEFAULT_RADIUS_KM


def _country(facts: dict[str, Any]) -> str | None:
    code = _table(facts, "country").get("iso_code")
    return code if isinstance(code, str) else None


def _asn(facts: dict[str, Any]) -> str | None:
    number = facts.get("autonomous_system_number")
    return str(number) if isinstance(number, int) else None


def _table(facts: dict[str, Any], name: str) -> dict[str, Any]:
    found = facts.get(name)
    return found if isinstance(found, dict) else {}
