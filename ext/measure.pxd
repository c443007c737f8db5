# cython: language_level=3
"""What a detector remembers of one key, and how an event changes it: plain structs and functions.

The law of the leaky bucket: level falls `drain` ticks a microsecond and never below zero; a unit is `unit` ticks, all of
them integers, so an event exactly at the instant at which there is room again fits.
"""

from cpython.object cimport PyObject
from libc.math cimport sqrt
from libc.stdint cimport int64_t, uint8_t, uint16_t, uint32_t, uint64_t
from libc.string cimport memcpy, memset
from siphash cimport Hash128

cdef enum:
    BLOCK_BYTES = 256
    EXACT = 64              # fingerprints that fill a block
    REGISTERS = 256         # of the HyperLogLog in the same block
    MAX_DISTINCT = 1024     # four a register: above, single changes would weigh too much
    MAX_KEY_FIELDS = 8
    UNSENT = 0x80           # in a register: others do not know of it
    RANK = 0x3F
    IDLE_HORIZON_US = 2_000_000   # what others say is of the last second, or two when ticks fall badly
    RING = 32               # the last targets of each detector, for evidence
    LONG_GAP_BINS = 1_000   # an average over the past says nothing any more

cdef enum Measure:
    COUNT = 0
    DISTINCT = 1
    SUM = 2
    RATIO = 3
    RATE_CHANGE = 4
    VALUE_CHANGE = 5
    MATCH = 6            # only whether an event is meant; measured elsewhere

cdef struct Entry:
    uint64_t a
    uint64_t b
    int64_t last_us
    int64_t level            # ticks: unit ticks are one unit; change: what the present bin holds
    int64_t first_us
    int64_t quiet_us
    int64_t window_us        # start of the present window or bin
    double mean
    double variance
    double change            # distinct: the sum over registers of 2**-register
    uint32_t total
    uint32_t failed
    uint32_t before_total
    uint32_t before_failed
    uint32_t events
    uint32_t repeats
    uint32_t bins
    uint16_t held            # distinct: fingerprints in the block; EXACT + 1: registers
    uint16_t sent            # of them, from the front: those that other processes know of
    # What other processes are still to hear of, and where that is noted (from 1; 0: nowhere).
    int64_t pending          # ticks, or events of a rate
    int64_t pending_us       # the first of it; 0: nothing
    uint32_t pending_events
    uint32_t pending_failed
    int64_t cleared_us       # when this key was last detected, here or elsewhere
    int64_t idle_from_us
    uint32_t idle_us         # how long the bucket was empty since then
    uint32_t noted_at

cdef struct Seen:
    uint64_t a
    uint64_t b
    int64_t now_us
    PyObject *target

cdef struct Spec:
    int measure
    int n_keys
    int key[MAX_KEY_FIELDS]
    uint8_t optional[MAX_KEY_FIELDS]
    int of
    int has_share
    int64_t capacity         # ticks
    int64_t unit             # ticks of one unit
    int64_t drain            # ticks a microsecond
    int64_t max_pour         # units, so that a tick never overflows
    int64_t window_us
    int64_t quiet_us
    int64_t minimum
    double share
    double weight
    double deviations
    uint64_t seed_a
    uint64_t seed_b
    Entry *entries
    uint8_t *blocks
    uint32_t n_sets
    uint32_t max_sets
    int64_t keys
    int64_t pushed_out
    Seen ring[RING]
    uint32_t at

cdef struct Rule:
    int detector
    int failing
    uint32_t need
    uint32_t without
    int reads_traits

cdef extern from "math.h":
    double ldexp(double x, int exponent) nogil

cdef inline double pow2(int exponent) noexcept nogil:
    return ldexp(1.0, exponent)

cdef extern from *:
    int trailing_zeros "__builtin_ctzll"(uint64_t mask) nogil

cdef inline uint32_t one_more(uint32_t n) noexcept nogil:
    """Counting that stops at the largest number."""
    return n + 1 if n + 1 != 0 else n

cdef inline int lowest(uint64_t mask) noexcept nogil:
    return trailing_zeros(mask)

cdef inline int64_t drained_by(int64_t level, int64_t elapsed_us, int64_t drain) noexcept nogil:
    """The level after so long; never below zero, and no product that could overflow."""
    if elapsed_us <= 0:
        return level
    if elapsed_us >= level // drain + 1:
        return 0
    level -= elapsed_us * drain
    return level if level > 0 else 0

