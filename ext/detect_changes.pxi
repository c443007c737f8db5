# Part of detect.pyx: what other processes are to hear of, and what they say.
#
# Each process counts by itself and once a second says what it has counted since: amounts, new values, failures, and which
# keys were detected. Nothing that was heard is said on, so that nothing counts twice; whoever passes the parcels on must
# hand out each once. The order of what happens within that second is lost: late_part() sees to it that all together
# is never more than had one process seen it all.
#
# A parcel is little-endian: of each detector its seed (8 bytes), its number of records (2), then records: the key (16),
# flags (1); CLEARED: how long ago (4, us) and for how long it is quiet (4, ms); COUNTED: how long ago it began (4, us),
# amount in ticks (8), events (4), failures (4); VALUES: their number (2) and so many fingerprints (4 each); REGISTERS_OF:
# their number (2) and so many pairs of place and rank (1 each).

cdef enum:
    MAX_CHANGED = 16_384      # keys of a second, a process; each keeps one request alive for as long
    LOW_CHANGED = 12_288      # room that keys far from their threshold may take: a flood of them hides no other
    CLEARED = 1
    COUNTED = 2
    VALUES = 4
    REGISTERS_OF = 8
    MAX_RECORD_BYTES = 16 + 1 + 8 + 20 + 2 + 2 * REGISTERS


cdef struct Change:
    uint64_t a
    uint64_t b
    int64_t cleared_us
    double fill                  # how near its threshold, when they are sorted
    PyObject *request            # of the first event since: whoever tells of the key tells it by this
    int detector


cdef int nearer(const void *one, const void *other) noexcept nogil:
    cdef double a = (<const Change *>one).fill
    cdef double b = (<const Change *>other).fill
    return (a < b) - (a > b)


