# cython: language_level=3
"""One table of cells that any number of processes use at once: fixed windows of slots, no deletion, no moving, no lock.

A slot is two words. KEY: 88 bits of the key's hash, the limit's identity, a generation. STATE: a cell (mapped_cell.pxd), or
a vacancy. A key lives in one of the PROBES slots from its home on. A process may be killed between any two instructions;
there is nothing it can leave behind that others wait for.

    vacancy n      the slot holds nothing; n counts the times it was vacated or a claim to it was void
    claim          a vacancy n under a key of generation n + 1: whoever wants a cell for that key may put it there
    live           a cell: it belongs to the key, which cannot change before the cell is vacated

    live    -> vacancy g      swap of STATE, g the key's generation: only when the cell is forgettable, or what made it
                              gives its only charge back
    vacancy -> claim          swap of KEY to (new key, n + 1), where the old key's generation is not n + 1
    claim   -> vacancy n + 1  swap of STATE: the claim is void
    claim   -> live           swap of STATE: this is the first charge itself

A vacancy's n only grows, so whoever swaps STATE from the n it saw has had the claim it saw, all the while. A KEY is swapped
from the very value that was read, and as long as it has that value STATE stays the same vacancy.

**A key has never two live cells.** To go live at m one must (1) have seen a claim of the key at m, (2) then have looked at
every other slot of the window, and found the key neither live there nor with a claim: a claim further on is made void
first, for a claim before m one's own is given up (`slot_claim`), (3) swap m's STATE. Say that X went live at m2 at T2,
while m1 was live with the same key since T1 < T2, by Y. X's claim stood from before its step 1 until T2. X's look at m1, at S1,
found nothing, and m1 was not live before T1, so S1 < T1 and m1's claim was made after S1. Y saw that claim in its step 1 and
looked at m2 only then, which is after X's claim was made and before T1 < T2: it found the claim there, and did not go on
before it was void. Then X's swap failed: contradiction. Both looks come after both claims because a swap is a full
fence (word.pxd). tests/core/test_slots_model.py tries every interleaving of small cases, and
tests/laws/test_shared_interleavings.py stops the compiled code before its accesses.

**A state is never mistaken for another key's.** State is read before key: a swap from that state succeeds only if the state
stood all the while, hence the key too, unless the slot was vacated, taken by another key and came to the very same state.
That cannot be for a token bucket: the vacancy keeps an instant later than the bucket's last one, nobody goes live with
an earlier one, and while the clock of a host never steps back, neither do the instants of a bucket. A place carries the
random id of its lease, and a window six bits of the generation.

**Looking ends at a slot that was never used.** A claim goes to the first slot that is vacant or forgettable, so there is
never a cell of the key behind one that was never used.
"""

from libc.stdint cimport int64_t, uint64_t
from mapped_cell cimport AT_MASK, at_of, is_cell
from ticks cimport mulhi
from word cimport Word, add64, load64, same_word, word_load, word_swap

cdef enum:
    # A window of 32 slots at two thirds load is full for 6 in 10,000 newcomers; when it is, `when_full` decides.
    PROBES = 32
    GENERATION_BITS = 28
    IDENTITY_BITS = 12

cdef extern from *:
    """
    typedef struct { shield_word state, key; } shield_slot;
    #define SHIELD_GENERATION_MASK (((uint64_t)1 << 28) - 1)
    #define SHIELD_PREFETCH_SLOT(p) __builtin_prefetch(p, 1)
    """
    ctypedef struct Slot "shield_slot":
        Word state
        Word key
    const uint64_t GENERATION_MASK "SHIELD_GENERATION_MASK"
    void prefetch_slot "SHIELD_PREFETCH_SLOT"(const Slot *p) nogil

cdef struct Slots:
    Slot *at
    uint64_t homes       # PROBES - 1 slots more than these: no window wraps around
    uint64_t *live       # how many slots hold a cell, for people: nothing is decided by it

ctypedef bint (*Forgettable)(const void *table, Word state, Word key) noexcept nogil

cdef enum Claimed:
    CLAIM = 0            # (slot, state, key) is a claim, alone in its window
    LIVE = 1             # the key has got a cell in the meantime
    NO_ROOM = 2
    LATER = 3            # a vacancy of a later instant than ours: read the clock again

cdef inline uint64_t slots_for(uint64_t cells) noexcept nogil:
    return cells + cells / 2 + PROBES - 1

cdef inline Slot *home_slot(const Slots *t, uint64_t a) noexcept nogil:
    return &t.at[mulhi(a, t.homes)]

cdef inline Word key_word(uint64_t a, uint64_t b, uint64_t identity, uint64_t generation) noexcept nogil:
    cdef Word w
    w.lo = a
    w.hi = (b << (GENERATION_BITS + IDENTITY_BITS)) | (identity << GENERATION_BITS) | (generation & GENERATION_MASK)
    return w

cdef inline bint is_key(Word key, uint64_t a, uint64_t b) noexcept nogil:
    return key.lo == a and (key.hi ^ (b << (GENERATION_BITS + IDENTITY_BITS))) >> (GENERATION_BITS + IDENTITY_BITS) == 0

cdef inline uint64_t identity_of(Word key) noexcept nogil:
    return (key.hi >> GENERATION_BITS) & ((1 << IDENTITY_BITS) - 1)

cdef inline uint64_t generation_of(Word key) noexcept nogil:
    return key.hi & GENERATION_MASK

cdef inline Word vacancy(uint64_t n, int64_t since_us) noexcept nogil:
    """`since_us`: no cell of an earlier instant may come here."""
    cdef Word w
    w.lo = n & GENERATION_MASK
    w.hi = <uint64_t>since_us & AT_MASK
    return w

