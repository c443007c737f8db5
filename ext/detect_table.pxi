# Part of detect.pyx: the keys that one detector remembers, in a table of sets of WAYS places, and its last targets.

cdef enum:
    WAYS = 8
    SAMPLES = 5


cdef inline uint8_t *block_of(Spec *s, Entry *e) noexcept:
    return s.blocks + <size_t>(e - s.entries) * BLOCK_BYTES


cdef Entry *entry_of(Spec *s, Hash128 h, int64_t now_us) except? NULL:
    cdef Entry *first
    cdef Entry *e
    cdef Entry *victim
    cdef int k
    if s.entries == NULL:
        resize(s, 1 if s.max_sets == 1 else 2)
    while True:
        first = s.entries + <size_t>(h.a & (s.n_sets - 1)) * WAYS
        victim = NULL
        for k in range(WAYS):
            e = first + k
            if e.a == h.a and e.b == h.b:
                settle(s, e, now_us)
                return e
            if e.a == 0 and e.b == 0:
                if victim == NULL or victim.a or victim.b:
                    victim = e
        if victim != NULL:
            s.keys += 1
            break
        for k in range(WAYS):
            e = first + k
            settle(s, e, now_us)
            if victim == NULL or weight_of(s, e, now_us) < weight_of(s, victim, now_us):
                victim = e
        if weight_of(s, victim, now_us) <= 0:
            break
        if s.n_sets >= s.max_sets:
            s.pushed_out += 1
            break
        resize(s, s.n_sets * 2)
    memset(victim, 0, sizeof(Entry))
    victim.a, victim.b, victim.last_us, victim.idle_from_us = h.a, h.b, now_us, now_us
    return victim


cdef Entry *known_of(Spec *s, uint64_t a, uint64_t b) noexcept:
    """The key's place, NULL where it has none."""
    cdef Entry *first
    cdef int k
    if s.entries == NULL:
        return NULL
    first = s.entries + <size_t>(a & (s.n_sets - 1)) * WAYS
    for k in range(WAYS):
        if first[k].a == a and first[k].b == b:
            return first + k
    return NULL


cdef int resize(Spec *s, uint32_t n_sets) except -1:
    """Twice the places; every key finds one, because a set's keys go to one of two sets."""
    cdef Entry *old = s.entries
    cdef uint8_t *old_blocks = s.blocks
    cdef uint32_t old_sets = s.n_sets, i
    cdef Entry *to
    cdef int k
    cdef Entry *entries = <Entry *>PyMem_Calloc(<size_t>n_sets * WAYS, sizeof(Entry))
    cdef uint8_t *blocks = NULL
    if entries == NULL:
        raise MemoryError
    if s.measure == DISTINCT:
        blocks = <uint8_t *>PyMem_Calloc(<size_t>n_sets * WAYS, BLOCK_BYTES)
        if blocks == NULL:
            PyMem_Free(entries)
            raise MemoryError
    for i in range(old_sets * WAYS):
        if old[i].a == 0 and old[i].b == 0:
            continue
        to = entries + <size_t>(old[i].a & (n_sets - 1)) * WAYS
        for k in range(WAYS):
            if to[k].a == 0 and to[k].b == 0:
                to[k] = old[i]
                if blocks != NULL:
                    memcpy(blocks + <size_t>(to + k - entries) * BLOCK_BYTES, old_blocks + <size_t>i * BLOCK_BYTES, BLOCK_BYTES)
                break
    s.entries, s.blocks, s.n_sets = entries, blocks, n_sets
    PyMem_Free(old)
    PyMem_Free(old_blocks)
    return 0


cdef int remember(Spec *s, Hash128 h, object target, int64_t now_us) except -1:
    cdef Seen *seen = &s.ring[s.at % RING]
    s.at += 1
    if not PyUnicode_Check(target):
        target = None
    elif PyUnicode_GET_LENGTH(target) > MAX_SAMPLE:
        target = target[:MAX_SAMPLE]
    Py_INCREF(target)
    Py_XDECREF(seen.target)
    seen.a, seen.b, seen.now_us, seen.target = h.a, h.b, now_us, <PyObject *>target
    return 0


cdef list samples_of(Spec *s, Hash128 h):
    cdef list out = []
    cdef uint32_t k
    cdef Seen *seen
    for k in range(RING):
        seen = &s.ring[(s.at - 1 - k) % RING]
        if seen.target != NULL and seen.a == h.a and seen.b == h.b:
            out.append((seen.now_us, <object>seen.target))
            if len(out) == SAMPLES:
                break
    out.reverse()
    return out


cdef void drop_table(Spec *s) noexcept:
    """Gives back what it holds."""
    cdef int k
    PyMem_Free(s.entries)
    PyMem_Free(s.blocks)
    for k in range(RING):
        Py_XDECREF(s.ring[k].target)