@cython.internal
@cython.final
cdef class Changes:
    """Notes what others are to hear of. `unsaid`: what there was no room to note."""

    cdef Change *changed
    cdef uint32_t count
    cdef int64_t unsaid
    cdef dict named              # (detector, key) -> request, of what was said last
    cdef dict named_before
    cdef Fields fields
    cdef object lighten          # a request with what names its keys, and no more

    def __cinit__(self, Fields fields, object lighten):
        self.fields, self.lighten = fields, lighten
        self.named, self.named_before = {}, {}
        self.changed = <Change *>PyMem_Calloc(MAX_CHANGED, sizeof(Change))
        if self.changed == NULL:
            raise MemoryError

    def __dealloc__(self):
        cdef uint32_t k
        for k in range(self.count):
            Py_XDECREF(self.changed[k].request)
        PyMem_Free(self.changed)

    cdef Change *place(self, int i, Spec *s, Entry *e, object request) except? NULL:
        """Where this key's changes are noted; NULL when there is no room."""
        cdef Change *c
        if e.noted_at != 0:
            return self.changed + e.noted_at - 1
        if self.count >= MAX_CHANGED or (self.count >= LOW_CHANGED and s.measure <= SUM and 2 * e.level < s.capacity):
            self.unsaid += 1
            return NULL
        if not self.fields.is_light(request):
            request = self.lighten(request)
        c = self.changed + self.count
        self.count += 1
        e.noted_at = self.count
        c.a, c.b, c.detector, c.cleared_us = e.a, e.b, i, 0
        Py_INCREF(request)
        c.request = <PyObject *>request
        return c

    cdef inline int note(self, int i, Spec *s, Entry *e, object request, int64_t amount, bint failed, int64_t now_us) except -1:
        """One event of this process."""
        if self.place(i, s, e, request) == NULL:
            return 0
        if e.pending_us == 0:
            e.pending_us = now_us
        elif s.measure == RATE_CHANGE and e.pending_us < e.window_us:     # of a bin that has ended: too late to matter
            e.pending, e.pending_events, e.pending_us = 0, 0, now_us
        e.pending = min(e.pending + amount, s.max_pour * s.unit)
        e.pending_events = one_more(e.pending_events)
        e.pending_failed += failed
        return 0

    cdef int cleared(self, int i, Spec *s, Entry *e, object request, int64_t now_us) except -1:
        """This process detected the key."""
        cdef Change *c = self.place(i, s, e, request)
        if c != NULL:
            c.cleared_us = now_us
        return 0

    # ---- saying -----------------------------------------------------------------------------------------------------

    cdef bytes say(self, Spec *specs, int n_specs, int64_t now_us, Py_ssize_t most_bytes):
        """What has changed, those nearest to their threshold first as far as it goes; the rest waits."""
        cdef uint32_t k, sent = 0, kept = 0
        cdef Py_ssize_t left = most_bytes
        cdef int i
        cdef Entry *e
        cdef Change *c
        cdef bytearray out = bytearray()
        cdef list sections = [[] for _ in range(n_specs)]
        cdef bytes record
        self.named_before, self.named = self.named, {}
        if self.count * <Py_ssize_t>64 > most_bytes:
            self.sort(specs, now_us)
        for k in range(self.count):
            c = self.changed + k
            e = known_of(&specs[c.detector], c.a, c.b)
            if e == NULL or e.noted_at != k + 1:          # pushed out meanwhile
                Py_XDECREF(c.request)
                continue
            if left < MAX_RECORD_BYTES + 10:
                if kept < LOW_CHANGED:
                    self.changed[kept] = c[0]
                    kept += 1
                    e.noted_at = kept
                else:
                    self.unsaid += 1
                    self.forget(&specs[c.detector], e)
                    Py_XDECREF(c.request)
                continue
            settle(&specs[c.detector], e, now_us)
            record = record_of(&specs[c.detector], e, c, now_us)
            left -= len(record)
            (<list>sections[c.detector]).append(record)
            self.named[(c.detector, key_bytes(c.a, c.b))] = <object>c.request
            Py_XDECREF(c.request)
            self.forget(&specs[c.detector], e)
        self.count = kept
        for i in range(n_specs):
            records = <list>sections[i]
            if records:
                out += (<char *>&specs[i].seed_a)[:8]
                out += len(records).to_bytes(2, "little")
                out += b"".join(records)
        return bytes(out)

    cdef void forget(self, Spec *s, Entry *e) noexcept:
        """Nothing of this key is to be said any more."""
        cdef uint8_t *block
        cdef int k
        e.noted_at, e.pending, e.pending_us, e.pending_events, e.pending_failed = 0, 0, 0, 0, 0
        if s.measure != DISTINCT:
            return
        if e.level == 0:
            e.held, e.sent, e.change = 0, 0, 0
        elif e.held <= EXACT:
            e.sent = e.held
        else:
            block = block_of(s, e)
            for k in range(REGISTERS):
                block[k] &= RANK

    cdef void sort(self, Spec *specs, int64_t now_us) noexcept:
        cdef uint32_t k
        cdef Change *c
        cdef Entry *e
        cdef Spec *s
        for k in range(self.count):
            c = self.changed + k
            s = &specs[c.detector]
            e = known_of(s, c.a, c.b)
            if e == NULL or e.noted_at != k + 1:
                c.fill = -1
            elif c.cleared_us or s.measure > SUM:
                c.fill = 1
            else:
                c.fill = <double>e.level / (<double>s.capacity + 1)
            if e != NULL and e.noted_at == k + 1:
                e.noted_at = 0                       # found again below
        qsort(self.changed, self.count, sizeof(Change), nearer)
        for k in range(self.count):
            c = self.changed + k
            e = known_of(&specs[c.detector], c.a, c.b)
            if c.fill >= 0 and e != NULL:
                e.noted_at = k + 1

    # ---- hearing ----------------------------------------------------------------------------------------------------

    cdef object request_of(self, int i, Entry *e):
        """A request of this process of that key's: of this second or the one before. None: who has one tells of it."""
        if e.noted_at != 0:
            return <object>self.changed[e.noted_at - 1].request
        key = (i, key_bytes(e.a, e.b))
        found = self.named.get(key)
        return found if found is not None else self.named_before.get(key)

    cdef list hear(self, Spec *specs, int n_specs, bytes parcel, int64_t now_us, int64_t lag_us):
        """Takes in what another process said `lag_us` ago. [(detector, evidence, request)] of what goes too far by it.

        ValueError for what is no parcel; what stands before the fault is taken in.
        """
        cdef Reader r
        cdef list out = []
        cdef uint64_t seed
        cdef int i, n
        cdef Hash128 h
        cdef Entry *e
        cdef Spec *s
        cdef double value = 0, before = 0
        cdef Heard heard
        r.failed = False
        r.at, r.end = <const uint8_t *><const char *>parcel, <const uint8_t *><const char *>parcel + len(parcel)
        while r.at < r.end:
            seed = r_word(&r, 8)
            n = <int>r_word(&r, 2)
            s = NULL
            for i in range(n_specs):
                if specs[i].seed_a == seed:
                    s = &specs[i]
                    break
            while n > 0:
                n -= 1
                h.a, h.b = r_word(&r, 8), r_word(&r, 8)
                read_record(&r, &heard)
                if r.failed:
                    raise ValueError("not a parcel of measures")
                if s == NULL or s.measure == MATCH:        # a detector that this process does not have
                    continue
                e = entry_of(s, never_zero(h), now_us)
                take_in(s, e, &heard, now_us, lag_us)
                if s.measure == VALUE_CHANGE or not is_over(s, e, now_us, &value, &before):
                    continue
                request = self.request_of(i, e)
                if request is None:
                    continue                              # it stays full, for the next event or for who knows whom
                evidence = evidence_of(s, h, e, value, before, now_us)
                self.cleared(i, s, e, request, now_us)
                if evidence is not None:
                    out.append((i, evidence, request))
        if r.failed:
            raise ValueError("not a parcel of measures")
        return out


