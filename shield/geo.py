"""Where addresses are: a database in MaxMind's format, read through `maxminddb` (the `geo` extra)."""

from __future__ import annotations

from os import PathLike, fspath
from typing import Any

from shield.detect.travel import DEFAULT_RADIUS_KM, Locate, Place


def open_places(path: str | PathLike[str]) -> Locate:
    """Looks places up in this file. ValueError for a file that is missing, unreadable, or holds no places."""
    try:
        import maxminddb
    except ImportError:
        raise ValueError("maxminddb is not installed; install it with: pip install 'shield-limiter[geo]'") from None
    try:
        reader = maxminddb.open_database(fspath(path))
    except FileNotFoundError:
        raise ValueError(f"{path}: no such file") from None
    except (OSError, maxminddb.InvalidDatabaseError) as error:
        raise ValueError(f"{path}: no MaxMind-format database: {' '.join(str(error).split())[:200]}") from None
    kind = reader.metadata().database_type
    if not any(word in kind for word in ("City", "Location", "Insights", "Enterprise")):
        raise ValueError(f"{path}: found a database of type {kind!r}; allowed: one of places, such as GeoLite2-City")

    def locate(ip: str) -> Place | None:
        try:
            found = reader.get(ip)
        except ValueError:
            return None
        return _place(found)

    return locate


def _place(found: Any) -> Place | None:
    location = found.get("location") if isinstance(found, dict) else None
    if not isinstance(location, dict):
        return None
    latitude, longitude = location.get("latitude"), location.get("longitude")
    if not isinstance(latitude, (int, float)) or not isinstance(longitude, (int, float)):
        return None
    if not (-90 <= latitude <= 90 and -180 <= longitude <= 180):
        return None
    radius = location.get("accuracy_radius")
    country = found.get("country")
    code = country.get("iso_code") if isinstance(country, dict) else None
    asn = found.get("autonomous_system_number") or found.get("traits", {}).get("autonomous_system_number")
    return Place(
        float(latitude),
        float(longitude),
        float(radius) if isinstance(radius, (int, float)) else DEFAULT_RADIUS_KM,
        code if isinstance(code, str) else None,
        str(asn) if isinstance(asn, int) else None,
    )
