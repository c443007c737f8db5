# cython: language_level=3
"""The algorithms, as inline functions over one cell.

The law of this file: a cell holds units used and an instant, never a number of the policy; numbers are applied when it
is touched. Every function takes `now_us` (whole microseconds, never negative) and works on a copy of the state, so
that a denied request leaves nothing behind: whoever commits copies the state back.

Token bucket: level in ticks (see ticks.pxd), `at_us` the instant it was counted at.
Windows: `at_us` the start of the current window, `cur` and `prev` the units of it and of the one before.
Until: `at_us` the instant from which the cell means nothing (a settled receipt, later a nonce or a block).
"""

from libc.stdint cimport int64_t, uint16_t, uint32_t, uint64_t
from ticks cimport ceil_div, div_u128, u128

cdef enum Algorithm:
    UNTIL = 0
    TOKEN_BUCKET = 1
    SLIDING_WINDOW = 2
    FIXED_WINDOW = 3
    CONCURRENCY = 4

cdef struct Cell:
    int64_t at_us
    uint64_t low         # token bucket: level ticks, low 64 bits. windows: cur | prev << 32
    uint32_t high        # token bucket: level ticks, bits 64 to 95
    uint32_t numbers     # index of the numbers the cell was written under: they say what a tick was

cdef struct Numbers:
    int algorithm
    int calendar         # fixed window by local date: start_us and end_us are those of the date that was last asked for
    int64_t limit        # burst, units per window, places
    uint64_t refill      # c: ticks drained per microsecond
    uint64_t unit        # p: ticks per unit
    int64_t drain_us     # time until a full bucket is empty again, rounded up; INT64_MAX if longer than can be said
    int64_t window_us
    int64_t start_us
    int64_t end_us
    uint32_t successor   # the numbers that hold now for buckets written under these
    uint16_t mapped      # in a table that processes share: the limit's place in the file
    uint16_t tag         # and which of its units `unit` is

cdef inline u128 level_of(const Cell *cell) noexcept nogil:
    return ((<u128>cell.high) << 64) | (<u128>cell.low)

cdef inline void set_level(Cell *cell, u128 ticks) noexcept nogil:
    cell.low = <uint64_t>ticks
    cell.high = <uint32_t>(ticks >> 64)

cdef inline u128 ticks_of(int64_t units, const Numbers *n) noexcept nogil:
    """Units are never negative, and saying so spares the processor two of three multiplications."""
    return <u128><uint64_t>units * <u128>n.unit

cdef inline uint64_t cur_of(const Cell *cell) noexcept nogil:
    return <uint32_t>cell.low

cdef inline uint64_t prev_of(const Cell *cell) noexcept nogil:
    return cell.low >> 32

cdef inline void set_counts(Cell *cell, uint64_t cur, uint64_t prev) noexcept nogil:
    # Both stay below 2^32: limits end at 1e9, and debt at twice that.
    cell.low = cur | (prev << 32)
    cell.high = 0

# ---- bringing a state to `now` --------------------------------------------------------------------------------------

cdef inline int64_t window_start(const Numbers *n, int64_t now_us) noexcept nogil:
    return n.start_us if n.calendar else now_us - now_us % n.window_us

cdef inline int64_t window_length(const Numbers *n) noexcept nogil:
    return n.end_us - n.start_us if n.calendar else n.window_us

cdef inline void fresh(Cell *state, const Numbers *n, int64_t now_us) noexcept nogil:
    state.low = 0
    state.high = 0
    state.at_us = now_us if n.algorithm == TOKEN_BUCKET else window_start(n, now_us)

cdef inline u128 convert_ticks(u128 level, const Numbers *written, const Numbers *n) noexcept nogil:
    """Units are kept when numbers change; the part of a unit is rounded up to the new tick, so that nothing is minted."""
    cdef u128 part
    if written.unit == n.unit:
        return level
    part = level % <u128>written.unit
    return (level / <u128>written.unit) * <u128>n.unit + ceil_div(part * <u128>n.unit, <u128>written.unit)

cdef inline bint bucket_touch(Cell *s, const Numbers *written, const Numbers *n, int64_t now_us) noexcept nogil:
    """Drains to now. True when the clock fell so far behind the state that it was rebased: that must be written."""
    cdef u128 level = convert_ticks(level_of(s), written, n)
    cdef u128 drained
    if s.at_us > now_us:
        if s.at_us - now_us > n.drain_us:
            # Further ahead than any use of this bucket explains: count it as all used, and refill from here.
            # Debt stays debt.
            if level < (<u128>n.limit) * (<u128>n.unit):
                level = (<u128>n.limit) * (<u128>n.unit)
            set_level(s, level)
            s.at_us = now_us
            return True
        set_level(s, level)
        return False
    drained = <u128><uint64_t>(now_us - s.at_us) * <u128>n.refill
    set_level(s, level - drained if level > drained else <u128>0)
    s.at_us = now_us
    return False

