# What a remote store is asked, and what it answers: one request as keys, a shape and costs on the way there, five doubles for
# each of its charges on the way back (shield/store/lua/check.lua). The texts of commands are Shape's and Batcher's
# (shield/store/steps.py, batch.py); here is what has to be done for every single request.

cdef enum:
    OUTCOME = 5            # numbers of a reply that speak of one charge
    OUTLINE_CHARGES = 16   # requests that meet more limits are described anew each time
    OUTLINE_GROUPS = 63    # as are those of a policy with more different keys than that

cdef list NO_LEASES = []  # nobody writes to it

cdef double MAX_WHOLE = 9007199254740992.0  # scripts count in doubles


cdef int64_t whole(double number) except? -1:
    """A double of a reply as the whole number it must be. ValueError."""
    if not -MAX_WHOLE <= number <= MAX_WHOLE or <double><int64_t>number != number:
        raise ValueError(f"{number!r} is no whole number")
    return <int64_t>number


@cython.final
@cython.freelist(64)
cdef class Outcome:
    """What a remote store did with one request, at its instant `now_us`: a status of check.lua, after how many microseconds
    its nonce is right (0 where that is not a matter of waiting), and five numbers for each charge that the store was told of.

    `states` may be any sequence of whole numbers. ValueError, also when states of a reply are read that are none.
    """

    cdef readonly int64_t now_us
    cdef readonly int64_t status
    cdef readonly int64_t retry_us
    cdef bytes told        # doubles
    cdef Py_ssize_t first  # which of them begins the states
    cdef Py_ssize_t n      # charges

    def __init__(self, int64_t now_us, int64_t status, states, int64_t retry_us=0):
        if len(states) % OUTCOME:
            raise ValueError(f"{len(states)} numbers do not tell of whole charges")
        self.now_us, self.status, self.retry_us = now_us, status, retry_us
        self.told = doubles_of(states)
        self.first, self.n = 0, len(states) // OUTCOME

    cdef inline double number(self, Py_ssize_t i) noexcept:
        cdef double found
        memcpy(&found, PyBytes_AS_STRING(self.told) + 8 * (self.first + i), 8)
        return found

    @property
    def states(self):
        """Five numbers a charge, one charge behind the other."""
        cdef Py_ssize_t i
        return [whole(self.number(i)) for i in range(OUTCOME * self.n)]


cdef bytes doubles_of(numbers):
    cdef Py_ssize_t i, n = len(numbers)
    cdef double number
    cdef bytes told = PyBytes_FromStringAndSize(NULL, 8 * n)
    for i in range(n):
        number = numbers[i]
        memcpy(PyBytes_AS_STRING(told) + 8 * i, &number, 8)
    return told


@cython.final
@cython.freelist(64)
cdef class Step:
    """One request on its way: which keys, which shape (shield.store.steps.Shape), which costs."""

    cdef readonly Charges charges
    cdef readonly object shape
    cdef readonly list cells
    """Its keys, each as an argument on the wire."""
    cdef readonly tuple costs
    cdef readonly list lease_ids
    cdef readonly object nonce
    cdef object chosen
    cdef public int slot
    """In a cluster: where all its keys lie. Only steps of one slot share a command."""
    cdef public object claim
    """The idempotency key that is taken with it."""
    cdef public bint alone
    """In a cluster: it shares a command with none, because the slot is on its way."""

    def __init__(self, Charges charges not None, shape, list cells not None, tuple costs not None, list lease_ids not None,
                 of=None, nonce=None):
        self.charges, self.shape, self.cells, self.costs = charges, shape, cells, costs
        self.lease_ids, self.nonce, self.chosen = lease_ids, nonce, of
        self.slot = -1

    @property
    def of(self):
        """Which of the request's charges these are."""
        return range(len(self.costs)) if self.chosen is None else self.chosen

    @property
    def nonce_key(self):
        """Which of its keys bounds the tenant's nonces. That is its last charge, and the nonce goes where it goes."""
        return self.shape.key_of[len(self.costs) - 1] - 1

    def keys_in_order(self):
        """All its keys, what the nonce goes with last."""
        cdef list keys = list(range(len(self.cells)))
        return keys if self.nonce is None else sorted(keys, key=self.nonce_key.__eq__)

    def part(self, tuple keys not None, *, bint refused=False, bint penal=True):
        """The charges of some of its keys alone. `refused`: they take nothing, and penalise, if they are `penal`."""
        nonce = self.nonce if self.nonce is not None and self.nonce_key in keys else None
        shape, chosen = self.shape.part(keys, refused or self.shape.refused, nonce is not None, penal)
        ids = dict(zip(self.shape.places, self.lease_ids))
        of = self.of
        return Step(
            self.charges, shape, [self.cells[key] for key in keys], tuple([self.costs[i] for i in chosen]),
            [ids[i] for i in chosen if i in ids], [of[i] for i in chosen], nonce,
        )


