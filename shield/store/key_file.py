"""The records of idempotency keys of one host: a SQLite file beside the shared table's, for any number of processes.

The law of this file is that of key_records.py over processes: the write lock of SQLite (`BEGIN IMMEDIATE`) is the
section in which a record is looked at, the step over the charges is made and the key is taken. The key is written
before the step, so the only thing that can fail after it is the commit, and then the charges are given back. What a
killed process had begun SQLite rolls back when the next one comes; its locks end with it.

Only requests with a key come here. Nobody waits for the lock longer than LOCK_S: then the answer is that the store
is not available. The file lives where the table does, in memory by default, so a commit reaches no disk; elsewhere a
loss of power may lose the last of them (WAL, `synchronous = NORMAL`), and never breaks the file.
"""

from __future__ import annotations

import contextlib
import os
import sqlite3
import stat
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from shield.answer import StoredAnswer
from shield.errors import StoreError
from shield.guard.idempotency import Claim, pack_answer, unpack_answer
from shield.store.key_records import (
    ABANDONED,
    COMPLETED,
    FULL_RETRY_US,
    NO_ROOM,
    RUNNING,
    SWEEP,
    SWEEP_FULL,
    Ending,
    Outcome,
    Seen,
    look,
)

if TYPE_CHECKING:
    from shield.core import Charges, SharedTable, Table

# A section takes a tenth of a millisecond, so this is far more than all workers of a host one after the other; and it
# is how long a stopped process can keep the others' event loops.
LOCK_S: Final = 0.05
_AGAIN_S: Final = 0.000_1
VERSION: Final = 1

_SCHEMA: Final = """
CREATE TABLE records (
    address BLOB PRIMARY KEY, holder BLOB NOT NULL, state INTEGER NOT NULL, owner BLOB NOT NULL,
    fingerprint BLOB NOT NULL, lease_until_us INTEGER NOT NULL, expires_us INTEGER NOT NULL,
    answer BLOB, size_bytes INTEGER NOT NULL DEFAULT 0
);
CREATE INDEX expiries ON records (expires_us);
CREATE TABLE holders (holder BLOB PRIMARY KEY, keys INTEGER NOT NULL) WITHOUT ROWID;
CREATE TABLE total (keys INTEGER NOT NULL, bytes INTEGER NOT NULL);
INSERT INTO total VALUES (0, 0);
CREATE TRIGGER taken AFTER INSERT ON records BEGIN
    UPDATE total SET keys = keys + 1;
    INSERT INTO holders VALUES (new.holder, 1) ON CONFLICT (holder) DO UPDATE SET keys = keys + 1;
END;
CREATE TRIGGER dropped AFTER DELETE ON records BEGIN
    UPDATE total SET keys = keys - 1, bytes = bytes - old.size_bytes;
    UPDATE holders SET keys = keys - 1 WHERE holder = old.holder;
    DELETE FROM holders WHERE holder = old.holder AND keys = 0;
END;
CREATE TRIGGER answered AFTER UPDATE OF size_bytes ON records BEGIN
    UPDATE total SET bytes = bytes + new.size_bytes - old.size_bytes;
END;
PRAGMA user_version = 1;
"""