cdef inline Word vacated(Word state, Word key) noexcept nogil:
    """What takes a live cell's place: nobody who comes after it may be mistaken for it."""
    return vacancy(generation_of(key), at_of(state) + 1)

cdef inline bint is_claim(Word state, Word key) noexcept nogil:
    return generation_of(key) == ((state.lo + 1) & GENERATION_MASK)

cdef inline Word claim_void(Word state) noexcept nogil:
    cdef Word w = state
    w.lo = (state.lo + 1) & GENERATION_MASK
    return w

cdef inline bint never_used(const Slot *slot) noexcept nogil:
    # No key has the generation 0 with a hash of zeros, and a key once written is never zeros again.
    return load64(&slot.key.lo) == 0 and load64(&slot.key.hi) == 0

cdef inline Slot *slot_find(const Slots *t, uint64_t a, uint64_t b, Word *state, Word *key, bint *open_end) noexcept nogil:
    """The key's live cell, or NULL. `open_end`: the window has slots that were never used, so there is room."""
    cdef Slot *slot = home_slot(t, a)
    cdef int i
    open_end[0] = False
    for i in range(PROBES):
        if load64(&slot.key.lo) == a:
            state[0] = word_load(&slot.state)
            key[0] = word_load(&slot.key)
            if is_cell(state[0]) and is_key(key[0], a, b):
                return slot
        if never_used(slot):
            open_end[0] = True
            return NULL
        slot += 1
    return NULL

cdef inline Slot *slot_candidate(const Slots *t, uint64_t a, uint64_t b, Forgettable forgettable, const void *table,
                                 Word *state, Word *key, int *found) noexcept nogil:
    """Where a cell of the key could go: its own claim (found = CLAIM), or else the first slot that is vacant or forgettable, or
    else one that others have claimed and not filled. NULL: there is none (NO_ROOM), or the key is LIVE."""
    cdef Slot *slot = home_slot(t, a)
    cdef Slot *best = NULL
    cdef Slot *claimed = NULL
    cdef Word s, k, claimed_state, claimed_key
    cdef int i
    found[0] = NO_ROOM
    for i in range(PROBES):
        s = word_load(&slot.state)
        k = word_load(&slot.key)
        if is_key(k, a, b):
            if is_cell(s):
                found[0] = LIVE
                state[0], key[0] = s, k
                return NULL
            if is_claim(s, k):
                found[0] = CLAIM
                state[0], key[0] = s, k
                return slot
        if best == NULL:
            if forgettable(table, s, k) if is_cell(s) else not is_claim(s, k):
                best = slot
                state[0], key[0] = s, k
            elif claimed == NULL and not is_cell(s):
                claimed = slot
                claimed_state, claimed_key = s, k
        if never_used(slot):
            break
        slot += 1
    if best == NULL and claimed != NULL:
        best = claimed
        state[0], key[0] = claimed_state, claimed_key
    return best

cdef inline Slot *slot_claim(const Slots *t, uint64_t a, uint64_t b, uint64_t identity, int64_t now_us, bint any_instant,
                             Forgettable forgettable, const void *table, Word *state, Word *key, int *found) noexcept nogil:
    """A claim of the key that is alone in its window, ready to go live by a swap from `state`; or NULL and why not."""
    cdef Slot *mine
    cdef Slot *slot
    cdef Slot *home = home_slot(t, a)
    cdef Word s, k, wanted
    cdef int i
    cdef bint alone
    while True:
        mine = slot_candidate(t, a, b, forgettable, table, state, key, found)
        if mine == NULL:
            return NULL
        if found[0] != CLAIM:
            if is_cell(state[0]):
                wanted = vacated(state[0], key[0])
                if not word_swap(&mine.state, state[0], wanted):
                    continue
                add64(t.live, <uint64_t>-1)
                state[0] = wanted
            elif is_claim(state[0], key[0]):
                wanted = claim_void(state[0])
                if not word_swap(&mine.state, state[0], wanted):
                    continue
                state[0] = wanted
            wanted = key_word(a, b, identity, state[0].lo + 1)
            if not word_swap(&mine.key, key[0], wanted):
                continue
            key[0] = wanted
        if <int64_t>state[0].hi > now_us and not any_instant:
            found[0] = LATER
            return NULL
        alone = True
        slot = home
        for i in range(PROBES):
            if slot != mine:
                s = word_load(&slot.state)
                k = word_load(&slot.key)
                if is_key(k, a, b) and (is_cell(s) or is_claim(s, k)):
                    if is_cell(s) or slot < mine:
                        word_swap(&mine.state, state[0], claim_void(state[0]))
                        alone = False
                        break
                    if not word_swap(&slot.state, s, claim_void(s)):
                        alone = False
                        break
                if never_used(slot):
                    break
            slot += 1
        if alone:
            found[0] = CLAIM
            return mine

cdef inline bint slot_bar(const Slots *t, uint64_t a, uint64_t b) noexcept nogil:
    """Keeps the key from going live on what was known until now: every claim of it becomes void. True when it is live."""
    cdef Slot *home = home_slot(t, a)
    cdef Slot *slot = home
    cdef Word s, k
    cdef int i = 0
    while i < PROBES:
        s = word_load(&slot.state)
        k = word_load(&slot.key)
        if is_key(k, a, b):
            if is_cell(s):
                return True
            if is_claim(s, k) and not word_swap(&slot.state, s, claim_void(s)):
                continue  # it has just changed: look at it again
        if never_used(slot):
            break
        slot += 1
        i += 1
    return False
