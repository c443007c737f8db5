# Part of detect.pyx: whether a key has gone too far, and what is said of it then.

cdef inline double beyond(Spec *s, Entry *e) noexcept nogil:
    """Mean and so many deviations: what the key's own past explains."""
    return e.mean + s.deviations * sqrt(e.variance)


cdef bint is_over(Spec *s, Entry *e, int64_t now_us, double *value, double *before) noexcept:
    """Of whatever adds up. `value`: what was measured; `before`: what a rate's own past explains."""
    before[0] = 0
    if s.measure <= SUM:
        value[0] = <double>e.level / <double>s.unit
        if e.level <= s.capacity:
            return False
        if s.has_share and not share_reached(s, e, now_us):
            e.level = s.capacity  # full, and waiting for the share
            return False
        return True
    if s.measure == RATIO:
        value[0] = share_of(s, e, now_us)
        return share_reached(s, e, now_us)
    value[0], before[0] = <double>e.level, beyond(s, e)
    return <int64_t>e.bins >= s.minimum and e.level > s.capacity and value[0] > before[0]


cdef object evidence_of(Spec *s, Hash128 h, Entry *e, double value, double before, int64_t now_us):
    """What to say of a key that went too far; None where it is still quiet after the last time: then one more repeat."""
    cdef object evidence = None
    if now_us >= e.quiet_us:
        evidence = {
            "key": key_bytes(h.a, h.b),
            "value": value,
            "baseline": before,
            "share": share_of(s, e, now_us) if s.has_share else None,
            "events": e.events,
            "since_us": e.first_us,
            "repeats": e.repeats,
            "samples": samples_of(s, h),
        }
        e.quiet_us = now_us + s.quiet_us
        e.repeats = 0
    else:
        e.repeats = one_more(e.repeats)
    empty(s, e, now_us)
    return evidence


cdef inline void empty(Spec *s, Entry *e, int64_t at_us) noexcept:
    """Starts the key over, as a detection does: what others say of before counts no more."""
    if s.measure <= RATIO:
        e.level, e.events, e.held, e.sent, e.change = 0, 0, 0, 0, 0
        e.total = e.failed = e.before_total = e.before_failed = 0
    e.pending, e.pending_us, e.pending_events, e.pending_failed = 0, 0, 0, 0
    if at_us > e.cleared_us:
        e.cleared_us = at_us


cdef inline bytes key_bytes(uint64_t a, uint64_t b):
    cdef uint64_t[2] words
    words[0], words[1] = a, b
    return (<char *>words)[:16]
