cdef enum:
    # Every change of numbers adds an entry of 80 bytes: more than this many and something reloads in a loop.
    MAX_NUMBERS = 1 << 20


@cython.final
cdef class Registry:
    """The numbers that cells were written under, and the secret their keys are hashed with. One per store, for its life.

    Entries are never changed or dropped, because a cell's ticks mean nothing without the numbers it was written under.
    When a policy is replaced, older entries of the same limit and plan point to their successor: that one decides how
    fast such a cell drains and when it may be forgotten, before the cell is even touched (law 7).
    """

    cdef Numbers *items
    cdef uint32_t count
    cdef uint32_t room
    cdef dict index           # (identity, plan, limit, refill, unit) -> entry
    cdef dict families        # (identity, plan) -> list of entries
    cdef dict identities      # identity -> small index, for what a store keeps per limit
    cdef uint64_t k0
    cdef uint64_t k1

    def __cinit__(self, secret=None):
        cdef bytes key = os.urandom(16) if secret is None else secret
        if len(key) != 16:
            raise ValueError("the hashing secret has 16 bytes")
        self.k0 = int.from_bytes(key[:8], "little")
        self.k1 = int.from_bytes(key[8:], "little")
        self.index, self.families, self.identities = {}, {}, {}
        self.room = 64
        self.items = <Numbers *>PyMem_Calloc(self.room, sizeof(Numbers))
        if self.items == NULL:
            raise MemoryError
        self.count = 1  # entry 0 is UNTIL: a cell that only knows an instant

    def __dealloc__(self):
        PyMem_Free(self.items)

    def __len__(self):
        return self.count

    cdef int identity_index(self, str identity) except -1:
        return self.identities.setdefault(identity, len(self.identities))

    cdef int64_t intern(self, object limit, str plan, object numbers) except -1:
        """The entry for `numbers` (limit, refill_units, refill_us) of one limit and plan (None: without a plan)."""
        cdef tuple family = (limit.identity, plan)
        cdef tuple key = (*family, numbers.limit, numbers.refill_units, numbers.refill_us)
        cdef object found = self.index.get(key)
        cdef Numbers *n
        cdef uint32_t entry
        if found is None:
            if self.count >= MAX_NUMBERS:
                raise MemoryError(f"more than {MAX_NUMBERS} different numbers since the start: restart the process")
            if self.count == self.room:
                n = <Numbers *>PyMem_Realloc(self.items, 2 * self.room * sizeof(Numbers))
                if n == NULL:
                    raise MemoryError
                self.items = n
                self.room *= 2
            entry = self.count
            n = &self.items[entry]
            memset(n, 0, sizeof(Numbers))
            n.algorithm = ALGORITHMS[limit.algorithm]
            n.limit = numbers.limit
            if n.algorithm == TOKEN_BUCKET:
                n.refill, n.unit = numbers.refill_units, numbers.refill_us
                n.drain_us = clip_us(ceil_div((<u128>n.limit) * (<u128>n.unit), <u128>n.refill))
            elif n.algorithm != CONCURRENCY:
                n.calendar = limit.align is not None
                n.window_us = 0 if n.calendar else limit.window_us
            self.count += 1
            self.index[key] = entry
        else:
            entry = found
        for old in self.families.setdefault(family, []):
            self.items[<uint32_t>old].successor = entry
        if found is None:
            self.families[family].append(entry)
        self.items[entry].successor = entry
        return entry

    cdef int retire_plans(self, object limit, uint32_t base) except -1:
        """Cells written under a plan that the limit no longer knows go on under its base numbers."""
        for (identity, plan), entries in self.families.items():
            if identity == limit.identity and plan is not None and plan not in limit.plans:
                for old in entries:
                    self.items[<uint32_t>old].successor = base
        return 0

    cdef int refresh_calendar(self, uint32_t entry, object window_of, int64_t now_us) except -1:
        """Makes sure that the entry's window is the local day or month that `now_us` lies in."""
        cdef Numbers *n = &self.items[entry]
        if not n.start_us <= now_us < n.end_us:
            start_us, end_us = window_of(now_us)
            n = &self.items[entry]
            n.start_us, n.end_us = start_us, end_us
        return 0
