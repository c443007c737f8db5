# cython: language_level=3
"""Is there anything to look at in a request target? One pass over its bytes, for the many that hold nothing of interest.

A target is plain when it has ordinary characters only, when no segment of its path is one of the words that traits look
for, when its last segment has no extension or a static one, and when neither its name nor its query is of the kinds that
flooding tools make up. What is not plain is read exactly, elsewhere; so this may be wrong in one direction only.
"""

from libc.stdint cimport uint8_t, uint32_t, uint64_t

cdef enum:
    WORD_SLOTS = 4096        # power of two; a quarter full at most

cdef enum TargetKind:
    PLAIN_TARGET = 0
    STATIC_TARGET = 1
    OTHER_TARGET = 2


cdef struct Words:
    uint64_t slots[WORD_SLOTS]     # hashes of words, 0 is empty
    uint8_t ordinary[256]          # 1: says nothing by itself

cdef inline uint64_t word_hash(const uint8_t *data, Py_ssize_t size_bytes) noexcept nogil:
    """FNV-1a of lower-cased ASCII; never 0. Its misses are exact, a false hit only costs a closer look."""
    cdef uint64_t h = 0xcbf29ce484222325ULL
    cdef Py_ssize_t i
    cdef uint8_t c
    for i in range(size_bytes):
        c = data[i]
        if 65 <= c <= 90:
            c += 32
        h = (h ^ c) * 0x100000001b3ULL
    return h if h != 0 else 1

cdef inline bint has_word(const Words *w, uint64_t h) noexcept nogil:
    cdef uint32_t at = <uint32_t>(h ^ (h >> 32)) & (WORD_SLOTS - 1)
    while w.slots[at] != 0:
        if w.slots[at] == h:
            return True
        at = (at + 1) & (WORD_SLOTS - 1)
    return False

cdef inline void add_word(Words *w, uint64_t h) noexcept nogil:
    cdef uint32_t at = <uint32_t>(h ^ (h >> 32)) & (WORD_SLOTS - 1)
    while w.slots[at] != 0:
        if w.slots[at] == h:
            return
        at = (at + 1) & (WORD_SLOTS - 1)
    w.slots[at] = h

cdef inline int kind_of(const Words *w, const uint8_t *data, Py_ssize_t size_bytes) noexcept nogil:
    cdef Py_ssize_t i, start = 1, dot = -1, end = size_bytes
    cdef uint64_t h = 0xcbf29ce484222325ULL
    cdef uint8_t c
    cdef bint lower = False, other = False
    cdef int segments = 0, static_name = 0
    if size_bytes == 0 or data[0] != 47:
        return OTHER_TARGET
    i = 1
    while i <= size_bytes:
        c = data[i] if i < size_bytes else 63
        if c == 47 or c == 63:
            # A segment ends. The start of the first one is a word too: "pma", "phpmyadmin-2".
            if i - start >= 3 and segments == 0 and has_word(w, word_hash(data + start, 3) ^ 1):
                return OTHER_TARGET
            if dot < 0:
                if i > start and has_word(w, h if h != 0 else 1):
                    return OTHER_TARGET
            elif c == 47:
                return OTHER_TARGET       # a dot in a folder
            segments += 1
            if c == 63:
                end = i
                break
            start, dot, lower = i + 1, -1, False
            h = 0xcbf29ce484222325ULL
            i += 1
            continue
        if c == 46:
            if dot >= 0 or i == start:
                return OTHER_TARGET
            dot = i
        elif not w.ordinary[c]:
            return OTHER_TARGET
        if 97 <= c <= 122:
            lower = True
        if 65 <= c <= 90:
            c += 32
        h = (h ^ c) * 0x100000001b3ULL
        i += 1
    if dot >= 0:
        # ^ 2: extensions, which are other words than segments.
        if not has_word(w, word_hash(data + dot + 1, end - dot - 1) ^ 2):
            return OTHER_TARGET
        static_name = 1
    elif end - start == 6 and not lower:
        return OTHER_TARGET
    for i in range(end + 1, size_bytes):
        c = data[i]
        if not w.ordinary[c] and c != 61 and c != 38:    # = &
            return OTHER_TARGET
        if not 48 <= c <= 57:
            other = True
        if c == 61 and i - end >= 7 and (data[i - 1] | 32) == 114:   # "author=" ends in r
            return OTHER_TARGET
    if end < size_bytes and not other:
        return OTHER_TARGET
    return STATIC_TARGET if static_name else PLAIN_TARGET
