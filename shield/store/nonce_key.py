"""What check.lua is told of a request's nonce. Pure but for the name that the request makes up for itself."""

from __future__ import annotations

import os
from hashlib import blake2b
from struct import Struct
from typing import Final, NamedTuple

from shield.store.naming import Naming, slot_of, tag_in
from shield.store.resp import bulk

_FACTS: Final = Struct("<4d")


class NonceKey(NamedTuple):
    """A request's nonce: where it lies and what is known of it. `keys` and `facts` are arguments on the wire."""

    name: bytes
    keys: tuple[bytes, bytes]
    """That name, and the fence that says since when nonces are known beside it."""
    facts: bytes
    owner: bytes
    """What this request alone knows: another one that takes the same nonce later has another."""


def nonce_key(naming: Naming, facts: tuple[bytes, int, int, int], bound: bytes) -> NonceKey:
    """The key of a nonce, from `Charges.nonce_facts`. `bound`: the address of the bucket that bounds a tenant's nonces,
    whose slot it shares.
    """
    name, *instants = facts
    digest = blake2b(name, digest_size=16, key=naming.prefix.encode()).digest()
    key = naming.key(f"{naming.prefix}:~nonce:".encode(), digest, bound)
    # In a cluster a primary may take another's place between two requests.
    fence = fence_key(naming, slot_of(key) if naming.tagged else None)
    owner = f"~{os.urandom(8).hex()}".encode()
    return NonceKey(key, (bulk(key), bulk(fence)), bulk(_FACTS.pack(*instants, naming.tagged)), owner)


def fence_key(naming: Naming, slot: int | None = None) -> bytes:
    """Where it is written since when nonces are known: all of them, or those of a slot."""
    head = f"{naming.prefix}:~nonces".encode()
    return head if slot is None else b"%b:{%b}" % (head, tag_in(slot))
