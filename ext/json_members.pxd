# cython: language_level=3
"""Does a JSON document hold a name twice? A first look, at the speed of reading it."""

from libc.string cimport memchr, memcmp

cdef enum:
    MAX_NAMES = 64     # compared with each other; a document with more is rare, and left to a slower look

cdef struct Name:
    const char *at
    Py_ssize_t size

cdef inline bint unique_members(const char *document, Py_ssize_t size_bytes) noexcept nogil:
    """True: no two names of this valid document are equal, in whichever of its objects. False: some may be.

    Without a backslash in it a quote begins or ends a text, and a text before a colon is a name.
    """
    cdef const char *p = document
    cdef const char *end = p + size_bytes
    cdef const char *close
    cdef Name names[MAX_NAMES]
    cdef int count = 0, i
    cdef Py_ssize_t size
    if memchr(p, b"\\", end - p) != NULL:
        return False
    while True:
        p = <const char *>memchr(p, b'"', end - p)
        if p == NULL:
            return True
        p += 1
        close = <const char *>memchr(p, b'"', end - p)
        if close == NULL:
            return False
        size = close - p
        close += 1
        while close < end and (close[0] == b" " or close[0] == b"\t" or close[0] == b"\n" or close[0] == b"\r"):
            close += 1
        if close < end and close[0] == b":":
            for i in range(count):
                if names[i].size == size and memcmp(names[i].at, p, size) == 0:
                    return False
            if count == MAX_NAMES:
                return False
            names[count].at = p
            names[count].size = size
            count += 1
        p = close
