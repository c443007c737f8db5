@cython.final
cdef class Table:
    """The memory store's engine: cells and leases of this process, and the one atomic step over all charges of a request.

    The step runs no Python code between its first read and its last write, so no other thread comes in between: what needs
    Python (ids of leases, calendar windows) is made ready before, and where leases are in play, garbage collection, which
    runs other people's finalizers, waits. It asks every charge first and writes only then, so a refused request leaves
    nothing behind.
    """

    cdef KeyTable keys
    cdef KeyTable settled        # receipts that were settled, until they expire: a bound of their own
    cdef int64_t settled_us      # the latest instant a receipt was judged at: a clock that steps back revives none
    cdef KeyTable nonces         # nonces that were used, until they are stale: a bound of their own
    cdef int64_t nonces_us       # the latest instant a nonce was judged at: a clock that steps back revives none
    cdef int64_t nonces_full
    cdef Fence fence
    cdef readonly Registry registry
    cdef readonly LeaseTable leases
    cdef Cell *shared            # per limit identity: the bucket that newcomers share when the table is full
    cdef int shared_room
    cdef object clock
    cdef FullCounts full

    def __cinit__(self, Registry registry not None, *, int64_t max_keys=1_000_000, int64_t max_leases=65_536,
                  int64_t max_receipts=1_000_000, int64_t max_nonces=1_000_000, clock=None):
        if not 1 <= max_keys <= 1_000_000_000:
            raise ValueError(f"max_keys must be from 1 to 1_000_000_000, not {max_keys}")
        if not 1 <= max_leases <= 10_000_000:
            raise ValueError(f"max_leases must be from 1 to 10_000_000, not {max_leases}")
        if not 1 <= max_receipts <= 1_000_000_000:
            raise ValueError(f"max_receipts must be from 1 to 1_000_000_000, not {max_receipts}")
        if not 1 <= max_nonces <= 1_000_000_000:
            raise ValueError(f"max_nonces must be from 1 to 1_000_000_000, not {max_nonces}")
        self.registry = registry
        self.leases = LeaseTable(max_leases)
        self.clock = clock
        self.fence.since_us = read_clock(clock, 0)
        if not (table_open(&self.keys, max_keys) and table_open(&self.settled, max_receipts)
                and table_open(&self.nonces, max_nonces)):
            raise MemoryError(f"no memory for max_keys={max_keys}, max_receipts={max_receipts} and max_nonces={max_nonces}")

    def __dealloc__(self):
        table_close(&self.keys)
        table_close(&self.settled)
        table_close(&self.nonces)
        PyMem_Free(self.shared)

    def __len__(self):
        return self.keys.count

    @property
    def max_keys(self):
        return self.keys.max_cells

    @property
    def size_bytes(self):
        return self.keys.size_bytes

    @property
    def shared_uses(self):
        return self.full.shared

    @property
    def full_denials(self):
        return self.full.denied

    @property
    def full_allowances(self):
        return self.full.allowed

    def apply(self, Charges charges not None, *, bint degraded=False, now_us=None, empty_at_us=None, int64_t spare=0):
        """The step alone. `degraded`: stand in for a store that is away, each limit by its `when_store_fails`, and where
        `empty_at_us` is given as if at that instant no more than `spare` units had been left of any bucket, and of a window
        what is to come.
        """
        cdef int64_t now = read_clock(self.clock, 0) if now_us is None else now_us
        charges.empty_at_us = 0 if empty_at_us is None else empty_at_us
        charges.spare = spare
        self.step(charges, now, degraded)

    cdef int step(self, Charges charges, int64_t now_us, bint degraded) except -1:
        charges.now_us = now_us
        if charges.n == 0 and not charges.has_nonce:
            charges.admitted = charges.reason is None
            return 0
        cdef bint collecting = False
        charges.degraded = degraded
        self.prepare(charges, now_us)
        if charges.has_leases:
            charges.ids()
            collecting = PyGC_Disable()
        try:
            if charges.has_nonce:
                self.look_at_nonce(charges, now_us, degraded)
            self.look(charges, now_us, degraded)
            charges.conclude()
            if charges.taking and charges.has_nonce:
                self.take_nonce(charges)
            self.commit(charges, now_us)
        finally:
            if collecting:
                PyGC_Enable()
        return 0

    cdef int prepare(self, Charges charges, int64_t now_us) except -1:
        cdef int i
        cdef Charge *charge
        cdef int identities = len(self.registry.identities)
        for i in range(charges.n if charges.policy.any_calendar else 0):
            charge = &charges.items[i]
            if charges.policy.windows[charge.limit] is not None:
                self.registry.refresh_calendar(charge.numbers, charges.policy.windows[charge.limit], now_us)
        if self.shared_room < identities:
            self.shared = <Cell *>PyMem_Realloc(self.shared, identities * sizeof(Cell))
            if self.shared == NULL:
                raise MemoryError
            memset(&self.shared[self.shared_room], 0, (identities - self.shared_room) * sizeof(Cell))
            self.shared_room = identities
        return 0

    # ---- nonces: looked at first, taken only when all else is admitted ----------------------------------------------

    cdef int look_at_nonce(self, Charges charges, int64_t now_us, bint degraded) noexcept:
        cdef Packed *cell
        if degraded:
            charges.lacks_store_for_nonce()
            return 0
        self.nonces_us = max(now_us, self.nonces_us)
        fence_widen(&self.fence, charges.nonce.window_us + charges.nonce.skew_us, now_us)
        if charges.judge_nonce(&self.fence, now_us, self.nonces_us) == NONCE_FRESH:
            cell = table_find(&self.nonces, charges.nonce_hash.a, charges.nonce_hash.b)
            if cell != NULL and packed_at(cell) > self.nonces_us:
                charges.nonce_refused(NONCE_SEEN)
        return 0

    cdef int take_nonce(self, Charges charges) except -1:
        """Takes the nonce of a request that is admitted. Full means refused: what is held is never dropped for it."""
        cdef Hash128 h = charges.nonce_hash
        cdef Packed *cell = table_find(&self.nonces, h.a, h.b)
        if cell == NULL:
            if self.nonces.count >= self.nonces.max_cells:
                table_sweep(&self.nonces, self.registry.items, self.nonces_us, SWEEP_SLOTS_FULL)
            if self.nonces.count >= self.nonces.max_cells:
                self.nonces_full += 1
                charges.nonce_refused(NONCE_FULL)
                charges.conclude()
                return 0
            cell = table_insert(&self.nonces, h.a, h.b)
        pack_until(cell, charges.nonce_until_us(&self.fence))
        table_sweep(&self.nonces, self.registry.items, self.nonces_us, SWEEP_SLOTS)
        return 0

    def give_nonce_back(self, Charges charges not None):
        """Of a step that was made and is undone: the nonce is as if it had never been used."""
        cdef Packed *cell
        if charges.taking and charges.has_nonce:
            cell = table_find(&self.nonces, charges.nonce_hash.a, charges.nonce_hash.b)
            if cell != NULL and packed_at(cell) == charges.nonce_until_us(&self.fence):
                pack_until(cell, 0)

    cdef int look(self, Charges charges, int64_t now_us, bint degraded) except -1:
        """Brings a copy of every state to now and asks it. Writes nothing."""
        cdef int i, newcomers = 0
        cdef int64_t places = 0
        cdef bint ample = self.keys.count + charges.n <= self.keys.max_cells  # whoever is new
        cdef Charge *charge
        cdef CompiledLimit *limits = charges.policy.items
        cdef CompiledLimit *c
        for i in range(charges.n):
            charge = &charges.items[i]
            c = &limits[charge.limit]
            charge.verdict = FITS
            charge.unknown = charge.newcomer = charge.rebased = charge.shared = False
            charge.cell = NULL
            if degraded and stand_in(charge, c):
                continue
            if c.algorithm == CONCURRENCY:
                places = self.look_at_leases(charge, now_us, places)
                continue
            charge.cell = table_find(&self.keys, charge.hash.a, charge.hash.b)
            charge.newcomer = charge.cell == NULL
            newcomers += charge.newcomer
            if ample:
                self.look_at(charges, charge, c, now_us)
        if ample:
            return 0
        if self.keys.count + newcomers > self.keys.max_cells:
            self.make_room(charges, now_us)
        for i in range(charges.n):
            charge = &charges.items[i]
            c = &limits[charge.limit]
            if c.algorithm != CONCURRENCY and not charge.unknown:
                self.look_at(charges, charge, c, now_us)
        return 0

    cdef int make_room(self, Charges charges, int64_t now_us) except -1:
        """Full: drop what can be forgotten nearby; the newcomers that still find no room share, are denied, or pass."""
        cdef int i
        cdef int64_t room
        cdef Charge *charge
        cdef CompiledLimit *c
        table_sweep(&self.keys, self.registry.items, now_us, SWEEP_SLOTS_FULL)
        room = self.keys.max_cells - self.keys.count
        for i in range(charges.n):
            charge = &charges.items[i]
            c = &charges.policy.items[charge.limit]
            if c.algorithm == CONCURRENCY or charge.unknown:
                continue
            # The sweep may have moved or dropped cells.
            charge.cell = table_find(&self.keys, charge.hash.a, charge.hash.b)
            charge.newcomer = charge.cell == NULL
            if not charge.newcomer:
                continue
            if room > 0:
                room -= 1
                continue
            without_room(charge, c, &self.registry.items[charge.numbers], &self.full)
        return 0

    cdef inline int look_at(self, Charges charges, Charge *charge, const CompiledLimit *c, int64_t now_us) noexcept:
        if charges.empty_at_us > 0 and not charge.shared:
            self.look_at_share(charge, charges.empty_at_us, charges.spare, now_us)
        else:
            self.look_at_cell(charge, c, now_us)
        return 0

    cdef inline int look_at_cell(self, Charge *charge, const CompiledLimit *c, int64_t now_us) noexcept:
        cdef Numbers *n = &self.registry.items[charge.numbers]
        cdef Cell source
        if charge.cell != NULL:
            unpack(charge.cell, &source)
        else:
            # A newcomer starts at the level of the shared bucket: what it may have spent there is not forgiven.
            source = self.shared[c.identity]
        judge(charge, &source, n if source.numbers == charge.numbers else NULL if source.numbers == 0 else
              &self.registry.items[source.numbers], n, now_us)
        return 0

    cdef int look_at_share(self, Charge *charge, int64_t lost_us, int64_t spare, int64_t now_us) noexcept:
        """For a node that stands in alone: what the store had left when it was lost may have been spent elsewhere."""
        cdef Numbers *n = &self.registry.items[charge.numbers]
        cdef int64_t length_us
        cdef uint64_t used
        cdef bint rebased
        cdef bint known = charge.cell != NULL
        lost_us = min(lost_us, now_us)
        if known:
            unpack(charge.cell, &charge.state)
        if n.algorithm == TOKEN_BUCKET:
            if known and charge.state.at_us >= lost_us:
                charge.rebased = touch(&charge.state, &self.registry.items[charge.state.numbers], n, now_us)
            else:
                set_level(&charge.state, ticks_of(max(0, n.limit - spare), n))
                charge.state.at_us = lost_us
                touch(&charge.state, n, n, now_us)
        else:
            if known:
                charge.rebased = touch(&charge.state, &self.registry.items[charge.state.numbers], n, now_us)
            else:
                fresh(&charge.state, n, now_us)
            length_us = window_length(n)
            if charge.state.at_us <= lost_us < charge.state.at_us + length_us:
                used = <uint64_t>(((<u128>n.limit) * (<u128>(lost_us - charge.state.at_us)) + <u128>(length_us - 1))
                                  / <u128>length_us)
                used = min(used, <uint64_t>max(0, n.limit - spare))
                set_counts(&charge.state, max(used, cur_of(&charge.state)),
                           <uint64_t>max(0, n.limit - spare) if n.algorithm != FIXED_WINDOW else 0)
        rebased = charge.rebased
        judge(charge, &charge.state, n, n, now_us)
        charge.rebased |= rebased
        return 0

    cdef int64_t look_at_leases(self, Charge *charge, int64_t now_us, int64_t places) except -1:
        """`places`: those that this request is about to take elsewhere. The sum with this charge's."""
        cdef Numbers *n = &self.registry.items[charge.numbers]
        cdef LeaseSet leases = self.leases.find(charge_address(charge), now_us)
        charge.state.low = 0 if leases is None else leases.in_use
        charge.state.at_us = 0
        if charge.cost == 0:
            return places
        if charge.cost > n.limit - <int64_t>charge.state.low:
            charge.verdict = OVER
            if charge.cost <= n.limit and leases is not None:
                charge.state.at_us = leases.enough_expire_us(<int64_t>charge.state.low + charge.cost - n.limit)
            return places
        if self.leases.count + places + charge.cost > self.leases.max_leases:
            self.leases.sweep(now_us, SWEEP_SLOTS_FULL)
            if self.leases.count + places + charge.cost > self.leases.max_leases:
                charge.verdict = FULL
                self.full.denied += 1
                return places
        return places + charge.cost

    cdef int commit(self, Charges charges, int64_t now_us) except -1:
        cdef int i, inserted = 0
        cdef bint taking = charges.taking
        cdef Charge *charge
        cdef CompiledLimit *limits = charges.policy.items
        cdef CompiledLimit *c
        cdef Numbers *n
        for i in range(charges.n):
            charge = &charges.items[i]
            c = &limits[charge.limit]
            n = &self.registry.items[charge.numbers]
            if charge.unknown or charge.verdict >= FULL or charge.cost == 0:
                continue
            if n.algorithm == CONCURRENCY:
                if charges.admitted and charge.verdict == FITS:
                    self.leases.take(charge_address(charge), charges.ids()[i], now_us + c.ttl_us, charge.cost, now_us)
                    charge.state.low += <uint64_t>charge.cost
                continue
            if charge.newcomer and self.keys.count >= self.keys.max_cells:
                continue  # it never fits, and there is no room to remember a penalty
            if charge_state(charge, c, n, taking, now_us):
                inserted += charge.newcomer
                self.write(charge, c)
        if inserted:
            table_sweep(&self.keys, self.registry.items, now_us, inserted * SWEEP_SLOTS)
        return 0

    cdef inline int write(self, Charge *charge, const CompiledLimit *c) noexcept:
        if charge.shared:
            self.shared[c.identity] = charge.state
            return 0
        if charge.newcomer:
            charge.cell = table_insert(&self.keys, charge.hash.a, charge.hash.b)
        pack(charge.cell, &charge.state)
        return 0

    # ---- what comes after a decision --------------------------------------------------------------------------------

    def settle(self, CompiledPolicy policy not None, bytes receipt_id not None, int64_t expires_us, int64_t charged_us, entries,
               *, now_us=None):
        """Refunds or charges differences, once per receipt. False when it was settled before, None when it has expired.

        `entries`: (limit index, plan or None, address of 16 bytes, charged, actual, window start or None).
        MemoryError when there is no room to remember that it was settled: then nothing is.
        """
        cdef int64_t now = read_clock(self.clock, 0) if now_us is None else now_us
        cdef Hash128 h = receipt_hash(receipt_id, self.registry)
        cdef Packed *mark
        self.settled_us = max(now, self.settled_us)
        if expires_us <= self.settled_us:
            return None
        if table_find(&self.settled, h.a, h.b) != NULL:
            return False
        if self.settled.count >= self.settled.max_cells:
            table_sweep(&self.settled, self.registry.items, self.settled_us, SWEEP_SLOTS_FULL)
        if self.settled.count >= self.settled.max_cells:
            raise MemoryError(f"{self.settled.max_cells} receipts were settled that have not expired (max_receipts)")
        mark = table_insert(&self.settled, h.a, h.b)
        pack_until(mark, expires_us)
        table_sweep(&self.settled, self.registry.items, self.settled_us, SWEEP_SLOTS)
        for index, plan, address, charged, actual, start_us in entries:
            self.settle_one(policy, index, plan, address, charged, actual, charged_us, start_us or 0, now)
        table_sweep(&self.keys, self.registry.items, now, SWEEP_SLOTS)
        return True

    cdef int settle_one(self, CompiledPolicy policy, int index, object plan, bytes address, int64_t charged, int64_t actual,
                        int64_t charged_us, int64_t start_us, int64_t now_us) except -1:
        cdef CompiledLimit *c = &policy.items[index]
        cdef uint32_t entry
        cdef Numbers *n
        cdef Charge charge
        cdef Cell source
        cdef Numbers *written
        if charged == actual or c.algorithm == CONCURRENCY:
            return 0
        entry = numbers_now(policy, index, plan)
        if policy.windows[index] is not None:
            self.registry.refresh_calendar(entry, policy.windows[index], now_us)
        n = &self.registry.items[entry]
        memset(&charge, 0, sizeof(charge))
        memcpy(&charge.hash, <const char *>address, 16)
        charge.cell = table_find(&self.keys, charge.hash.a, charge.hash.b)
        if charge.cell == NULL and (actual < charged or self.keys.count >= self.keys.max_cells):
            return 0  # it has drained since: there is nothing to give back
        charge.newcomer = charge.cell == NULL
        if not charge.newcomer:
            unpack(charge.cell, &source)
        elif index >= policy.n_limits or c.identity >= self.shared_room:
            return 0
        else:
            source = self.shared[c.identity]
        written = NULL if source.numbers == 0 else &self.registry.items[source.numbers]
        if written != NULL and written.algorithm != n.algorithm:
            return 0  # another limit's bucket
        charge.numbers = entry
        if amend(&charge, &source, written, n, charged, actual, charged_us, start_us, now_us):
            self.write(&charge, c)
        return 0

    def release(self, entries, *, now_us=None):
        """Frees places: `entries` are (address, lease id). How many places came free; unknown ones are no-ops."""
        cdef int64_t now = read_clock(self.clock, 0) if now_us is None else now_us
        cdef int64_t freed = 0
        for address, lease_id in entries:
            freed += self.leases.release(address, lease_id, now)
        return freed

    def now_us(self):
        """The store's clock, in whole microseconds."""
        return read_clock(self.clock, 0)

    def stats(self):
        """Counts for metrics."""
        return {
            "keys": self.keys.count, "max_keys": self.keys.max_cells, "size_bytes": self.keys.size_bytes,
            "receipts": self.settled.count, "max_receipts": self.settled.max_cells, "leases": self.leases.count, "max_leases": self.leases.max_leases, "full_shared": self.full.shared,
            "full_denied": self.full.denied, "full_allowed": self.full.allowed,
            "nonces": self.nonces.count, "max_nonces": self.nonces.max_cells, "nonces_full": self.nonces_full,
        }


cdef extern from "Python.h":
    int PyGC_Disable()
    int PyGC_Enable()


cdef inline bytes charge_address(Charge *charge):
    return (<char *>&charge.hash)[:16]
