# cython: language_level=3
"""One table of cells, of a size fixed when it is made: open addressing, linear probing, no tombstones.

The law of this file: at most `max_cells` cells are held, in slots allocated once (32 bytes at 70 percent load: 46 bytes a
key). Nothing grows and nothing is swept whole: each insert walks a hand over a few slots and drops what is forgettable,
so expiry costs a bounded time per call. A live cell is never dropped to make room.

A few thousand keys strewn over a large table would lie on as many pages, and finding a page costs more than all else about
a key. So cells stand in a near part first, whose pages stay known to the processor, and only when that is half full in the
far part behind it, which is large and on huge pages. A key is in one of the parts; both are probed alike. Small tables
and those that are on huge pages altogether have no far part.

A slot is half a cache line, and a key's home is a whole line: of two cells with one home (registry.pxi says whose) the second
is there when the first is. What makes it so small: of 128 bits of hash 108 are kept (two keys share a bucket by chance once
in 2^50 tables of 2^29), the last NUMBERS_BITS hold the cell's numbers, and behind an instant's 54 bits stand those of a
level that 64 do not hold.

Only `table_sweep` moves cells. It runs at the end of a step, so that pointers found at its beginning stay good.
"""

from libc.stdint cimport int64_t, uint32_t, uint64_t
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
    #define SHIELD_PREFETCH(p) __builtin_prefetch(p, 1)
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

    # 256 pages of 4 KiB, which the translation caches of processors hold, and half as many cells.
    NEAR_SLOTS = 1 << 15
    NEAR_CELLS = NEAR_SLOTS / 2
    # From this size on all of the table is worth huge pages: whoever asks for so many keys expects them.
    HUGE_BYTES = 1 << 27

    # Two cells to a cache line.
    LINE_SLOTS = 2
    NUMBERS_BITS = 20
    # A level has at most 73 bits: twice a burst of 1e9 units in ticks of a 30-day rate.
    HIGH_BITS = 10

cdef struct Packed:
    # A cell under its key, as it lies in the table.
    uint64_t hash_a      # zero: an empty slot
    uint64_t tail        # hash_b, its last bits replaced by `numbers`
    uint64_t low
    uint64_t instant     # at_us, and `high` in its last bits

cdef struct KeyTable:
    Packed *cells        # the near part, then the far part
    uint64_t near        # slots of the near part
    uint64_t slots       # of both
    int64_t near_count
    int64_t near_cells   # at most so many stand in the near part
    int64_t count
    int64_t max_cells
    uint64_t hand
    size_t size_bytes

cdef inline uint64_t slots_for(int64_t cells) noexcept nogil:
    return (<uint64_t>cells * 10 / 7 + 8) & ~<uint64_t>(LINE_SLOTS - 1)

cdef inline int64_t packed_at(const Packed *held) noexcept nogil:
    return <int64_t>(held.instant >> HIGH_BITS)

cdef inline void unpack(const Packed *held, Cell *cell) noexcept nogil:
    cell.at_us = packed_at(held)
    cell.low = held.low
    cell.high = <uint32_t>held.instant & ((1 << HIGH_BITS) - 1)
    cell.numbers = <uint32_t>held.tail & ((1 << NUMBERS_BITS) - 1)

cdef inline void pack(Packed *held, const Cell *cell) noexcept nogil:
    held.tail = tail_of(held.tail) | cell.numbers
    held.low = cell.low
    held.instant = (<uint64_t>cell.at_us << HIGH_BITS) | cell.high

cdef inline void pack_until(Packed *held, int64_t until_us) noexcept nogil:
    """A cell that only knows an instant."""
    held.tail = tail_of(held.tail)
    held.low = 0
    held.instant = <uint64_t>until_us << HIGH_BITS

cdef inline uint64_t tail_of(uint64_t hash_b) noexcept nogil:
    return hash_b & ~<uint64_t>((1 << NUMBERS_BITS) - 1)

cdef inline bint table_open(KeyTable *t, int64_t max_cells) noexcept nogil:
    t.max_cells = max_cells
    t.count = t.near_count = 0
    t.hand = 0
    t.near = t.slots = slots_for(max_cells)
    t.near_cells = max_cells
    if t.slots > 2 * <uint64_t>NEAR_SLOTS and t.slots * sizeof(Packed) < HUGE_BYTES:
        t.near = NEAR_SLOTS
        t.near_cells = NEAR_CELLS
        t.slots = t.near + slots_for(max_cells - NEAR_CELLS)
    t.size_bytes = <size_t>(t.slots * sizeof(Packed))
    t.cells = <Packed *>map_pages(t.size_bytes)
    if t.cells == NULL:
        return False
    if t.near < t.slots:
        huge_pages(&t.cells[t.near], <size_t>((t.slots - t.near) * sizeof(Packed)))
    elif t.size_bytes >= HUGE_BYTES:
        huge_pages(t.cells, t.size_bytes)
    return True

