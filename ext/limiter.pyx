# cython: language_level=3
"""`TokenBucket` and `SlidingWindow`: one limit for any number of keys, in this process, nothing else needed.

Thin classes over level.pxd (the arithmetic) and keytable.pxd (where the cells live). Each call is one atomic step: it
never releases the GIL between reading a cell and writing it.
"""

import os

cimport cython
from libc.stdint cimport int64_t, uint32_t, uint64_t
from libc.string cimport memset

from keys cimport cost_of, hash_key, read_clock
from keytable cimport (
    SWEEP_SLOTS, SWEEP_SLOTS_FULL, Packed, KeyTable, unpack, pack, table_close, table_find, table_insert, table_open, table_prefetch,
    table_sweep,
)
from level cimport (
    SLIDING_WINDOW, TOKEN_BUCKET, Cell, Numbers, fits, fresh, remaining, reset_after, retry_after, take, touch,
)
from result cimport make_status
from siphash cimport Hash128, siphash128
from ticks cimport ceil_div, clip_us, seconds, u128

from shield.core.status import LimitStatus

cdef object ONE = 1  # small integers are single objects: the default cost is known by its address

cdef enum WhenFull:
    SHARE = 0
    DENY = 1
    ALLOW = 2

cdef enum:
    BATCH = 64  # keys hashed and prefetched before the first of them is decided

cdef dict WHEN_FULL = {"share": SHARE, "deny": DENY, "allow": ALLOW}


cdef class KeyedLimiter:
    """What the two have in common: a table of cells under one set of numbers."""

    cdef KeyTable table
    cdef Numbers numbers
    cdef Cell shared
    cdef uint64_t k0
    cdef uint64_t k1
    cdef object clock
    cdef int monotonic
    cdef int when_full
    cdef readonly object rate

    def __dealloc__(self):
        table_close(&self.table)

    cdef int prepare(self, object max_keys, object clock, object when_full) except -1:
        cdef bytes secret = os.urandom(16)
        if not isinstance(max_keys, int) or isinstance(max_keys, bool) or not 1 <= max_keys <= 1_000_000_000:
            raise ValueError(f"max_keys must be an int from 1 to 1_000_000_000, not {max_keys!r}")
        if clock is not None and not callable(clock):
            raise TypeError("clock must be a callable that returns nanoseconds as int")
        if when_full not in WHEN_FULL:
            raise ValueError(f"when_full must be 'share', 'deny' or 'allow', not {when_full!r}")
        self.when_full = WHEN_FULL[when_full]
        self.clock = clock
        self.k0 = int.from_bytes(secret[:8], "little")
        self.k1 = int.from_bytes(secret[8:], "little")
        if not table_open(&self.table, max_keys):
            raise MemoryError(f"no memory for max_keys={max_keys}")
        return 0

    @cython.final
    cdef inline int check_made(self) except -1:
        if self.table.cells == NULL:
            raise TypeError("this limiter was never initialised")
        return 0

    def __len__(self):
        """Keys that have a cell, those that could be forgotten by now included."""
        return self.table.count

    @property
    def max_keys(self):
        return self.table.max_cells

    @property
    def size_bytes(self):
        """Address space of the table: its bound, reached as keys arrive."""
        return self.table.size_bytes

    cdef bint ask(self, const Hash128 *h, int64_t cost, int64_t now_us, bint commit, Cell *after) noexcept:
        """One step: the verdict, and in `after`, unless it is NULL, the key's cell after it."""
        cdef Packed *cell = table_find(&self.table, h.a, h.b)
        cdef Cell state  # local, so that it lives in registers
        cdef bint rebased = False, allowed, shares = False
        if cell == NULL:
            if self.table.count >= self.table.max_cells:
                table_sweep(&self.table, &self.numbers, now_us, SWEEP_SLOTS_FULL)
            if self.table.count >= self.table.max_cells:
                if self.when_full != SHARE:
                    if after != NULL:
                        fresh(after, &self.numbers, now_us)
                    return cost == 0 or (self.when_full == ALLOW and cost <= self.numbers.limit)
                shares = True
        # A bucket of one's own starts at the level of the shared one: whoever spent there is not forgiven.
        if cell == NULL:
            state = self.shared
        else:
            unpack(cell, &state)
        rebased = touch(&state, &self.numbers, &self.numbers, now_us)
        allowed = fits(&state, &self.numbers, cost, now_us)
        if commit and cost > 0 and (allowed or rebased):
            if allowed:
                take(&state, &self.numbers, cost)
            if shares:
                self.shared = state
            elif cell != NULL:
                pack(cell, &state)
            else:
                pack(table_insert(&self.table, h.a, h.b), &state)
                table_sweep(&self.table, &self.numbers, now_us, SWEEP_SLOTS)
        if after != NULL:
            after[0] = state
        return allowed

    cdef object status(self, object key, object cost, bint commit):
        cdef int64_t units = cost_of(cost)
        cdef Hash128 h
        cdef Cell state
        cdef int64_t now_us
        self.check_made()
        hash_key(key, self.k0, self.k1, &h)
        now_us = read_clock(self.clock, self.monotonic)
        cdef bint allowed = self.ask(&h, units, now_us, commit, &state)
        cdef object retry
        if allowed:
            retry = 0.0
        elif units > self.numbers.limit:
            retry = None
        else:
            retry = seconds(retry_after(&state, &self.numbers, units, now_us, 0))
            if retry == 0.0:
                retry = 1.0  # refused because the table is full ("deny"): nobody can say when there is room
        return make_status(
            LimitStatus, allowed, self.numbers.limit, remaining(&state, &self.numbers, now_us),
            seconds(reset_after(&state, &self.numbers, now_us, 0)), retry, units, "",
        )

    def allow(self, key, cost=1):
        """True when `cost` units of `key` were there and have been taken. The fastest way to ask.

        TypeError for a key that is neither str nor bytes; ValueError for a cost outside 0 to 2**53 - 1.
        """
        cdef int64_t units = 1 if cost is ONE else cost_of(cost)
        cdef Hash128 h
        self.check_made()
        hash_key(key, self.k0, self.k1, &h)
        table_prefetch(&self.table, h.a)  # on its way while the clock is read
        return self.ask(&h, units, read_clock(self.clock, self.monotonic), True, NULL)

    def take(self, key, cost=1):
        """Like `allow`, with everything there is to say: a `LimitStatus`."""
        return self.status(key, cost, True)

    def peek(self, key, cost=1):
        """What `take` would say, without taking anything."""
        return self.status(key, cost, False)

    def allow_many(self, keys, cost=1):
        """`allow` for each of `keys`, in order, at one instant. `cost` is one int for all, or a sequence of ints.

        Everything is checked before anything is taken. Many keys cost less each than one: their cells are fetched
        while others are decided.
        """
        cdef list answers = []
        # Copies: a clock or another thread may change a list while it is read.
        cdef tuple keys_seq = tuple(keys)
        cdef Py_ssize_t n = len(keys_seq), start, i, size
        cdef tuple costs = None
        cdef int64_t units = 0
        cdef int64_t now_us
        cdef Hash128 hashes[BATCH]
        self.check_made()
        if isinstance(cost, int):
            units = cost_of(cost)
        else:
            costs = tuple(cost)
            if len(costs) != n:
                raise ValueError(f"{n} keys but {len(costs)} costs")
            for value in costs:
                cost_of(value)
        for key in keys_seq:
            if not isinstance(key, (str, bytes)):
                raise TypeError(f"a key is a str or bytes, not {type(key).__name__}")
        now_us = read_clock(self.clock, self.monotonic)
        start = 0
        while start < n:
            size = min(n - start, <Py_ssize_t>BATCH)
            for i in range(size):
                hash_key(keys_seq[start + i], self.k0, self.k1, &hashes[i])
                table_prefetch(&self.table, hashes[i].a)
            for i in range(size):
                if costs is not None:
                    units = cost_of(costs[start + i])
                answers.append(self.ask(&hashes[i], units, now_us, True, NULL))
            start += size
        return answers


