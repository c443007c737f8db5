"""Blocks in the store: what this node says of them, and what others have said since it asked last.

The store orders nothing and decides nothing. It keeps, for every place, the text of greatest order, and tells a node
what was written since it asked last, by a version that counts. When the store has lost its data, or is another, the set
has another name: then the node has to say all that it knows, and so a store that comes back empty is filled again.
"""

from __future__ import annotations

import os
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, Final, NamedTuple

from shield.errors import StoreProtocolError
from shield.store.lua import BLOCKS
from shield.store.resp import evalsha

# Said in one command: at 1 KB each what a connection sends in a millisecond.
MOST_SAID: Final = 200


class Said(NamedTuple):
    """One place's text, whose order decides which of two stays; `forget_us` None: it is kept for good."""

    place: bytes
    order: bytes
    text: bytes
    forget_us: int | None


class BlockLog:
    """One node's view. `call` sends one command about a key and brings its reply, or a StoreError; `instant` is for
    tests.
    """

    def __init__(
        self, prefix: str, call: Callable[[bytes, bytes], Awaitable[Any]], instant: Callable[[], bytes] = lambda: b""
    ) -> None:
        # One slot of a cluster: one command writes all of them.
        self._keys = [f"{prefix}:{{~blocks}}:{name}".encode() for name in ("places", "versions", "ends")]
        self._call = call
        self._instant = instant
        self._epoch = b""
        self._version = b"0"

    async def exchange(self, said: Sequence[Said], most: int) -> tuple[list[bytes], bool]:
        """Says at most MOST_SAID, and hears the texts that are new; True where the store knows nothing of what this
        node has said before. At most `most` places are kept. StoreError: it may have been said; say it again.
        """
        heard: list[bytes] = []
        knew, told = self._epoch, list(said)
        while True:
            reply = await self._call(self._command(told, most), self._keys[0])
            told = []
            if type(reply) is not list or len(reply) < 3 or not all(isinstance(text, bytes) for text in reply[3:]):
                raise StoreProtocolError("the store answered with something else than blocks")
            self._epoch, self._version, more = reply[0], reply[1], reply[2]
            heard += reply[3:]
            if more != 1:
                return heard, self._epoch != knew

    def _command(self, said: Sequence[Said], most: int) -> bytes:
        words: list[bytes] = [self._instant(), os.urandom(8).hex().encode(), self._epoch, self._version, b"%d" % most]
        for one in said:
            forget = b"" if one.forget_us is None else b"%d" % (one.forget_us // 1000 + 1)
            words += (one.place, one.order, one.text, forget)
        return evalsha(BLOCKS.sha, self._keys, words)
