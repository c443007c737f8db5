"""Writes small databases in MaxMind's format: a binary tree over the bits of IPv4 addresses, the data they lead to, and
what the file says of itself. The specification is MaxMind-DB-spec.md of maxmind/MaxMind-DB (format 2.0).
"""

from __future__ import annotations

import ipaddress
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

_MARKER = b"\xab\xcd\xefMaxMind.com"
_SEPARATOR = bytes(16)
_UINT16, _UINT32, _UINT64 = 5, 6, 9


class _Whole(NamedTuple):
    """A whole number of a size that the format prescribes."""

    value: int
    kind: int


def write_database(path: Path, networks: Mapping[str, Mapping[str, Any]], kind: str = "GeoLite2-City") -> Path:
    """A file of these networks ("203.0.113.0/24") and what is known of each."""
    nodes: list[list[int | None]] = [[None, None]]  # None: nothing there; a negative number: data at ~number
    data = b""
    for network, facts in networks.items():
        prefix = ipaddress.IPv4Network(network)
        at = len(data)
        data += _encoded(facts)
        bits = f"{int(prefix.network_address):032b}"[: prefix.prefixlen]
        node = 0
        for bit in bits[:-1]:
            following = nodes[node][int(bit)]
            if following is None:
                nodes.append([None, None])
                following = nodes[node][int(bit)] = len(nodes) - 1
            node = following
        nodes[node][int(bits[-1])] = ~at
    tree = b"".join(_record(record, len(nodes)) for node in nodes for record in node)
    about = {
        "binary_format_major_version": _Whole(2, _UINT16),
        "binary_format_minor_version": _Whole(0, _UINT16),
        "build_epoch": _Whole(1_763_900_000, _UINT64),
        "database_type": kind,
        "description": {"en": "a test's own"},
        "ip_version": _Whole(4, _UINT16),
        "languages": ["en"],
        "node_count": len(nodes),
        "record_size": _Whole(24, _UINT16),
    }
    new = path.with_suffix(".new")
    new.write_bytes(tree + _SEPARATOR + data + _MARKER + _encoded(about))
    new.replace(path)
    return path


def city(latitude: float, longitude: float, country: str, radius_km: int = 20) -> dict[str, Any]:
    """What a database of places knows of one."""
    location = {"latitude": latitude, "longitude": longitude, "accuracy_radius": radius_km}
    return {"location": location, "country": {"iso_code": country}}


def _record(record: int | None, node_count: int) -> bytes:
    if record is None:
        value = node_count
    elif record < 0:
        value = node_count + len(_SEPARATOR) + ~record
    else:
        value = record
    return value.to_bytes(3, "big")


def _encoded(value: Any) -> bytes:
    if isinstance(value, str):
        raw = value.encode()
        return _control(2, len(raw)) + raw
    if isinstance(value, float):
        return _control(3, 8) + struct.pack(">d", value)
    if isinstance(value, int):
        value = _Whole(value, _UINT32)
    if isinstance(value, _Whole):
        raw = value.value.to_bytes((value.value.bit_length() + 7) // 8, "big")
        return _control(value.kind, len(raw)) + raw
    if isinstance(value, Mapping):
        return _control(7, len(value)) + b"".join(_encoded(key) + _encoded(one) for key, one in value.items())
    return _control(11, len(value)) + b"".join(_encoded(one) for one in value)


def _control(kind: int, size: int) -> bytes:
    """The byte before a value, and what belongs to it: types past 7 have a byte of their own, sizes past 28 too."""
    assert size < 285
    first = (kind if kind <= 7 else 0) << 5 | min(size, 29)
    extended = bytes([kind - 7]) if kind > 7 else b""
    return bytes([first]) + extended + (bytes([size - 29]) if size >= 29 else b"")
