"""The store of one host: one exact table in a mapped file, for any number of processes at once.

`shared://NAME?max_keys=1000000&max_leases=65536&max_receipts=125000&max_nonces=125000&dir=/dev/shm`

The table is one file, `shield-NAME.table`, in `dir`: /dev/shm, or where there is none $XDG_RUNTIME_DIR or the directory
for temporary files. It is made by the first process that asks for it, with mode 0600, all of its size at once, and it
stays until somebody removes it or the host stops: buckets outlive every process that uses them. Options that are given
must be those that the file was made with; those that are not given are the file's.

For operators:

    ls -l /dev/shm/shield-*.table         which tables there are, and whose
    python -m shield.store.shared         the same, with bounds, live keys and whether any process is attached
    rm /dev/shm/shield-NAME.*             forgets all buckets and idempotency keys of NAME. Processes that are attached
                                          go on with the old table, so restart them all: whoever attaches later
                                          makes a new one

Idempotency keys lie beside it, in `shield-NAME.keys` (SQLite, with its -wal and -shm), once the first one came.

Every process that is attached holds a shared `flock` on the file, which the kernel gives back however the process ends:
`flock -n -x FILE true` fails while anybody uses it. No bucket is ever under a lock.

A supervisor that wants a table for its own workers makes a `PrivateTable`: its `url` is for them, `close` removes it,
and what a killed supervisor left behind is removed by the next one.
"""

from __future__ import annotations

import os
import secrets
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

from shield.clock import Clock
from shield.core import Registry, SharedTable
from shield.errors import StoreError
from shield.store.key_file import FileRecords, records_of, remove_records
from shield.store.table import TableStore, give_back
from shield.store.table_file import (
    PRIVATE,
    attach,
    beside,
    default_directory,
    remove_unattended_private,
    unattended,
    where,
)
from shield.store.url import StoreURLError


class SharedStore(TableStore):
    """Attaches to a table's file, which is made if there is none.

    StoreURLError for a URL or a file that does not fit it, with what was found, what was expected and what to do;
    StoreError where the file cannot be had: a missing directory, a full disk, no permission.
    """

    name = "shared"
    table: SharedTable
    keys: FileRecords

    def __init__(self, url: str, *, clock: Clock | None = None) -> None:
        self.path, given = where(url)
        self.blocks_path = beside(self.path)
        """A file beside the table, in which its processes tell each other of blocks."""
        self._file, self.mapped = attach(self.path, given)
        self.registry = Registry(mapped=self.mapped)
        self.secret = self.mapped.sealing_secret
        self.table = SharedTable(self.registry, clock=clock)
        self.keys = FileRecords(records_of(self.path), partial(give_back, self.table))

    async def close(self) -> None:
        """Lets go of the file's lock. The table stays, for others and for later; this process may go on using it."""
        self.keys.close()
        self._file.close()


class PrivateTable:
    """A table for one supervisor and its workers: made here, removed by `close` or on leaving the `with`."""

    def __init__(self, **options: int | str) -> None:
        """`options` are those of the URL. StoreURLError and StoreError as for SharedStore."""
        query = "&".join(f"{name}={value}" for name, value in options.items())
        self.url = f"shared://{PRIVATE}{os.getpid()}-{secrets.token_hex(4)}" + (f"?{query}" if query else "")
        self.path, given = where(self.url)
        remove_unattended_private(self.path.parent)
        self._file, _ = attach(self.path, given)

    def close(self) -> None:
        """Removes the file. Workers that are still attached keep their memory of it until they end."""
        for path in (beside(self.path), self.path):
            path.unlink(missing_ok=True)
        remove_records(self.path)
        self._file.close()

    def __enter__(self) -> PrivateTable:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()


def table_path(url: str) -> Path:
    """The file of a `shared://` URL, whether it is there or not. StoreURLError for a URL that is none."""
    return where(url)[0]


def blocks_path(url: str) -> Path:
    """Where the processes of a table tell each other of blocks, by its URL. StoreURLError for a URL that is none."""
    return beside(table_path(url))


def remove_table(url: str) -> bool:
    """Forgets all buckets and idempotency keys of a table. False when there was none. Attached processes go on with
    what they have.
    """
    remove_records(table_path(url))
    try:
        table_path(url).unlink()
    except FileNotFoundError:
        return False
    return True


def tables(directory: Path | None = None) -> Iterator[dict[str, Any]]:
    """Every table in a directory: name, path, counts, whether it is in use (`attached`), or what is wrong with it."""
    for path in sorted((directory or default_directory()).glob("shield-*.table")):
        found: dict[str, Any] = {"name": path.name[7:-6], "path": str(path)}
        try:
            file, mapped = attach(path, {}, make=False)
            with file:
                found |= SharedTable(Registry(mapped=mapped)).stats()
                found["attached"] = not unattended(file.fd)
        except (OSError, StoreError, StoreURLError) as error:
            found["error"] = str(error)
        yield found


def main() -> None:
    """One line for each table."""
    for found in tables():
        if "error" in found:
            print(f"{found['name']}  {found['error']}")
        else:
            use = "in use" if found["attached"] else "not in use"
            print(
                f"{found['name']}  {found['keys']} of {found['max_keys']} keys, {found['leases']} leases, "
                f"{found['size_bytes']} bytes, {use}"
            )


if __name__ == "__main__":
    main()
