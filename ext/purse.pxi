# Units that this node holds on leases of a store elsewhere, spent here without asking (shield/store/leases.py says when
# that is right). Here is only what one request needs: who holds what, the one look at the clock, all or nothing.

cdef extern from *:
    """
    #include <time.h>
    /* A clock that goes on while the machine sleeps: a lease runs out then, too. */
    #if defined(CLOCK_BOOTTIME)
    #define SHIELD_LEASE_CLOCK CLOCK_BOOTTIME
    #else
    #define SHIELD_LEASE_CLOCK CLOCK_MONOTONIC  /* macOS: it counts sleep */
    #endif
    static inline int64_t shield_lease_us(void) {
        struct timespec t;
        clock_gettime(SHIELD_LEASE_CLOCK, &t);
        return (int64_t)t.tv_sec * 1000000 + t.tv_nsec / 1000;
    }
    """
    int64_t lease_us "shield_lease_us"() nogil

cdef enum:
    HELD_LEASES = 4          # of one bucket at once: one that is spent, one that is coming, and two that are slow to go
    PURSE_CHARGES = 16       # requests that meet more limits are decided by the store
    OFFSET_AGES_US = 1_000_000

cdef enum Spent:
    PURSE_ELSEWHERE = 0            # the store decides: some charge is not leased, or must be found there
    PURSE_DECIDED = 1
    PURSE_COLD = 2                 # all may be leased, and some bucket has no purse
    PURSE_SHORT = 3                # some purse has too little, now and in what is coming

cdef struct HeldLease:
    int64_t name
    int64_t left             # what may still be spent
    int64_t spent
    int64_t start_us         # of this node's clock, as `stop_us`: spent from here on, and before there
    int64_t stop_us
    int64_t until_us         # of the store's clock: when it runs out there


@cython.final
cdef class Purse:
    """What this node holds of one bucket. `account` is for whoever fills it."""

    cdef HeldLease held[HELD_LEASES]
    cdef int n
    cdef Registry registry           # that knows `numbers`
    cdef uint32_t numbers
    cdef int64_t offset_us           # the store's clock less ours, at least
    cdef int64_t offset_at_us
    cdef Cell state                  # the bucket as the store told last, with what was spent here since
    cdef public object account
    cdef public int64_t asked        # units, since it was last set to 0
    cdef public int64_t low          # with no more than this left, more is asked for
    cdef public bint called          # it is being seen to

    cdef void available(self, int64_t now_us, int64_t cost, int64_t *here, int64_t *coming, int64_t *start_us) noexcept:
        """Units that may be spent now, those that come by a known instant, and when that many are there as `cost` needs."""
        cdef int i
        cdef HeldLease *lease
        here[0] = coming[0] = start_us[0] = 0
        for i in range(self.n):
            lease = &self.held[i]
            if now_us >= lease.stop_us:
                continue
            if now_us >= lease.start_us:
                here[0] += lease.left
            else:
                if here[0] + coming[0] < cost and lease.start_us > start_us[0]:
                    start_us[0] = lease.start_us
                coming[0] += lease.left

    cdef int64_t take(self, int64_t now_us, int64_t cost) noexcept:
        """Spends what is available. What is left then, coming units too."""
        cdef int i
        cdef int64_t some, left = 0
        cdef HeldLease *lease
        for i in range(self.n):
            lease = &self.held[i]
            if now_us >= lease.stop_us:
                continue
            if now_us >= lease.start_us and cost > 0:
                some = cost if cost < lease.left else lease.left
                lease.left -= some
                lease.spent += some
                cost -= some
            left += lease.left
        return left

    # ---- for whoever fills it ---------------------------------------------------------------------------------------

    @property
    def room(self):
        """How many more leases it has room for."""
        return HELD_LEASES - self.n

    def left(self, int64_t now_us):
        """Units that are held and may be spent now or later."""
        return self.take(now_us, 0)

    def spent(self):
        """Units of leases that are held still."""
        cdef int i
        cdef int64_t spent = 0
        for i in range(self.n):
            spent += self.held[i].spent
        return spent

    def add(self, int64_t name, int64_t units, int64_t start_us, int64_t stop_us, int64_t until_us):
        """A lease: spent from `start_us` on and before `stop_us`, of this node's clock."""
        if self.n == HELD_LEASES:
            raise ValueError(f"{HELD_LEASES} leases are held already")
        cdef HeldLease *lease = &self.held[self.n]
        lease.name, lease.left, lease.spent = name, units, 0
        lease.start_us, lease.stop_us, lease.until_us = start_us, stop_us, until_us
        self.n += 1

    def told(self, int64_t now_us, *, bint all=False):
        """For the store: (name, spent, kept, until_us) of each lease that something is to be said of. One that is not kept,
        because it is spent, has run out, or because of `all`, is none any more: it can no longer be spent."""
        cdef int i, kept = 0
        cdef bint keep
        cdef list out = []
        for i in range(self.n):
            keep = not all and self.held[i].left > 0 and now_us < self.held[i].stop_us
            if self.held[i].spent > 0 or not keep:
                out.append((self.held[i].name, self.held[i].spent, keep, self.held[i].until_us))
            if keep:
                self.held[kept] = self.held[i]
                kept += 1
        self.n = kept
        return out

    def drop(self, int64_t name):
        """The store knows nothing of this lease: what is left of it is nobody's. How many units that were."""
        cdef int i
        cdef int64_t left = 0
        for i in range(self.n):
            if self.held[i].name == name:
                left = self.held[i].left
                self.n -= 1
                memmove(&self.held[i], &self.held[i + 1], (self.n - i) * sizeof(HeldLease))
                break
        return left


