# cython: language_level=3
"""Integer time arithmetic that neither rounds nor overflows.

A rate of `c` units per `p` microseconds is kept reduced. One unit is p ticks and c ticks drain per microsecond, so
every level is a whole number of ticks. With p up to 30 days (2.6e12, 42 bits) and bursts up to 1e9 a level needs 72
bits, a level in debt 73, a refused cost of 2^53 - 1 another 95: more than int64 holds and far less than 128 bits hold.
Signed overflow would fail open without a word; unsigned 128-bit sums of these operands cannot overflow at all.
"""

from libc.stdint cimport INT64_MAX, int64_t, uint64_t

cdef extern from *:
    """
    #include <stdint.h>
    #include <time.h>
    typedef unsigned __int128 shield_u128;
    #define SHIELD_MULHI(a, b) ((uint64_t)(((unsigned __int128)(a) * (b)) >> 64))
    static inline int64_t shield_clock_us(int monotonic) {
        struct timespec t;
        clock_gettime(monotonic ? CLOCK_MONOTONIC : CLOCK_REALTIME, &t);
        return (int64_t)t.tv_sec * 1000000 + t.tv_nsec / 1000;
    }
    static inline double shield_monotonic_s(void) {
        struct timespec t;
        clock_gettime(CLOCK_MONOTONIC, &t);
        return (double)t.tv_sec + (double)t.tv_nsec * 1e-9;
    }
    """
    # Cython takes it for an unsigned 64-bit type: keep it out of Python objects and constants, cast both operands.
    ctypedef unsigned long long u128 "shield_u128"
    uint64_t mulhi "SHIELD_MULHI"(uint64_t a, uint64_t b) nogil
    int64_t clock_us "shield_clock_us"(int monotonic) nogil
    double monotonic_s "shield_monotonic_s"() nogil

cdef inline u128 div_u128(u128 a, u128 b) noexcept nogil:
    """a / b. Nearly always both fit in 64 bits, where the processor divides by itself."""
    if (a | b) >> 64 == <u128>0:
        return <u128>(<uint64_t>a / <uint64_t>b)
    return a / b

cdef inline u128 ceil_div(u128 a, u128 b) noexcept nogil:
    cdef u128 quotient = div_u128(a, b)
    return quotient + <u128>(quotient * b != a)

cdef inline int64_t clip_us(u128 us) noexcept nogil:
    """Saturates at INT64_MAX (292,000 years), so that instants can be compared as int64."""
    return <int64_t>us if us < <u128>INT64_MAX else INT64_MAX

cdef inline object from_u128(u128 value):
    """A Python int: Cython by itself would cut it to 64 bits."""
    cdef uint64_t high = <uint64_t>(value >> 64)
    cdef uint64_t low = <uint64_t>value
    return low if high == 0 else (int(high) << 64) | int(low)

cdef inline object seconds(u128 us):
    """Float seconds, correctly rounded: exact int to double below 2^53, Python's own big division above."""
    if us < (<u128>1) << 53:
        return <double><uint64_t>us / 1e6
    return from_u128(us) / 1000000
