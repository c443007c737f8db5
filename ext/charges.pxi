cdef enum:
    BLOCK_CHARGES = 8   # what nearly all requests need; one that meets more limits gets them from the heap
    SPARE_BLOCKS = 64   # kept for the next requests, 50 KB

cdef struct Charge:
    Hash128 hash
    Cell state           # after the step. concurrency: low = places in use, at_us = when enough of them expire
    Packed *cell         # during a step in memory only: where it lies, unless it is shared
    int64_t cost
    int64_t end_us       # fixed window: its end
    int limit            # index into the policy's limits
    uint32_t numbers
    uint8_t verdict
    uint8_t unknown      # decided without a bucket: `allow` for a full table or a missing store
    uint8_t newcomer
    uint8_t shared       # decided by the bucket that newcomers share while the table is full
    uint8_t rebased
    uint8_t leased       # decided by what this node holds of it


# Blocks for BLOCK_CHARGES charges. Inside of the object they would be cleared with it for every request, which costs more
# than all else about making one.
cdef Charge *spare_blocks[SPARE_BLOCKS]
cdef int n_spare_blocks = 0


cdef Charge *take_block() except NULL:
    global n_spare_blocks
    if n_spare_blocks > 0:
        n_spare_blocks -= 1
        return spare_blocks[n_spare_blocks]
    cdef Charge *block = <Charge *>PyMem_Calloc(BLOCK_CHARGES, sizeof(Charge))
    if block == NULL:
        raise MemoryError
    return block


cdef int give_block(Charge *block) noexcept:
    global n_spare_blocks
    if n_spare_blocks < SPARE_BLOCKS:
        spare_blocks[n_spare_blocks] = block
        n_spare_blocks += 1
    else:
        PyMem_Free(block)
    return 0


# By NonceVerdict.
cdef tuple NONCE_REASONS = ("ok", "replay", "stale", "stale", "stale", "store_full", "store_unavailable")
cdef tuple NONCE_DETAILS = (
    None,
    "nonce: it was used before",
    "nonce.timestamp: too long ago; make the request anew",
    "nonce.timestamp: too far ahead of the clock here",
    "nonce.timestamp: what would say whether it was used before is lost; make the request anew",
    "nonce: there is no room to remember it",
    "nonce: the store that knows whether it was used before does not answer",
)


@cython.final
cdef class Aside:
    """What few requests have. Each member that an object has of its own is made and cleared with it, every time."""

    cdef object detail
    cdef object stored
    cdef bytes nonce_name       # the tenant behind its length, and the value; what the hash is of
    cdef list would_refuse      # names of guards in shadow mode that would have refused
    cdef list lease_ids         # per charge: an id where it may take a place, None elsewhere


