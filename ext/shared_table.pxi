cdef extern from *:
    """
    #if defined(CLOCK_BOOTTIME)
    #define SHIELD_BOOT_CLOCK CLOCK_BOOTTIME
    #else
    #define SHIELD_BOOT_CLOCK CLOCK_MONOTONIC
    #endif
    static inline int64_t shield_boot_us(void) {
        struct timespec t;
        clock_gettime(SHIELD_BOOT_CLOCK, &t);
        return (int64_t)t.tv_sec * 1000000 + t.tv_nsec / 1000;
    }
    """
    int64_t boot_us "shield_boot_us"() nogil

cdef enum:
    # Two clocks are read one after the other; only a difference beyond this means that the wall clock was set.
    WALL_SLACK_US = 1000
    # Tries at places that others are taking at the same time, before the answer is that there are none.
    PLACE_TRIES = 16

cdef int64_t NO_TIME = -1

cdef struct Times:
    int64_t now_us       # Unix time by the host's clock, which never steps back and counts suspend
    int64_t wall_us      # for windows: Unix time by the wall clock; NO_TIME: not read yet

cdef struct Sight:
    # What a look for a forgettable cell needs.
    const Identity *identities
    Times times

cdef struct Hold:
    # One charge's cell during a step.
    Word *state          # where it lies; NULL: nowhere yet
    Word seen            # as it was read
    Word shared          # a newcomer's: the bucket that newcomers share, as it was read
    Word written         # what this step put there, if it did
    Word given_back      # what is there again when nobody came in between
    uint64_t generation
    Cell before          # the judged state without the charge
    bint open_end
    bint took


cdef bint cell_forgettable(const void *context, Word state, Word key) noexcept nogil:
    """forgettable() for a cell of whatever limit, under the slowest numbers that limit ever had."""
    cdef const Sight *sight = <const Sight *>context
    cdef const Identity *entry = &sight.identities[identity_of(key)]
    cdef uint64_t kind = load64(&entry.kind)
    cdef Cell cell
    cdef Numbers n, written
    cdef Word slowest
    if kind == 0:
        return False
    n.algorithm = <int>(kind & 255) - 1
    if n.algorithm == CONCURRENCY:
        return at_of(state) <= sight.times.now_us
    n.calendar = False
    n.window_us = entry.window_us
    if n.algorithm != TOKEN_BUCKET:
        read_window(state, &cell)
        return forgettable(&cell, &n, &n, sight.times.wall_us)
    written.unit = unit_of(entry, read_bucket(state, &cell))
    slowest = word_load(&entry.slowest)
    n.refill, n.unit = slowest.lo, slowest.hi
    # Later than its own instant, so that no cell that comes after it has that instant.
    return n.unit != 0 and cell.at_us < sight.times.now_us and forgettable(&cell, &written, &n, sight.times.now_us)


cdef bint until_forgettable(const void *context, Word state, Word key) noexcept nogil:
    return at_of(state) <= (<const Sight *>context).times.now_us


cdef inline Word cell_word(const Cell *cell, const Numbers *n, uint64_t generation) noexcept nogil:
    return bucket_word(cell, n.tag) if n.algorithm == TOKEN_BUCKET else window_word(cell, generation)


cdef inline Fence fence_of(Word held) noexcept nogil:
    """What the file says of how long nonces are held: lo when that changed, hi the milliseconds since and before."""
    cdef Fence fence
    fence.since_us = 0
    fence.widened_us = <int64_t>held.lo
    fence.span_us = <int64_t>(held.hi >> 32) * 1000
    fence.before_us = <int64_t><uint32_t>held.hi * 1000
    return fence


