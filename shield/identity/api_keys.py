"""Keys that this service hands out itself: made once, shown once, kept only as keyed hashes.

The file is JSON beside the policy, replaced whole and atomically under a lock, so that workers of one host share it
and a crash leaves the old or the new one. A change by another process is noticed within a second. A key has 256 random
bits and is found by its hash under a secret that lies in a file of its own: whoever reads the store can neither use a
key nor try guesses, and how long a look-up takes says nothing about any.
"""

from __future__ import annotations

import contextlib
import fcntl
import hmac
import json
import os
import secrets
import tempfile
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from hashlib import blake2b
from pathlib import Path
from typing import Any, Final

import msgspec

from shield.errors import RequestError, ShieldError
from shield.identity.fetch import FetchError, read_file
from shield.identity.principal import MAX_VALUE_BYTES, Principal

MAX_KEYS: Final = 10_000
"""8 MB in memory and 2.4 MB on disk, which is written whole for each change and read whole by all others. Whoever hands
out more has a service of its own for that, and that one can issue tokens."""
MAX_STORE_BYTES: Final = 16 * 1_048_576
MIN_SECRET_BYTES: Final = 16
MAX_SECRET_BYTES: Final = 64
MAX_KEY_CHARS: Final = 256
"""What is presented as a key; ours have 60."""
MAX_NOTE_CHARS: Final = 256
POLL_US: Final = 1_000_000
PREFIX: Final = "shk_"
FOREVER_US: Final = 2**62


class KeyStoreError(ShieldError):
    """The keys cannot be read or written; the message names the file."""


@dataclass(frozen=True, slots=True)
class ApiKey:
    """One key, without what would let anybody use it. Instants are Unix seconds."""

    id: str
    tenant: str | None
    user: str | None
    plan: str | None
    note: str | None
    created: int
    expires: int | None


class _Stored(msgspec.Struct, forbid_unknown_fields=True):
    id: str
    hash: str
    created: int
    tenant: str | None = None
    user: str | None = None
    plan: str | None = None
    note: str | None = None
    expires: int | None = None


class _File(msgspec.Struct, forbid_unknown_fields=True):
    version: int
    keys: list[_Stored]


