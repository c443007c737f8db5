"""What every new connection asks first, and which answers end it: the scripts are loaded, the server is a primary, the
states it holds are of this release's layout, and a server that may have lost nonces has said so. A connection that may
carry a check has passed all of it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

from shield.errors import StoreError, StoreProtocolError
from shield.store.lane import Greeting
from shield.store.lua import GREET, SCRIPTS, Script
from shield.store.resp import encode
from shield.store.steps import VERSION

# All that Shield's account may do, after "reset on >PASSWORD". Without INFO it works as well, and warns of nothing;
# the last lines are for a cluster and for wait_replicas, and for detectors.
ACL_RULES: Final = (
    "~{prefix}:* -@all +evalsha +eval +script|load +set +get +mget +exists +zcount +zrangebyscore +zadd +zrange"
    " +zremrangebyscore +zrem +zcard +hget +hset +hdel +hlen +hincrby +pexpire +time +role +info"
    " +select +ping +client|setinfo +hello"
    " +cluster|slots +asking +wait"
    " +xadd +xread"
)


# KEYS: where it is written which layout states have, and something that every release has written; ARGV: the layout.
# Returns 1 where nobody had written it although there is something.
_ATTACH: Final = b"""
if redis.call('SET', KEYS[1], ARGV[1], 'NX') then return redis.call('EXISTS', KEYS[2]) end
return 0
"""
UNVERSIONED: Final = (
    "there is something under this prefix, and nothing says in which layout: an older release wrote it, or the server"
    " has dropped {key}. States of another layout are not read, so what they had counted begins anew"
)


def greeting(
    version_key: bytes,
    secret_key: bytes,
    fence_key: bytes,
    instant: Callable[[], bytes],
    unversioned: Callable[[], None],
) -> list[Greeting]:
    """The commands for a server that holds everything, each with what judges its reply, by raising. `instant`: what
    time scripts are told it is. `unversioned` is called where states may be of a release that did not say its layout.
    """

    def attached(reply: Any) -> None:
        """A server without memory, or one that is loading, says so to those who ask."""
        if reply == 1:
            unversioned()

    attach = encode((b"EVAL", _ATTACH, b"2", version_key, secret_key, b"%d" % VERSION))
    return [
        *introduction(),
        (attach, attached),
        (encode((b"GET", version_key)), _same_version),
        (lambda: encode((b"EVAL", GREET.text, b"1", fence_key, instant())), _fenced),
    ]


def introduction() -> list[Greeting]:
    """What is asked of any server."""
    return [*((load_command(script), _loaded) for script in SCRIPTS), (encode((b"ROLE",)), _is_primary)]


def version_of(version_key: bytes) -> list[tuple[bytes, Callable[[Any], None]]]:
    """What is asked of the server that knows which layout the states have."""
    return [
        (encode((b"SET", version_key, b"%d" % VERSION, b"NX")), _written),
        (encode((b"GET", version_key)), _same_version),
    ]


def load_command(script: Script) -> bytes:
    """Loads one script."""
    return encode((b"SCRIPT", b"LOAD", script.text))


def _loaded(reply: Any) -> None:
    if isinstance(reply, Exception):
        raise reply


def _fenced(reply: Any) -> None:
    if isinstance(reply, Exception):
        raise StoreError(f"the server cannot say since when it knows nonces: {reply}")


def _is_primary(reply: Any) -> None:
    """A replica would answer from what it last heard. Not every account may ask; then nobody knows."""
    if isinstance(reply, list) and reply and reply[0] in (b"slave", b"sentinel"):
        raise StoreError(f"the server is a {reply[0].decode()}, not a primary")


def _written(reply: Any) -> None:
    """A server without memory, or one that is loading, says so to those who ask."""


def _same_version(reply: Any) -> None:
    """States of another layout are neither read nor written over: releases that differ in it need prefixes that do."""
    if isinstance(reply, bytes) and reply != b"%d" % VERSION:
        found = reply[:16].decode("ascii", "replace")
        raise StoreProtocolError(
            f"the states of this prefix have layout {found}, this release reads {VERSION}: give it a prefix of its own"
        )
