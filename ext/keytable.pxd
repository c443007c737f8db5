# cython: language_level=3
"""One table of cells, of a size fixed when it is made: open addressing, linear probing, no tombstones.

The law of this file: at most `max_cells` cells are held, in slots allocated once (40 bytes at 70 percent load: 57 bytes a
key). Nothing grows and nothing is swept whole: each insert walks a hand over a few slots and drops what is forgettable,
so expiry costs a bounded time per call. A live cell is never dropped to make room.

A few thousand keys strewn over a large table would lie on as many pages, and finding a page costs more than all else about
a key. So cells stand in a near part first, whose pages stay known to the processor, and only when that is half full in the
far part behind it, which is large and on huge pages. A key is in one of the parts; both are probed alike. Small tables
and those that are on huge pages altogether have no far part.

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
    /* Pages come zeroed and untouched: memory is used as keys arrive. */
    static void *shield_map(size_t size_bytes) {
        void *at = mmap(0, size_bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
        return at == MAP_FAILED ? 0 : at;
    }
    /* They halve the cost of a random touch at ten million keys, and are resident whole as soon as they are touched. */
    static void shield_huge_pages(void *at, size_t size_bytes) {
    #if defined(MADV_HUGEPAGE)
        madvise(at, size_bytes, MADV_HUGEPAGE);
    #endif
    }
    static void shield_unmap(void *at, size_t size_bytes) { munmap(at, size_bytes); }
    /* This cell and the next, which is often wanted too: 80 bytes lie across two cache lines, or three. */
    #define SHIELD_PREFETCH(p) (__builtin_prefetch(p, 1), __builtin_prefetch((char *)(p) + 63, 1))
    """
    void *map_pages "shield_map"(size_t size_bytes) nogil
    void unmap_pages "shield_unmap"(void *at, size_t size_bytes) nogil
    void huge_pages "shield_huge_pages"(void *at, size_t size_bytes) nogil
    void prefetch "SHIELD_PREFETCH"(void *p) nogil

cdef enum:
    # Slots looked at per insert: more than the slots an insert fills, so the hand outruns any flood of inserts.
    SWEEP_SLOTS = 8
    # Looked at once more when a newcomer finds the table full.
    SWEEP_SLOTS_FULL = 64

    # 320 pages of 4 KiB, which the translation caches of processors hold, and half as many cells.
    NEAR_SLOTS = 1 << 15
    NEAR_CELLS = NEAR_SLOTS / 2
    # From this size on all of the table is worth huge pages: whoever asks for so many keys expects them.
    HUGE_BYTES = 1 << 28

cdef struct KeyTable:
    Cell *cells          # the near part, then the far part
    uint64_t near        # slots of the near part
    uint64_t slots       # of both
    int64_t near_count
    int64_t near_cells   # at most so many stand in the near part
    int64_t count
    int64_t max_cells
    uint64_t hand
    size_t size_bytes

cdef inline uint64_t slots_for(int64_t cells) noexcept nogil:
    return <uint64_t>cells * 10 / 7 + 8

cdef inline bint table_open(KeyTable *t, int64_t max_cells) noexcept nogil:
    t.max_cells = max_cells
    t.count = t.near_count = 0
    t.hand = 0
    t.near = t.slots = slots_for(max_cells)
    t.near_cells = max_cells
    if t.slots > 2 * <uint64_t>NEAR_SLOTS and t.slots * sizeof(Cell) < HUGE_BYTES:
        t.near = NEAR_SLOTS
        t.near_cells = NEAR_CELLS
        t.slots = t.near + slots_for(max_cells - NEAR_CELLS)
    t.size_bytes = <size_t>(t.slots * sizeof(Cell))
    t.cells = <Cell *>map_pages(t.size_bytes)
    if t.cells == NULL:
        return False
    if t.near < t.slots:
        huge_pages(&t.cells[t.near], <size_t>((t.slots - t.near) * sizeof(Cell)))
    elif t.size_bytes >= HUGE_BYTES:
        huge_pages(t.cells, t.size_bytes)
    return True

cdef inline void table_close(KeyTable *t) noexcept nogil:
    if t.cells != NULL:
        unmap_pages(t.cells, t.size_bytes)
        t.cells = NULL

cdef inline uint64_t home_of(uint64_t hash_a, uint64_t slots) noexcept nogil:
    return mulhi(hash_a, slots)

cdef inline void table_prefetch(const KeyTable *t, uint64_t hash_a) noexcept nogil:
    """Fetches the places where a key's cell is likely to be."""
    prefetch(&t.cells[home_of(hash_a, t.near)])
    if t.count > t.near_count:
        prefetch(&t.cells[t.near + home_of(hash_a, t.slots - t.near)])

cdef inline Cell *probe(Cell *cells, uint64_t slots, uint64_t hash_a, uint64_t hash_b, bint vacant) noexcept nogil:
    """The key's cell in one part, else NULL, or with `vacant` the empty slot where it ends: there is always one near."""
    cdef uint64_t i = home_of(hash_a, slots)
    cdef Cell *cell
    while True:
        cell = &cells[i]
        if cell.hash_a == hash_a and cell.hash_b == hash_b:
            return cell
        if cell.hash_a == 0 and cell.hash_b == 0:
            return cell if vacant else NULL
        i += 1
        if i == slots:
            i = 0

cdef inline Cell *table_find(const KeyTable *t, uint64_t hash_a, uint64_t hash_b) noexcept nogil:
    """The key's cell, or NULL."""
    cdef Cell *cell = probe(t.cells, t.near, hash_a, hash_b, False)
    if cell == NULL and t.count > t.near_count:
        return probe(&t.cells[t.near], t.slots - t.near, hash_a, hash_b, False)
    return cell

cdef inline Cell *table_insert(KeyTable *t, uint64_t hash_a, uint64_t hash_b) noexcept nogil:
    """A slot for a key that is not there; the caller has made sure of room. Probes again: an earlier insert of the same
    step may have taken the slot that was empty before."""
    cdef Cell *cell
    if t.near_count < t.near_cells:
        cell = probe(t.cells, t.near, hash_a, hash_b, True)
        t.near_count += 1
    else:
        cell = probe(&t.cells[t.near], t.slots - t.near, hash_a, hash_b, True)
    cell.hash_a = hash_a
    cell.hash_b = hash_b
    t.count += 1
    return cell

cdef inline void table_remove(KeyTable *t, uint64_t at) noexcept nogil:
    """Empties the slot `at` of the whole table."""
    t.count -= 1
    if at < t.near:
        t.near_count -= 1
        close_gap(t.cells, t.near, at)
    else:
        close_gap(&t.cells[t.near], t.slots - t.near, at - t.near)

cdef inline void close_gap(Cell *cells, uint64_t slots, uint64_t hole) noexcept nogil:
    """Moves later cells of the run back, so that probing needs no tombstones (Knuth, 6.4 R)."""
    cdef uint64_t i = hole, home
    while True:
        i += 1
        if i == slots:
            i = 0
        if cells[i].hash_a == 0 and cells[i].hash_b == 0:
            break
        home = home_of(cells[i].hash_a, slots)
        # The cell may stay if its home lies in the cyclic range (hole, i].
        if (hole < home <= i) if hole <= i else (home > hole or home <= i):
            continue
        cells[hole] = cells[i]
        hole = i
    cells[hole].hash_a = 0
    cells[hole].hash_b = 0

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
