# cython: language_level=3
"""Names by id: an open-addressed table from text to a small integer, in the order of first appearance.

The hash is 64 bits of multiply-and-fold over eight bytes at a time, keyed with two random words of the process, so that
nobody outside can choose names that meet in one place; equality is decided by the bytes themselves.
"""

from libc.stdint cimport int32_t, uint8_t, uint32_t, uint64_t
from libc.stdlib cimport calloc, free, malloc, realloc
from libc.string cimport memcmp, memcpy, strlen

cdef extern from *:
    """
    #include <stdint.h>
    static inline uint64_t shield_fold(uint64_t a, uint64_t b) {
        unsigned __int128 product = (unsigned __int128)a * b;
        return (uint64_t)product ^ (uint64_t)(product >> 64);
    }
    static const char *const shield_graphql_names[] = {
        "query", "mutation", "subscription", "fragment", "on", "true", "false", "null", "skip", "include", "if",
        "__typename", "__schema", "__type", "fields", "interfaces", "possibleTypes", "inputFields",
        "Int", "Float", "String", "Boolean", "ID",
        "first", "last", "limit", "take", "top", "count", "size", "max", "num", "pageSize", "page_size", "perPage", "per_page",
        "maxResults", "max_results", NULL,
    };
    """
    uint64_t fold "shield_fold"(uint64_t a, uint64_t b) nogil
    const char **WELL_KNOWN_NAMES "((const char **)shield_graphql_names)"

cdef struct Name:
    const char *text
    int32_t size
    uint32_t slot  # where its id stands: forgetting needs no text, which may be gone by then

cdef struct NameTable:
    Name *names
    int32_t count, room
    int32_t *slots      # id + 1, 0 for empty
    uint32_t mask
    uint64_t k0, k1

cdef inline uint64_t hash_name(const char *text, int32_t size, uint64_t k0, uint64_t k1) noexcept nogil:
    cdef uint64_t h = k0 ^ <uint64_t>size, word
    while size >= 8:
        memcpy(&word, text, 8)
        h = fold(h ^ word, k1)
        text += 8
        size -= 8
    if size:
        word = 0
        memcpy(&word, text, size)
        h = fold(h ^ word, k1)
    return fold(h ^ k1, k0)

cdef inline bint names_open(NameTable *t, uint64_t k0, uint64_t k1) noexcept nogil:
    t.room = 64
    t.mask = 127
    t.count = 0
    t.k0 = k0 | 1
    t.k1 = k1 | 1
    t.names = <Name *>malloc(t.room * sizeof(Name))
    t.slots = <int32_t *>calloc(t.mask + 1, sizeof(int32_t))
    return t.names != NULL and t.slots != NULL

cdef inline void names_close(NameTable *t) noexcept nogil:
    free(t.names)
    free(t.slots)
    t.names = NULL
    t.slots = NULL

cdef inline void names_cut(NameTable *t, int32_t count) noexcept nogil:
    """Forgets all but the first `count` names. Costs as much as there were names, not as much as the table has room."""
    # Backwards: a name was probed past earlier ones only, so those are still in place when it goes.
    cdef int32_t i = t.count - 1
    while i >= count:
        t.slots[t.names[i].slot] = 0
        i -= 1
    t.count = count

cdef inline bint names_grow(NameTable *t) noexcept nogil:
    cdef int32_t room = t.room * 2, i
    cdef uint32_t mask = t.mask * 2 + 1, slot
    cdef uint64_t h
    cdef Name *names = <Name *>realloc(t.names, room * sizeof(Name))
    if names == NULL:
        return False
    t.names = names
    cdef int32_t *slots = <int32_t *>calloc(<size_t>mask + 1, sizeof(int32_t))
    if slots == NULL:
        return False
    for i in range(t.count):
        h = hash_name(names[i].text, names[i].size, t.k0, t.k1)
        slot = <uint32_t>h & mask
        while slots[slot]:
            slot = (slot + 1) & mask
        slots[slot] = i + 1
        names[i].slot = slot
    free(t.slots)
    t.slots = slots
    t.mask = mask
    t.room = room
    return True

cdef inline int32_t name_find(const NameTable *t, const char *text, int32_t size) noexcept nogil:
    """The id of a name, or -1."""
    cdef uint32_t slot = <uint32_t>hash_name(text, size, t.k0, t.k1) & t.mask
    cdef int32_t at
    while True:
        at = t.slots[slot] - 1
        if at < 0:
            return -1
        if t.names[at].size == size and memcmp(t.names[at].text, text, size) == 0:
            return at
        slot = (slot + 1) & t.mask

cdef inline int32_t name_of(NameTable *t, const char *text, int32_t size) noexcept nogil:
    """The id of a name, given out now if it is new; -1 when there is no memory."""
    cdef uint32_t slot = <uint32_t>hash_name(text, size, t.k0, t.k1) & t.mask
    cdef int32_t at
    while True:
        at = t.slots[slot] - 1
        if at < 0:
            break
        if t.names[at].size == size and memcmp(t.names[at].text, text, size) == 0:
            return at
        slot = (slot + 1) & t.mask
    if t.count == t.room:
        if not names_grow(t):
            return -1
        slot = <uint32_t>hash_name(text, size, t.k0, t.k1) & t.mask
        while t.slots[slot]:
            slot = (slot + 1) & t.mask
    at = t.count
    t.names[at].text = text
    t.names[at].size = size
    t.names[at].slot = slot
    t.slots[slot] = at + 1
    t.count = at + 1
    return at

cdef inline bint know_names(NameTable *t) noexcept nogil:
    """Interns the names with a meaning, in the order of graphql_tree.WellKnown."""
    cdef const char **known = WELL_KNOWN_NAMES
    cdef int32_t i = 0
    while known[i] != NULL:
        if name_of(t, known[i], <int32_t>strlen(known[i])) != i:
            return False
        i += 1
    return True