cdef inline bint window_touch(Cell *s, const Numbers *n, int64_t now_us) noexcept nogil:
    """Moves to now's window. True when it was rebased, as in bucket_touch."""
    cdef int64_t start = window_start(n, now_us)
    if s.at_us == start:
        return False
    if s.at_us > start:
        if s.at_us - start > window_length(n):
            set_counts(s, cur_of(s) if cur_of(s) > <uint64_t>n.limit else <uint64_t>n.limit, 0)
            s.at_us = start
            return True
        return False
    if n.algorithm == SLIDING_WINDOW and start - s.at_us == n.window_us:
        set_counts(s, 0, cur_of(s))
    else:
        set_counts(s, 0, 0)
    s.at_us = start
    return False

cdef inline bint touch(Cell *s, const Numbers *written, const Numbers *n, int64_t now_us) noexcept nogil:
    if n.algorithm == TOKEN_BUCKET:
        return bucket_touch(s, written, n, now_us)
    return window_touch(s, n, now_us)

# ---- asking and taking (all on a touched state) ---------------------------------------------------------------------

cdef inline u128 sliding_used(const Cell *s, const Numbers *n, int64_t now_us) noexcept nogil:
    """What of the previous window still counts, in units times window_us."""
    cdef int64_t elapsed = now_us - s.at_us if now_us > s.at_us else 0
    return (<u128>prev_of(s)) * (<u128>(n.window_us - elapsed))

cdef inline bint fits(const Cell *s, const Numbers *n, int64_t cost, int64_t now_us) noexcept nogil:
    cdef int64_t slack
    if cost == 0:
        return True
    if cost > n.limit:
        return False
    if n.algorithm == TOKEN_BUCKET:
        return level_of(s) + ticks_of(cost, n) <= ticks_of(n.limit, n)
    slack = n.limit - <int64_t>cur_of(s) - cost
    if slack < 0:
        return False
    if n.algorithm == FIXED_WINDOW or slack >= <int64_t>prev_of(s):
        return True
    return sliding_used(s, n, now_us) <= (<u128>slack) * (<u128>n.window_us)

cdef inline void take(Cell *s, const Numbers *n, int64_t cost) noexcept nogil:
    """Adds a cost that fits."""
    if n.algorithm == TOKEN_BUCKET:
        set_level(s, level_of(s) + ticks_of(cost, n))
    else:
        s.low += <uint64_t>cost

cdef inline int64_t remaining(const Cell *s, const Numbers *n, int64_t now_us) noexcept nogil:
    """The largest whole cost that fits."""
    cdef u128 cap, level
    cdef int64_t left
    if n.algorithm == TOKEN_BUCKET:
        cap = (<u128>n.limit) * (<u128>n.unit)
        level = level_of(s)
        return <int64_t>div_u128(cap - level, <u128>n.unit) if level < cap else 0
    left = n.limit - <int64_t>cur_of(s)
    if n.algorithm == SLIDING_WINDOW:
        left -= <int64_t>ceil_div(sliding_used(s, n, now_us), <u128>n.window_us)
    return left if left > 0 else 0

cdef inline bint penalise(Cell *s, const Numbers *n, int64_t cost, int64_t now_us) noexcept nogil:
    """Charges a refusal (count_denied): up to empty, never beyond, and never back from debt. True when that changed it."""
    cdef u128 cap, level
    cdef int64_t left
    if n.algorithm == TOKEN_BUCKET:
        cap = (<u128>n.limit) * (<u128>n.unit)
        level = level_of(s)
        if level >= cap:
            return False
        level += (<u128>cost) * (<u128>n.unit)
        set_level(s, level if level < cap else cap)
        return True
    left = remaining(s, n, now_us)
    s.low += <uint64_t>(cost if cost < left else left)
    return left > 0

cdef inline u128 retry_after(const Cell *s, const Numbers *n, int64_t cost, int64_t now_us, int64_t end_us) noexcept nogil:
    """Microseconds until `cost`, which is at most the limit, fits. The contract's formulas; exact to the microsecond."""
    cdef int64_t ahead = s.at_us - now_us if s.at_us > now_us else 0
    cdef int64_t elapsed, slack, window = n.window_us
    cdef u128 wait
    if fits(s, n, cost, now_us):
        return <u128>0
    if n.algorithm == TOKEN_BUCKET:
        wait = level_of(s) + (<u128>cost) * (<u128>n.unit) - (<u128>n.limit) * (<u128>n.unit)
        return <u128>ahead + ceil_div(wait, <u128>n.refill)
    if n.algorithm == FIXED_WINDOW:
        return <u128>(end_us - now_us)
    elapsed = 0 if ahead else now_us - s.at_us
    slack = n.limit - <int64_t>cur_of(s) - cost
    wait = <u128>(ahead + window - elapsed)
    if slack >= 0:
        return wait - (<u128>slack) * (<u128>window) / (<u128>prev_of(s))
    # The next window must come first, and then this window's units must fade far enough.
    return wait + <u128>window - min_u128(<u128>window, (<u128>(n.limit - cost)) * (<u128>window) / (<u128>cur_of(s)))

