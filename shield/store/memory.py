"""The store of one process: exact, bounded, and never more than a function call away."""

from __future__ import annotations

import os

from shield.clock import Clock
from shield.core import Registry, Table
from shield.store.key_records import MemoryRecords
from shield.store.table import TableStore

# A live key takes 46 bytes, so the default is bounded by 46 MB, reached only as keys arrive.
DEFAULT_MAX_KEYS = 1_000_000
# A held place takes about 300 bytes.
DEFAULT_MAX_LEASES = 65_536
# Receipts that were settled and have not expired: at the default 5 minutes, 3,300 reports a second. 46 bytes each.
DEFAULT_MAX_RECEIPTS = 1_000_000
# Nonces that were used and are not stale: at a window of 5 minutes, 2,700 requests with one a second. 46 bytes each.
DEFAULT_MAX_NONCES = 1_000_000


class MemoryStore(TableStore):
    """`memory://?max_keys=1000000&max_leases=65536&max_receipts=1000000&max_nonces=1000000`: buckets that end with this
    process.
    """

    name = "memory"
    table: Table

    def __init__(
        self,
        *,
        max_keys: int = DEFAULT_MAX_KEYS,
        max_leases: int = DEFAULT_MAX_LEASES,
        max_receipts: int = DEFAULT_MAX_RECEIPTS,
        max_nonces: int = DEFAULT_MAX_NONCES,
        clock: Clock | None = None,
        registry: Registry | None = None,
    ) -> None:
        self.registry = Registry() if registry is None else registry
        self.secret = os.urandom(32)
        self.keys = MemoryRecords()
        self.table = Table(
            self.registry,
            max_keys=max_keys,
            max_leases=max_leases,
            max_receipts=max_receipts,
            max_nonces=max_nonces,
            clock=clock,
        )
