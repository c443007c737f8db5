# What a step does to one charge, wherever its cell lies: the stores of this process and of this host differ only in how a
# cell is found, read and written.

cdef struct FullCounts:
    # What became of newcomers that found no room.
    int64_t shared
    int64_t denied
    int64_t allowed


cdef inline void judge(Charge *charge, const Cell *source, const Numbers *written, const Numbers *n, int64_t now_us) noexcept:
    """Brings a copy of `source`, written under the numbers `written`, to now and asks it; NULL: there is nothing written yet."""
    cdef Cell state  # in registers: compilers do not know that `n` lies elsewhere than `charge`
    cdef bint rebased = False
    state = source[0]
    if written == NULL:
        fresh(&state, n, now_us)
    else:
        rebased = touch(&state, written, n, now_us)
    if charge.verdict == FITS and not fits(&state, n, charge.cost, now_us):
        charge.verdict = OVER
    charge.end_us = state.at_us + n.window_us
    if n.calendar:
        charge.end_us = n.end_us if state.at_us == n.start_us else 0  # 0: looked up when it is read
    charge.rebased = rebased
    state.numbers = charge.numbers
    charge.state = state


cdef inline bint stand_in(Charge *charge, const CompiledLimit *c) noexcept:
    """A store that is away: True when the limit is decided without it (`when_store_fails`)."""
    if c.when_store_fails == 0:
        return False
    charge.unknown = True
    if c.when_store_fails == 1:
        charge.verdict = UNAVAILABLE
    return True


cdef inline bint without_room(Charge *charge, const CompiledLimit *c, const Numbers *n, FullCounts *counts) noexcept:
    """A newcomer that has no room (`when_full`). True when it shares a bucket with the others."""
    if c.when_full == 0:
        charge.newcomer = False
        charge.shared = True
        counts.shared += 1
        return True
    if charge.cost > n.limit:
        charge.verdict = OVER  # that never fits, and is not for want of room
    elif c.when_full == 1:
        charge.verdict = FULL if charge.cost > 0 else FITS
        counts.denied += 1
    else:
        charge.unknown = True
        counts.allowed += 1
    return False


cdef inline bint charge_state(Charge *charge, const CompiledLimit *c, const Numbers *n, bint admitted, int64_t now_us) noexcept:
    """What the step makes of a judged state. True when that must be written."""
    cdef bint write = charge.rebased
    if admitted:
        if charge.verdict == FITS:
            take(&charge.state, n, charge.cost)
            write = True
    elif c.count_denied:
        write |= penalise(&charge.state, n, charge.cost, now_us)
    return write


cdef inline bint amend(Charge *charge, const Cell *source, const Numbers *written, const Numbers *n, int64_t charged,
                       int64_t actual, int64_t charged_us, int64_t start_us, int64_t now_us) noexcept:
    """Settles a difference in a copy of `source`. True when that changed it."""
    cdef bint changed = False
    charge.state = source[0]
    if written == NULL:
        fresh(&charge.state, n, now_us)
    else:
        changed = touch(&charge.state, written, n, now_us)
    charge.state.numbers = charge.numbers
    if actual < charged:
        changed |= give_back(&charge.state, n, charged - actual, charged_us, start_us)
    else:
        changed |= owe(&charge.state, n, actual - charged)
    return changed


cdef uint32_t numbers_now(CompiledPolicy policy, int index, object plan) except? 0:
    """The entry of the numbers that hold now for a limit and a plan that may be unheard of."""
    cdef uint32_t entry = policy.items[index].numbers
    if plan is not None and policy.plans[index] is not None:
        entry = (<dict>policy.plans[index]).get(plan, entry)
    return entry


cdef inline Hash128 receipt_hash(bytes receipt_id, Registry registry):
    return never_zero(siphash128(<const uint8_t *><const char *>receipt_id, len(receipt_id), registry.k0, registry.k1))
