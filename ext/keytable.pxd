# cython: language_level=3
"""One table of cells, of a size fixed when it is made: open addressing, linear probing, no tombstones.

The law of this file: at most `max_cells` cells are held, in slots allocated once (40 bytes at 70 percent load: 57 bytes a
key). Nothing grows and nothing is swept whole: each insert walks a hand over a few slots and drops what is forgettable,
so expiry costs a bounded time per call. A live cell is never dropped to make room.

Only `table_sweep` moves cells. It runs at the end of a step, so that pointers found at its beginning stay good.
"""

from libc.stdint cimport int64_t, uint64_t
from libc.stddef cimport size_t
from level cimport Cell, Numbers, forgettable
from ticks cimport mulhi

cdef extern from *:
    """
    #include <sys/mman.h>
    #if !defined(MAP_ANONYMOUS)
    #define MAP_ANONYMOUS MAP_ANON
    #endif
    /* Pages come zeroed and untouched: memory is used as keys arrive. Large tables ask for huge pages, which halves
       the cost of a random touch at ten million keys; small ones do not, or they would be resident at once. */
    static void *shield_map(size_t size_bytes) {
        void *at = mmap(0, size_bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
        if (at == MAP_FAILED) return 0;
    #if defined(MADV_HUGEPAGE)
        if (size_bytes >= ((size_t)256 << 20)) madvise(at, size_bytes, MADV_HUGEPAGE);
    #endif
        return at;
    }
    static void shield_unmap(void *at, size_t size_bytes) { munmap(at, size_bytes); }
    /* Both ends: every second cell of 40 bytes lies across two cache lines. */
    #define SHIELD_PREFETCH(p) (__builtin_prefetch(p, 1), __builtin_prefetch((char *)(p) + 39, 1))
    """
    void *map_pages "shield_map"(size_t size_bytes) nogil
    void unmap_pages "shield_unmap"(void *at, size_t size_bytes) nogil
    void prefetch "SHIELD_PREFETCH"(void *p) nogil

cdef enum:
    # Slots looked at per insert: more than the slots an insert fills, so the hand outruns any flood of inserts.
    SWEEP_SLOTS = 8
    # Looked at once more when a newcomer finds the table full.
    SWEEP_SLOTS_FULL = 64

cdef struct KeyTable:
    Cell *cells
    uint64_t slots
    int64_t count
    int64_t max_cells
    uint64_t hand
    size_t size_bytes

cdef inline bint table_open(KeyTable *t, int64_t max_cells) noexcept nogil:
    t.max_cells = max_cells
    t.count = 0
    t.hand = 0
    t.slots = <uint64_t>max_cells * 10 / 7 + 8
    t.size_bytes = <size_t>(t.slots * sizeof(Cell))
    t.cells = <Cell *>map_pages(t.size_bytes)
    return t.cells != NULL

cdef inline void table_close(KeyTable *t) noexcept nogil:
    if t.cells != NULL:
        unmap_pages(t.cells, t.size_bytes)
        t.cells = NULL

cdef inline uint64_t home_of(const KeyTable *t, uint64_t hash_a) noexcept nogil:
    return mulhi(hash_a, t.slots)

cdef inline Cell *table_find(const KeyTable *t, uint64_t hash_a, uint64_t hash_b) noexcept nogil:
    """The key's cell, or NULL. Ends at an empty slot: at 70 percent load there is one near."""
    cdef uint64_t i = home_of(t, hash_a)
    cdef Cell *cell
    while True:
        cell = &t.cells[i]
        if cell.hash_a == hash_a and cell.hash_b == hash_b:
            return cell
        if cell.hash_a == 0 and cell.hash_b == 0:
            return NULL
        i += 1
        if i == t.slots:
            i = 0

cdef inline Cell *table_insert(KeyTable *t, uint64_t hash_a, uint64_t hash_b) noexcept nogil:
    """A slot for a key that is not there; the caller has made sure of room. Probes again: an earlier insert of the same
    step may have taken the slot that was empty before."""
    cdef uint64_t i = home_of(t, hash_a)
    while t.cells[i].hash_a != 0 or t.cells[i].hash_b != 0:
        i += 1
        if i == t.slots:
            i = 0
    t.cells[i].hash_a = hash_a
    t.cells[i].hash_b = hash_b
    t.count += 1
    return &t.cells[i]

cdef inline void table_remove(KeyTable *t, uint64_t hole) noexcept nogil:
    """Closes the gap by moving later cells of the run back, so that probing needs no tombstones (Knuth, 6.4 R)."""
    cdef uint64_t i = hole, home
    while True:
        i += 1
        if i == t.slots:
            i = 0
        if t.cells[i].hash_a == 0 and t.cells[i].hash_b == 0:
            break
        home = home_of(t, t.cells[i].hash_a)
        # The cell may stay if its home lies in the cyclic range (hole, i].
        if (hole < home <= i) if hole <= i else (home > hole or home <= i):
            continue
        t.cells[hole] = t.cells[i]
        hole = i
    t.cells[hole].hash_a = 0
    t.cells[hole].hash_b = 0
    t.count -= 1

cdef inline int table_sweep(KeyTable *t, const Numbers *numbers, int64_t now_us, int slots) noexcept nogil:
    """Looks at the next `slots` slots and drops what can be forgotten. How many were dropped."""
    cdef int dropped = 0
    cdef const Numbers *written
    cdef Cell *cell
    while slots > 0:
        slots -= 1
        if t.hand >= t.slots:
            t.hand = 0
        cell = &t.cells[t.hand]
        if cell.hash_a != 0 or cell.hash_b != 0:
            written = &numbers[cell.numbers]
            if forgettable(cell, written, &numbers[written.successor], now_us):
                table_remove(t, t.hand)
                dropped += 1
                continue  # another cell may have moved into this slot
        t.hand += 1
    return dropped
