"""Whatever pieces a body comes in, it is judged alike."""

from __future__ import annotations

import gzip
import zlib
from itertools import pairwise

from hypothesis import example, given, settings
from hypothesis import strategies as st

from shield.middleware.body import MAX_RATIO, RATIO_FREE_BYTES, BodyMeter


def pieces(data: bytes, cuts: list[int]) -> list[bytes]:
    at = sorted({min(cut, len(data)) for cut in cuts} | {0, len(data)})
    return [data[a:b] for a, b in pairwise(at)]


def fed(meter: BodyMeter, parts: list[bytes]) -> tuple[str, str] | None:
    for part in parts:
        if fault := meter.feed(part):
            return fault
    return None


BODIES = st.one_of(
    st.binary(max_size=2_000),
    st.integers(0, 300_000).map(bytes),
    st.tuples(st.binary(max_size=50), st.integers(0, 5_000)).map(lambda pair: pair[0] * pair[1]),
)
CUTS = st.lists(st.integers(0, 3_000), max_size=8)


@settings(max_examples=80, deadline=None)
@given(BODIES, CUTS, st.sampled_from(["gzip", "deflate", "raw"]), st.one_of(st.none(), st.integers(0, 200_000)))
@example(b"", [1], "raw", None)
@example(b"x", [1], "deflate", None)
def test_compressed_bodies(body, cuts, encoding, ceiling):
    compressed = gzip.compress(body) if encoding == "gzip" else zlib.compress(body)
    if encoding == "raw":
        compressed = compressed[2:-4]
    meter = BodyMeter(ceiling, "gzip" if encoding == "gzip" else "deflate")
    fault = fed(meter, pieces(compressed, cuts))
    too_large = ceiling is not None and max(len(body), len(compressed)) > ceiling
    # In the middle of a stream a piece may hold more than its share, never less: the end is what is certain.
    too_dense = len(body) > RATIO_FREE_BYTES and len(body) > len(compressed) * MAX_RATIO
    if too_large or too_dense:
        assert fault is not None
        assert fault[0] == "too_large"
    elif len(body) <= RATIO_FREE_BYTES:
        assert fault is None
        assert meter.received == len(compressed)


@settings(max_examples=60, deadline=None)
@given(st.binary(max_size=3_000), CUTS, st.integers(0, 3_000))
def test_plain_bodies(body, cuts, ceiling):
    meter = BodyMeter(ceiling)
    fault = fed(meter, pieces(body, cuts))
    assert (fault is not None) == (len(body) > ceiling)
    if fault is None:
        assert meter.received == len(body)


@settings(max_examples=40, deadline=None)
@given(st.binary(max_size=500), CUTS, st.sampled_from(["gzip", "deflate", "br", "identity", "x-gzip, gzip", ""]))
def test_nothing_raises(body, cuts, encoding):
    meter = BodyMeter(100, encoding)
    assert fed(meter, pieces(body, cuts) or [b""]) == meter.fault
