cdef enum:
    # Every limit that was ever in force under this file, four full policies: entries are never dropped, because cells name them.
    IDENTITIES = 4096
    LAYOUT = 2           # of this file's bytes; another number is another version, and is refused

cdef bytes MAGIC = b"SHIELDTB"

cdef struct Identity:
    # What is known of one limit of the policies that use the file, in whichever process: 704 bytes.
    Word name            # a digest of the limit's identity; zeros: free
    Word slowest         # lo: c, hi: p of the slowest refill it ever had. Drained under that is drained under any
    Word shared          # the bucket that newcomers share while there is no room
    uint64_t kind        # algorithm + 1, and 256 for a calendar; 0: just being entered
    int64_t window_us
    uint64_t places      # the highest limit of places it ever had
    uint64_t reserved
    uint64_t units[NARROW_TAGS]  # by tag: what a tick was
    uint64_t wide[WIDE_TAGS]
    uint64_t padding[4]

cdef struct Header:
    char magic[8]
    uint32_t byte_order  # 0x01020304 as this machine writes it
    uint32_t layout
    uint64_t size_bytes
    int64_t max_keys
    int64_t max_leases
    int64_t max_receipts
    int64_t max_nonces
    uint64_t probes      # with `identities` and `slot_bytes`: what the layout rests on
    uint64_t identities
    uint64_t slot_bytes
    int64_t created_us
    Word clock           # lo: which boot of the machine, hi: Unix time less its boot clock, in microseconds
    uint64_t time_namespace
    uint64_t padding
    uint8_t secret[48]   # 16 bytes that keys are hashed with, 32 that receipts and leases are sealed with
    uint64_t settled_us  # the latest instant a receipt was judged at
    uint64_t most_places # over all limits
    Word nonces_held     # how long nonces are held, see FenceWord
    uint64_t nonces_since_us  # no nonce is known from before; 0: to be set by whoever comes first
    uint64_t nonces_us   # the latest instant a nonce was judged at
    uint64_t counts[4][8]  # live cells of each region, each count in a cache line of its own

cdef enum:  # the regions
    KEYS = 0
    PLACES = 1
    RECEIPTS = 2
    NONCES = 3
    REGIONS = 4

cdef enum:
    HEADER_BYTES = 4096


cdef uint64_t mapped_bytes(int64_t max_keys, int64_t max_leases, int64_t max_receipts, int64_t max_nonces):
    return (HEADER_BYTES + IDENTITIES * sizeof(Identity)
            + (slots_for(max_keys) + slots_for(max_leases) + slots_for(max_receipts) + slots_for(max_nonces)) * sizeof(Slot))


cdef int check_geometry(int64_t max_keys, int64_t max_leases, int64_t max_receipts, int64_t max_nonces) except -1:
    if not 1 <= max_keys <= 1_000_000_000:
        raise ValueError(f"max_keys must be from 1 to 1_000_000_000, not {max_keys}")
    if not 1 <= max_leases <= 10_000_000:
        raise ValueError(f"max_leases must be from 1 to 10_000_000, not {max_leases}")
    if not 1 <= max_receipts <= 1_000_000_000:
        raise ValueError(f"max_receipts must be from 1 to 1_000_000_000, not {max_receipts}")
    if not 1 <= max_nonces <= 1_000_000_000:
        raise ValueError(f"max_nonces must be from 1 to 1_000_000_000, not {max_nonces}")
    return 0


