# cython: language_level=3
"""A cell in sixteen bytes: what level.pxd keeps in forty, so that one swap changes all of it.

The law of this file: nothing is rounded. Encoding a state and reading it back gives the same state.

    bits 0..51     `at_us`: until the year 2112
    bits 52..127   the body; its top eight bits are zero exactly in a word that is no cell (a vacancy, see slots.pxd)

    token bucket   tag << 68 | ticks. What a tick was when it was written (Numbers.unit, p ticks a unit) stands in the
                   identity's table of units, at `tag` (1 to 63). A level is at most 2e9 units (one limit in debt), which is
                   below 2^68 ticks for every p up to 1.47e11: all rates per day or shorter.
    wide           2^74 + tag * WIDE_TICKS + ticks, for larger p (30 days are 2.6e12): the ten tags that still fit.
    windows        1 << 68 | generation << 62 | prev << 31 | cur; their length and alignment are identity
    place, until   1 << 68 | 64 bits that say whose; `at_us` is the instant it runs out
"""

from libc.stdint cimport int64_t, uint64_t
from level cimport Cell, cur_of, level_of, prev_of, set_counts, set_level
from ticks cimport u128
from word cimport Word

cdef enum:
    AT_BITS = 52
    TICK_BITS = 68
    TAG_SHIFT = 56        # of the high half: bit 120, the first of the body's top eight
    COUNT_BITS = 31
    WINDOW_GENERATION_BITS = 6
    NARROW_TAGS = 64      # 0 is a vacancy
    WIDE_TAGS = 10

cdef extern from *:
    """
    #define SHIELD_AT_MASK (((uint64_t)1 << 52) - 1)
    /* The largest unit whose levels fit the narrow form: 2e9 * p < 2^68. */
    #define SHIELD_NARROW_UNIT_US ((uint64_t)147573952589)
    /* One more than the largest level: 2e9 units of 30 days. Ten of them are less than the 3 * 2^74 values there are. */
    #define SHIELD_WIDE_TICKS ((unsigned __int128)2000000000 * 2592000000000 + 1)
    """
    const uint64_t AT_MASK "SHIELD_AT_MASK"
    const uint64_t NARROW_UNIT_US "SHIELD_NARROW_UNIT_US"
    u128 WIDE_TICKS "SHIELD_WIDE_TICKS"

cdef inline bint is_cell(Word w) noexcept nogil:
    return (w.hi >> TAG_SHIFT) != 0

cdef inline int64_t at_of(Word w) noexcept nogil:
    return <int64_t>(w.lo & AT_MASK)

cdef inline u128 body_of(Word w) noexcept nogil:
    return (((<u128>w.hi) << 64) | <u128>w.lo) >> AT_BITS

cdef inline Word word_of(int64_t at_us, u128 body) noexcept nogil:
    cdef u128 whole = (body << AT_BITS) | <u128>(<uint64_t>at_us & AT_MASK)
    cdef Word w
    w.lo = <uint64_t>whole
    w.hi = <uint64_t>(whole >> 64)
    return w

# ---- token buckets --------------------------------------------------------------------------------------------------

cdef inline Word bucket_word(const Cell *cell, int tag) noexcept nogil:
    if tag >= NARROW_TAGS:
        return word_of(cell.at_us, ((<u128>1) << 74) + <u128>(tag - NARROW_TAGS) * WIDE_TICKS + level_of(cell))
    return word_of(cell.at_us, ((<u128>tag) << TICK_BITS) | level_of(cell))

cdef inline int read_bucket(Word w, Cell *cell) noexcept nogil:
    """The tag its ticks are of."""
    cdef u128 body = body_of(w)
    cell.at_us = at_of(w)
    if (w.hi >> 62) != 0:
        body -= (<u128>1) << 74
        set_level(cell, body % WIDE_TICKS)
        return NARROW_TAGS + <int>(body / WIDE_TICKS)
    set_level(cell, body & (((<u128>1) << TICK_BITS) - <u128>1))
    return <int>(w.hi >> TAG_SHIFT)

# ---- windows, places, instants --------------------------------------------------------------------------------------

cdef inline Word window_word(const Cell *cell, uint64_t generation) noexcept nogil:
    cdef u128 body = (((<u128>1) << TICK_BITS) | ((<u128>(generation & ((1 << WINDOW_GENERATION_BITS) - 1))) << (2 * COUNT_BITS))
                      | ((<u128>prev_of(cell)) << COUNT_BITS) | <u128>cur_of(cell))
    return word_of(cell.at_us, body)

cdef inline void read_window(Word w, Cell *cell) noexcept nogil:
    cdef uint64_t counts = <uint64_t>body_of(w)
    cell.at_us = at_of(w)
    set_counts(cell, counts & ((<uint64_t>1 << COUNT_BITS) - 1), (counts >> COUNT_BITS) & ((<uint64_t>1 << COUNT_BITS) - 1))

cdef inline Word owned_word(int64_t until_us, uint64_t owner) noexcept nogil:
    """A place that is held, or a receipt that is settled, until an instant."""
    return word_of(until_us, ((<u128>1) << TICK_BITS) | <u128>owner)

cdef inline uint64_t owner_of(Word w) noexcept nogil:
    return <uint64_t>body_of(w)