class ApiKeys:
    """The keys of one store. Opening reads them; KeyStoreError when that cannot be done."""

    def __init__(self, store: Path, secret: Path) -> None:
        self._store = store
        self._secret_file = secret
        self._secret: bytes | None = None
        self._by_hash: dict[bytes, tuple[ApiKey, Principal]] = {}
        self._seen: tuple[int, ...] | None = None
        self._polled_us = 0
        self.why: str | None = None
        """Why the store could not be read again; None when it could. The keys read before stay in use."""
        self._load()

    def __len__(self) -> int:
        return len(self._by_hash)

    # ---- asking ------------------------------------------------------------------------------------------------

    def find(self, presented: str, now_us: int) -> Principal | None:
        """Whose key this is; None for one that is unknown, revoked or expired."""
        if not 0 <= now_us - self._polled_us < POLL_US:
            self.look(now_us)
        if self._secret is None or len(presented) > MAX_KEY_CHARS:
            return None
        digest = self._digest(presented)
        found = self._by_hash.get(digest)
        return found[1] if found is not None and now_us < found[1].until_us else None

    def list(self) -> list[ApiKey]:
        """All of them, the oldest first."""
        return sorted((key for key, _ in self._by_hash.values()), key=lambda key: (key.created, key.id))

    def _digest(self, text: str) -> bytes:
        assert self._secret is not None
        return blake2b(text.encode("utf-8", "surrogatepass"), key=self._secret, digest_size=32).digest()

    # ---- changing ----------------------------------------------------------------------------------------------

    def create(
        self,
        *,
        tenant: str | None = None,
        user: str | None = None,
        plan: str | None = None,
        note: str | None = None,
        expires: int | None = None,
        now_s: int,
    ) -> tuple[ApiKey, str]:
        """A new key and its text, which nobody can show again. RequestError, KeyStoreError."""
        texts = {"tenant": tenant, "user": user, "plan": plan}
        for field, value in texts.items():
            _check_text(field, value, MAX_VALUE_BYTES)
        _check_text("note", note, MAX_NOTE_CHARS)
        if tenant is None and user is None:
            raise RequestError("tenant", "missing; allowed: tenant, user or both, for a key is somebody's")
        if expires is not None and not now_s < expires <= 2**40:
            raise RequestError("expires", "allowed: Unix time in whole seconds, in the future")
        with self._locked():
            self._catch_up()
            if len(self._by_hash) >= MAX_KEYS:
                raise KeyStoreError(f"there are {MAX_KEYS:,} keys already; revoke some")
            if self._secret is None:
                self._make_secret()
            key = ApiKey(secrets.token_hex(6), tenant, user, plan, note, now_s, expires)
            text = f"{PREFIX}{key.id}_{secrets.token_urlsafe(32)}"
            self._save({**self._by_hash, self._digest(text): (key, _principal(key))})
        return key, text

    def revoke(self, key_id: str) -> bool:
        """Whether there was such a key. From now on it is unknown."""
        with self._locked():
            self._catch_up()
            kept = {
                digest: entry
                for digest, entry in self._by_hash.items()
                if not hmac.compare_digest(entry[0].id.encode(), key_id.encode("utf-8", "replace"))
            }
            if len(kept) == len(self._by_hash):
                return False
            self._save(kept)
        return True

    # ---- the files ---------------------------------------------------------------------------------------------

    @contextlib.contextmanager
    def _locked(self) -> Iterator[None]:
        """One change at a time on this host."""
        try:
            lock = os.open(f"{self._store}.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except OSError as error:
            raise KeyStoreError(f"{self._store.name} cannot be locked: {error.strerror}") from None
        try:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield
        finally:
            os.close(lock)

    def look(self, now_us: int) -> None:
        """Notices what another process has changed, by a look at the file; `why` tells when it cannot be read."""
        self._polled_us = now_us
        try:
            self._catch_up()
        except KeyStoreError as error:
            self.why = str(error)

    def _catch_up(self) -> None:
        """Reads the file again if another process has replaced it."""
        if self._signature() != self._seen:
            self._load()

    def _signature(self) -> tuple[int, ...] | None:
        try:
            stat = os.stat(self._store)
        except OSError:
            return None
        return stat.st_ino, stat.st_mtime_ns, stat.st_size

    def _load(self) -> None:
        seen = self._signature()
        if self._secret_file.exists():
            self._secret = _read_secret(self._secret_file)
        if seen is None:
            # Not made yet. One that was there and went is a mistake, and its keys no longer hold.
            self._by_hash, self._seen, self.why = {}, None, None
            return
        if self._secret is None:
            raise KeyStoreError(f"{self._secret_file.name} is missing, so no key in {self._store.name} can be told")
        try:
            content = msgspec.json.decode(read_file(self._store, MAX_STORE_BYTES), type=_File)
        except FetchError as error:
            raise KeyStoreError(str(error)) from None
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
            raise KeyStoreError(f"{self._store.name} is not a file of keys") from None
        if content.version != 1:
            raise KeyStoreError(f"{self._store.name} is of version {content.version}; allowed: 1")
        if len(content.keys) > MAX_KEYS:
            raise KeyStoreError(f"{self._store.name} holds {len(content.keys):,} keys; allowed: at most {MAX_KEYS:,}")
        entries = {}
        for at, one in enumerate(content.keys):
            try:
                digest = bytes.fromhex(one.hash)
            except ValueError:
                digest = b""
            if len(digest) != 32:
                raise KeyStoreError(f"{self._store.name}: keys[{at}].hash is no hash")
            key = ApiKey(one.id, one.tenant, one.user, one.plan, one.note, one.created, one.expires)
            entries[digest] = key, _principal(key)
        self._by_hash, self._seen, self.why = entries, seen, None

    def _save(self, entries: dict[bytes, tuple[ApiKey, Principal]]) -> None:
        """On disk first: what could not be written was not changed."""
        keys: list[dict[str, Any]] = [
            {name: value for name, value in asdict(key).items() if value is not None} | {"hash": digest.hex()}
            for digest, (key, _) in entries.items()
        ]
        _replace(self._store, json.dumps({"version": 1, "keys": keys}, indent=1).encode() + b"\n")
        self._by_hash, self._seen = entries, self._signature()

    def _make_secret(self) -> None:
        secret = secrets.token_hex(32).encode()
        _replace(self._secret_file, secret + b"\n")
        self._secret = secret


def _principal(key: ApiKey) -> Principal:
    fields = {"tenant": key.tenant, "user": key.user, "plan": key.plan}
    return Principal(fields, None, None, 0, FOREVER_US if key.expires is None else key.expires * 1_000_000)


def _read_secret(path: Path) -> bytes:
    try:
        secret = read_file(path, 4_096).strip()
    except FetchError as error:
        raise KeyStoreError(str(error)) from None
    if not MIN_SECRET_BYTES <= len(secret) <= MAX_SECRET_BYTES:
        raise KeyStoreError(
            f"{path.name} holds {len(secret)} bytes; allowed: {MIN_SECRET_BYTES} to {MAX_SECRET_BYTES}, as from: "
            "openssl rand -hex 32"
        )
    return secret


def _replace(path: Path, data: bytes) -> None:
    """The old content or the new one, whatever happens in between; readable by its owner alone."""
    try:
        descriptor, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
        try:
            with os.fdopen(descriptor, "wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            os.replace(name, path)
        except BaseException:
            os.unlink(name)
            raise
        directory = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(directory)
        finally:
            os.close(directory)
    except OSError as error:
        raise KeyStoreError(f"{path.name} cannot be written: {error.strerror}") from None


def _check_text(field: str, value: Any, most_bytes: int) -> None:
    if value is None:
        return
    if not isinstance(value, str) or not value or not value.isprintable() or len(value.encode()) > most_bytes:
        raise RequestError(field, f"allowed: printable text of 1 to {most_bytes} bytes")