@cython.final
@cython.freelist(64)
cdef class Asked:
    """One request, and who waits for it: until `deadline`, on the loop's clock."""

    cdef readonly Step step
    cdef readonly object future
    cdef readonly double deadline
    cdef readonly object around_us
    """About what time it is there, where another guess than the usual was wrong."""
    cdef readonly bint asking
    """Of a slot that is on its way to this server: the command has to say so."""

    def __init__(self, Step step not None, future, double deadline, around_us, bint asking=False):
        self.step, self.future, self.deadline, self.around_us, self.asking = step, future, deadline, around_us, asking


@cython.final
cdef class Steps:
    """Describes requests to a store: those whose like has been seen need only their keys and costs written down.

    `learn(charges)` makes the shape of a new kind; at most `max_shapes` are kept, all of one policy. `name(charges, shape,
    partitions, costs)` makes the step where more is to be named than cells, `odd(charges)` where there are too many limits.
    """

    cdef dict shapes
    cdef object policy  # whose shapes these are
    cdef object learn, name, odd
    cdef Py_ssize_t max_shapes

    def __init__(self, learn, name, odd, Py_ssize_t max_shapes):
        self.shapes = {}
        self.learn, self.name, self.odd, self.max_shapes = learn, name, odd, max_shapes

    def step(self, Charges charges not None):
        """One request in the words of the scripts."""
        # What charges have in common that differ in keys and costs alone.
        cdef uint32_t marks[2 * OUTLINE_CHARGES + 1]
        cdef int64_t seen = 0
        cdef int i, group, n = charges.n
        cdef list partitions = [], cells
        cdef tuple costs
        cdef object shape, partition, cell
        if n > OUTLINE_CHARGES:
            return self.odd(charges)
        marks[0] = 2 if charges.has_nonce else 0
        if charges.reason is not None or charges.asking:
            marks[0] += 1
        for i in range(n):
            group = charges.policy.items[charges.items[i].limit].group
            if group >= OUTLINE_GROUPS:
                return self.odd(charges)
            if not seen >> group & 1:
                seen |= <int64_t>1 << group
                partitions.append(charges.policy.partition(charges, group))
            marks[2 * i + 1] = charges.items[i].limit
            marks[2 * i + 2] = charges.items[i].numbers
        costs = tuple([charges.items[i].cost for i in range(n)])
        if charges.policy is not self.policy:
            self.policy = charges.policy
            self.shapes.clear()
        outline = (<char *>marks)[:4 * (2 * n + 1)]
        shape = self.shapes.get(outline)
        if shape is None:
            if len(self.shapes) >= self.max_shapes:
                self.shapes.clear()
            shape = self.shapes[outline] = self.learn(charges)
        named = shape.named
        if named is None or charges.has_nonce:
            return self.name(charges, shape, partitions, costs)
        cells = []
        for at, known, make in <tuple>named:
            partition = partitions[at]
            cell = (<dict>known).get(partition)
            cells.append(make(partition) if cell is None else cell)
        return Step(charges, shape, cells, costs, NO_LEASES)


cdef tuple AS_BEFORE = (b"$0\r\n\r\n", b"$0\r\n\r\n")


