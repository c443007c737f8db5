cdef enum:
    # Sets looked at per acquire: more than the one that an acquire can add, so abandoned sets are found in time.
    LEASE_SWEEP_SETS = 2


@cython.final
cdef class LeaseSet:
    """The places of one bucket that are held: id -> (expiry_us, places), and a heap of expiries that may be stale."""

    cdef dict held
    cdef list expiries
    cdef int64_t in_use

    def __cinit__(self):
        self.held, self.expiries, self.in_use = {}, [], 0

    cdef int64_t expire(self, int64_t now_us) except -1:
        """Frees what has run out by now. How many places that were."""
        cdef int64_t freed = 0
        while self.expiries and (self.expiries[0][0] <= now_us or self.is_stale(self.expiries[0])):
            expiry_us, lease_id = heapq.heappop(self.expiries)
            entry = self.held.get(lease_id)
            if entry is not None and entry[0] == expiry_us:
                del self.held[lease_id]
                freed += entry[1]
        self.in_use -= freed
        return freed

    cdef bint is_stale(self, tuple item):
        entry = self.held.get(item[1])
        return entry is None or entry[0] != item[0]

    cdef int64_t enough_expire_us(self, int64_t places) except -1:
        """The instant by which `places` places have run out. Only asked for a refusal, where places <= in_use."""
        cdef int64_t freed = 0
        if places <= 0:
            return 0
        if places == 1 and self.expiries:
            return self.expiries[0][0]  # the head is never stale after expire()
        for expiry_us, count in sorted(self.held.values()):
            freed += count
            if freed >= places:
                return expiry_us
        return 0

    cdef int take(self, str lease_id, int64_t expiry_us, int64_t places) except -1:
        self.held[lease_id] = (expiry_us, places)
        heapq.heappush(self.expiries, (expiry_us, lease_id))
        self.in_use += places
        if len(self.expiries) > 2 * len(self.held) + 16:
            self.expiries = [(entry[0], held_id) for held_id, entry in self.held.items()]
            heapq.heapify(self.expiries)
        return 0

    cdef int64_t release(self, str lease_id) except -1:
        entry = self.held.pop(lease_id, None)
        if entry is None:
            return 0
        self.in_use -= entry[1]
        return entry[1]


@cython.final
cdef class LeaseTable:
    """All places held in this process, bounded by `max_leases` places; when all are live, newcomers are refused."""

    cdef object sets          # OrderedDict: bucket address -> LeaseSet, least recently looked at first
    cdef readonly int64_t max_leases
    cdef readonly int64_t count

    def __cinit__(self, int64_t max_leases):
        self.sets, self.max_leases, self.count = OrderedDict(), max_leases, 0

    cdef LeaseSet find(self, bytes address, int64_t now_us):
        cdef LeaseSet leases = self.sets.get(address)
        if leases is not None:
            self.count -= leases.expire(now_us)
        return leases

    cdef int take(self, bytes address, str lease_id, int64_t expiry_us, int64_t places, int64_t now_us) except -1:
        cdef LeaseSet leases = self.sets.get(address)
        if leases is None:
            leases = self.sets[address] = LeaseSet()
        else:
            self.sets.move_to_end(address)
        leases.take(lease_id, expiry_us, places)
        self.count += places
        self.sweep(now_us, LEASE_SWEEP_SETS)
        return 0

    cdef int sweep(self, int64_t now_us, int sets) except -1:
        cdef LeaseSet leases
        while sets > 0 and self.sets:
            sets -= 1
            address = next(iter(self.sets))
            leases = self.sets[address]
            self.count -= leases.expire(now_us)
            if leases.in_use == 0:
                del self.sets[address]
            else:
                self.sets.move_to_end(address)
        return 0

    cdef int64_t release(self, bytes address, str lease_id, int64_t now_us) except -1:
        cdef LeaseSet leases = self.find(address, now_us)
        cdef int64_t freed
        if leases is None:
            return 0
        freed = leases.release(lease_id)
        self.count -= freed
        if leases.in_use == 0:
            del self.sets[address]
        return freed