class FileRecords:
    """The records in a file, which is made when the first key comes. `give_back` undoes a step that was made."""

    def __init__(self, path: Path, give_back: Callable[[Charges], None]) -> None:
        self._path = path
        self._give_back = give_back
        self._lock = threading.Lock()
        self._db: sqlite3.Connection | None = None
        self._pid = 0
        self._counts = dict.fromkeys(("idempotency_full", "idempotency_not_kept", "idempotency_unavailable"), 0)

    def step(self, table: Table | SharedTable, charges: Charges, claim: Claim) -> None:
        """The table's step, with the key as its last part. StoreError: nothing was taken."""
        with self._section() as db:
            now_us = table.now_us()
            seen, known = _look(db, claim, now_us)
            if seen is not None:
                seen.refuse(charges)
            elif not known and not self._has_room(db, claim, now_us):
                self._counts["idempotency_full"] += 1
                charges.turn_away("store_full", NO_ROOM, FULL_RETRY_US)
            else:
                _take(db, claim, now_us, known)
                table.apply(charges)
                if charges.admitted:
                    self._commit(db, charges)
                return
        table.apply(charges)

    def end(self, ending: Ending, now_us: int) -> Outcome:
        """Completes, abandons or extends, if the owner is still the owner."""
        held, rules = ending.held, ending.rules
        with self._section() as db:
            row = db.execute(
                "SELECT owner, state, expires_us FROM records WHERE address = ? AND expires_us > ?",
                (held.address, now_us),
            ).fetchone()
            if row is None:
                return "unknown"
            owner, state, expires_us = row
            if owner != held.owner or state != RUNNING:
                return "lost"
            if ending.action == "extend":
                until_us = now_us + rules.lease_us
                _set(db, held.address, lease_until_us=until_us, expires_us=max(expires_us, until_us))
            elif ending.action == "abandon":
                _set(db, held.address, state=ABANDONED, expires_us=now_us + rules.lease_us)
            else:
                assert ending.answer is not None
                raw = pack_answer(ending.answer)
                if db.execute("SELECT bytes FROM total").fetchone()[0] + len(raw) > rules.max_bytes:
                    self._counts["idempotency_not_kept"] += 1
                    raw = pack_answer(StoredAnswer(ending.answer.status, (), None))
                expires_us = now_us + rules.retention_us
                _set(db, held.address, state=COMPLETED, expires_us=expires_us, answer=raw, size_bytes=len(raw))
            db.execute("COMMIT")
            return "done"

    def stats(self) -> dict[str, int]:
        """Counts for metrics: keys and bytes of the host, the rest of this process."""
        keys = size_bytes = 0
        with contextlib.suppress(sqlite3.Error), self._lock:
            if self._db is not None and self._pid == os.getpid():
                keys, size_bytes = self._db.execute("SELECT keys, bytes FROM total").fetchone()
        return {"idempotency_keys": keys, "idempotency_bytes": size_bytes, **self._counts}

    def close(self) -> None:
        """Lets go of the file. Another key opens it again."""
        with self._lock:
            if self._db is not None and self._pid == os.getpid():
                self._db.close()
            self._db = None

    # ---- the file ----------------------------------------------------------------------------------------------

    @contextlib.contextmanager
    def _section(self) -> Iterator[sqlite3.Connection]:
        """One transaction alone among all processes. What was not committed when it ends is rolled back."""
        with self._lock:
            try:
                db = self._opened()
                _begin(db)
                try:
                    yield db
                finally:
                    if db.in_transaction:
                        db.execute("ROLLBACK")
            except (sqlite3.Error, OSError, StoreError) as error:
                self._counts["idempotency_unavailable"] += 1
                why = error.strerror if isinstance(error, OSError) else error
                raise StoreError(f"idempotency keys at {self._path}: {why}") from None

    def _opened(self) -> sqlite3.Connection:
        if self._db is None or self._pid != os.getpid():  # a connection belongs to the process that made it
            self._db = None
            self._db = _open(self._path)
            self._pid = os.getpid()
        return self._db

    def _has_room(self, db: sqlite3.Connection, claim: Claim, now_us: int) -> bool:
        swept = _sweep(db, now_us, SWEEP)
        if not (room := _fits(db, claim)):
            swept += _sweep(db, now_us, SWEEP_FULL)
            room = _fits(db, claim)
        if swept and not room:
            db.execute("COMMIT")
        return room

    def _commit(self, db: sqlite3.Connection, charges: Charges) -> None:
        try:
            db.execute("COMMIT")
        except sqlite3.Error:
            self._give_back(charges)
            raise


def _open(path: Path) -> sqlite3.Connection:
    with contextlib.suppress(FileExistsError):
        # Never opened again by hand: closing a descriptor would drop the locks of SQLite's own.
        os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600))
    found = path.lstat()
    if not stat.S_ISREG(found.st_mode) or found.st_uid != os.geteuid() or found.st_mode & 0o077:
        raise StoreError("it is no file of this user alone (mode 0600)")
    db = sqlite3.connect(path, timeout=LOCK_S, isolation_level=None, check_same_thread=False)
    try:
        db.execute("PRAGMA journal_mode = WAL")
        db.execute("PRAGMA synchronous = NORMAL")
        db.execute("PRAGMA temp_store = MEMORY")
        db.execute("PRAGMA busy_timeout = 0")
        _begin(db)
        version = db.execute("PRAGMA user_version").fetchone()[0]
        if version == 0:
            for statement in _statements(_SCHEMA):
                db.execute(statement)
            db.execute("COMMIT")
        elif version != VERSION:
            raise StoreError("it was made by another version of Shield; remove it")
        else:
            db.execute("ROLLBACK")
    except BaseException:
        db.close()
        raise
    return db