cdef inline void settle(Spec *s, Entry *e, int64_t now_us) noexcept nogil:
    """Brings a leaky bucket to this instant. One that has run dry forgets which values it saw."""
    if now_us <= e.last_us:
        return
    if s.measure <= SUM:
        rest_us(s, e, now_us)
        e.level = drained_by(e.level, now_us - e.last_us, s.drain)
        if e.level == 0:
            e.events = 0
            if e.pending_us == 0:       # else others are still to hear of its values
                e.held, e.sent, e.change = 0, 0, 0
    e.last_us = now_us

cdef inline void rest_us(Spec *s, Entry *e, int64_t now_us) noexcept nogil:
    """Notes for how long the bucket has been empty: drainage that what arrives late has a claim to."""
    cdef int64_t elapsed_us = now_us - e.last_us
    cdef int64_t idle_us = elapsed_us - e.level // s.drain
    if e.last_us - e.idle_from_us > IDLE_HORIZON_US:
        e.idle_from_us, e.idle_us = e.last_us, 0
    if idle_us > 0:
        if elapsed_us > IDLE_HORIZON_US:
            e.idle_from_us, e.idle_us = now_us - IDLE_HORIZON_US, 0
            idle_us = min(idle_us, <int64_t>IDLE_HORIZON_US)
        e.idle_us += <uint32_t>idle_us

