"""What one process tells the others of a second: counts by the compiled core, logins by place, and what was reported.

A parcel is msgpack: [FORMAT, counts, logins, reported]. Whoever reads another format than its own leaves it alone, so
that releases may serve side by side.
"""

from __future__ import annotations

from typing import Final

import msgspec

from shield.detect.travel import Place

FORMAT: Final = 1
MAX_COUNT_BYTES: Final = 49_152
"""Of the counts of one parcel: some 900 keys. More wait for the next second, nearest to their threshold first."""
MAX_LOGINS: Final = 128
MAX_REPORTED: Final = 256
MAX_PARCEL_BYTES: Final = 98_304
"""Of a whole parcel: no longer one is ever made, nor read."""


class Login(msgspec.Struct, array_like=True, frozen=True):
    """One successful login, for `travel`."""

    detector: bytes  # 8 bytes of its keyed identity
    key: bytes
    network: bytes  # keyed: only whether two are the same is asked
    ago_us: int
    latitude: float
    longitude: float
    radius_km: float
    country: str | None
    asn: str | None

    @property
    def place(self) -> Place:
        return Place(self.latitude, self.longitude, self.radius_km, self.country, self.asn)


class Parcel(msgspec.Struct, array_like=True, frozen=True):
    """The whole of it."""

    format: int
    counts: bytes
    logins: list[Login]
    reported: list[tuple[bytes, int]]  # keyed (detector, subject), and for how many us more it is covered


_encoder = msgspec.msgpack.Encoder()
_decoder = msgspec.msgpack.Decoder(Parcel)


def pack(counts: bytes, logins: list[Login], reported: list[tuple[bytes, int]]) -> bytes:
    """The bytes of a parcel, b"" where there is nothing to tell."""
    if not (counts or logins or reported):
        return b""
    return _encoder.encode(Parcel(FORMAT, counts, logins, reported))


def unpack(data: bytes) -> Parcel:
    """ValueError for what is none, or of another format."""
    if len(data) > MAX_PARCEL_BYTES:
        raise ValueError("longer than any parcel")
    try:
        parcel = _decoder.decode(data)
    except msgspec.MsgspecError as error:
        raise ValueError(f"not a parcel: {error}") from None
    if parcel.format != FORMAT:
        raise ValueError(f"a parcel of format {parcel.format}, this release reads {FORMAT}")
    return parcel