@cython.final
@cython.freelist(64)
cdef class Charges:
    """The buckets one request would take from and how much, and after the step what became of them.

    `reason` is None, or why a guard refused the request already: then only `count_denied` charges are left, as penalties.
    """

    cdef readonly CompiledPolicy policy
    cdef readonly object request
    cdef Charge *items
    cdef int n
    cdef int room
    cdef Address address              # in its canonical form
    cdef int64_t request_cost
    cdef int64_t request_bytes
    cdef int64_t graphql_cost         # of all its operations; 0 where it has none
    cdef int64_t graphql_type_cost
    cdef int64_t operations           # of GraphQL in a batch; 1 elsewhere
    cdef bint is_priced               # the three above are those of GraphQL operations
    cdef bint shows_cost              # header fields tell the cost: it is known
    cdef int64_t empty_at_us          # 0, or when the store was lost for which this process stands in with its share
    cdef int64_t spare                # units of each bucket that were left then
    cdef readonly int64_t now_us
    cdef int64_t shift_us             # what a wall clock that was set is ahead of now_us: `state` tells windows without it
    cdef readonly object reason
    cdef readonly int64_t retry_us    # for a `reason` that passes by itself: in how many microseconds. 0: it does not
    cdef bint has_nonce
    cdef bint of_tenant               # the nonce is a tenant's
    cdef Nonce nonce
    cdef Hash128 nonce_hash
    cdef int nonce_verdict            # a NonceVerdict
    cdef bint nonce_unknown           # let through unseen, because the policy said so and the store was away
    cdef bint asking                  # a peek: the step tells what fits and takes nothing
    cdef readonly bint admitted
    cdef bint taking                  # the step takes what fits: it is admitted, or an answer that was stored takes the nonce
    cdef readonly bint degraded
    cdef readonly bint settleable     # some cost is the request's own: what it really was may be reported later
    cdef readonly bint has_leases
    cdef readonly object plan         # whose numbers hold: as stated, checked; None where it is absent
    cdef readonly object request_id
    cdef Aside aside                  # None: there is nothing in it

    def __cinit__(self):
        self.items = take_block()
        self.room = BLOCK_CHARGES
        self.operations = 1

    def __dealloc__(self):
        if self.items != NULL and self.room == BLOCK_CHARGES:
            give_block(self.items)
        else:
            PyMem_Free(self.items)

    def __len__(self):
        return self.n

    cdef int reserve(self, Py_ssize_t n) except -1:
        """Room for `n` charges. Only for an object that holds none yet."""
        cdef Charge *more
        if n > self.room:
            more = <Charge *>PyMem_Calloc(n, sizeof(Charge))
            if more == NULL:
                raise MemoryError
            give_block(self.items)
            self.items = more
            self.room = <int>n
        return 0

    cdef inline Charge *add(self) noexcept:
        cdef Charge *charge = &self.items[self.n]
        charge.state.at_us = 0
        charge.state.low = charge.state.high = 0
        charge.end_us = 0
        charge.cell = NULL
        charge.verdict = charge.unknown = charge.newcomer = charge.shared = charge.rebased = charge.leased = 0
        self.n += 1
        return charge

    cdef int refuse(self, object reason, object detail) except -1:
        """The first refusal wins."""
        if self.reason is None:
            self.reason = reason
            self.more().detail = detail
        return 0

    cdef Aside more(self):
        if self.aside is None:
            self.aside = Aside.__new__(Aside)
        return self.aside

    @property
    def detail(self):
        """What `reason` says in a sentence."""
        return None if self.aside is None else self.aside.detail

    @property
    def stored(self):
        """The answer that an idempotency key got the first time (shield.answer.StoredAnswer)."""
        return self.stored_answer()

    cdef inline object stored_answer(self):
        return None if self.aside is None else self.aside.stored

    cdef inline list shadowed(self):
        """Names of guards in shadow mode that would have refused; None: none."""
        return None if self.aside is None else self.aside.would_refuse

    cdef int shadow_refusal(self, str guard) except -1:
        """A guard in shadow mode would have refused."""
        cdef Aside aside = self.more()
        if aside.would_refuse is None:
            aside.would_refuse = []
        aside.would_refuse.append(guard)
        return 0

    cdef int keep_penalties(self) except -1:
        cdef int i, kept = 0
        for i in range(self.n):
            if self.policy.items[self.items[i].limit].count_denied:
                self.items[kept] = self.items[i]
                kept += 1
        self.n = kept
        self.settleable = self.has_leases = self.has_nonce = False
        return 0

    @property
    def refused(self):
        return self.reason is not None or self.asking

    def ask(self):
        """Makes the coming step a peek: whatever fits, nothing is taken."""
        self.asking = True

    def fits(self):
        """After a peek: whether everything would have fitted. The outcome can then be read as that of a decision."""
        self.asking = False
        self.conclude()
        return self.admitted

    def turn_away(self, reason, detail, int64_t retry_us=0, *, bint penalised=True, stored=None):
        """Before the step: refused for a reason of the caller's, who looks at more than the policy's values. `stored`: the
        answer that the client gets instead."""
        cdef bint first = self.reason is None
        # A nonce comes before what this is refused for, and is taken with an answer that was stored.
        cdef bint nonced = first and self.has_nonce
        if first and stored is not None:
            self.more().stored = stored
        self.refuse(reason, detail)
        self.retry_us = retry_us
        if nonced and stored is not None:
            self.items[0] = self.items[self.n - 1]  # the bound of the tenant's nonces
            self.n = 1
            self.settleable = self.has_leases = False
        else:
            self.keep_penalties()
            if not penalised:
                self.n = 0
        self.has_nonce = nonced

    cdef int64_t stated_cost(self, int kind) noexcept:
        """What a limit with a cost of this kind is charged."""
        if kind == COST_REQUEST:
            return self.request_cost
        if kind == COST_BYTES:
            return self.request_bytes
        return self.graphql_cost if kind == COST_GRAPHQL else self.graphql_type_cost

    cdef list ids(self):
        """The ids under which places would be held, 16 hex digits each. Made at once, before a step reads anything: asking
        the system for randomness lets other threads run."""
        cdef int i
        cdef str digits
        cdef Aside aside = self.more()
        if aside.lease_ids is None:
            digits = os.urandom(8 * self.n).hex()
            aside.lease_ids = [digits[16 * i : 16 * i + 16] for i in range(self.n)]
        return aside.lease_ids

    def lease_id(self, int i):
        """The id under which charge `i` would hold its places: 16 hex digits."""
        self.check_index(i)
        return self.ids()[i]

    cdef int check_index(self, int i) except -1:
        if not 0 <= i < self.n:
            raise IndexError(f"charge {i} of {self.n}")
        return 0

    def limit(self, int i):
        """The limit that charge `i` is of."""
        self.check_index(i)
        return self.policy.limits[self.items[i].limit]

    def bucket(self, int i):
        """Charge `i` in the words of the policy, for a store that keeps buckets elsewhere."""
        self.check_index(i)
        cdef Charge *charge = &self.items[i]
        cdef CompiledLimit *c = &self.policy.items[charge.limit]
        return Bucket(
            self.policy.limits[charge.limit], self.numbers_of(charge), charge.cost, self.policy.partition(self, c.group),
            bool(c.enforced), bool(c.count_denied),
        )

    cdef object numbers_of(self, Charge *charge):
        limit = self.policy.limits[charge.limit]
        if charge.numbers == self.policy.items[charge.limit].numbers:
            return limit.numbers
        return limit.plans[self.plan_of(charge)]

    cdef object plan_of(self, const Charge *charge):
        """The plan whose numbers a charge has: the request's, or of a key with numbers of its own. None: of no plan."""
        cdef dict plans = self.policy.plans[charge.limit]
        if plans is None or plans.get(self.plan) == charge.numbers:
            return None if plans is None else self.plan
        return next((plan for plan, entry in plans.items() if entry == charge.numbers), None)

    @cython.boundscheck(True)
    def resolve(self, now_us, outcomes, int nonce_verdict=0, int64_t nonce_retry_us=0):
        """What a remote store did, at its instant: one tuple per charge, the state after the step.

        token bucket: (verdict, units, ticks, at_us). windows: (verdict, cur, prev, start_us, end_us).
        concurrency: (verdict, in_use, enough_expire_us, lease_id). Verdicts: 0 fits, 1 does not, 2 the store is full.
        None where the store had refused another charge already and was not asked about this one. `nonce_verdict`: 0 it was
        fresh; 1 used before, 2 too old, 3 too far ahead, 4 it may have been used: what says so is lost.
        """
        cdef int i
        cdef Charge *charge
        cdef Numbers *n
        cdef bint untold = False
        cdef int parts
        if len(outcomes) != self.n:
            raise ValueError(f"{len(outcomes)} outcomes for {self.n} charges")
        self.hear_nonce(now_us, nonce_verdict, nonce_retry_us)
        for i in range(self.n):
            charge = &self.items[i]
            n = &self.policy.registry.items[charge.numbers]
            if outcomes[i] is None:
                charge.verdict, charge.unknown, untold = FITS, 1, True
                continue
            outcome = tuple(outcomes[i])
            parts = 4 if n.algorithm in (TOKEN_BUCKET, CONCURRENCY) else 5
            if len(outcome) < parts:
                raise ValueError(f"outcome {i} has {len(outcome)} parts")
            self.learn(charge, outcome[0], outcome[1], outcome[2], 0 if n.algorithm == CONCURRENCY else outcome[3],
                       outcome[4] if parts == 5 else 0)
        self.conclude()
        if untold:
            if self.admitted:
                raise ValueError("nothing was refused, and some outcomes are missing")
            self.degraded = False  # the store's own refusal, as it was told a moment ago

    def hear(self, Outcome outcome not None, int nonce_verdict=0):
        """`resolve` with what a reply says, where the store was asked about every charge."""
        cdef int i
        cdef Charge *charge
        if outcome.n != self.n:
            raise ValueError(f"{outcome.n} outcomes for {self.n} charges")
        self.hear_nonce(outcome.now_us, nonce_verdict, outcome.retry_us)
        for i in range(self.n):
            charge = &self.items[i]
            self.learn(charge, whole(outcome.number(OUTCOME * i)), whole(outcome.number(OUTCOME * i + 1)),
                       whole(outcome.number(OUTCOME * i + 2)), whole(outcome.number(OUTCOME * i + 3)),
                       whole(outcome.number(OUTCOME * i + 4)))
        self.conclude()

    cdef int hear_nonce(self, int64_t now_us, int nonce_verdict, int64_t retry_us) except -1:
        if not 0 <= nonce_verdict <= NONCE_GONE:
            raise ValueError(f"{nonce_verdict} says nothing of a nonce")
        self.now_us = now_us
        self.nonce_verdict = nonce_verdict
        if nonce_verdict != NONCE_FRESH:
            self.retry_us = retry_us
        if nonce_verdict == NONCE_EARLY:
            self.tell_early(now_us)  # scripts have doubles only
        return 0

    cdef int learn(self, Charge *charge, int64_t verdict, int64_t w, int64_t x, int64_t y, int64_t z) except -1:
        """What a store said of a charge: its verdict and state, see `resolve`."""
        cdef Numbers *n = &self.policy.registry.items[charge.numbers]
        if not 0 <= verdict <= FULL:
            raise ValueError(f"{verdict} is no verdict")
        charge.verdict = <uint8_t>verdict
        if n.algorithm == TOKEN_BUCKET:
            if w < 0 or x < 0:
                raise ValueError("a level is below 0")
            set_level(&charge.state, (<u128>w) * (<u128>n.unit) + <u128>x)
            charge.state.at_us = y
        elif n.algorithm == CONCURRENCY:
            charge.state.low = w
            charge.state.at_us = x
        else:
            set_counts(&charge.state, w, x)
            charge.state.at_us = y
            charge.end_us = z
        return 0

    def waits(self):
        """Microseconds until each charge would fit, 0 where it does, None for never; for a refusal that is remembered."""
        cdef int i
        cdef list out = []
        cdef u128 wait_us = 0
        for i in range(self.n):
            if self.items[i].verdict != OVER:
                out.append(0)
            else:
                out.append(from_u128(wait_us) if self.refusal_wait_of(&self.items[i], &wait_us) else None)
        return out

    cdef int conclude(self) except -1:
        """All or nothing: admitted when every enforced charge fits and no guard refused."""
        cdef int i
        cdef u128 wait_us
        cdef bint answered = self.aside is not None and self.aside.stored is not None
        if answered and self.nonce_verdict == NONCE_FRESH and self.nonces_are_many():
            self.refusal_wait_of(&self.items[0], &wait_us)
            self.reason, self.retry_us = "store_full", <int64_t>wait_us
            answered = False
        if self.nonce_verdict != NONCE_FRESH:
            self.reason = <str>NONCE_REASONS[self.nonce_verdict]
            answered = False
        if not answered and self.aside is not None:
            self.aside.stored = None
        self.admitted = self.reason is None
        self.degraded |= self.nonce_unknown
        for i in range(self.n):
            if self.items[i].verdict != FITS and self.policy.items[self.items[i].limit].enforced:
                self.admitted = False
            if self.items[i].unknown:
                self.degraded = True
        self.admitted &= not self.asking
        self.taking = self.admitted or (answered and self.has_nonce)
        return 0

    cdef bint lacks_store_for_nonce(self) noexcept:
        """The store is away: True when the request is refused for that, False when it is let through unseen."""
        self.nonce_unknown = True
        if self.policy.nonce_fails_open:
            self.has_nonce = False
            return False
        self.nonce_verdict = NONCE_UNAVAILABLE
        self.retry_us = 1_000_000  # nobody can say when the store is there again
        return True

    cdef int judge_nonce(self, const Fence *fence, int64_t now_us, int64_t latest_us) noexcept:
        cdef int64_t retry_us
        self.nonce_verdict = judge_stamp(&self.nonce, fence, now_us, latest_us, &retry_us)
        if self.nonce_verdict != NONCE_FRESH:
            self.retry_us = retry_us
        if self.nonce_verdict == NONCE_EARLY:
            self.tell_early(now_us)
        return self.nonce_verdict

    cdef int tell_early(self, int64_t now_us) noexcept:
        cdef bint ever = self.nonce.stamp_us < LAST_STAMP_US
        self.retry_us = self.nonce.stamp_us - self.nonce.skew_us - now_us if ever else 0
        return 0

    cdef int nonce_refused(self, int verdict) noexcept:
        self.nonce_verdict = verdict
        self.retry_us = 1_000_000 if verdict == NONCE_FULL else 0
        return verdict

    cdef int64_t nonce_until_us(self, const Fence *fence) noexcept:
        """How long the nonce has to be held: for whoever has the widest window."""
        return self.nonce.stamp_us + max(fence.span_us, self.nonce.window_us + self.nonce.skew_us)

    cdef bint nonces_are_many(self) noexcept:
        """The bound of a tenant's nonces stands in the way."""
        cdef int i
        for i in range(self.n):
            if self.items[i].verdict == OVER and self.policy.items[self.items[i].limit].nonces != 0:
                return True
        return False

    @property
    def nonce_facts(self):
        """For a remote store: (the canonical bytes it is known by, timestamp, window and future skew in microseconds), or None
        where the step has no nonce to take."""
        if not self.has_nonce:
            return None
        return self.aside.nonce_name, self.nonce.stamp_us, self.nonce.window_us, self.nonce.skew_us

    # ---- reading the outcome ----------------------------------------------------------------------------------------

    cdef int know_ends(self) except -1:
        """Before anything is read: the ends of fixed windows. A calendar window that is not now's (the clock was set back) is
        looked up only here, because a step runs no Python code between reading and writing."""
        cdef int i
        if self.policy.any_calendar:
            for i in range(self.n):
                if self.items[i].end_us == 0 and self.policy.windows[self.items[i].limit] is not None:
                    self.items[i].end_us = (
                        self.policy.windows[self.items[i].limit](self.items[i].state.at_us + self.shift_us)[1] - self.shift_us)
        return 0

    cdef bint wait_of(self, const Charge *charge, int64_t cost, u128 *wait_us) noexcept:
        """Microseconds until `cost` fits. False: it never does."""
        cdef const Numbers *n = &self.policy.registry.items[charge.numbers]
        cdef int64_t places_us
        if cost > n.limit:
            return False
        if n.algorithm != CONCURRENCY:
            wait_us[0] = retry_after(&charge.state, n, cost, self.now_us, charge.end_us)
            return True
        wait_us[0] = <u128>0
        if <int64_t>charge.state.low + cost > n.limit and charge.state.at_us > self.now_us:
            # A place is usually freed by its release, long before it expires: ask again within a second.
            places_us = charge.state.at_us - self.now_us
            wait_us[0] = <u128>(places_us if places_us < 1_000_000 else 1_000_000)
        return True

    cdef bint refusal_wait_of(self, const Charge *charge, u128 *wait_us) noexcept:
        """Microseconds after which this charge no longer stands in the way. False: it always does."""
        if charge.verdict >= FULL:
            wait_us[0] = <u128>1_000_000  # nobody can say when there is room, or the store again
            return True
        return self.wait_of(charge, charge.cost, wait_us)

    cdef int64_t remaining_of(self, const Charge *charge) noexcept:
        cdef const Numbers *n = &self.policy.registry.items[charge.numbers]
        if charge.verdict >= FULL:
            return 0
        if n.algorithm == CONCURRENCY:
            return n.limit - <int64_t>charge.state.low if <int64_t>charge.state.low < n.limit else 0
        return remaining(&charge.state, n, self.now_us)

    cdef u128 reset_of(self, const Charge *charge) noexcept:
        cdef const Numbers *n = &self.policy.registry.items[charge.numbers]
        if n.algorithm == CONCURRENCY:
            return <u128>0
        return reset_after(&charge.state, n, self.now_us, charge.end_us)

    cdef object status(self, const Charge *charge):
        cdef object retry = 0.0
        cdef u128 wait_us
        if charge.verdict != FITS:
            retry = seconds(wait_us) if self.refusal_wait_of(charge, &wait_us) else None
        return make_status(
            LimitStatus, charge.verdict == FITS, self.policy.registry.items[charge.numbers].limit, self.remaining_of(charge),
            seconds(self.reset_of(charge)), retry, charge.cost, self.policy.names[charge.limit],
        )

    def address_of(self, int i):
        """The 16 bytes that name charge `i`'s bucket in a store of this process."""
        self.check_index(i)
        return (<char *>&self.items[i].hash)[:16]

    def settlement(self, *, bint every=False):
        """What may be settled later: (index, plan or None, kind, cost, window start or None) for each charge whose cost was
        the request's own, or `every` one that was taken. The plan is named only where the limit knows it."""
        cdef list out = []
        cdef int i
        cdef Charge *charge
        cdef CompiledLimit *c
        for i in range(self.n):
            charge = &self.items[i]
            c = &self.policy.items[charge.limit]
            if (every or c.cost_kind != COST_FIXED) and charge.verdict == FITS and not charge.unknown and c.algorithm != CONCURRENCY:
                out.append((i, self.plan_of(charge), SETTLED_BY[c.cost_kind], charge.cost,
                            None if c.algorithm == TOKEN_BUCKET else charge.state.at_us + self.shift_us))
        return out

    def leases(self):
        """(index, lease id) of the places this request holds now."""
        cdef int i
        if not self.admitted or not self.has_leases:
            return []
        return [(i, self.ids()[i]) for i in range(self.n)
                if self.policy.items[self.items[i].limit].algorithm == CONCURRENCY and self.items[i].verdict == FITS
                and self.items[i].cost > 0 and not self.items[i].unknown]

    def trace(self):
        """One dict per charge, for --trace-decisions: integers only, the key as its bucket's 16 bytes in hex."""
        cdef list out = []
        cdef dict held = dict(self.leases())
        cdef int i
        cdef Charge *charge
        cdef Numbers *n
        cdef u128 wait_us
        cdef object retry
        self.know_ends()
        for i in range(self.n):
            charge = &self.items[i]
            n = &self.policy.registry.items[charge.numbers]
            limit = self.policy.limits[charge.limit]
            retry = 0
            if charge.verdict != FITS:
                retry = from_u128(wait_us) if self.refusal_wait_of(charge, &wait_us) else None
            if n.algorithm == TOKEN_BUCKET:
                state = [from_u128(level_of(&charge.state) / <u128>n.unit), from_u128(level_of(&charge.state) % <u128>n.unit),
                         charge.state.at_us]
            elif n.algorithm == CONCURRENCY:
                state = [charge.state.low, charge.state.at_us]
            else:
                state = [cur_of(&charge.state), prev_of(&charge.state), charge.state.at_us, charge.end_us]
            out.append({
                "limit": limit.name, "algorithm": limit.algorithm, "numbers": [n.limit, n.refill, n.unit],
                "window_us": limit.window_us, "align": limit.align, "timezone": limit.timezone, "ttl_us": limit.ttl_us,
                "key": self.address_of(i).hex(), "cost": charge.cost, "mode": limit.mode, "count_denied": limit.count_denied,
                "verdict": charge.verdict, "state": state, "remaining": self.remaining_of(charge),
                "retry_after_us": retry, "reset_after_us": from_u128(self.reset_of(charge)), "unknown": bool(charge.unknown),
                "shared": bool(charge.shared), "leased": bool(charge.leased), "lease": held.get(i),
            })
        return out