@cython.final
cdef class TokenBucket(KeyedLimiter):
    """`burst` units at once, refilled continuously at `rate`, for each key.

    In any interval of t seconds a key is admitted at most `burst + rate * t` units, exactly. Time is the system's
    monotonic clock, or `clock`: a callable that returns nanoseconds. At most `max_keys` keys are held; when all are
    live, `when_full` says what newcomers get: "share" one bucket, "deny", or "allow".
    """

    def __init__(self, rate, burst=None, *, max_keys=1_000_000, clock=None, when_full="share"):
        from shield.rate import Rate
        cdef object parsed = rate if isinstance(rate, Rate) else Rate.parse(rate)
        if self.table.cells != NULL:
            raise TypeError("a limiter is made once")
        if parsed.period_us is None:
            raise ValueError(f"a token bucket refills at a steady rate, not {parsed}")
        if burst is None:
            burst = parsed.count
        if not isinstance(burst, int) or isinstance(burst, bool) or not 1 <= burst <= 1_000_000_000:
            raise ValueError(f"burst must be an int from 1 to 1_000_000_000, not {burst!r}")
        self.prepare(max_keys, clock, when_full)
        self.rate = parsed
        self.monotonic = 1
        self.numbers.algorithm = TOKEN_BUCKET
        self.numbers.limit = burst
        self.numbers.refill, self.numbers.unit = parsed.reduced
        self.numbers.drain_us = clip_us(
            ceil_div((<u128>self.numbers.limit) * (<u128>self.numbers.unit), <u128>self.numbers.refill))

    @property
    def burst(self):
        return self.numbers.limit

    def __repr__(self):
        return f"TokenBucket('{self.rate}', burst={self.burst}, max_keys={self.max_keys})"


@cython.final
cdef class SlidingWindow(KeyedLimiter):
    """At most the rate's count in a window that slides: the current aligned window plus the share of the previous one
    that still overlaps. Windows start at multiples of the period from the Unix epoch, so time is the wall clock.
    """

    def __init__(self, rate, *, max_keys=1_000_000, clock=None, when_full="share"):
        from shield.rate import Rate
        cdef object parsed = rate if isinstance(rate, Rate) else Rate.parse(rate)
        if self.table.cells != NULL:
            raise TypeError("a limiter is made once")
        if parsed.period_us is None:
            raise ValueError(f"a sliding window has a fixed length, not {parsed}")
        if parsed.count > 1_000_000_000:
            raise ValueError(f"a window's count must be at most 1_000_000_000, not {parsed.count}")
        self.prepare(max_keys, clock, when_full)
        self.rate = parsed
        self.numbers.algorithm = SLIDING_WINDOW
        self.numbers.limit = parsed.count
        self.numbers.window_us = parsed.period_us

    def __repr__(self):
        return f"SlidingWindow('{self.rate}', max_keys={self.max_keys})"


def siphash128_digest(bytes data, bytes key):
    """SipHash-1-3-128 of `data` under a 16-byte key, as 16 bytes: what keys are hashed with, for the known-answer test."""
    cdef Hash128 h
    if len(key) != 16:
        raise ValueError("a SipHash key has 16 bytes")
    h = siphash128(<const unsigned char *><const char *>data, len(data), int.from_bytes(key[:8], "little"), int.from_bytes(key[8:], "little"))
    return (<object>h.a).to_bytes(8, "little") + (<object>h.b).to_bytes(8, "little")
