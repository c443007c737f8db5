# Places of a concurrency limit in the shared table: place i of a bucket is a cell of its own, for i below the limit. So no
# more can be held than there are, whoever comes at the same time, and each is given back by one swap.

cdef enum:
    MAX_PLACES = 1024    # the contract's bound of a concurrency limit


cdef inline Hash128 place_hash(Hash128 bucket, uint64_t i) noexcept nogil:
    """Where place `i` is looked for: spread anew (the finalizer of splitmix64: Steele, Lea and Flood, 2014)."""
    cdef uint64_t x = bucket.a + (i + 1) * <uint64_t>0x9E3779B97F4A7C15
    x = (x ^ (x >> 30)) * <uint64_t>0xBF58476D1CE4E5B9
    x = (x ^ (x >> 27)) * <uint64_t>0x94D049BB133111EB
    bucket.a = x ^ (x >> 31)
    bucket.b += i
    return bucket


cdef int ascending(const void *a, const void *b) noexcept nogil:
    cdef int64_t x = (<const int64_t *>a)[0], y = (<const int64_t *>b)[0]
    return (x > y) - (x < y)


cdef struct Held:
    # What is held of one bucket.
    int64_t count
    int64_t expiries[MAX_PLACES]


cdef void count_places(const Slots *places, Hash128 bucket, int64_t most, int64_t now_us, Held *held) noexcept nogil:
    """All places that have not run out: those beyond a limit that was lowered, too."""
    cdef Slot *slot
    cdef Word state, key
    cdef Hash128 h
    cdef bint open_end
    cdef int64_t i
    held.count = 0
    for i in range(min(most, MAX_PLACES)):
        h = place_hash(bucket, i)
        slot = slot_find(places, h.a, h.b, &state, &key, &open_end)
        if slot != NULL and at_of(state) > now_us:
            held.expiries[held.count] = at_of(state)
            held.count += 1


cdef int64_t enough_expire_us(Held *held, int64_t places) noexcept nogil:
    """The instant by which `places` places have run out, 0 for none."""
    if not 0 < places <= held.count:
        return 0
    qsort(held.expiries, held.count, sizeof(int64_t), ascending)
    return held.expiries[places - 1]


cdef int64_t free_places(MappedFile file, Hash128 bucket, int64_t most, uint64_t owner, int64_t now_us) noexcept:
    """Gives back what a lease holds. How many places that were; what has run out is nobody's any more."""
    cdef Slot *slot
    cdef Word state, key
    cdef Hash128 h
    cdef bint open_end
    cdef int64_t i, freed = 0
    for i in range(min(most, MAX_PLACES)):
        h = place_hash(bucket, i)
        slot = slot_find(&file.regions[PLACES], h.a, h.b, &state, &key, &open_end)
        if slot != NULL and owner_of(state) == owner and at_of(state) > now_us:
            if word_swap(&slot.state, state, vacated(state, key)):
                file.count(PLACES, -1)
                freed += 1
    return freed
