"""A million networks: the same answers as Python's ipaddress, whatever stands in the list."""

from __future__ import annotations

import ipaddress
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shield.core.cidr import PrefixTable, canonical


def test_a_list_as_people_have_it() -> None:
    table = PrefixTable(
        b"# comment\n203.0.113.0/24 ; spam\r\n\n198.51.100.7\n2001:db8::/32\n2001:db9::1 # host\n"
        b"  192.0.2.129/25\t1234\n::ffff:10.1.2.3\n300.1.1.1\nexample.com\n10.0.0.0/33\n10.0.0.0/x\n"
    )
    assert len(table) == 6
    assert (table.n_bad, table.bad[0]) == (4, (9, "300.1.1.1"))
    inside = [
        "203.0.113.9",
        "198.51.100.7",
        "2001:db8:1::5",
        "2001:db9::1",
        "192.0.2.200",
        "10.1.2.3",
        "::ffff:203.0.113.1",
    ]
    assert all(ip in table for ip in inside)
    outside = ["203.0.114.0", "198.51.100.8", "2001:db9::2", "192.0.2.1", "10.1.2.4", "", "no address", "1.2.3.4\0"]
    assert not any(ip in table for ip in outside)


@pytest.mark.parametrize("version", [4, 6])
@pytest.mark.parametrize("seed", range(4))
def test_the_same_answers_as_ipaddress(version: int, seed: int) -> None:
    dice = random.Random(seed)
    size = 32 if version == 4 else 128
    kind = ipaddress.IPv4Network if version == 4 else ipaddress.IPv6Network
    base = [dice.getrandbits(size) for _ in range(20)]

    def number() -> int:
        return dice.choice(base) ^ dice.getrandbits(dice.randrange(1, size))

    networks = []
    for _ in range(300):
        bits = dice.randrange(size // 4, size + 1)
        networks.append(kind((number() >> (size - bits) << (size - bits), bits)))
    table = PrefixTable("\n".join(map(str, networks)).encode())
    asked = [number() for _ in range(1_000)]
    for network in networks:
        first, last = int(network.network_address), int(network.broadcast_address)
        asked += [first, last, max(0, first - 1), min(2**size - 1, last + 1)]
    for value in asked:
        address = ipaddress.IPv4Address(value) if version == 4 else ipaddress.IPv6Address(value)
        assert (str(address) in table) == any(address in network for network in networks), address


def test_the_whole_of_everything() -> None:
    table = PrefixTable(b"0.0.0.0/0\n::/0\n")
    assert "255.255.255.255" in table
    assert "0.0.0.1" in table
    assert "ffff::1" in table
    assert "1.1.1.1" not in PrefixTable(b"")


def test_a_million_networks_keep_to_their_bytes_and_more_than_the_bound_are_refused() -> None:
    dice = random.Random(1)
    text = "\n".join(
        f"{dice.randrange(1, 224)}.{dice.randrange(256)}.{dice.randrange(256)}.{dice.randrange(256)}"
        for _ in range(10**6)
    )
    table = PrefixTable(text.encode())
    assert len(table) == 10**6
    assert table.size_bytes <= 64 * 1_048_576
    with pytest.raises(ValueError, match="more than 5 networks"):
        PrefixTable(b"10.0.0.1\n" * 6, 5)


@given(st.binary(max_size=300))
def test_no_bytes_are_a_fault(data: bytes) -> None:
    PrefixTable(data)


def test_what_an_address_counts_by() -> None:
    assert canonical("::ffff:192.0.2.1") == canonical("192.0.2.1") == bytes((192, 0, 2, 1))
    assert canonical("2001:db8::1") == canonical("2001:db8::2")
    assert canonical("2001:db8::1", 128) != canonical("2001:db8::2", 128)
    assert canonical("x") is None


@given(st.one_of(st.text(alphabet="0123456789.", max_size=16), st.ip_addresses(v=4).map(str)))
def test_addresses_are_read_as_the_system_reads_them(text: str) -> None:
    import socket

    try:
        expected: bytes | None = socket.inet_pton(socket.AF_INET, text)
    except OSError:
        expected = None
    assert canonical(text) == expected


_GROUPS = st.lists(st.sampled_from(["", "0", "1", "ffff", "0db8", "12345", "g", "1.2.3.4", "aB"]), max_size=10)


@given(
    st.one_of(_GROUPS.map(":".join), st.ip_addresses(v=6).map(str), st.text(alphabet="0123456789abF:.", max_size=45))
)
def test_ipv6_addresses_are_read_as_the_system_reads_them(text: str) -> None:
    import socket

    if ":" not in text:
        return
    try:
        expected: bytes | None = socket.inet_pton(socket.AF_INET6, text)
    except OSError:
        expected = None
    if expected is not None and expected.startswith(bytes(10) + b"\xff\xff"):
        expected = expected[12:]
    assert canonical(text, 128) == expected
