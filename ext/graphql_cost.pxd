# cython: language_level=3
"""Costs as exact fixed-point numbers: billionths of a unit in 128 bits, saturating.

A cost never exceeds CAP, 2^53 units, and one that has reached it stays there whatever is taken off afterwards: "too much"
is final. Products cannot overflow: a list is at most 2^40 long before it counts as unbounded, so |n * cost| < 2^123.
"""

from libc.stdint cimport int64_t, uint64_t

cdef extern from *:
    """
    #include <stdint.h>
    typedef __int128 shield_i128;
    #define SHIELD_COST_UNIT ((shield_i128)1000000000)
    #define SHIELD_COST_CAP (((shield_i128)1 << 53) * SHIELD_COST_UNIT)
    #define SHIELD_UNBOUNDED ((int64_t)1 << 41)
    static inline shield_i128 shield_cost_add(shield_i128 a, shield_i128 b) {
        if (a >= SHIELD_COST_CAP || b >= SHIELD_COST_CAP) return SHIELD_COST_CAP;
        a += b;
        return a >= SHIELD_COST_CAP ? SHIELD_COST_CAP : a <= -SHIELD_COST_CAP ? -SHIELD_COST_CAP : a;
    }
    static inline shield_i128 shield_cost_times(int64_t n, shield_i128 cost) {
        if (cost == 0 || n <= 0) return 0;
        if (n > ((int64_t)1 << 40)) return cost > 0 ? SHIELD_COST_CAP : -SHIELD_COST_CAP;
        if (cost >= SHIELD_COST_CAP) return SHIELD_COST_CAP;
        cost *= n;
        return cost >= SHIELD_COST_CAP ? SHIELD_COST_CAP : cost <= -SHIELD_COST_CAP ? -SHIELD_COST_CAP : cost;
    }
    #define SHIELD_COST_MAX(a, b) ((a) > (b) ? (a) : (b))
    #define SHIELD_COST_UNITS(a) ((int64_t)((a) / SHIELD_COST_UNIT))
    #define SHIELD_COST_BILLIONTHS(a) ((int64_t)((a) % SHIELD_COST_UNIT))
    """
    # Cython takes it for a 64-bit type: it must not meet Python objects or constants.
    ctypedef long long cost_t "shield_i128"
    cost_t CAP "SHIELD_COST_CAP"
    cost_t UNIT "SHIELD_COST_UNIT"
    int64_t UNBOUNDED "SHIELD_UNBOUNDED"
    cost_t cost_add "shield_cost_add"(cost_t a, cost_t b) nogil
    cost_t cost_times "shield_cost_times"(int64_t n, cost_t cost) nogil
    cost_t cost_max "SHIELD_COST_MAX"(cost_t a, cost_t b) nogil
    int64_t units_of "SHIELD_COST_UNITS"(cost_t a) nogil
    int64_t billionths_of "SHIELD_COST_BILLIONTHS"(cost_t a) nogil

cdef inline int64_t charge_of(cost_t cost) noexcept nogil:
    """Whole units, rounded up, at most 2^53 - 1: what a limit is charged."""
    cdef int64_t units
    if cost <= <cost_t>0:
        return 0
    if cost >= CAP:
        return (<int64_t>1 << 53) - 1
    units = units_of(cost) + (billionths_of(cost) != 0)
    return min(units, (<int64_t>1 << 53) - 1)

cdef inline object figure_of(cost_t cost):
    """The cost itself: an int when it is whole, else the nearest float; 2^53 - 1 when it saturated."""
    if cost >= CAP:
        return (1 << 53) - 1
    if billionths_of(cost) == 0:
        return units_of(cost)
    return (int(units_of(cost)) * 1_000_000_000 + billionths_of(cost)) / 1_000_000_000
