cdef enum:
    # Every change of numbers adds an entry of 80 bytes: more than this many and something reloads in a loop. Cells name
    # theirs in as many bits.
    MAX_NUMBERS = 1 << NUMBERS_BITS

    # Limits that count by the same key keep up to this many of its cells side by side, two to a cache line: finding the second
    # costs next to nothing. More would make runs of cells that are long to walk.
    NEIGHBOURS = 4

# No calendar window is longer: a day with the clocks set back is 25 hours, a zone that crosses the date line repeats one.
cdef int64_t LONGEST_DAY_US = 50 * 3_600_000_000
cdef int64_t LONGEST_MONTH_US = 33 * 86_400_000_000


@cython.final
cdef class Registry:
    """The numbers that cells were written under, and the secret their keys are hashed with. One per store, for its life.
    `mapped` is the file of a table that processes share: it knows the numbers too, under its own secret.

    Entries are never changed or dropped, because a cell's ticks mean nothing without the numbers it was written under.
    When a policy is replaced, older entries of a limit point to a successor: that one decides when a cell written under
    them may be forgotten before it is touched again (law 7).
    """

    cdef Numbers *items
    cdef uint32_t count
    cdef uint32_t room
    cdef dict index           # (identity, plan, limit, refill, unit) -> entry
    cdef dict entries         # identity -> its entries, present and past
    cdef dict identities      # identity -> small index, for what a store keeps per limit
    cdef dict seeds           # identity -> what it mixes into the hash of a key
    cdef dict neighbours      # key -> how many identities count by it
    cdef bint alone           # nobody else has this secret
    cdef uint64_t k0
    cdef uint64_t k1
    cdef MappedFile mapped

    def __cinit__(self, secret=None, *, MappedFile mapped=None):
        cdef bytes key = mapped.hashing_secret if mapped is not None else os.urandom(16) if secret is None else secret
        if len(key) != 16:
            raise ValueError("the hashing secret has 16 bytes")
        self.k0 = int.from_bytes(key[:8], "little")
        self.k1 = int.from_bytes(key[8:], "little")
        self.alone = secret is None and mapped is None
        self.mapped = mapped
        self.index, self.entries, self.identities, self.seeds, self.neighbours = {}, {}, {}, {}, {}
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

    cdef Hash128 seed_of(self, str identity, tuple key) except *:
        """What a limit mixes into a key's hash, so that one hash of a key serves all limits that count by it.

        The high half of `a` says where a cell has its home. Neighbours have it in common; they are told apart by the other
        96 bits. Who is whose neighbour depends on the order in which limits were first seen, so a secret that others know
        too, who may have seen them in another order, gives every limit a home of its own.
        """
        cdef Hash128 seed, home
        cdef bytes text = identity.encode()
        if identity not in self.seeds:
            seed = siphash128(<const uint8_t *><const char *>text, len(text), self.k0, self.k1)
            if self.alone:
                nth = self.neighbours.get(key, 0)
                self.neighbours[key] = nth + 1
                text = f"{nth // NEIGHBOURS}|{','.join(key)}".encode()
                home = siphash128(<const uint8_t *><const char *>text, len(text), self.k0, self.k1)
                seed.a = (home.a & <uint64_t>0xFFFFFFFF00000000) | (seed.a & <uint64_t>0xFFFFFFFF)
            self.seeds[identity] = (seed.a, seed.b)
        seed.a, seed.b = self.seeds[identity]
        return seed

    cdef int64_t intern(self, object limit, str plan, object numbers) except -1:
        """The entry for `numbers` (limit, refill_units, refill_us) of one limit and plan (None: without a plan)."""
        cdef tuple key = (limit.identity, plan, numbers.limit, numbers.refill_units, numbers.refill_us)
        cdef object found = self.index.get(key)
        cdef Numbers *n
        if found is not None:
            return found
        if self.count >= MAX_NUMBERS:
            raise MemoryError(f"more than {MAX_NUMBERS} different numbers since the start: restart the process")
        if self.count == self.room:
            n = <Numbers *>PyMem_Realloc(self.items, 2 * self.room * sizeof(Numbers))
            if n == NULL:
                raise MemoryError
            self.items = n
            self.room *= 2
        n = &self.items[self.count]
        memset(n, 0, sizeof(Numbers))
        n.algorithm = ALGORITHMS[limit.algorithm]
        n.limit = numbers.limit
        n.successor = self.count
        if n.algorithm == TOKEN_BUCKET:
            n.refill, n.unit = numbers.refill_units, numbers.refill_us
            n.drain_us = clip_us(ceil_div((<u128>n.limit) * (<u128>n.unit), <u128>n.refill))
        elif n.algorithm != CONCURRENCY:
            n.calendar = limit.align is not None
            n.window_us = limit.window_us if not n.calendar else LONGEST_DAY_US if limit.align == "day" else LONGEST_MONTH_US
        if self.mapped is not None:
            self.mapped.enter(self, limit, n)
        self.index[key] = self.count
        self.entries.setdefault(limit.identity, []).append(self.count)
        self.count += 1
        return self.count - 1

    cdef int put_in_force(self, str identity, list entries) except -1:
        """`entries` are a limit's numbers now, without a plan and for each plan. Whatever numbers a cell of it was written
        under, it may be forgotten only when it is drained under the slowest of them: its key may come with any plan."""
        cdef uint32_t slowest = entries[0], entry
        cdef Numbers *n
        cdef Numbers *s
        for item in entries:
            entry = item
            n, s = &self.items[entry], &self.items[slowest]
            if n.algorithm == TOKEN_BUCKET and (<u128>n.refill) * (<u128>s.unit) < (<u128>s.refill) * (<u128>n.unit):
                slowest = entry
        for item in self.entries[identity]:
            self.items[<uint32_t>item].successor = slowest
        return 0

    cdef int refresh_calendar(self, uint32_t entry, object window_of, int64_t now_us) except -1:
        """Makes sure that the entry's window is the local day or month that `now_us` lies in."""
        cdef Numbers *n = &self.items[entry]
        if not n.start_us <= now_us < n.end_us:
            start_us, end_us = window_of(now_us)
            n = &self.items[entry]
            n.start_us, n.end_us = start_us, end_us
        return 0