@cython.final
cdef class Purses:
    """All purses of one store. `wake(purse)` is called when one runs low; `clock` returns
    nanoseconds of a clock that counts suspend, by default the system's."""

    cdef dict held                   # the bucket's 16 bytes in this process -> Purse
    cdef public object policy        # the CompiledPolicy whose hot keys get purses; None: any
    cdef object wake
    cdef object clock
    cdef readonly int64_t decisions
    cdef readonly int64_t units

    def __cinit__(self, wake, *, clock=None):
        self.held, self.wake, self.clock = {}, wake, clock

    def __len__(self):
        return len(self.held)

    def now_us(self):
        """This node's clock."""
        return self.now()

    cdef int64_t now(self) except -1:
        return lease_us() if self.clock is None else read_clock(self.clock, 0)

    def open(self, bytes key not None, Charges charges not None, int i, account):
        """A purse for the bucket of charge `i`, whose 16 bytes are `key`."""
        charges.check_index(i)
        cdef Purse purse = Purse()
        purse.account = account
        purse.registry, purse.numbers = charges.policy.registry, charges.items[i].numbers
        fresh(&purse.state, &purse.registry.items[purse.numbers], 0)
        self.held[key] = purse
        return purse

    def get(self, bytes key):
        """The purse of a bucket, or None."""
        return self.held.get(key)

    def close(self, bytes key):
        """Forgets a purse; what it held must have been given back."""
        self.held.pop(key, None)

    def tell(self, Purse purse not None, int64_t store_us, int64_t received_us, int64_t used, int64_t ticks):
        """The bucket is as a reply says that was made at `store_us` of the store's clock and received at `received_us`:
        `used` units and ticks, all that is out on leases included but what this node holds."""
        cdef Numbers *n = &purse.registry.items[purse.numbers]
        cdef int64_t offset_us = store_us - received_us
        # The reply that was fastest tells most; an old one tells nothing of clocks that drift or were set.
        if offset_us > purse.offset_us or received_us - purse.offset_at_us > OFFSET_AGES_US:
            purse.offset_us, purse.offset_at_us = offset_us, received_us
        set_level(&purse.state, ticks_of(used if used > 0 else 0, n) + <u128><uint64_t>ticks)
        purse.state.at_us = store_us

    # ---- one request ------------------------------------------------------------------------------------------------

    def spend(self, Charges charges not None):
        """Decides a request whose every charge is leased, if that can be said here: one of the codes above."""
        return self.step(charges)

    cdef int step(self, Charges charges) except -1:
        cdef PyObject *purses[PURSE_CHARGES]
        cdef int64_t here[PURSE_CHARGES]
        cdef int64_t start[PURSE_CHARGES]
        cdef int64_t now_us, coming, left
        cdef int i
        cdef Charge *charge
        cdef CompiledPolicy policy = charges.policy
        cdef Purse purse
        cdef Numbers *n
        cdef u128 more_us
        if not 0 < charges.n <= PURSE_CHARGES or charges.reason is not None or charges.asking:
            return PURSE_ELSEWHERE
        for i in range(charges.n):
            if not policy.items[charges.items[i].limit].leased:
                return PURSE_ELSEWHERE
        if charges.request.nonce is not None or charges.request.idempotency is not None:
            return PURSE_ELSEWHERE
        for i in range(charges.n):
            found = self.held.get((<char *>&charges.items[i].hash)[:16])
            if found is None:
                return PURSE_COLD
            if (<Purse>found).numbers != charges.items[i].numbers:
                return PURSE_ELSEWHERE  # another plan's numbers hold for this request, or another policy's
            purses[i] = <PyObject *>found
        # From here to the end of taking nothing else runs: the clock is read now, and no purse is changed in between.
        now_us = self.now()
        for i in range(charges.n):
            charge = &charges.items[i]
            (<Purse>purses[i]).available(now_us, charge.cost, &here[i], &coming, &start[i])
            if charge.cost <= here[i]:
                charge.verdict = FITS
            elif charge.cost <= here[i] + coming:
                charge.verdict = OVER
            else:
                return PURSE_SHORT
        charges.conclude()
        # Of a cluster's servers, whose clocks differ, the one that is behind: a refund is then the smaller.
        charges.now_us = INT64_MAX
        for i in range(charges.n):
            charges.now_us = min(charges.now_us, now_us + (<Purse>purses[i]).offset_us)
        for i in range(charges.n):
            charge = &charges.items[i]
            purse = <Purse>purses[i]
            n = &policy.registry.items[charge.numbers]
            purse.asked += charge.cost
            charge.leased = True
            left = purse.take(now_us, charge.cost if charges.admitted and charge.verdict == FITS else 0)
            bucket_touch(&purse.state, n, n, charges.now_us)
            if charge.verdict == FITS:
                if charges.admitted:
                    set_level(&purse.state, level_of(&purse.state) + ticks_of(charge.cost, n))
                    self.units += charge.cost
                charge.state = purse.state
            else:
                # What a fresh look at these numbers makes of it: it fits when the lease starts.
                set_level(&charge.state, ticks_of(n.limit - min(here[i], n.limit), n))
                more_us = ceil_div(ticks_of(charge.cost - here[i], n), <u128>n.refill)
                charge.state.at_us = charges.now_us + max(0, start[i] - now_us - clip_us(more_us))
            if left <= purse.low and not purse.called:
                purse.called = True
                self.wake(purse)
        self.decisions += 1
        return PURSE_DECIDED