cdef bytes record_of(Spec *s, Entry *e, Change *c, int64_t now_us):
    cdef uint8_t raw[MAX_RECORD_BYTES]
    cdef Py_ssize_t at = 17
    cdef uint8_t flags = 0
    cdef uint16_t n = 0
    cdef uint8_t *block
    cdef int k
    memcpy(raw, &c.a, 8)
    memcpy(raw + 8, &c.b, 8)
    if c.cleared_us:
        flags |= CLEARED
        at = put_word(raw, at, clip32(now_us - c.cleared_us), 4)
        at = put_word(raw, at, clip32((e.quiet_us - now_us) // 1_000), 4)
    if e.pending_us:
        flags |= COUNTED
        at = put_word(raw, at, clip32(now_us - e.pending_us), 4)
        at = put_word(raw, at, <uint64_t>e.pending, 8)
        at = put_word(raw, at, e.pending_events, 4)
        at = put_word(raw, at, e.pending_failed, 4)
        if s.measure == DISTINCT:
            block = block_of(s, e)
            if e.held <= EXACT:
                flags |= VALUES
                n = e.held - e.sent
                memcpy(raw + at + 2, block + 4 * e.sent, 4 * n)
                put_word(raw, at, n, 2)
                at += 2 + 4 * n
            else:
                flags |= REGISTERS_OF
                for k in range(REGISTERS):
                    if block[k] & UNSENT:
                        raw[at + 2 + 2 * n], raw[at + 3 + 2 * n] = <uint8_t>k, block[k] & RANK
                        n += 1
                put_word(raw, at, n, 2)
                at += 2 + 2 * n
    raw[16] = flags
    return (<char *>raw)[:at]


cdef struct Heard:
    uint8_t flags
    int64_t cleared_ago_us
    int64_t quiet_us
    int64_t ago_us
    int64_t amount
    uint32_t events
    uint32_t failed
    int n
    const uint8_t *values


cdef void read_record(Reader *r, Heard *heard) noexcept:
    cdef Py_ssize_t size
    memset(heard, 0, sizeof(Heard))
    heard.flags = <uint8_t>r_word(r, 1)
    if heard.flags & ~(CLEARED | COUNTED | VALUES | REGISTERS_OF):
        r.failed = True
        return
    if heard.flags & CLEARED:
        heard.cleared_ago_us = <int64_t>r_word(r, 4)
        heard.quiet_us = <int64_t>r_word(r, 4) * 1_000
    if heard.flags & COUNTED:
        heard.ago_us = <int64_t>r_word(r, 4)
        heard.amount = <int64_t>r_word(r, 8)
        heard.events, heard.failed = <uint32_t>r_word(r, 4), <uint32_t>r_word(r, 4)
        if heard.amount < 0:
            r.failed = True
    if heard.flags & (VALUES | REGISTERS_OF):
        heard.n = <int>r_word(r, 2)
        size = heard.n * (4 if heard.flags & VALUES else 2)
        if heard.n > REGISTERS or r.end - r.at < size:
            r.failed = True
            return
        heard.values = r.at
        r.at += size


cdef void take_in(Spec *s, Entry *e, Heard *heard, int64_t now_us, int64_t lag_us) noexcept:
    """One record of another process, at its own instant as far as that still matters."""
    cdef int64_t at_us = now_us - heard.cleared_ago_us - lag_us
    cdef int64_t start
    if heard.flags & CLEARED:
        if at_us >= e.cleared_us:
            empty(s, e, at_us)
        e.quiet_us = max(e.quiet_us, now_us + min(heard.quiet_us, s.quiet_us))
    at_us = now_us - heard.ago_us - lag_us
    if not heard.flags & COUNTED or at_us <= e.cleared_us:
        return
    if s.has_share:
        turn_window(e, s.window_us, now_us)
        start = at_us - at_us % s.window_us
        if start == e.window_us:
            e.total += heard.events
            e.failed += heard.failed
        elif start == e.window_us - s.window_us:
            e.before_total += heard.events
            e.before_failed += heard.failed
    if s.measure <= SUM:
        pour_late(s, e, heard, at_us, now_us)
    elif s.measure == RATE_CHANGE:
        turn_bins(s, e, now_us)
        if at_us >= e.window_us:
            e.level += heard.events


cdef void pour_late(Spec *s, Entry *e, Heard *heard, int64_t at_us, int64_t now_us) noexcept:
    cdef int64_t amount = heard.amount
    cdef uint8_t *block
    cdef uint32_t fingerprint
    cdef double units = 0
    cdef int k
    if s.measure == DISTINCT:
        block = block_of(s, e)
        if heard.flags & REGISTERS_OF and e.held <= EXACT:
            to_registers(e, block)
        for k in range(heard.n):
            if heard.flags & VALUES:
                memcpy(&fingerprint, heard.values + 4 * k, 4)
                units += novelty(e, block, fingerprint, False)
            elif e.held > EXACT and heard.values[2 * k + 1] <= 24:
                units += raise_register(e, block, heard.values[2 * k], heard.values[2 * k + 1], False)
        amount = <int64_t>(units * <double>s.unit)
    amount = late_part(s, e, min(amount, s.max_pour * s.unit), at_us, now_us)
    e.level = min(e.level + amount, s.capacity + s.max_pour * s.unit)
    if e.level == 0:
        if e.pending_us == 0:
            e.held, e.sent, e.change = 0, 0, 0
        return
    if e.events == 0 or at_us < e.first_us:
        e.first_us = at_us
    e.events += heard.events


# ---- words ----------------------------------------------------------------------------------------------------------

cdef struct Reader:
    const uint8_t *at
    const uint8_t *end
    bint failed


cdef inline uint64_t r_word(Reader *r, int size) noexcept nogil:
    cdef uint64_t word = 0
    if r.end - r.at < size:
        r.failed, r.at = True, r.end
        return 0
    memcpy(&word, r.at, size)
    r.at += size
    return word


cdef inline Py_ssize_t put_word(uint8_t *raw, Py_ssize_t at, uint64_t word, int size) noexcept nogil:
    memcpy(raw + at, &word, size)
    return at + size


cdef inline uint64_t clip32(int64_t value) noexcept nogil:
    return 0 if value < 0 else <uint64_t>min(value, <int64_t>0xFFFFFFFF)