cdef inline void table_close(KeyTable *t) noexcept nogil:
    if t.cells != NULL:
        unmap_pages(t.cells, t.size_bytes)
        t.cells = NULL

cdef inline uint64_t home_of(uint64_t hash_a, uint64_t slots) noexcept nogil:
    return mulhi(hash_a, slots / LINE_SLOTS) * LINE_SLOTS

cdef inline void table_prefetch(const KeyTable *t, uint64_t hash_a) noexcept nogil:
    """Fetches the places where a key's cell is likely to be."""
    prefetch(&t.cells[home_of(hash_a, t.near)])
    if t.count > t.near_count:
        prefetch(&t.cells[t.near + home_of(hash_a, t.slots - t.near)])

cdef inline Packed *probe(Packed *cells, uint64_t slots, uint64_t hash_a, uint64_t hash_b, bint vacant) noexcept nogil:
    """The key's cell in one part, else NULL, or with `vacant` the empty slot where it ends: there is always one near."""
    cdef uint64_t i = home_of(hash_a, slots)
    cdef Packed *held
    while True:
        held = &cells[i]
        if held.hash_a == hash_a and (held.tail ^ hash_b) >> NUMBERS_BITS == 0:
            return held
        if held.hash_a == 0:
            return held if vacant else NULL
        i += 1
        if i == slots:
            i = 0

cdef inline Packed *table_find(const KeyTable *t, uint64_t hash_a, uint64_t hash_b) noexcept nogil:
    """The key's cell, or NULL."""
    cdef Packed *held = probe(t.cells, t.near, hash_a, hash_b, False)
    if held == NULL and t.count > t.near_count:
        return probe(&t.cells[t.near], t.slots - t.near, hash_a, hash_b, False)
    return held

cdef inline Packed *table_insert(KeyTable *t, uint64_t hash_a, uint64_t hash_b) noexcept nogil:
    """A slot for a key that is not there; the caller has made sure of room. Probes again: an earlier insert of the same
    step may have taken the slot that was empty before."""
    cdef Packed *held
    if t.near_count < t.near_cells:
        held = probe(t.cells, t.near, hash_a, hash_b, True)
        t.near_count += 1
    else:
        held = probe(&t.cells[t.near], t.slots - t.near, hash_a, hash_b, True)
    held.hash_a = hash_a
    held.tail = tail_of(hash_b)
    t.count += 1
    return held

cdef inline void table_remove(KeyTable *t, uint64_t at) noexcept nogil:
    """Empties the slot `at` of the whole table."""
    t.count -= 1
    if at < t.near:
        t.near_count -= 1
        close_gap(t.cells, t.near, at)
    else:
        close_gap(&t.cells[t.near], t.slots - t.near, at - t.near)

cdef inline void close_gap(Packed *cells, uint64_t slots, uint64_t hole) noexcept nogil:
    """Moves later cells of the run back, so that probing needs no tombstones (Knuth, 6.4 R)."""
    cdef uint64_t i = hole, home
    while True:
        i += 1
        if i == slots:
            i = 0
        if cells[i].hash_a == 0:
            break
        home = home_of(cells[i].hash_a, slots)
        # The cell may stay if its home lies in the cyclic range (hole, i].
        if (hole < home <= i) if hole <= i else (home > hole or home <= i):
            continue
        cells[hole] = cells[i]
        hole = i
    cells[hole].hash_a = 0

cdef inline int table_sweep(KeyTable *t, const Numbers *numbers, int64_t now_us, int slots) noexcept nogil:
    """Looks at the next `slots` slots and drops what can be forgotten. How many were dropped."""
    cdef int dropped = 0
    cdef const Numbers *written
    cdef Cell cell
    while slots > 0:
        slots -= 1
        if t.hand >= t.slots:
            t.hand = 0
        if t.cells[t.hand].hash_a != 0:
            unpack(&t.cells[t.hand], &cell)
            written = &numbers[cell.numbers]
            if forgettable(&cell, written, &numbers[written.successor], now_us):
                table_remove(t, t.hand)
                dropped += 1
                continue  # another cell may have moved into this slot
        t.hand += 1
    return dropped
