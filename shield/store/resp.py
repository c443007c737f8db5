"""Commands in the wire's form, as every Redis and Valkey reads them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence


def bulk(item: bytes) -> bytes:
    """One argument of a command."""
    return b"$%d\r\n%b\r\n" % (len(item), item)


def encode(items: Iterable[bytes]) -> bytes:
    """One command."""
    parts = [bulk(item) for item in items]
    return b"*%d\r\n%b" % (len(parts), b"".join(parts))


def evalsha(sha: bytes, keys: Sequence[bytes], arguments: Sequence[bytes]) -> bytes:
    """A script by its name."""
    return encode((b"EVALSHA", sha, b"%d" % len(keys), *keys, *arguments))
