"""What stands in files and in the store: one line of JSON for each block and each override."""

from __future__ import annotations

import msgspec

from shield.block import block, override
from shield.block.block import Block
from shield.block.override import Override

Entry = Block | Override

_encode = msgspec.json.Encoder().encode
_decode = msgspec.json.Decoder(Entry).decode


def encoded(said: Entry) -> bytes:
    """Its line, without the end."""
    return _encode(said)


def decoded(line: bytes) -> Entry:
    """ValueError for what is neither."""
    try:
        said = _decode(line)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise ValueError(f"no block: {error}") from None
    return block.checked(said) if isinstance(said, Block) else override.checked(said)
