"""Addresses: all spellings of one address are one subject; nobody is believed further than vouched for."""

from __future__ import annotations

import ipaddress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shield import Policy, Request
from shield.core import CompiledPolicy, Registry
from shield.identity.address import MAX_HOPS, TrustedProxies, parse_address

LOCAL = TrustedProxies(["127.0.0.0/8", "::1/128"])
CHAIN = TrustedProxies(["10.0.0.0/8", "192.0.2.7", "2001:db8:1::/48"])


BY_ADDRESS = Policy.parse('[[limit]]\nname = "address"\nkey = ["ip"]\nrate = "1/s"\n')


def address_key(ip: str, ipv6_prefix: int) -> bytes:
    """What the core counts an address by, once read as a proxy may have written it: 4 bytes, or 16 of a network."""
    request = Request(ip=str(parse_address(ip)))
    charges = CompiledPolicy(Registry(), BY_ADDRESS.limits, ipv6_prefix=ipv6_prefix).charges(request)
    return charges.bucket(0).partition[4:]


@pytest.mark.parametrize(
    ("text", "canonical"),
    [
        ("192.0.2.1", "192.0.2.1"),
        (" 192.0.2.1\t", "192.0.2.1"),
        ("192.0.2.1:443", "192.0.2.1"),
        ("192.0.2.1:0", "192.0.2.1"),
        ("2001:db8::1", "2001:db8::1"),
        ("2001:DB8:0:0:0:0:0:1", "2001:db8::1"),
        ("[2001:db8::1]", "2001:db8::1"),
        ("[2001:db8::1]:65535", "2001:db8::1"),
        ("::ffff:192.0.2.1", "192.0.2.1"),
        ("::FFFF:c000:0201", "192.0.2.1"),
        ("[::ffff:192.0.2.1]:80", "192.0.2.1"),
        ("fe80::1%eth0", "fe80::1"),
        ("[fe80::1%25eth0]:80", "fe80::1"),  # a zone as a URI spells it
        ("[fe80::1%eth0]:80", "fe80::1"),
        ("2001:db8::1:443", "2001:db8::1:443"),
        ("", None),
        ("unknown", None),
        ("_hidden", None),
        ("192.0.2", None),
        ("192.0.2.256", None),
        ("192.0.2.01", None),
        ("0xc0.0.2.1", None),
        ("3221225985", None),
        ("192.0.2.1:", None),
        ("192.0.2.1:65536", None),
        ("192.0.2.1:-1", None),
        ("192.0.2.1:http", None),
        ("192.0.2.1:١", None),
        ("١92.0.2.1", None),
        ("192.0.2.1%eth0", None),
        ("fe80::1%", None),
        ("[192.0.2.1]", None),
        ("[2001:db8::1", None),
        ("[2001:db8::1]x", None),
        ("[2001:db8::1]:", None),
        ("2001:db8::1]", None),
        ("[]", None),
        ("192.0.2.1\0", None),
        ("192.0.2.1, 192.0.2.2", None),
        ("192.0.2.0/24", None),
        ("fe80::1%" + "a" * 200, None),
        ("\ud800", None),
    ],
)
def test_parse(text: str, canonical: str | None) -> None:
    if canonical is None:
        with pytest.raises(ValueError, match="allowed: an IP address"):
            parse_address(text)
    else:
        assert str(parse_address(text)) == canonical


def same(one: str, other: str, ipv6_prefix: int = 64) -> bool:
    return address_key(one, ipv6_prefix) == address_key(other, ipv6_prefix)


# Restated from django-ratelimit tests.py test_ratelimit_mask_v4, _v6 and full_mask (Apache-2.0): its defaults
# are /32 and /64, and so are Shield's. Its rows with IPv4 /16 do not apply: an IPv4 address always counts
# whole here.
@pytest.mark.parametrize(
    ("prefix", "one", "other", "is_same"),
    [
        (64, "2001:db8::1000", "2001:db8::1001", True),
        (64, "2001:db8::1000", "2001:db9::1000", False),
        (64, "10.1.1.1", "10.1.1.2", False),
        (128, "2001:db8::1000", "2001:db8::1001", False),
    ],
)
def test_masks(prefix: int, one: str, other: str, is_same: bool) -> None:
    assert same(one, other, prefix) is is_same


def test_one_customer_has_one_key_however_written() -> None:
    assert same("192.0.2.1", "::ffff:192.0.2.1")
    assert same("192.0.2.1", "[::FFFF:192.0.2.1]:9")
    assert same("2001:db8::1", "[2001:DB8:0:0:ffff::]:80")
    assert same("fe80::1%eth0", "fe80::1%eth1")
    assert len(address_key("192.0.2.1", 64)) == 4
    assert len(address_key("2001:db8::1", 64)) == 16
    with pytest.raises(ValueError, match="allowed: an IP address"):
        address_key("nobody", 64)


@given(st.ip_addresses(v=6), st.integers(32, 128))
def test_key_is_the_network(address: ipaddress.IPv6Address, prefix: int) -> None:
    key = address_key(str(address), prefix)
    if address.ipv4_mapped:
        assert key == address.ipv4_mapped.packed
    else:
        network = ipaddress.ip_network((address, prefix), strict=False)
        assert key == network.network_address.packed


@given(st.ip_addresses(), st.integers(0, 65_535))
def test_every_spelling_is_the_same_address(address: ipaddress.IPv4Address | ipaddress.IPv6Address, port: int) -> None:
    bracketed = f"[{address}]" if address.version == 6 else str(address)
    spellings = [str(address), f"{bracketed}:{port}", f" {address.exploded} "]
    if address.version == 4:
        spellings.append(f"::ffff:{address}")
    assert len({parse_address(spelling) for spelling in spellings}) == 1


