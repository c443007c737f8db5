"""Which callers may ask for decisions: those with a token of the file. Certificates are the TLS layer's.

`Authorization` always belongs to the end client whose request is decided; callers use `Shield-Authorization`.
"""

from __future__ import annotations

import hmac
import os
from collections.abc import Iterable
from hashlib import blake2b
from pathlib import Path

from shield.errors import ShieldError
from shield.identity.bearer import bearer
from shield.server.bounds import MAX_TOKEN_FILE_BYTES, MAX_TOKENS

HEADER = "Shield-Authorization"
CHALLENGE = 'Bearer realm="shield"'


class TokenFileError(ShieldError):
    """A token file that cannot be read or that holds no token."""


class CallerTokens:
    """The tokens of callers, as keyed digests: none can be read back, nor guessed by timing."""

    def __init__(self, tokens: Iterable[str]) -> None:
        self._key = os.urandom(32)
        self._digests = tuple(self._digest(token.encode()) for token in tokens)

    @classmethod
    def read(cls, path: Path) -> CallerTokens:
        """The tokens of a file. TokenFileError."""
        return cls.parse(read_token_file(path), path)

    @classmethod
    def parse(cls, data: bytes, path: Path) -> CallerTokens:
        """One token a line; blank lines and lines that start with # are not tokens. TokenFileError."""
        if len(data) > MAX_TOKEN_FILE_BYTES:
            raise TokenFileError(f"{path}: more than {MAX_TOKEN_FILE_BYTES:,} bytes; allowed: one token a line")
        try:
            lines = [line.strip() for line in data.decode("ascii").splitlines()]
        except UnicodeDecodeError as error:
            raise TokenFileError(f"{path}: byte {error.start} is not ASCII; tokens are") from None
        tokens = []
        for number, line in enumerate(lines, 1):
            if not line or line.startswith("#"):
                continue
            if any(not "!" <= c <= "~" for c in line):
                raise TokenFileError(f"{path}: line {number}: a token has no spaces and only printable ASCII")
            tokens.append(line)
        if not tokens:
            raise TokenFileError(f"{path}: holds no token; write one a line")
        if len(tokens) > MAX_TOKENS:
            raise TokenFileError(f"{path}: found {len(tokens)} tokens; allowed: at most {MAX_TOKENS}")
        return cls(tokens)

    def __len__(self) -> int:
        return len(self._digests)

    def accept(self, authorization: str | None) -> bool:
        """Whether `Bearer TOKEN` names one of the tokens. Compares with all of them, whatever it finds."""
        token = bearer(authorization)
        if token is None:
            return False
        presented = self._digest(token.encode("utf-8", "surrogateescape"))
        accepted = False
        for digest in self._digests:
            accepted |= hmac.compare_digest(presented, digest)
        return accepted

    def _digest(self, token: bytes) -> bytes:
        return blake2b(token, key=self._key, digest_size=32).digest()


def read_token_file(path: Path) -> bytes:
    """What a token file holds, as far as `CallerTokens.parse` would look. TokenFileError."""
    try:
        with path.open("rb") as file:
            return file.read(MAX_TOKEN_FILE_BYTES + 1)
    except OSError as error:
        raise TokenFileError(f"{path}: cannot be read: {error.strerror or error}") from None