cdef inline Word fence_word(const Fence *fence) noexcept nogil:
    cdef Word held
    held.lo = <uint64_t>fence.widened_us
    held.hi = (<uint64_t>((fence.span_us + 999) // 1000) << 32) | <uint64_t>(fence.before_us // 1000)
    return held


@cython.final
cdef class SharedTable:
    """The step of the memory store's Table over a file that any number of processes have mapped.

    Law 3 here: the step reads the clock, then every cell, and asks every charge; only when all fit does it take, one swap a
    cell, in the policy's order, which is the same for all. A swap fails when somebody else came first: then this cell is read again, and the
    clock, and asked again. What no longer fits gives back what was taken, so nothing is ever admitted that was not there at
    the instant of its swap; another request may meanwhile see what is about to be given back. What a killed process had
    taken and not given back stays charged.

    A cell that is ahead of the clock was written after the clock was read: then it is read again (`keep_ahead`). So an
    instant read from a cell is never ahead of the step's but by a clock that was set back. Nothing else rests on the order
    of the two, which a processor may change: arm64 reads its counter while an earlier load is still on its way, unless the
    load's value has decided a branch before. The clock comes first because reading it on x86-64 waits for what was read before.
    Giving back swaps the very value back that was there, or, when the cell has moved on, refunds by the contract's rule.
    """

    cdef readonly MappedFile file
    cdef readonly Registry registry
    cdef FullCounts full
    cdef int64_t nonces_full
    cdef object clock

    def __cinit__(self, Registry registry not None, *, clock=None):
        if registry.mapped is None:
            raise ValueError("a shared table needs a registry of its mapped file")
        self.registry, self.file, self.clock = registry, registry.mapped, clock
        self.nonces_since(read_clock(clock, 0))

    def __len__(self):
        return self.file.counted(KEYS)

    @property
    def max_keys(self):
        return self.file.header.max_keys

    @property
    def size_bytes(self):
        return self.file.view.len

    def apply(self, Charges charges not None, *, bint degraded=False, now_us=None):
        """The step alone. `degraded`: stand in for a store that is away, each limit by its `when_store_fails`."""
        self.step(charges, now_us, degraded)

    # ---- time -------------------------------------------------------------------------------------------------------

    cdef int read_times(self, object now_us, Times *times) except -1:
        times.wall_us = NO_TIME
        if now_us is None and self.clock is None:
            times.now_us = boot_us() + self.file.offset_us
        else:
            times.now_us = read_clock(self.clock, 0) if now_us is None else now_us
            times.wall_us = times.now_us
        if not 0 <= times.now_us < (<int64_t>1 << AT_BITS) - 1:
            raise OverflowError("the clock is past the year 2112: instants of a shared table have 52 bits")
        return 0

    cdef int read_wall(self, Times *times) except -1:
        """The wall clock's time, where windows are looked at. It is the host's clock's but for steps."""
        if times.wall_us == NO_TIME:
            times.wall_us = clock_us(0)
            if -WALL_SLACK_US < times.wall_us - times.now_us < WALL_SLACK_US:
                times.wall_us = times.now_us
        return 0

    cdef int refresh(self, Charges charges, Charge *charge, Times *times) except -1:
        """What judging a charge needs of the time of day."""
        if charges.policy.items[charge.limit].algorithm in (SLIDING_WINDOW, FIXED_WINDOW):
            self.read_wall(times)
            if charges.policy.windows[charge.limit] is not None:
                self.registry.refresh_calendar(charge.numbers, charges.policy.windows[charge.limit], times.wall_us)
        return 0

    cdef int keep_ahead(self, Word cell, object now_us, Times *times) except -1:
        """A cell that is newer than the clock was written since that was read: it is read again. Whichever came first, no
        cell is ahead of the time that it is judged at, but by a clock that was set back."""
        if at_of(cell) > times.now_us:
            self.read_times(now_us, times)
        return 0

    # ---- the step ---------------------------------------------------------------------------------------------------

    cdef int step(self, Charges charges, object now_us, bint degraded) except -1:
        cdef Hold inline_holds[BLOCK_CHARGES]
        cdef Hold *holds = inline_holds
        cdef Times times
        if charges.n == 0 and not charges.has_nonce:
            self.read_times(now_us, &times)
            charges.now_us = times.now_us
            charges.admitted = charges.reason is None
            return 0
        charges.degraded = degraded
        if charges.has_leases:
            charges.ids()
        if charges.n > BLOCK_CHARGES:
            holds = <Hold *>PyMem_Calloc(charges.n, sizeof(Hold))
            if holds == NULL:
                raise MemoryError
        try:
            self.run(charges, holds, now_us, &times, degraded)
        finally:
            if holds != inline_holds:
                PyMem_Free(holds)
        return 0

    cdef int run(self, Charges charges, Hold *holds, object now_us, Times *times, bint degraded) except -1:
        cdef int i
        cdef Charge *charge
        cdef CompiledLimit *c
        cdef Word nonces_held
        cdef int64_t nonce_until_us = 0
        self.read_times(now_us, times)
        for i in range(charges.n):
            charge = &charges.items[i]
            c = &charges.policy.items[charge.limit]
            charge.verdict = FITS
            charge.unknown = charge.newcomer = charge.rebased = charge.shared = False
            holds[i].took = False
            if not (degraded and stand_in(charge, c)) and c.algorithm != CONCURRENCY:
                self.look(charge, &holds[i])
                self.keep_ahead(holds[i].shared if charge.newcomer else holds[i].seen, now_us, times)
        if charges.has_nonce and degraded:
            charges.lacks_store_for_nonce()
        elif charges.has_nonce:
            nonces_held = word_load(&self.file.header.nonces_held)
            nonce_until_us = self.look_at_nonce(charges)
            self.judge_nonce(charges, nonce_until_us, &nonces_held, times)
        for i in range(charges.n):
            self.refresh(charges, &charges.items[i], times)
        for i in range(charges.n):
            charge = &charges.items[i]
            c = &charges.policy.items[charge.limit]
            if charge.unknown:
                continue
            if c.algorithm == CONCURRENCY:
                self.look_at_places(charge, times)
            else:
                self.judge_cell(charge, c, &holds[i], times)
        charges.conclude()
        if charges.taking:
            self.take_all(charges, holds, now_us, &nonces_held, times)
        if not charges.taking:
            self.write_refusal(charges, holds, now_us, times)
        self.finish(charges, times)
        return 0

    cdef int look(self, Charge *charge, Hold *hold) noexcept:
        """Finds the cell and reads it, or the bucket that newcomers share."""
        cdef Word key
        cdef Slot *slot = slot_find(&self.file.regions[KEYS], charge.hash.a, charge.hash.b, &hold.seen, &key, &hold.open_end)
        charge.shared = False
        charge.newcomer = slot == NULL
        if slot == NULL:
            hold.state = NULL
            hold.shared = word_load(&self.entry_of(charge).shared)
        else:
            hold.state = &slot.state
            hold.generation = generation_of(key)
        return 0

    cdef Identity *entry_of(self, Charge *charge) noexcept:
        return &self.file.identities[self.registry.items[charge.numbers].mapped]

    cdef bint read(self, Word w, const Numbers *n, Cell *cell, Numbers *written) noexcept:
        """The cell in a word, and in `written` what its ticks were. False for a word that is no cell."""
        memset(cell, 0, sizeof(Cell))
        if not is_cell(w):
            return False
        if n.algorithm == TOKEN_BUCKET:
            written.unit = unit_of(&self.file.identities[n.mapped], read_bucket(w, cell))
        else:
            read_window(w, cell)
        return True

    cdef int judge_cell(self, Charge *charge, CompiledLimit *c, Hold *hold, Times *times) except -1:
        cdef Numbers *n = &self.registry.items[charge.numbers]
        cdef Numbers written
        cdef Cell source
        if charge.newcomer:
            hold.seen = hold.shared  # its level is where a newcomer starts: what it may have spent there is not forgiven
            if not hold.open_end and not self.has_room(charge, times):
                if without_room(charge, c, n, &self.full):
                    hold.state = &self.entry_of(charge).shared
                    hold.generation = 0
                elif charge.unknown:
                    return 0
        judge(charge, &source, &written if self.read(hold.seen, n, &source, &written) else NULL, n,
              times.now_us if n.algorithm == TOKEN_BUCKET else times.wall_us)
        return 0

    cdef int see(self, Times *times, Sight *sight) except -1:
        self.read_wall(times)
        sight.identities = self.file.identities
        sight.times = times[0]
        return 0

    cdef bint has_room(self, Charge *charge, Times *times) except -1:
        cdef Sight sight
        cdef Word state, key
        cdef int found
        self.see(times, &sight)
        return slot_candidate(&self.file.regions[KEYS], charge.hash.a, charge.hash.b, cell_forgettable, &sight,
                              &state, &key, &found) != NULL or found == LIVE

    # ---- nonces: looked at before all else, and taken last, as the commit -------------------------------------------

    cdef int nonces_since(self, int64_t now_us) noexcept:
        """Since when nonces are known here. Whoever comes first to a new table, or after a boot, says."""
        if load64(&self.file.header.nonces_since_us) == 0:
            swap64(&self.file.header.nonces_since_us, 0, <uint64_t>max(1, now_us))
        return 0

    cdef int64_t look_at_nonce(self, Charges charges) noexcept:
        """Until when the nonce is held, 0 where it is not."""
        cdef Word state, key
        cdef bint open_end
        if slot_find(&self.file.regions[NONCES], charges.nonce_hash.a, charges.nonce_hash.b, &state, &key, &open_end) == NULL:
            return 0
        return at_of(state)

    cdef int judge_nonce(self, Charges charges, int64_t until_us, Word *held, Times *times) except -1:
        """`held` was read before the clock; where the window is wider now, all are told, and that is what is held by."""
        cdef Header *h = self.file.header
        cdef Fence fence
        cdef Word wanted
        self.read_wall(times)
        self.nonces_since(times.wall_us)
        while True:
            fence = fence_of(held[0])
            if not fence_widen(&fence, charges.nonce.window_us + charges.nonce.skew_us, times.wall_us):
                break
            wanted = fence_word(&fence)
            held[0] = wanted if word_swap(&h.nonces_held, held[0], wanted) else word_load(&h.nonces_held)
        fence.since_us = <int64_t>load64(&h.nonces_since_us)
        max64(&h.nonces_us, <uint64_t>times.wall_us)
        if (charges.judge_nonce(&fence, times.wall_us, <int64_t>load64(&h.nonces_us)) == NONCE_FRESH
                and until_us > <int64_t>load64(&h.nonces_us)):
            charges.nonce_refused(NONCE_SEEN)
        return 0

    cdef int take_nonce(self, Charges charges, const Word *held) noexcept:
        """The one swap that makes the request an admitted one. Whoever took a nonce for a window that has been widened since
        gives it back: it would be held for too short."""
        cdef Slots *nonces = &self.file.regions[NONCES]
        cdef Hash128 h = charges.nonce_hash
        cdef Fence fence = fence_of(held[0])
        cdef Word word = owned_word(charges.nonce_until_us(&fence), h.a ^ h.b)
        cdef Word state, key
        cdef Slot *slot
        cdef Sight sight
        cdef bint open_end
        cdef int found
        sight.times.now_us = <int64_t>load64(&self.file.header.nonces_us)
        while True:
            slot = slot_find(nonces, h.a, h.b, &state, &key, &open_end)
            if slot != NULL and at_of(state) > sight.times.now_us:
                return charges.nonce_refused(NONCE_SEEN)
            if slot == NULL:
                slot = slot_claim(nonces, h.a, h.b, 0, 0, True, until_forgettable, &sight, &state, &key, &found)
                if slot == NULL and found == NO_ROOM:
                    self.nonces_full += 1
                    return charges.nonce_refused(NONCE_FULL)
            if slot == NULL or not word_swap(&slot.state, state, word):
                continue
            if not is_cell(state):
                self.file.count(NONCES, 1)
            if same_word(word_load(&self.file.header.nonces_held), held[0]):
                return NONCE_FRESH
            if word_swap(&slot.state, word, vacated(word, key)):
                self.file.count(NONCES, -1)
            return charges.nonce_refused(NONCE_GONE)

    def give_nonce_back(self, Charges charges not None):
        """Of a step that was made and is undone: the nonce is as if it had never been used."""
        cdef Word state, key
        cdef bint open_end
        cdef Fence fence = fence_of(word_load(&self.file.header.nonces_held))
        cdef Slot *slot
        if charges.taking and charges.has_nonce:
            slot = slot_find(&self.file.regions[NONCES], charges.nonce_hash.a, charges.nonce_hash.b, &state, &key, &open_end)
            if slot != NULL and at_of(state) == charges.nonce_until_us(&fence) and word_swap(&slot.state, state, vacated(state, key)):
                self.file.count(NONCES, -1)

    cdef int take_all(self, Charges charges, Hold *holds, object now_us, const Word *nonces_held, Times *times) except -1:
        """Takes every charge that fits and then the nonce, or gives all back."""
        cdef int i, j, taken = charges.n
        cdef Charge *charge
        cdef CompiledLimit *c
        cdef bint late = False
        for i in range(charges.n):
            charge = &charges.items[i]
            c = &charges.policy.items[charge.limit]
            if charge.unknown or charge.verdict >= FULL or charge.cost == 0:
                continue
            if c.algorithm == CONCURRENCY:
                if charge.verdict == FITS:
                    self.take_places(charge, c, &holds[i], lease_owner(charges.ids()[i]), times)
            else:
                self.write(charges, charge, c, &holds[i], True, now_us, times)
            if charge.verdict != FITS and c.enforced:
                late = True  # it fitted when it was asked, and somebody else came first
                taken = i
                break
        if charges.has_nonce and not late:
            late = self.take_nonce(charges, nonces_held) != NONCE_FRESH
        if late:
            for j in range(taken):
                if holds[j].took:
                    self.give_back(charges, j, &holds[j], now_us, times)
        charges.conclude()
        return 0

    cdef int write_refusal(self, Charges charges, Hold *holds, object now_us, Times *times) except -1:
        """What a refusal leaves: penalties, and cells that were rebased."""
        cdef int i
        cdef Charge *charge
        cdef CompiledLimit *c
        for i in range(charges.n):
            charge = &charges.items[i]
            c = &charges.policy.items[charge.limit]
            if not (charge.unknown or charge.verdict >= FULL or charge.cost == 0 or c.algorithm == CONCURRENCY):
                self.write(charges, charge, c, &holds[i], False, now_us, times)
        return 0

    cdef int write(self, Charges charges, Charge *charge, CompiledLimit *c, Hold *hold, bint admitted, object now_us,
                   Times *times) except -1:
        """Swaps in what the step makes of a judged charge. While others come first, looks, judges and tries again: that may
        change the verdict of a request that was to be admitted, and never that of a refusal."""
        cdef Numbers *n = &self.registry.items[charge.numbers]
        cdef uint8_t verdict = charge.verdict
        cdef bint again = False
        cdef Word word
        while True:
            if charge.unknown or charge.verdict >= FULL:
                break
            hold.before = charge.state
            if not charge_state(charge, c, n, admitted,
                                times.now_us if n.algorithm == TOKEN_BUCKET else times.wall_us):
                break
            if not charge.newcomer or self.claim(charge, hold, again, times):
                word = cell_word(&charge.state, n, hold.generation)
                if word_swap(hold.state, hold.seen, word):
                    hold.written = word
                    hold.took = True
                    if charge.newcomer:
                        self.file.count(KEYS, 1)
                    elif charge.shared and slot_bar(&self.file.regions[KEYS], charge.hash.a, charge.hash.b):
                        self.undo(charge, hold, now_us, times)
                        hold.took = False
                    else:
                        hold.given_back = hold.seen
                    if hold.took:
                        break
            again = True
            charge.verdict = FITS
            self.look(charge, hold)
            self.read_times(now_us, times)
            self.keep_ahead(hold.shared if charge.newcomer else hold.seen, now_us, times)
            self.refresh(charges, charge, times)
            self.judge_cell(charge, c, hold, times)
            if not admitted:
                charge.verdict = verdict
        return 0

    cdef bint claim(self, Charge *charge, Hold *hold, bint again, Times *times) except -1:
        """A vacant slot of the newcomer's own. Its bucket starts at the level of the one that newcomers share: that is read again
        behind the claim, because whoever charges it for this key looks for claims behind that, and makes them void."""
        cdef Sight sight
        cdef Word key
        cdef int found
        cdef Slot *slot
        self.see(times, &sight)
        slot = slot_claim(&self.file.regions[KEYS], charge.hash.a, charge.hash.b, self.registry.items[charge.numbers].mapped,
                          times.now_us, again, cell_forgettable, &sight, &hold.seen, &key, &found)
        if slot == NULL:
            return False
        if not same_word(word_load(&self.entry_of(charge).shared), hold.shared):
            return False
        hold.state = &slot.state
        hold.generation = generation_of(key)
        hold.given_back = vacancy(hold.generation, times.now_us + 1)
        return True

    cdef int give_back(self, Charges charges, int i, Hold *hold, object now_us, Times *times) except -1:
        """Undoes what this step took of one charge."""
        cdef Charge *charge = &charges.items[i]
        if charges.policy.items[charge.limit].algorithm == CONCURRENCY:
            free_places(self.file, charge.hash, self.registry.items[charge.numbers].limit, lease_owner(charges.ids()[i]),
                        times.now_us)
            charge.state.low -= <uint64_t>charge.cost
        else:
            self.undo(charge, hold, now_us, times)
            charge.state = hold.before
        hold.took = False
        return 0

    cdef int undo(self, Charge *charge, Hold *hold, object now_us, Times *times) except -1:
        if word_swap(hold.state, hold.written, hold.seen if charge.shared else hold.given_back):
            if charge.newcomer:
                self.file.count(KEYS, -1)
            return 0
        self.settle_cell(charge, &self.registry.items[charge.numbers], charge.cost, 0, at_of(hold.written), at_of(hold.written),
                         now_us, times)
        return 0

    cdef int finish(self, Charges charges, Times *times) noexcept:
        """The instant of the step is that of its last swap. Windows are told by the same clock as all else."""
        cdef int i
        cdef Charge *charge
        charges.now_us = times.now_us
        charges.shift_us = 0 if times.wall_us == NO_TIME else times.wall_us - times.now_us
        if charges.shift_us != 0:
            for i in range(charges.n):
                charge = &charges.items[i]
                if charges.policy.items[charge.limit].algorithm in (SLIDING_WINDOW, FIXED_WINDOW):
                    charge.state.at_us -= charges.shift_us
                    if charge.end_us != 0:
                        charge.end_us -= charges.shift_us
        return 0

    # ---- places -----------------------------------------------------------------------------------------------------

    cdef int64_t most_places(self, const Numbers *n) noexcept:
        return max(n.limit, <int64_t>load64(&self.file.identities[n.mapped].places))

    cdef int look_at_places(self, Charge *charge, Times *times) noexcept:
        cdef Numbers *n = &self.registry.items[charge.numbers]
        cdef Held held
        count_places(&self.file.regions[PLACES], charge.hash, self.most_places(n), times.now_us, &held)
        charge.state.low = <uint64_t>held.count
        charge.state.at_us = 0
        if charge.cost > 0 and charge.cost > n.limit - held.count:
            charge.verdict = OVER
            if charge.cost <= n.limit:
                charge.state.at_us = enough_expire_us(&held, held.count + charge.cost - n.limit)
        return 0

    cdef int take_places(self, Charge *charge, CompiledLimit *c, Hold *hold, uint64_t owner, Times *times) noexcept:
        """Takes free places below the limit. Where the limit was lowered, counts once more what is held beyond it: of two that
        come at the same time, each sees the other's, and may give its own back."""
        cdef Numbers *n = &self.registry.items[charge.numbers]
        cdef int tries
        cdef int64_t taken
        cdef bint full = False
        cdef Held held
        for tries in range(PLACE_TRIES):
            taken = self.try_places(charge, n, owner, min(times.now_us + c.ttl_us, <int64_t>AT_MASK), times, &full)
            if taken == charge.cost:
                if self.most_places(n) > n.limit:
                    count_places(&self.file.regions[PLACES], charge.hash, self.most_places(n), times.now_us, &held)
                if self.most_places(n) == n.limit or held.count <= n.limit:
                    charge.state.low += <uint64_t>charge.cost
                    hold.took = True
                    return 0
            if taken > 0:
                free_places(self.file, charge.hash, n.limit, owner, times.now_us)
            if full:
                charge.verdict = FULL
                self.full.denied += 1
                return 0
            self.look_at_places(charge, times)
            if charge.verdict != FITS:
                return 0
        charge.verdict = OVER
        charge.state.at_us = times.now_us
        return 0

    cdef int64_t try_places(self, Charge *charge, Numbers *n, uint64_t owner, int64_t until_us, Times *times, bint *full) noexcept:
        cdef Slots *places = &self.file.regions[PLACES]
        cdef Sight sight
        cdef Slot *slot
        cdef Word state, key
        cdef Hash128 h
        cdef bint open_end
        cdef int64_t i, taken = 0
        cdef int found
        sight.identities, sight.times = self.file.identities, times[0]
        full[0] = False
        for i in range(n.limit):
            if taken == charge.cost:
                break
            h = place_hash(charge.hash, i)
            slot = slot_find(places, h.a, h.b, &state, &key, &open_end)
            if slot != NULL:
                if at_of(state) <= times.now_us and word_swap(&slot.state, state, owned_word(until_us, owner)):
                    taken += 1
                continue
            slot = slot_claim(places, h.a, h.b, n.mapped, times.now_us, True, cell_forgettable, &sight, &state, &key, &found)
            if slot == NULL:
                full[0] |= found == NO_ROOM
            elif word_swap(&slot.state, state, owned_word(until_us, owner)):
                self.file.count(PLACES, 1)
                taken += 1
        full[0] &= taken < charge.cost
        return taken

    def release(self, entries, *, now_us=None):
        """Frees places: `entries` are (address, lease id). How many places came free; unknown ones are no-ops."""
        cdef Times times
        cdef Hash128 h
        cdef int64_t freed = 0
        self.read_times(now_us, &times)
        for address, lease_id in entries:
            memcpy(&h, <const char *>(<bytes>address), 16)
            freed += free_places(self.file, h, <int64_t>load64(&self.file.header.most_places), lease_owner(lease_id), times.now_us)
        return freed

    # ---- what comes after a decision --------------------------------------------------------------------------------

    def settle(self, CompiledPolicy policy not None, bytes receipt_id not None, int64_t expires_us, int64_t charged_us, entries,
               *, now_us=None):
        """Refunds or charges differences, once per receipt over all processes. False when it was settled before, None when
        it has expired. MemoryError when there is no room to remember that it was settled: then nothing is.

        `entries`: (limit index, plan or None, address of 16 bytes, charged, actual, window start or None).
        """
        cdef Times times
        cdef Hash128 h = receipt_hash(receipt_id, self.registry)
        self.read_times(now_us, &times)
        max64(&self.file.header.settled_us, <uint64_t>times.now_us)
        cdef int found = self.mark_settled(h, expires_us, <int64_t>load64(&self.file.header.settled_us))
        if found == NO_ROOM:
            raise MemoryError(f"{self.file.header.max_receipts} receipts were settled that have not expired (max_receipts)")
        if found != CLAIM:
            return None if found == LATER else False
        for index, plan, address, charged, actual, start_us in entries:
            self.settle_one(policy, index, plan, address, charged, actual, charged_us, start_us or 0, now_us, &times)
        return True

    cdef int mark_settled(self, Hash128 h, int64_t expires_us, int64_t settled_us) noexcept:
        """CLAIM: it is ours to settle. LIVE: it was settled. LATER: it has expired. NO_ROOM."""
        cdef Slots *receipts = &self.file.regions[RECEIPTS]
        cdef Slot *slot
        cdef Word state, key
        cdef Sight sight
        cdef bint open_end
        cdef int found
        if expires_us <= settled_us or expires_us >= <int64_t>AT_MASK:
            return LATER
        sight.times.now_us = settled_us
        while True:
            if slot_find(receipts, h.a, h.b, &state, &key, &open_end) != NULL:
                return LIVE
            slot = slot_claim(receipts, h.a, h.b, 0, 0, True, until_forgettable, &sight, &state, &key, &found)
            if slot == NULL:
                return found
            if word_swap(&slot.state, state, owned_word(expires_us, h.a ^ h.b)):
                self.file.count(RECEIPTS, 1)
                return CLAIM

    cdef int settle_one(self, CompiledPolicy policy, int index, object plan, bytes address, int64_t charged, int64_t actual,
                        int64_t charged_us, int64_t start_us, object now_us, Times *times) except -1:
        cdef CompiledLimit *c = &policy.items[index]
        cdef Charge charge
        if charged == actual or c.algorithm == CONCURRENCY:
            return 0
        memset(&charge, 0, sizeof(charge))
        charge.numbers = numbers_now(policy, index, plan)
        if c.algorithm != TOKEN_BUCKET:
            self.read_wall(times)
            if policy.windows[index] is not None:
                self.registry.refresh_calendar(charge.numbers, policy.windows[index], times.wall_us)
        memcpy(&charge.hash, <const char *>address, 16)
        return self.settle_cell(&charge, &self.registry.items[charge.numbers], charged, actual, charged_us, start_us, now_us, times)

    cdef int settle_cell(self, Charge *charge, Numbers *n, int64_t charged, int64_t actual, int64_t charged_us, int64_t start_us,
                         object now_us, Times *times) except -1:
        """Makes good a difference in whatever state the cell is by now. A cell that is gone has drained: there is nothing to
        give back, and an extra charge finds a new one."""
        cdef Charge amended = charge[0]
        cdef Numbers written
        cdef Cell source
        cdef Hold hold
        cdef Word seen
        while True:
            if charge.shared:
                hold.state = &self.entry_of(charge).shared
                hold.seen = word_load(hold.state)
                hold.generation = 0
            else:
                self.look(&amended, &hold)
            if amended.newcomer and actual < charged:
                return 0
            seen = hold.shared if amended.newcomer else hold.seen
            self.keep_ahead(seen, now_us, times)
            if n.algorithm != TOKEN_BUCKET:
                self.read_wall(times)
            if not amend(&amended, &source, &written if self.read(seen, n, &source, &written) else NULL, n, charged, actual,
                         charged_us, start_us, times.now_us if n.algorithm == TOKEN_BUCKET else times.wall_us):
                return 0
            if amended.newcomer and not self.claim(&amended, &hold, True, times):
                if not self.has_room(&amended, times):
                    return 0
                continue
            if word_swap(hold.state, hold.seen, cell_word(&amended.state, n, hold.generation)):
                if amended.newcomer:
                    self.file.count(KEYS, 1)
                return 0

    def now_us(self):
        """The store's clock, in whole microseconds."""
        cdef Times times
        self.read_times(None, &times)
        return times.now_us

    def stats(self):
        """Counts for metrics: of the table as it is for all, and of the newcomers that this process turned away."""
        cdef Header *h = self.file.header
        return {
            "keys": self.file.counted(KEYS), "max_keys": h.max_keys, "size_bytes": h.size_bytes,
            "receipts": self.file.counted(RECEIPTS), "max_receipts": h.max_receipts,
            "leases": self.file.counted(PLACES), "max_leases": h.max_leases,
            "full_shared": self.full.shared, "full_denied": self.full.denied, "full_allowed": self.full.allowed,
            "nonces": self.file.counted(NONCES), "max_nonces": h.max_nonces, "nonces_full": self.nonces_full,
        }


cdef uint64_t lease_owner(object lease_id) except? 0:
    """The 64 bits of a lease's id; 0, which no lease has, for a text that is none."""
    cdef str digits = lease_id
    try:
        return int(digits, 16) & 0xFFFFFFFFFFFFFFFF if len(digits) == 16 else 0
    except ValueError:
        return 0