@given(st.text(max_size=200))
def test_any_text_is_an_address_or_a_value_error(text: str) -> None:
    try:
        address = parse_address(text)
    except ValueError as error:
        str(error).encode()
    else:
        assert parse_address(str(address)) == address


@pytest.mark.parametrize(
    ("peer", "forwarded_for", "client"),
    [
        ("203.0.113.9", [], "203.0.113.9"),
        ("203.0.113.9", ["198.51.100.1"], "203.0.113.9"),  # not trusted: its word does not count
        ("10.0.0.1", [], "10.0.0.1"),
        ("10.0.0.1", ["203.0.113.9"], "203.0.113.9"),
        ("10.0.0.1", ["198.51.100.66, 203.0.113.9"], "203.0.113.9"),  # the left one is only claimed
        ("10.0.0.1", ["203.0.113.9, 10.0.0.2, 192.0.2.7"], "203.0.113.9"),
        ("10.0.0.1", ["10.9.9.9, 203.0.113.9, 10.0.0.2"], "203.0.113.9"),  # a forged trusted hop further left
        ("10.0.0.1", ["10.0.0.3, 10.0.0.2"], "10.0.0.3"),  # all trusted: the outermost
        ("10.0.0.1", ["203.0.113.9", "10.0.0.2"], "203.0.113.9"),  # two fields are one list
        ("10.0.0.1", ["198.51.100.66", "203.0.113.9"], "203.0.113.9"),
        ("10.0.0.1", ["203.0.113.9,,10.0.0.2, ,"], "203.0.113.9"),  # empty entries are no hops
        ("10.0.0.1", ["", ""], "10.0.0.1"),
        ("10.0.0.1", ["203.0.113.9, unknown"], "10.0.0.1"),  # garbage: the last hop vouched for
        ("10.0.0.1", ["203.0.113.9, junk, 10.0.0.2"], "10.0.0.2"),
        ("10.0.0.1", ["203.0.113.9:1234"], "203.0.113.9"),
        ("10.0.0.1", ["[2001:db8:2::1]:1234, [2001:db8:1::9]"], "2001:db8:2::1"),
        ("::ffff:10.0.0.1", ["::ffff:203.0.113.9"], "203.0.113.9"),
        ("2001:db8:1::5", ["fe80::1%eth0"], "fe80::1"),
        (None, [], ""),
        (None, ["203.0.113.9"], "203.0.113.9"),
        (None, ["198.51.100.66, 203.0.113.9"], "203.0.113.9"),
        (None, ["what"], ""),
    ],
)
def test_client(peer: str | None, forwarded_for: list[str], client: str) -> None:
    assert CHAIN.client(peer, forwarded_for) == client


def test_a_peer_that_is_no_address_is_the_callers_mistake() -> None:
    with pytest.raises(ValueError, match="allowed: an IP address"):
        CHAIN.client("not an address", [])


def test_hops_are_bounded() -> None:
    inside = ["10.0.0.2"] * (MAX_HOPS - 1)
    assert CHAIN.client("10.0.0.1", [", ".join(["203.0.113.9", *inside])]) == "203.0.113.9"
    # One further, and the client is out of reach: the last hop that was vouched for stands for it.
    assert CHAIN.client("10.0.0.1", [", ".join(["203.0.113.9", *inside, "10.0.0.3"])]) == "10.0.0.2"
    assert CHAIN.client("10.0.0.1", ["203.0.113.9", *inside, "10.0.0.3"]) == "10.0.0.2"
    assert CHAIN.client("10.0.0.1", ["203.0.113.9" + "," * 100_000]) == "10.0.0.1"


def test_trust() -> None:
    assert LOCAL.trusts(parse_address("127.8.9.1"))
    assert LOCAL.trusts(parse_address("::1"))
    assert not LOCAL.trusts(parse_address("::2"))
    assert not LOCAL.trusts(parse_address("128.0.0.1"))
    everyone = TrustedProxies(["0.0.0.0/0"])
    assert everyone.trusts(parse_address("203.0.113.9"))
    assert not everyone.trusts(parse_address("2001:db8::1"))
    nobody = TrustedProxies([])
    assert nobody.client("127.0.0.1", ["203.0.113.9"]) == "127.0.0.1"
    with pytest.raises(ValueError, match="host bits"):
        TrustedProxies(["10.0.0.1/8"])


networks = st.one_of(
    st.tuples(st.ip_addresses(v=4), st.integers(0, 32)), st.tuples(st.ip_addresses(v=6), st.integers(0, 128))
).map(lambda pair: ipaddress.ip_network(pair, strict=False))


@given(st.lists(networks, max_size=8), st.ip_addresses())
def test_trust_is_membership(
    known: list[ipaddress.IPv4Network | ipaddress.IPv6Network],
    address: ipaddress.IPv4Address | ipaddress.IPv6Address,
) -> None:
    trusted = TrustedProxies(str(network) for network in known)
    assert trusted.trusts(address) == any(address in network for network in known)


hops = st.sampled_from(["10.0.0.2", "192.0.2.7", "203.0.113.9", "198.51.100.1", "junk", ""])


@given(st.lists(st.lists(hops, min_size=1, max_size=4), max_size=4))
def test_client_against_the_rule_as_written(fields: list[list[str]]) -> None:
    entries = [entry for field in fields for entry in field if entry]
    expected = "10.0.0.1"
    for entry in reversed(entries):
        if entry == "junk":
            break
        expected = entry
        if entry in ("203.0.113.9", "198.51.100.1"):
            break
    assert CHAIN.client("10.0.0.1", [",".join(field) for field in fields]) == expected