cdef inline u128 min_u128(u128 a, u128 b) noexcept nogil:
    return a if a < b else b

cdef inline u128 reset_after(const Cell *s, const Numbers *n, int64_t now_us, int64_t end_us) noexcept nogil:
    """Microseconds until the cell answers as a fresh one would."""
    cdef int64_t ahead = s.at_us - now_us if s.at_us > now_us else 0
    cdef u128 level
    cdef int64_t left
    if n.algorithm == TOKEN_BUCKET:
        level = level_of(s)
        return <u128>0 if level == <u128>0 else <u128>ahead + ceil_div(level, <u128>n.refill)
    if s.low == 0:
        return <u128>0
    if n.algorithm == FIXED_WINDOW:
        return <u128>(end_us - now_us)
    left = ahead + n.window_us if ahead else s.at_us + n.window_us - now_us
    return <u128>(left + n.window_us if cur_of(s) > 0 else left)

# ---- what comes after a decision ------------------------------------------------------------------------------------

cdef inline bint give_back(
    Cell *s, const Numbers *n, int64_t units, int64_t charged_us, int64_t start_us
) noexcept nogil:
    """A refund: what refill has already returned since the charge is not returned again; of windows, only the charged one.
    True when that changed it.

    Elapsed time is the bucket's own, which never runs backwards: after a step of the clock, drain that the bucket has seen
    counts although `now` does not know of it. A bucket counted before the charge was rebased since, and owes nothing.
    """
    cdef u128 back, drained, level
    cdef uint64_t cur, prev, low = s.low
    if n.algorithm == TOKEN_BUCKET:
        if s.at_us < charged_us:
            return False
        back = (<u128>units) * (<u128>n.unit)
        drained = (<u128>(s.at_us - charged_us)) * (<u128>n.refill)
        level = level_of(s)
        if back <= drained or level == <u128>0:
            return False
        back -= drained
        set_level(s, level - back if level > back else <u128>0)
        return True
    cur = cur_of(s)
    prev = prev_of(s)
    if s.at_us == start_us:
        cur -= min_u64(cur, <uint64_t>units)
    elif n.algorithm == SLIDING_WINDOW and s.at_us == start_us + n.window_us:
        prev -= min_u64(prev, <uint64_t>units)
    set_counts(s, cur, prev)
    return s.low != low

cdef inline uint64_t min_u64(uint64_t a, uint64_t b) noexcept nogil:
    return a if a < b else b

cdef inline bint owe(Cell *s, const Numbers *n, int64_t units) noexcept nogil:
    """An extra charge that is not asked for leave: debt, at most one limit below empty. True when that changed it."""
    cdef u128 level, floor_level
    cdef uint64_t cur, floor_units
    if n.algorithm == TOKEN_BUCKET:
        level = level_of(s)
        floor_level = <u128>2 * (<u128>n.limit) * (<u128>n.unit)
        if level >= floor_level:
            return False
        set_level(s, min_u128(level + (<u128>units) * (<u128>n.unit), floor_level))
        return True
    cur = cur_of(s)
    floor_units = 2 * <uint64_t>n.limit
    if cur >= floor_units:
        return False
    set_counts(s, floor_units if <uint64_t>units > floor_units - cur else cur + <uint64_t>units, prev_of(s))
    return True

# ---- forgetting -----------------------------------------------------------------------------------------------------

cdef inline bint forgettable(const Cell *cell, const Numbers *written, const Numbers *n, int64_t now_us) noexcept nogil:
    """True exactly when a fresh cell would answer the same from now on; `n` are the numbers that hold now (law 7)."""
    if n.algorithm == UNTIL:
        return cell.at_us <= now_us
    if cell.at_us > now_us:
        return False
    if n.algorithm == TOKEN_BUCKET:
        return convert_ticks(level_of(cell), written, n) <= (<u128>(now_us - cell.at_us)) * (<u128>n.refill)
    if n.algorithm == FIXED_WINDOW:
        # A calendar window's length varies; window_us is longer than any, for limits that nobody asks any more.
        return cell.low == 0 or now_us - cell.at_us >= n.window_us or (n.calendar and cell.at_us < n.start_us)
    return now_us - cell.at_us >= (2 * n.window_us if cur_of(cell) else n.window_us) or cell.low == 0
