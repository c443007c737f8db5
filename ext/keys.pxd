# cython: language_level=3
"""From Python values to the plain integers that the core counts with."""

from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_GET_SIZE
from cpython.object cimport PyObject
from cpython.unicode cimport PyUnicode_AsEncodedString
from libc.stdint cimport int64_t, uint8_t, uint64_t
from siphash cimport Hash128, siphash128
from ticks cimport clock_us

cdef extern from "Python.h":
    const char *PyUnicode_AsUTF8AndSize(object text, Py_ssize_t *size_bytes) except NULL
    bint PyUnicode_Check(object value)
    bint PyBytes_Check(object value)
    bint PyLong_Check(object value)
    bint PyBool_Check(object value)
    bint PyUnicode_IS_COMPACT_ASCII(object text)
    void *PyUnicode_DATA(object text)
    Py_ssize_t PyUnicode_GET_LENGTH(object text)
    long long PyLong_AsLongLongAndOverflow(object value, int *overflow) except? -1

cdef enum:
    # Largest integer that a double holds exactly: what JSON, JavaScript and Lua can pass on unharmed.
    MAX_COST_BITS = 53

cdef inline int64_t cost_of(object value) except -1:
    """A cost as int64: 0 to 2**53 - 1. TypeError for what is no int, ValueError out of range."""
    cdef int overflow = 0
    cdef long long cost
    if not PyLong_Check(value) or PyBool_Check(value):
        raise TypeError(f"cost must be an int, not {type(value).__name__}")
    cost = PyLong_AsLongLongAndOverflow(value, &overflow)
    if overflow or cost < 0 or cost >= (<int64_t>1 << MAX_COST_BITS):
        raise ValueError(f"cost must be from 0 to 2**53 - 1, not {str(value)[:40]}")
    return cost

cdef inline const char *ascii_of(object text, Py_ssize_t *size_bytes) noexcept:
    """The bytes of a str that is plain ASCII, as most keys are, without a call; NULL for other texts and for what is no str."""
    if PyUnicode_Check(text) and PyUnicode_IS_COMPACT_ASCII(text):
        size_bytes[0] = PyUnicode_GET_LENGTH(text)
        return <const char *>PyUnicode_DATA(text)
    return NULL

cdef inline const char *ascii_at(PyObject *text, Py_ssize_t *size_bytes) noexcept:
    """The same of a borrowed reference, which may be NULL."""
    if text == NULL:
        return NULL
    return ascii_of(<object>text, size_bytes)

cdef inline int hash_key(object key, uint64_t k0, uint64_t k1, Hash128 *h) except -1:
    """Hashes the key's bytes (UTF-8 of a str; any str has some, lone surrogates included)."""
    cdef const char *data
    cdef Py_ssize_t size_bytes
    data = ascii_of(key, &size_bytes)
    if data != NULL:
        h[0] = never_zero(siphash128(<const uint8_t *>data, <size_t>size_bytes, k0, k1))
        return 0
    return hash_other_key(key, k0, k1, h)

cdef inline int hash_other_key(object key, uint64_t k0, uint64_t k1, Hash128 *h) except -1:
    cdef const char *data
    cdef Py_ssize_t size_bytes
    if PyUnicode_Check(key):
        try:
            data = PyUnicode_AsUTF8AndSize(key, &size_bytes)
        except UnicodeEncodeError:
            key = PyUnicode_AsEncodedString(key, "utf-8", "surrogatepass")
            data = PyBytes_AS_STRING(key)
            size_bytes = PyBytes_GET_SIZE(key)
    elif PyBytes_Check(key):
        data = PyBytes_AS_STRING(key)
        size_bytes = PyBytes_GET_SIZE(key)
    else:
        raise TypeError(f"a key is a str or bytes, not {type(key).__name__}")
    h[0] = never_zero(siphash128(<const uint8_t *>data, <size_t>size_bytes, k0, k1))
    return 0

cdef inline Hash128 never_zero(Hash128 h) noexcept nogil:
    """A zero first word marks an empty slot."""
    if h.a == 0:
        h.a = 1
    return h

cdef inline int64_t read_clock(object clock, int monotonic) except -1:
    """Whole microseconds, floored. `clock` is None (the system's, no Python call) or a callable returning nanoseconds."""
    cdef int overflow = 0
    cdef long long now_ns
    cdef object value
    if clock is None:
        return clock_us(monotonic)
    value = clock()
    if not PyLong_Check(value):
        raise TypeError(f"a clock returns nanoseconds as int, not {type(value).__name__}")
    now_ns = PyLong_AsLongLongAndOverflow(value, &overflow)
    if overflow > 0:
        raise OverflowError("the clock is past the year 2262: nanoseconds must fit in 63 bits")
    # Before the epoch time stands still: an instant is never negative in a cell.
    return now_ns // 1000 if overflow == 0 and now_ns > 0 else 0
