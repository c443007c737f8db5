"""Addresses: reading them as proxies write them, believing them as far as trusted proxies vouch, counting by
them.

X-Forwarded-For is written by everyone on the way, the client first. Each proxy appends whom it saw, so the
list is read from the right: the peer is certain; the entry that a trusted peer appended is as good as that
peer; and so on. The first address that is not a trusted proxy's is the client, and everything to its left is
only what it claims.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import lru_cache
from ipaddress import IPv4Address, IPv6Address, ip_address, ip_network

# Real chains have fewer than ten proxies. Further hops could only be forged by someone who already is inside
# the trusted networks, and would cost parsing time for as long as a header may be.
MAX_HOPS = 64
# Longest text of an address: an IPv6 address of 45 characters, brackets, zone and port.
MAX_TEXT = 128
# A busy server sees the same few thousand clients again and again; more would only hold memory.
_ADDRESSES_KEPT = 8_192

Address = IPv4Address | IPv6Address


@lru_cache(maxsize=_ADDRESSES_KEPT)
def parse_address(text: str) -> Address:
    """An address as proxies write it: "192.0.2.1", "192.0.2.1:443", "2001:db8::1", "[2001:db8::1]:443".

    IPv4-mapped IPv6 is IPv4, and a zone ("fe80::1%eth0") is dropped: both name the same client. Raises
    ValueError.
    """
    if len(text) > MAX_TEXT:
        raise ValueError(f"found text of {len(text)} characters; allowed: an IP address")
    host = _without_port(text.strip(" \t"))
    address, percent, zone = host.partition("%")
    try:
        parsed = ip_address(address)
    except ValueError:
        raise _no_address(text) from None
    if isinstance(parsed, IPv4Address):
        if percent:
            raise _no_address(text)
        return parsed
    if percent and (not zone or "%" in zone):
        raise _no_address(text)
    return parsed.ipv4_mapped or parsed


class TrustedProxies:
    """The networks whose word in X-Forwarded-For counts. A unix socket is one's own machine, so trusted."""

    __slots__ = ("_v4", "_v6")

    def __init__(self, cidrs: Iterable[str]) -> None:
        """`cidrs` as in the policy: "10.0.0.0/8", "2001:db8::/32", "192.0.2.7". Raises ValueError."""
        # By prefix length, so that asking costs a lookup for each length in use and not for each network.
        v4: dict[int, set[int]] = {}
        v6: dict[int, set[int]] = {}
        for cidr in cidrs:
            network = ip_network(cidr)
            shift = network.max_prefixlen - network.prefixlen
            by_shift = v4 if network.version == 4 else v6
            by_shift.setdefault(shift, set()).add(int(network.network_address) >> shift)
        self._v4 = tuple(v4.items())
        self._v6 = tuple(v6.items())

    def trusts(self, address: Address) -> bool:
        """Whether this address is in one of the networks."""
        number = int(address)
        networks = self._v4 if isinstance(address, IPv4Address) else self._v6
        return any(number >> shift in known for shift, known in networks)

    def client(self, peer: str | None, forwarded_for: Sequence[str] = ()) -> str:
        """The address of the client, in canonical text.

        `peer` is who is connected, None for a unix socket. `forwarded_for` holds the values of all
        X-Forwarded-For fields in the order they were sent. Where an entry is no address, or after MAX_HOPS
        entries, the answer is the last hop that was vouched for. "" when that is a unix socket: then no
        address is known. Raises ValueError when `peer` is no address.
        """
        hop = None if peer is None else parse_address(peer)
        if hop is None or self.trusts(hop):
            for entry in _from_right(forwarded_for):
                try:
                    hop = parse_address(entry)
                except ValueError:
                    break
                if not self.trusts(hop):
                    break
        return "" if hop is None else str(hop)


def _from_right(values: Sequence[str]) -> Iterable[str]:
    """Up to MAX_HOPS entries of the lists, the last first. Empty ones are no hops (RFC 9110, 5.6.1.2)."""
    left = MAX_HOPS
    for value in reversed(values):
        entries = value.rsplit(",", left)
        # With `left` splits the first piece may still hold commas: it is past the bound.
        entries = entries[1:] if len(entries) > left else entries
        left -= len(entries)
        for entry in reversed(entries):
            trimmed = entry.strip(" \t")
            if trimmed:
                yield trimmed
        if left <= 0:
            return


def _without_port(text: str) -> str:
    """The address in "address:port" or "[address]:port"; other text as it is."""
    if text.startswith("["):
        host, bracket, rest = text[1:].partition("]")
        if not bracket or ":" not in host or (rest and not _is_port(rest)):
            raise _no_address(text)
        return host
    if text.count(":") == 1:
        host, _, port = text.partition(":")
        if not _is_port(":" + port):
            raise _no_address(text)
        return host
    return text


def _is_port(text: str) -> bool:
    port = text[1:]
    return text[0] == ":" and port.isascii() and port.isdigit() and len(port) <= 5 and int(port) <= 65_535


def _no_address(text: str) -> ValueError:
    return ValueError(f"found {text[:64]!r}; allowed: an IP address")
