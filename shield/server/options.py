"""What `shield serve` can be told, and the files that this names."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from shield.detect.travel import Locate
from shield.identity.callers import AllowedCallers
from shield.server.auth import CallerTokens, TokenFileError
from shield.server.bounds import DRAIN_GRACE_S, MAX_SECRET_FILE_BYTES, MIN_SECRET_BYTES
from shield.server.sockets import Address, TlsFiles, UsageError

DEFAULT_LISTEN = (Address(host="127.0.0.1", port=8080),)
DEFAULT_ADMIN = Address(host="127.0.0.1", port=8081)


@dataclass(frozen=True, slots=True)
class ServeOptions:
    """What `shield serve` was told."""

    version: str
    policy: Path | None = None
    """None: the starter policy."""
    store: str | None = None
    """None: memory:// for one worker, a table of their own for several."""
    listen: tuple[Address, ...] = DEFAULT_LISTEN
    admin: Address | None = DEFAULT_ADMIN
    token_file: Path | None = None
    tls: TlsFiles | None = None
    callers: AllowedCallers | None = None
    """Whose certificates may ask wherever certificates are asked for; None: everybody's whom --tls-client-ca vouches
    for."""
    secret_file: Path | None = None
    blocks: Path | None = None
    """Where blocks are kept; None: beside a shared table, in a Redis, else nowhere."""
    geo: tuple[Path, ...] = ()
    """Databases of places, countries and networks."""
    trace: Path | None = None
    log_format: str = "console"
    log_level: str = "info"
    workers: int = 1
    grace_s: float = DRAIN_GRACE_S
    drain_delay_s: float = 0.0


def read_tokens(path: Path) -> CallerTokens:
    """The callers' tokens. UsageError when the file cannot be read or holds none."""
    try:
        return CallerTokens.read(path)
    except TokenFileError as error:
        raise UsageError(f"--auth-token-file {error}") from None


def read_secret(path: Path) -> bytes:
    """The secret that receipts are sealed with. UsageError when it is unreadable or too short to be one."""
    try:
        with path.open("rb") as file:
            secret = file.read(MAX_SECRET_FILE_BYTES + 1).strip()
    except OSError as error:
        raise UsageError(f"--secret-file {path}: cannot be read: {error.strerror or error}") from None
    if not MIN_SECRET_BYTES <= len(secret) <= MAX_SECRET_FILE_BYTES:
        raise UsageError(
            f"--secret-file {path}: found {len(secret)} bytes; allowed: {MIN_SECRET_BYTES} to "
            f"{MAX_SECRET_FILE_BYTES}, as from: openssl rand -hex 32"
        )
    return secret


def read_places(paths: Sequence[Path], report: Callable[[str], None]) -> Locate | None:
    """What answers where addresses are; None without a database. UsageError for one that cannot be used."""
    if not paths:
        return None
    from shield.geo import Places

    try:
        return Places(*paths, report=report)
    except ValueError as error:
        raise UsageError(f"--geo {error}") from None


def read_callers(ids: Sequence[str] | None, tls: TlsFiles | None) -> AllowedCallers | None:
    """Whose certificates may ask; None for everybody's. UsageError for a list that is wrong or means nothing."""
    if ids is None:
        return None
    if tls is None or tls.client_ca is None:
        raise UsageError("--tls-client-id needs --tls-client-ca: a certificate that nobody vouches for says nothing")
    try:
        return AllowedCallers(ids)
    except ValueError as error:
        raise UsageError(f"--tls-client-id: {error}") from None