def check_command(bytes head not None, bytes common not None, list batch not None, around_us):
    """The command that decides these requests: check.lua's, or keyed.lua's for one with an idempotency key.

    `head`: EVALSHA and the script's name; `common`: the two arguments that all requests share; `around_us`: about what time
    it is at the server. All in the wire's form.
    """
    cdef list keys = [], arguments = [common]
    cdef int n_arguments = 2
    cdef object shape = None, before = None
    cdef bytes wire = None, mine
    cdef tuple costs = None
    cdef Asked asked
    cdef Step step
    for asked in batch:
        step = asked.step
        keys.extend(step.cells)
        if step.shape is before and asked.around_us is None:
            mine = wire
        else:
            mine = step.shape.wire(around_us if asked.around_us is None else asked.around_us)
        if mine is wire and step.costs == costs:
            arguments.extend(AS_BEFORE)
        else:
            arguments.append(mine)
            arguments.append(bulk(doubles_of(step.costs)))
        before, wire, costs = step.shape if asked.around_us is None else None, mine, step.costs
        n_arguments += 2
        if step.nonce is not None:
            keys.extend(step.nonce.keys)
            arguments.append(step.nonce.facts)
            arguments.append(bulk(step.nonce.owner))
            n_arguments += 2
        for lease_id in step.lease_ids:
            arguments.append(bulk((<str>lease_id).encode()))
            n_arguments += 1
        if step.claim is not None:
            keys.extend(step.claim.keys)
            arguments.append(step.claim.packed)
            n_arguments += 1
    return b"".join([b"*%d\r\n" % (3 + len(keys) + n_arguments), head, bulk(b"%d" % len(keys)), *keys, *arguments])


cdef bytes bulk(bytes item):
    """One argument of a command in the wire's form."""
    return b"$%d\r\n%b\r\n" % (len(item), item)


def next_batch(queue not None, Py_ssize_t most):
    """The first of a deque of `Asked` that may share a command, `most` at most and one at least; whoever has gone is left out.
    A script's keys all lie in one slot of a cluster, and one request with an idempotency key has a script of its own."""
    cdef list batch = []
    cdef Asked asked, first = None
    cdef Step one, two
    while queue and len(batch) < most:
        asked = queue[0]
        if first is not None:
            one, two = first.step, asked.step
            if (one.claim is not None or two.claim is not None or one.slot != two.slot or one.alone or two.alone
                    or first.asking != asked.asking):
                break
        queue.popleft()
        if not asked.future.done():
            batch.append(asked)
            if first is None:
                first = asked
    return batch


def outcomes_in(bytes told not None, list batch not None):
    """What a reply of check.lua says of each request, in their order. None for one that is not a reply to these."""
    cdef Py_ssize_t n = PyBytes_GET_SIZE(told) // 8, at = 1, first
    cdef const char *bytes_of = PyBytes_AS_STRING(told)
    cdef double now_us = 0, status = 0, retry_us
    cdef list outcomes = []
    cdef Asked asked
    cdef Outcome outcome
    if n < 1 or 8 * n != PyBytes_GET_SIZE(told):
        return None
    memcpy(&now_us, bytes_of, 8)
    for asked in batch:
        first = at + (2 if asked.step.nonce is not None else 1)
        if first + OUTCOME * len(asked.step.costs) > n:
            return None
        retry_us = 0
        memcpy(&status, bytes_of + 8 * at, 8)
        if asked.step.nonce is not None:
            memcpy(&retry_us, bytes_of + 8 * (at + 1), 8)
        outcome = Outcome.__new__(Outcome)
        outcome.told, outcome.first, outcome.n = told, first, len(asked.step.costs)
        try:
            # Ages away is past what doubles count; Charges works it out itself then.
            outcome.retry_us = whole(retry_us if not retry_us > MAX_WHOLE else MAX_WHOLE)
            outcome.now_us, outcome.status = whole(now_us), whole(status)
        except ValueError:
            return None
        outcomes.append(outcome)
        at = first + OUTCOME * outcome.n
    return outcomes if at == n else None
