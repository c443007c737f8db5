"""The names of keys on a Redis server: a hash of what each stands for, equally short for any client's input."""

from __future__ import annotations

import binascii
import itertools
from hashlib import blake2b
from typing import Final

from shield.store.resp import bulk

# Names of cells that are kept for the next request of the same key, and how long a key may be to be kept: 25 MB.
MAX_NAMES: Final = 65_536
MAX_NAMED_BYTES: Final = 128
# 48 bits, 8 characters: tenants that share a tag share a slot, and nothing else.
TAG_BYTES: Final = 6
TAG_CHARS: Final = 8
SLOTS: Final = 16384
_URL_SAFE: Final = bytes.maketrans(b"+/", b"-_")

_tags: dict[int, bytes] = {}
_numbers = itertools.count()


def slug(raw: bytes) -> bytes:
    """Base64url without padding: 16 bytes become 22 characters."""
    return binascii.b2a_base64(raw, newline=False).rstrip(b"=").translate(_URL_SAFE)


class Naming:
    """How an address becomes the name of a key, and what of an address is a tenant's.

    In a cluster (`tagged`) the first TAG_BYTES of an address, in braces, choose the slot: they are the tenant's for
    keys that a tenant is part of, so that all of them lie in one slot, and a part of the hash for others, which spread.
    """

    __slots__ = ("_tag", "prefix", "tagged")

    def __init__(self, prefix: str, *, tagged: bool = False) -> None:
        self.prefix = prefix
        self.tagged = tagged
        self._tag = blake2b(digest_size=TAG_BYTES, key=prefix.encode(), person=b"tenant")

    def key(self, head: bytes, address: bytes, tag: bytes | None = None) -> bytes:
        """The key of an address. `tag`: an address whose slot it shall share."""
        text = slug(address)
        if not self.tagged:
            return head + text
        if tag is not None:
            return b"%b{%b}%b" % (head, slug(tag)[:TAG_CHARS], text)
        return b"%b{%b}%b" % (head, text[:TAG_CHARS], text[TAG_CHARS:])

    def tag(self, tenant: bytes) -> bytes:
        """What the addresses of a tenant begin with in a cluster."""
        digest = self._tag.copy()
        digest.update(tenant)
        return digest.digest()


class Names:
    """The addresses of all keys made of the same fields."""

    __slots__ = ("_digest", "_head", "_naming", "_tenant", "known")

    def __init__(self, naming: Naming, fields: tuple[str, ...]) -> None:
        named = b"".join(len(raw).to_bytes(4, "little") + raw for raw in (field.encode() for field in fields))
        start = len(fields).to_bytes(4, "little") + named
        self._naming = naming
        self._tenant = fields.index("tenant") if naming.tagged and "tenant" in fields else -1
        """Which of the fields names the slot; -1: none."""
        size = 16 if self._tenant < 0 else 16 - TAG_BYTES
        self._digest = blake2b(start, digest_size=size, key=naming.prefix.encode())
        self._head = f"{naming.prefix}:".encode()
        self.known: dict[bytes, bytes] = {}
        """The cells' names that were asked for before, by partition."""

    @property
    def of_a_tenant(self) -> bool:
        """Whether these keys lie in the slot of a tenant."""
        return self._tenant >= 0

    def address(self, partition: bytes) -> bytes:
        digest = self._digest.copy()
        digest.update(partition)
        if self._tenant < 0:
            return digest.digest()
        return self._naming.tag(_value(partition, self._tenant)) + digest.digest()

    def cell(self, partition: bytes) -> bytes:
        """The cell's key as an argument on the wire."""
        found = self.known.get(partition)
        if found is None:
            found = bulk(self._naming.key(self._head, self.address(partition)))
            if len(partition) <= MAX_NAMED_BYTES:
                if len(self.known) >= MAX_NAMES:
                    self.known.clear()
                self.known[partition] = found
        return found


def _value(partition: bytes, index: int) -> bytes:
    """One value of a partition key: each stands behind its length."""
    at = 0
    for _ in range(index):
        at += 4 + int.from_bytes(partition[at : at + 4], "little")
    return partition[at + 4 : at + 4 + int.from_bytes(partition[at : at + 4], "little")]


def tag_in(slot: int) -> bytes:
    """The same tag for a slot everywhere: the lowest number, in decimal digits, that lies in it."""
    while slot not in _tags:
        number = next(_numbers)
        tag = b"%0*d" % (TAG_CHARS, number)
        _tags.setdefault(slot_of(tag), tag)
    return _tags[slot]


def slot_of(key: bytes) -> int:
    """The slot of a key as Redis Cluster has it: CRC-16/XMODEM of its tag, or of all of it where there is none. A key
    with a tag may be in the form of an argument on the wire.
    """
    start = key.find(b"{") + 1
    return binascii.crc_hqx(key[start : start + TAG_CHARS] if start else key, 0) % SLOTS
