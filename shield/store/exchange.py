"""Where the detectors of many hosts meet: a stream of parcels and a key for each claim, one round of commands a second.

Keys, behind the store's prefix: `~measures`, a stream of entries (node, number, held_us, parcel), of which the last few
hundred are kept for a minute; `~{claim}:MARK`, who tells of a detection, for as long as its detector is quiet.

The server's clock measures how long a parcel was under way, so nodes' clocks need not agree. A server that is flushed
forgets claims and what nobody has read yet: both are of the last second.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, Final

from shield.detect.exchange import Claim, Said, Swapped
from shield.errors import StoreProtocolError
from shield.store.resp import encode

MAX_ENTRIES: Final = 512
"""Kept, about: those of a second of 500 processes."""
KEPT_MS: Final = 60_000
LAST_OF_A_MS: Final = 2**64 - 1
READ_AT_ONCE: Final = 256
"""Entries taken in one exchange; more wait for the next."""


# KEYS: the claims; ARGV: of each its owner and for how many ms. Returns 1 for those that are their owner's.
_CLAIM: Final = b"""
local won = {}
for i = 1, #KEYS do
  local owner = ARGV[2 * i - 1]
  local new = redis.call('SET', KEYS[i], owner, 'NX', 'PX', ARGV[2 * i])
  won[i] = (new or redis.call('GET', KEYS[i]) == owner) and 1 or 0
end
return won
"""


class RedisExchange:
    """`key` names a key of the store's own; `ask` sends one encoded command to where a key is and brings its reply, or
    a StoreError.
    """

    def __init__(self, key: Callable[[str], bytes], ask: Callable[[bytes, bytes], Awaitable[Any]]) -> None:
        self._stream = key("measures")
        self._claim = key("{claim}:")  # braces: in a cluster they lie together
        self._ask = ask
        self._read: tuple[int, int] | None = None  # the last entry that was read, as the server numbers them

    async def swap(self, said: Said | None, claims: Sequence[Claim]) -> Swapped:
        """All commands are sent at once. The first exchange finds out what time it is there, and reads nothing."""
        commands: list[tuple[bytes, ...]] = [(b"TIME",)]
        if said is not None:
            number, held = b"%d" % said.number, b"%d" % said.held_us
            entry = (b"n", said.node, b"s", number, b"h", held, b"d", said.data)
            commands.append((b"XADD", self._stream, b"MAXLEN", b"~", b"%d" % MAX_ENTRIES, b"*", *entry))
            commands.append((b"PEXPIRE", self._stream, b"%d" % KEPT_MS))
        if claims:
            keys = [self._claim + claim.mark.hex().encode() for claim in claims]
            owners = [part for one in claims for part in (one.owner, b"%d" % max(1, one.lasts_us // 1000))]
            commands.append((b"EVAL", _CLAIM, b"%d" % len(keys), *keys, *owners))
        claimed = len(commands) - 1
        if self._read is not None:
            last = b"%d-%d" % self._read
            commands.append((b"XREAD", b"COUNT", b"%d" % READ_AT_ONCE, b"STREAMS", self._stream, last))
        asked = [self._ask(encode(one), self._claim if one[0] == b"EVAL" else self._stream) for one in commands]
        results = await asyncio.gather(*asked, return_exceptions=True)
        for result in results:
            if isinstance(result, BaseException):
                raise result
        now_us = _time(results[0])
        won = _won(results[claimed], len(claims)) if claims else []
        heard = self._entries(results[-1], now_us) if self._read is not None else []
        if self._read is None or self._read[0] > now_us // 1000:  # or the server's clock has gone back
            self._read = now_us // 1000 - 1, LAST_OF_A_MS
        return Swapped(won, heard)

    def _entries(self, reply: Any, now_us: int) -> list[Said]:
        if reply is None:
            return []
        try:
            ((_, entries),) = reply
            heard = []
            for name, fields in entries:
                ms, _, sequence = name.partition(b"-")
                self._read = int(ms), int(sequence)
                if fields[::2] != [b"n", b"s", b"h", b"d"]:
                    continue  # somebody else's
                node, number, held_us, data = fields[1::2]
                under_way_us = max(0, now_us - int(ms) * 1000)
                heard.append(Said(node, int(number), int(held_us) + under_way_us, data))
        except (TypeError, ValueError, AttributeError):
            raise StoreProtocolError("the store answered a reading of measures with something else") from None
        return heard


def _won(reply: Any, count: int) -> list[bool]:
    if not isinstance(reply, list) or len(reply) != count:
        raise StoreProtocolError("the store answered claims with something else")
    return [one == 1 for one in reply]


def _time(reply: Any) -> int:
    try:
        seconds, micros = reply
        return int(seconds) * 1_000_000 + int(micros)
    except (TypeError, ValueError):
        raise StoreProtocolError("the store answered TIME with something else") from None