@cython.final
cdef class MappedFile:
    """A table's file, mapped: its header, the limits it knows, and four regions of slots. Any number of processes have it at once.

    `buffer` is the whole file, shared and writable. It is checked before anything of it is believed: ValueError says what
    was found and what was expected. `boot` names this boot of the machine, `offset_us` is Unix time less the boot clock:
    the first process after a boot sets them for all.
    """

    cdef Py_buffer view
    cdef bint held
    cdef Header *header
    cdef Identity *identities
    cdef Slots regions[REGIONS]
    cdef readonly int64_t offset_us

    def __cinit__(self, buffer, *, uint64_t boot, int64_t offset_us, uint64_t time_namespace):
        if not word_ready():
            raise OSError("this processor or system has no 16-byte compare-and-swap: shared:// needs Linux on arm64, "
                          "or on x86-64 with AVX")
        PyObject_GetBuffer(buffer, &self.view, PyBUF_WRITABLE)
        self.held = True
        self.header = <Header *>self.view.buf
        self.check()
        cdef char *at = <char *>self.view.buf + HEADER_BYTES
        cdef int i
        cdef int64_t sizes[REGIONS]
        sizes[KEYS], sizes[PLACES] = self.header.max_keys, self.header.max_leases
        sizes[RECEIPTS], sizes[NONCES] = self.header.max_receipts, self.header.max_nonces
        self.identities = <Identity *>at
        at += IDENTITIES * sizeof(Identity)
        for i in range(REGIONS):
            self.regions[i].at = <Slot *>at
            self.regions[i].live = &self.header.counts[i][0]
            self.regions[i].homes = slots_for(sizes[i]) - PROBES + 1
            at += slots_for(sizes[i]) * sizeof(Slot)
        self.agree_on_clock(boot, offset_us, time_namespace)

    def __dealloc__(self):
        if self.held:
            PyBuffer_Release(&self.view)

    @staticmethod
    def size_bytes(int64_t max_keys, int64_t max_leases, int64_t max_receipts, int64_t max_nonces):
        """How large the file is. ValueError for a bound that is none."""
        check_geometry(max_keys, max_leases, max_receipts, max_nonces)
        return mapped_bytes(max_keys, max_leases, max_receipts, max_nonces)

    @staticmethod
    def format(buffer, *, int64_t max_keys, int64_t max_leases, int64_t max_receipts, int64_t max_nonces, bytes secret not None,
               int64_t created_us):
        """Makes a table of a buffer of zeros that nobody else sees yet."""
        cdef Py_buffer view
        cdef Header *header
        cdef uint64_t wanted
        check_geometry(max_keys, max_leases, max_receipts, max_nonces)
        if len(secret) != 48:
            raise ValueError("a table's secret has 48 bytes")
        PyObject_GetBuffer(buffer, &view, PyBUF_WRITABLE)
        try:
            wanted = mapped_bytes(max_keys, max_leases, max_receipts, max_nonces)
            if <uint64_t>view.len != wanted:
                raise ValueError(f"{view.len} bytes are not the {wanted} of this geometry")
            header = <Header *>view.buf
            header.byte_order, header.layout = 0x01020304, LAYOUT
            header.size_bytes = <uint64_t>view.len
            header.max_keys, header.max_leases = max_keys, max_leases
            header.max_receipts, header.max_nonces = max_receipts, max_nonces
            header.probes, header.identities, header.slot_bytes = PROBES, IDENTITIES, sizeof(Slot)
            header.created_us = created_us
            memcpy(header.secret, <const char *>secret, 48)
            memcpy(header.magic, <const char *>MAGIC, 8)
        finally:
            PyBuffer_Release(&view)

    cdef int check(self) except -1:
        cdef Header *h = self.header
        cdef uint64_t found = <uint64_t>self.view.len
        if found < HEADER_BYTES:
            raise ValueError(f"it has {found} bytes, less than a table's header of {HEADER_BYTES}")
        if h.magic[:8] != MAGIC:
            raise ValueError(f"it begins with {bytes(h.magic[:8])!r}, not with {MAGIC!r}: it is no table of Shield's")
        if h.byte_order != 0x01020304:
            raise ValueError("it was written on a machine of another byte order")
        if h.layout != LAYOUT:
            raise ValueError(f"it has layout {h.layout}, and this release of Shield reads layout {LAYOUT}")
        if (h.probes, h.identities, h.slot_bytes) != (PROBES, IDENTITIES, sizeof(Slot)):
            raise ValueError(f"it has {h.probes} probes, {h.identities} limits and slots of {h.slot_bytes} bytes; this build has "
                             f"{PROBES}, {IDENTITIES} and {sizeof(Slot)}")
        check_geometry(h.max_keys, h.max_leases, h.max_receipts, h.max_nonces)
        cdef uint64_t wanted = mapped_bytes(h.max_keys, h.max_leases, h.max_receipts, h.max_nonces)
        if found != wanted or h.size_bytes != wanted:
            raise ValueError(f"it has {found} bytes where its header asks for {wanted}: it was cut off or enlarged")
        return 0

    cdef int agree_on_clock(self, uint64_t boot, int64_t offset_us, uint64_t time_namespace) except -1:
        """All processes of one boot count time by one offset. After another boot nobody from before is left; Unix time goes on
        from what the wall clock says, and buckets that lie ahead of it are treated as law 5 wants."""
        cdef Word seen, wanted
        wanted.lo, wanted.hi = boot, <uint64_t>offset_us
        while True:
            seen = word_load(&self.header.clock)
            if seen.lo == boot:
                break
            self.header.time_namespace = time_namespace
            # What was written last before the machine went down may be lost: nonces are known from now on only.
            swap64(&self.header.nonces_since_us, load64(&self.header.nonces_since_us), 0)
            if word_swap(&self.header.clock, seen, wanted):
                seen = wanted
                break
        if self.header.time_namespace != time_namespace:
            raise ValueError("it is in use in another time namespace of this machine, whose boot clock is not ours")
        self.offset_us = <int64_t>seen.hi
        return 0

    @property
    def geometry(self):
        """The bounds the file was made with."""
        return {"max_keys": self.header.max_keys, "max_leases": self.header.max_leases,
                "max_receipts": self.header.max_receipts, "max_nonces": self.header.max_nonces}

    @property
    def created_us(self):
        """When it was made, in Unix microseconds."""
        return self.header.created_us

    @property
    def hashing_secret(self):
        """For the registry."""
        return (<char *>self.header.secret)[:16]

    @property
    def sealing_secret(self):
        """For receipts and leases: those of one process are accepted by all."""
        return (<char *>self.header.secret)[16:48]

    cdef int count(self, int region, int64_t more) noexcept:
        add64(&self.header.counts[region][0], <uint64_t>more)
        return 0

    cdef int64_t counted(self, int region) noexcept:
        """Live cells, those that could be forgotten by now included. A process that is killed between a swap and its count
        leaves this one off; nothing is decided by it."""
        cdef int64_t n = <int64_t>load64(&self.header.counts[region][0])
        return n if n > 0 else 0

    # ---- the limits it knows ----------------------------------------------------------------------------------------

    cdef int identity(self, Hash128 digest, object limit, int algorithm, int64_t window_us) except -1:
        """The limit's place in the file, entered if it is new. MemoryError when there is none left."""
        cdef int start = <int>mulhi(digest.a, IDENTITIES), i
        cdef Identity *entry
        cdef Word name, seen, free
        digest = never_zero(digest)
        name.lo, name.hi = digest.a, digest.b
        free.lo = free.hi = 0
        for i in range(IDENTITIES):
            entry = &self.identities[(start + i) % IDENTITIES]
            seen = word_load(&entry.name)
            if same_word(seen, free):
                word_swap(&entry.name, free, name)
                seen = word_load(&entry.name)
            if same_word(seen, name):
                # Whoever enters it writes the same: all of it is part of the identity.
                entry.window_us = window_us
                max64(&entry.kind, algorithm + 1 + (256 if limit.align is not None else 0))
                return (start + i) % IDENTITIES
        raise MemoryError(f"limit {limit.name!r}: the shared table has seen {IDENTITIES} limits, which is all it can: "
                          "use another name for it, or remove its file while nobody uses it")

    cdef int unit_tag(self, int identity, object limit, uint64_t unit, uint64_t refill) except -1:
        """The tag that says "a tick is 1/unit". MemoryError when the limit has had too many different ones."""
        cdef Identity *entry = &self.identities[identity]
        cdef bint wide = unit > NARROW_UNIT_US
        cdef uint64_t *units = &entry.wide[0] if wide else &entry.units[0]
        cdef int i
        self.slow_down(entry, refill, unit)
        for i in range(0 if wide else 1, WIDE_TAGS if wide else NARROW_TAGS):
            if load64(&units[i]) == 0:
                swap64(&units[i], 0, unit)
            if load64(&units[i]) == unit:
                return i + NARROW_TAGS if wide else i
        raise MemoryError(
            f"limit {limit.name!r}: it has had {WIDE_TAGS if wide else NARROW_TAGS - 1} rates of different periods "
            f"{'longer than a day ' if wide else ''}since the shared table was made, which is all it can tell apart: "
            "use another name for the table, or remove its file while nobody uses it"
        )

    cdef int slow_down(self, Identity *entry, uint64_t refill, uint64_t unit) except -1:
        cdef Word seen, wanted
        wanted.lo, wanted.hi = refill, unit
        while True:
            seen = word_load(&entry.slowest)
            if seen.hi != 0 and (<u128>seen.lo) * (<u128>unit) <= (<u128>refill) * (<u128>seen.hi):
                return 0
            if word_swap(&entry.slowest, seen, wanted):
                return 0

    cdef int allow_places(self, int identity, int64_t limit) except -1:
        max64(&self.identities[identity].places, <uint64_t>limit)
        max64(&self.header.most_places, <uint64_t>limit)
        return 0

    cdef int enter(self, Registry registry, object limit, Numbers *n) except -1:
        """Makes the file know these numbers, and the numbers their place in the file."""
        cdef bytes identity = limit.identity.encode()
        cdef Hash128 digest = siphash128(<const uint8_t *><const char *>identity, len(identity), registry.k0, registry.k1)
        cdef int place = self.identity(digest, limit, n.algorithm, n.window_us)
        n.mapped = <uint16_t>place
        if n.algorithm == TOKEN_BUCKET:
            n.tag = <uint16_t>self.unit_tag(place, limit, n.unit, n.refill)
        elif n.algorithm == CONCURRENCY:
            self.allow_places(place, n.limit)
        return 0


cdef inline uint64_t unit_of(const Identity *entry, int tag) noexcept nogil:
    cdef uint64_t unit = entry.wide[tag - NARROW_TAGS] if tag >= NARROW_TAGS else entry.units[tag]
    return unit if unit != 0 else 1  # never zero in a table of ours; a file that was tampered with must not end the process