cdef inline int64_t late_part(Spec *s, Entry *e, int64_t amount, int64_t at_us, int64_t now_us) noexcept nogil:
    """What is left now of an amount that was poured in elsewhere at `at_us`: it would have drained while this bucket was
    empty, and only then. Each idle microsecond drains once, whoever speaks first, so that what several processes say
    together is never more, and at most IDLE_HORIZON_US of drainage less, than had one seen it all.
    """
    cdef int64_t idle_us
    if at_us < e.idle_from_us:                  # of before that nothing is known: taken as empty
        e.idle_us += <uint32_t>min(e.idle_from_us - at_us, <int64_t>3_600_000_000 - e.idle_us)
        e.idle_from_us = at_us
    idle_us = min(<int64_t>e.idle_us, max(<int64_t>0, now_us - at_us))
    if idle_us >= amount // s.drain + 1:
        e.idle_us -= <uint32_t>(amount // s.drain)
        return 0
    e.idle_us -= <uint32_t>idle_us
    return max(<int64_t>0, amount - idle_us * s.drain)

cdef inline double weight_of(Spec *s, Entry *e, int64_t now_us) noexcept nogil:
    """How much would be lost with this key: 0 is nothing."""
    if s.measure <= SUM:
        if e.level > 0:
            return 1.0 + <double>e.level
        return 0.5 if now_us < e.quiet_us else 0
    # Averages over time: the longer unseen, the less. Settling does not touch window_us.
    cdef int64_t age_us = now_us - e.window_us
    if age_us > (2 * s.window_us if s.measure == RATIO else LONG_GAP_BINS * s.window_us):
        return 0.5 if now_us < e.quiet_us else 0
    return 1.0 / (1.0 + <double>age_us)

cdef inline void turn_window(Entry *e, int64_t window_us, int64_t now_us) noexcept nogil:
    cdef int64_t start = now_us - now_us % window_us
    if start <= e.window_us:
        return
    if start - e.window_us == window_us:
        e.before_total, e.before_failed = e.total, e.failed
    else:
        e.before_total = e.before_failed = 0
    e.total = e.failed = 0
    e.window_us = start

cdef inline double left_of(Spec *s, Entry *e, int64_t now_us) noexcept nogil:
    """The part of the window before that still counts."""
    cdef double left = 1.0 - <double>(now_us - e.window_us) / <double>s.window_us
    return 0 if left < 0 else 1 if left > 1 else left

cdef inline double share_of(Spec *s, Entry *e, int64_t now_us) noexcept nogil:
    cdef double left = left_of(s, e, now_us)
    cdef double total = e.total + left * e.before_total
    return (e.failed + left * e.before_failed) / total if total > 0 else 0

cdef inline bint share_reached(Spec *s, Entry *e, int64_t now_us) noexcept nogil:
    cdef double left = left_of(s, e, now_us)
    return e.total + left * e.before_total >= <double>s.minimum and share_of(s, e, now_us) >= s.share

cdef inline void learn_value(Spec *s, Entry *e, double value) noexcept nogil:
    """Exponentially weighted mean and variance (West 1979). What lies beyond the threshold is learnt as the threshold, or
    an attacker would raise his own baseline in one step."""
    cdef double limit, diff, step
    # While warming up every value weighs the same, so that the first does not stay for long.
    cdef double weight = s.weight
    if 1.0 / (e.bins + 1.0) > weight:
        weight = 1.0 / (e.bins + 1.0)
    if <int64_t>e.bins >= s.minimum:
        limit = e.mean + s.deviations * sqrt(e.variance)
        if limit < <double>s.capacity:
            limit = <double>s.capacity
        if value > limit:
            value = limit
    diff = value - e.mean
    step = weight * diff
    e.mean += step
    e.variance = (1.0 - weight) * (e.variance + diff * step)
    e.bins = one_more(e.bins)

cdef inline void turn_bins(Spec *s, Entry *e, int64_t now_us) noexcept nogil:
    """Closes the bins that ended, empty ones as zero. The first bin of a key is cut off at its start and not learnt."""
    cdef int64_t start = now_us - now_us % s.window_us
    cdef int64_t gap
    if e.window_us == 0:
        e.window_us = start
        return
    gap = (start - e.window_us) // s.window_us
    if gap <= 0:
        return
    if gap > LONG_GAP_BINS:
        e.mean, e.variance, e.bins, e.level, e.window_us = 0, 0, 0, 0, start
        return
    learn_value(s, e, <double>e.level)
    while gap > 1:
        learn_value(s, e, 0)
        gap -= 1
    e.level = 0
    e.window_us = start
    e.events, e.first_us = 1, now_us

cdef inline double estimate(double change) noexcept nogil:
    """HyperLogLog's raw estimate for 256 registers; below it, differences are all that is asked for."""
    return 0.7183 * REGISTERS * REGISTERS / change if change > 0 else 0

cdef inline int rank_of(uint32_t fingerprint) noexcept nogil:
    """Place of the first one of the upper 24 bits, from 1."""
    cdef uint32_t rest = fingerprint >> 8
    cdef int rank = 1
    while rank < 24 and not rest & 1:
        rest >>= 1
        rank += 1
    return rank

cdef inline void to_registers(Entry *e, uint8_t *block) noexcept nogil:
    cdef uint32_t fingerprints[EXACT]
    cdef int k, held = e.held if e.held <= EXACT else 0
    cdef int at
    memcpy(fingerprints, block, 4 * held)
    memset(block, 0, BLOCK_BYTES)
    for k in range(held):
        at = fingerprints[k] & 0xFF
        if rank_of(fingerprints[k]) > block[at] & RANK:
            block[at] = <uint8_t>rank_of(fingerprints[k]) | (UNSENT if k >= e.sent else 0)
    e.change = 0
    for k in range(REGISTERS):
        e.change += pow2(-<int>(block[k] & RANK))
    e.held, e.sent = EXACT + 1, 0

cdef inline double raise_register(Entry *e, uint8_t *block, int at, int rank, bint own) noexcept nogil:
    """The inverse of the chance that a new value changes a register, where this one does; else 0."""
    cdef int before = block[at] & RANK
    cdef double worth
    if rank <= before:
        return 0
    worth = REGISTERS / e.change
    e.change += pow2(-rank) - pow2(-before)
    block[at] = <uint8_t>rank | (UNSENT if own else 0)
    if estimate(e.change) > MAX_DISTINCT:
        e.held, e.sent, e.change = 0, 0, 0
    return worth

cdef inline double novelty(Entry *e, uint8_t *block, uint32_t fingerprint, bint own) noexcept nogil:
    """1 for a value that is new, 0 for one that is not; past EXACT values the inverse of the chance that a new one is seen.

    `own`: this process saw it, and others are still to hear of it. Those that they know of stand in front.
    """
    cdef uint32_t *kept = <uint32_t *>block
    cdef int k
    if e.held <= EXACT:
        for k in range(e.held):
            if kept[k] == fingerprint:
                return 0
        if e.held < EXACT:
            if own:
                kept[e.held] = fingerprint
            else:
                kept[e.held] = kept[e.sent]
                kept[e.sent] = fingerprint
                e.sent += 1
            e.held += 1
            return 1
        to_registers(e, block)
    return raise_register(e, block, fingerprint & 0xFF, rank_of(fingerprint), own)