def _statements(script: str) -> Iterator[str]:
    """One after the other: executescript would commit first."""
    statement = ""
    for line in script.splitlines(keepends=True):
        statement += line
        if sqlite3.complete_statement(statement):
            yield statement
            statement = ""


def _begin(db: sqlite3.Connection) -> None:
    """The write lock. SQLite's own waiting sleeps a millisecond and longer each time; a section is much shorter."""
    deadline = time.monotonic() + LOCK_S
    while True:
        try:
            db.execute("BEGIN IMMEDIATE")
            return
        except sqlite3.OperationalError as error:
            busy = error.sqlite_errorcode & 0xFF in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED)
            if not busy or time.monotonic() >= deadline:
                raise
        time.sleep(_AGAIN_S)


def _look(db: sqlite3.Connection, claim: Claim, now_us: int) -> tuple[Seen | None, bool]:
    """What the record says, and whether there is one, be it one that has run out."""
    row = db.execute(
        "SELECT state, fingerprint, lease_until_us, expires_us, answer FROM records WHERE address = ?",
        (claim.key.address,),
    ).fetchone()
    if row is None:
        return None, False
    state, fingerprint, lease_until_us, expires_us, raw = row
    if expires_us <= now_us:
        return None, True
    same = fingerprint == claim.key.fingerprint
    answer = None
    if raw is not None and same:
        try:
            answer = unpack_answer(raw)
        except ValueError as error:
            raise StoreError(str(error)) from None
    return look(state, same, claim.key.strict, lease_until_us - now_us, expires_us - now_us, answer), True


def _take(db: sqlite3.Connection, claim: Claim, now_us: int, known: bool) -> None:
    key, rules = claim.key, claim.rules
    lease_until_us = now_us + rules.lease_us
    expires_us = now_us + max(rules.retention_us, rules.lease_us)
    if known:
        _set(
            db,
            key.address,
            state=RUNNING,
            owner=claim.owner,
            fingerprint=key.fingerprint,
            lease_until_us=lease_until_us,
            expires_us=expires_us,
            answer=None,
            size_bytes=0,
        )
        return
    db.execute(
        "INSERT INTO records (address, holder, state, owner, fingerprint, lease_until_us, expires_us) "
        "VALUES (?, ?, ?, ?, ?, ?, ?)",
        (key.address, key.holder, RUNNING, claim.owner, key.fingerprint, lease_until_us, expires_us),
    )


def _set(db: sqlite3.Connection, address: bytes, **values: Any) -> None:
    columns = ", ".join(f"{name} = ?" for name in values)
    db.execute(f"UPDATE records SET {columns} WHERE address = ?", (*values.values(), address))


def _sweep(db: sqlite3.Connection, now_us: int, most: int) -> int:
    return db.execute(
        "DELETE FROM records WHERE rowid IN (SELECT rowid FROM records WHERE expires_us <= ? LIMIT ?)", (now_us, most)
    ).rowcount


def _fits(db: sqlite3.Connection, claim: Claim) -> bool:
    (keys,) = db.execute("SELECT keys FROM total").fetchone()
    mine = db.execute("SELECT keys FROM holders WHERE holder = ?", (claim.key.holder,)).fetchone()
    return bool(keys < claim.rules.max_keys and (mine is None or mine[0] < claim.rules.max_keys_per_tenant))


def records_of(table: Path) -> Path:
    """The file of the records that belong to a table's file."""
    return table.with_suffix(".keys")


def remove_records(table: Path) -> None:
    """Forgets all keys of a table that nobody uses."""
    path = records_of(table)
    for name in (path, path.with_name(f"{path.name}-wal"), path.with_name(f"{path.name}-shm")):
        with contextlib.suppress(OSError):
            name.unlink()
