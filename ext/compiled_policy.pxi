from shield.core.bucket import Bucket

cdef extern from "Python.h":

    ctypedef struct PyMemberDef:
        int type
        Py_ssize_t offset
    ctypedef struct PyMemberDescrObject:
        PyMemberDef *d_member

cdef extern from "structmember.h":
    int T_OBJECT_EX

cdef enum CostKind:
    COST_FIXED = 0
    COST_REQUEST = 1
    COST_BYTES = 2
    COST_GRAPHQL = 3
    COST_GRAPHQL_TYPE = 4

# By CostKind: what a limit says, and which actual figure settles its charge later.
cdef tuple COST_KINDS = (None, "request", "bytes", "graphql", "graphql:type")
cdef tuple SETTLED_BY = (None, "cost", "bytes", "cost", "type_cost")

cdef int64_t MAX_COST = (<int64_t>1 << MAX_COST_BITS) - 1

cdef enum:
    MAX_KEY_FIELDS = 8
    PARTITION_BYTES = 256  # the values of nearly all keys
    FAST_GROUPS = 16    # distinct keys of a policy that are hashed once a request; those beyond, once a limit
    # For a request id and the name of a plan, which are handed back and sealed into receipts.
    MAX_TEXT_BYTES = 1024
    # For a nonce: twice what a 512-bit value takes in any encoding, and hashed at once.
    MAX_NONCE_BYTES = 512

cdef struct CompiledLimit:
    int algorithm
    int group            # which distinct tuple of key fields
    int cost_kind
    int enforced
    int deny_missing
    int count_denied
    int when_full        # 0 share, 1 deny, 2 allow
    int when_store_fails  # 0 local, 1 deny, 2 allow
    int nonces           # 0; 1 bounds the nonces of a tenant, 2 those of requests without one: no limit that users see
    int leased           # units may be taken in advance where the store is another host's
    int identity
    uint32_t numbers
    int64_t cost
    int64_t ttl_us
    Hash128 seed         # mixed into the key's hash: one hash of a key serves all limits that count by it

cdef struct KeyGroup:
    int size
    int first                          # the first limit that counts by it
    int plain                          # all its fields are texts that are hashed as they stand, by their slots
    int fields[MAX_KEY_FIELDS]
    Py_ssize_t slots[MAX_KEY_FIELDS]   # where in a request a text lies that is hashed as it stands; 0: the field is read otherwise

cdef enum HashState:
    HASH_UNKNOWN = 0     # not looked at
    HASH_KNOWN = 1
    HASH_ABSENT = 2      # a field is absent
    HASH_MALFORMED = 3   # a field is malformed, and the request refused for it

cdef struct KeyHashes:
    Hash128 of[FAST_GROUPS]
    int states[FAST_GROUPS]

# What every request is asked for, whatever the policy says; a policy's key fields come behind them.
cdef enum Fact:
    FACT_COST = 0
    FACT_BYTES = 1
    FACT_PLAN = 2
    FACT_REQUEST_ID = 3
    FACT_IP = 4
    FACT_NONCE = 5
    FACT_TENANT = 6
    FACT_KEYS = 7

cdef tuple FACTS = ("cost", "bytes", "plan", "request_id", "ip", "nonce", "tenant")

cdef enum:
    MAX_FACTS = 64

cdef dict WHEN_FULL = {"share": 0, "deny": 1, "allow": 2}
cdef dict WHEN_STORE_FAILS = {"local": 0, "deny": 1, "allow": 2}


# Guards as decisions name them where they are in shadow mode.
cdef str SIZE_GUARD = "guard.size"
cdef str GRAPHQL_GUARD = "guard.graphql"


@cython.final
cdef class CompiledPolicy:
    """A policy resolved once: integers, indexes and hashes, with nothing conditional left but the request.

    `limits`: shield.policy.Limit objects. `select(method, path)`: the indexes of the limits that match
    (ValueError for a value that is malformed), or None when all match always. `guard(request_bytes, content_type)`: None,
    or (reason, detail). `price(request)`: None where there is no GraphQL to price, or (reason or None, detail, operations,
    cost, type cost); `max_cost`: its ceiling, for header fields. `normalise(path)`: the path that is counted by. `windows[i](now_us)`: (start_us, end_us) of a calendar limit's window, None for others.
    `overrides[i]`: from the canonical bytes of a key to the name of the plan whose numbers it has instead, or None; None: there
    are none. `under`: begins the names of the plans whose numbers every request meets, whatever plan it states.
    `replay`: None, or (required, window_us, future_skew_us, allow while the store is away); then the last two limits are the
    bounds of a tenant's nonces and of those without one. `shadows`: guards that only tell.
    """

    cdef Registry registry
    cdef Wording wording
    cdef readonly tuple limits
    cdef tuple names
    cdef readonly dict index      # name of a limit -> its place in `limits`
    cdef CompiledLimit *items
    cdef KeyGroup *groups
    cdef int n_limits
    cdef int n_groups
    cdef list fields              # attribute names of a request; "attributes.NAME" beyond
    cdef uint8_t *is_attribute    # per field
    cdef list plans               # per limit: dict plan -> numbers entry, or None
    cdef list windows
    cdef tuple everything
    cdef object select
    cdef object guard
    cdef object price
    cdef int64_t max_cost         # of GraphQL operations; -1: no ceiling
    cdef object normalise
    cdef int ipv6_prefix
    cdef str under
    cdef list overrides
    cdef set known_plans
    cdef bint size_shadows       # these guards only tell what they would have refused
    cdef bint graphql_shadows
    cdef bint any_calendar
    cdef int n_told               # how many of the limits are the policy's own
    cdef bint replay              # nonces are looked at
    cdef bint nonce_required
    cdef int64_t nonce_window_us
    cdef int64_t nonce_skew_us
    cdef bint nonce_fails_open    # while the store is away
    cdef readonly bint leases    # some limit may be leased
    cdef int path_field
    cdef int ip_field
    cdef object request_type     # the class whose slots were looked up last
    cdef Py_ssize_t offsets[MAX_FACTS]

    def __cinit__(self, Registry registry not None, limits, *, select=None, guard=None, price=None, max_cost=None, normalise=None,
                  windows=None, int ipv6_prefix=64, str under=None, replay=None, overrides=None, shadows=()):
        cdef int i
        cdef CompiledLimit *c
        cdef dict groups = {}
        self.registry = registry
        self.limits = tuple(limits)
        self.n_limits = self.n_told = len(self.limits)
        if replay is not None:
            self.replay = True
            self.n_told -= 2
            self.nonce_required, self.nonce_window_us, self.nonce_skew_us, self.nonce_fails_open = replay
        self.names = tuple(limit.name for limit in self.limits)
        self.index = {limit.name: i for i, limit in enumerate(self.limits)}
        self.select, self.guard, self.normalise = select, guard, normalise
        self.price, self.max_cost = price, -1 if max_cost is None else max_cost
        self.windows = list(windows) if windows is not None else [None] * self.n_limits
        self.ipv6_prefix = ipv6_prefix
        self.size_shadows, self.graphql_shadows = SIZE_GUARD in shadows, GRAPHQL_GUARD in shadows
        self.everything = tuple(range(self.n_limits))
        self.fields, self.plans = [], []
        self.path_field = self.ip_field = -1
        self.items = <CompiledLimit *>PyMem_Calloc(self.n_limits + 1, sizeof(CompiledLimit))
        self.groups = <KeyGroup *>PyMem_Calloc(self.n_limits + 1, sizeof(KeyGroup))
        self.is_attribute = <uint8_t *>PyMem_Calloc(self.n_limits * MAX_KEY_FIELDS + 1, 1)
        if self.items == NULL or self.groups == NULL or self.is_attribute == NULL:
            raise MemoryError
        for i in range(self.n_limits):
            self.compile(i, self.limits[i], groups)
        self.wording = Wording(self.limits, [self.items_of(i) for i in range(self.n_limits)])
        self.overrides = list(overrides) if overrides is not None else None
        self.under, self.known_plans = under, {plan for limit in self.limits for plan in limit.plans}
        # Only now that nothing can fail any more: a policy that is refused changes nothing.
        for i in range(self.n_limits):
            plans = self.plans[i] or {}
            registry.put_in_force(self.limits[i].identity, [self.items[i].numbers, *plans.values()])

    def __dealloc__(self):
        PyMem_Free(self.items)
        PyMem_Free(self.groups)
        PyMem_Free(self.is_attribute)

    cdef int compile(self, int i, object limit, dict groups) except -1:
        cdef CompiledLimit *c = &self.items[i]
        c.algorithm = ALGORITHMS[limit.algorithm]
        c.enforced = limit.mode == "enforce"
        c.deny_missing = limit.missing == "deny"
        # Leases are places, not units: a refusal cannot take one.
        c.count_denied = limit.count_denied and c.algorithm != CONCURRENCY and c.enforced
        c.when_full = WHEN_FULL[limit.when_full]
        c.when_store_fails = WHEN_STORE_FAILS[limit.when_store_fails]
        c.ttl_us = limit.ttl_us or 0
        c.nonces = max(0, i + 1 - self.n_told)
        c.leased = limit.lease == "auto"
        self.leases |= c.leased
        if isinstance(limit.cost, str):
            c.cost_kind = COST_KINDS.index(limit.cost)
        else:
            c.cost = limit.cost
        c.identity = self.registry.identity_index(limit.identity)
        c.numbers = <uint32_t>self.registry.intern(limit, None, limit.numbers)
        c.seed = self.registry.seed_of(limit.identity, limit.key)
        self.plans.append({p: self.registry.intern(limit, p, n) for p, n in limit.plans.items()} or None)
        self.any_calendar |= limit.align is not None
        if limit.key not in groups:
            groups[limit.key] = self.n_groups
            self.groups[self.n_groups].first = i
            self.add_group(limit.key)
        c.group = groups[limit.key]
        return 0

    cdef list items_of(self, int i):
        """The numbers that limit's charges may have, each with its item of RateLimit-Policy and how much is allowed; its own
        come first."""
        entries = [self.items[i].numbers, *(self.plans[i] or {}).values()]
        return [(entry, policy_item(self.limits[i], &self.registry.items[<uint32_t>entry]),
                 self.registry.items[<uint32_t>entry].limit) for entry in entries]

    cdef int add_group(self, tuple key) except -1:
        cdef KeyGroup *g = &self.groups[self.n_groups]
        if len(key) > MAX_KEY_FIELDS:
            raise ValueError(f"a key has at most {MAX_KEY_FIELDS} fields")
        for name in key:
            if name not in self.fields:
                self.is_attribute[len(self.fields)] = name.startswith("attributes.")
                self.fields.append(name)
                if name == "path":
                    self.path_field = len(self.fields) - 1
                elif name == "ip":
                    self.ip_field = len(self.fields) - 1
            g.fields[g.size] = self.fields.index(name)
            g.size += 1
        self.n_groups += 1
        return 0

    # ---- one request ------------------------------------------------------------------------------------------------

    def charges(self, request):
        """What `request` would take: `Charges`, refused already when a value is malformed or a guard says so."""
        return self.plan(request, NULL, NULL)

    # ---- reading facts: a request's slots are read where they lie, which is five times as fast as by name ------------

    cdef int learn(self, type cls) except -1:
        """Finds the slots of a class of requests. A fact that is no plain slot there is read by its name."""
        cdef int i
        cdef object descriptor
        cdef PyMemberDef *member
        names = [*FACTS, *self.fields]
        for i in range(MAX_FACTS):
            self.offsets[i] = 0
            if i < len(names):
                descriptor = getattr(cls, names[i], None)
                if type(descriptor) is MemberDescriptorType:
                    member = (<PyMemberDescrObject *><PyObject *>descriptor).d_member
                    if member.type == T_OBJECT_EX:
                        self.offsets[i] = member.offset
        for i in range(self.n_groups):
            self.learn_key(&self.groups[i])
        self.request_type = cls
        return 0

    cdef int learn_key(self, KeyGroup *g) except -1:
        cdef int i, field
        g.plain = g.size > 0
        for i in range(g.size):
            field = g.fields[i]
            g.slots[i] = 0
            if FACT_KEYS + field < MAX_FACTS and not self.is_attribute[field] and field not in (self.ip_field, self.path_field):
                g.slots[i] = self.offsets[FACT_KEYS + field]
            if g.slots[i] == 0:
                g.plain = False
        return 0

    cdef inline object fact(self, object request, int i):
        """One fact of a request of the class that was learnt."""
        cdef PyObject *value
        if i < MAX_FACTS and self.offsets[i] > 0:
            value = (<PyObject **>(<char *><PyObject *>request + self.offsets[i]))[0]
            if value != NULL:
                return <object>value
        return getattr(request, FACTS[i] if i < FACT_KEYS else self.fields[i - FACT_KEYS])

    cdef inline const char *plain(self, object request, Py_ssize_t slot, Py_ssize_t *size_bytes) noexcept:
        """The bytes of a text that lies in this slot, not empty and plain ASCII; NULL: it is to be read otherwise."""
        cdef const char *data
        if slot == 0:
            return NULL
        data = ascii_at((<PyObject **>(<char *><PyObject *>request + slot))[0], size_bytes)
        return data if data != NULL and size_bytes[0] > 0 else NULL

    cdef inline bint lacks(self, object request, int i) noexcept:
        """The fact is surely None, as most are: a look at its slot. False: read it."""
        return self.offsets[i] > 0 and (<PyObject **>(<char *><PyObject *>request + self.offsets[i]))[0] == <PyObject *>None

    cdef Charges plan(self, object request, const KeyTable *ahead, const Slots *mapped):
        """`ahead` or `mapped`: the table whose cells are fetched while planning goes on, or NULL."""
        cdef tuple matched = self.everything
        cdef object reason
        cdef KeyHashes hashes
        if type(request) is not self.request_type:
            self.learn(type(request))
        memset(hashes.states, HASH_UNKNOWN, sizeof(hashes.states))
        if self.select is None:
            self.begin(request, &hashes, ahead, mapped)
        cdef Charges charges = Charges.__new__(Charges)
        charges.policy = self
        charges.request = request
        charges.request_cost = 1
        if not self.lacks(request, FACT_COST):
            charges.request_cost = self.request_int(charges, self.fact(request, FACT_COST), "cost", 1)
        if not self.lacks(request, FACT_BYTES):
            charges.request_bytes = self.request_int(charges, self.fact(request, FACT_BYTES), "bytes", 0)
        if not self.lacks(request, FACT_PLAN):
            charges.plan = self.request_text(charges, self.fact(request, FACT_PLAN), "plan")
        if self.under is not None:
            charges.plan = self.under + (charges.plan or "")
            if charges.plan not in self.known_plans:
                charges.plan = self.under
        if not self.lacks(request, FACT_REQUEST_ID):
            charges.request_id = self.request_text(charges, self.fact(request, FACT_REQUEST_ID), "request_id")
        self.read_address(charges, self.fact(request, FACT_IP))
        if self.select is not None:
            try:
                matched = self.select(request.method, request.path)
            except ValueError as error:
                charges.refuse("invalid", str(error))
                matched = self.select(None, None)  # limits without conditions are met all the same
        cdef bint guarded = self.replay and (matched is self.everything or self.n_told in matched)
        if guarded and not self.lacks(request, FACT_NONCE):
            self.read_nonce(charges, request, self.fact(request, FACT_NONCE))
        if self.guard is not None and charges.reason is None:
            if request.content_type is not None and not PyUnicode_Check(request.content_type):
                charges.refuse("invalid", f"content_type: expected text, not {type(request.content_type).__name__}")
            else:
                reason = self.guard(None if request.bytes is None else charges.request_bytes, request.content_type)
                if reason is None:
                    pass
                elif self.size_shadows:
                    charges.shadow_refusal(SIZE_GUARD)
                else:
                    charges.refuse(reason[0], reason[1])
        if self.price is not None and charges.reason is None:
            self.read_price(charges, request)
        if guarded and not charges.has_nonce and self.nonce_required:
            charges.refuse("nonce_missing", "nonce: absent, and this policy requires one")
        self.collect(charges, request, matched, &hashes, ahead, mapped)
        return charges

    cdef int begin(self, object request, KeyHashes *hashes, const KeyTable *ahead, const Slots *mapped) noexcept:
        """Where every limit is met: hashes the keys that are plain texts before all else, one beside the other, and has their
        cells fetched, which takes as long as the rest of a plan. What is not as expected is left to be seen in its turn."""
        cdef KeyGroup *g
        cdef Hash128 *h
        cdef Sip sip
        cdef const char *data = NULL
        cdef Py_ssize_t size_bytes
        cdef uint64_t lengths
        cdef int i, group
        for group in range(min(self.n_groups, FAST_GROUPS)):
            g = &self.groups[group]
            if not g.plain:
                continue
            h = &hashes.of[group]
            lengths = 0
            sip_start(&sip, self.registry.k0, self.registry.k1)
            for i in range(g.size):
                data = self.plain(request, g.slots[i], &size_bytes)
                if data == NULL:
                    break
                sip_field(&sip, i, data, size_bytes, &lengths)
            if data == NULL:
                continue
            h[0] = sip_end(&sip, lengths)
            hashes.states[group] = HASH_KNOWN
            if ahead != NULL:
                table_prefetch(ahead, h.a ^ self.items[g.first].seed.a)
            elif mapped != NULL:
                prefetch_slot(home_slot(mapped, h.a ^ self.items[g.first].seed.a))
        return 0

    cdef int collect(self, Charges charges, object request, tuple matched, KeyHashes *hashes, const KeyTable *ahead,
                     const Slots *mapped) except -1:
        cdef Hash128 slow_hash
        cdef Hash128 *h
        cdef int i, state
        cdef Py_ssize_t k, n_matched = len(matched)
        cdef bint every = matched is self.everything
        cdef CompiledLimit *c
        cdef Charge *charge
        charges.reserve(n_matched)
        for k in range(n_matched):
            i = <int>k if every else matched[k]
            c = &self.items[i]
            if c.nonces != 0 and (not charges.has_nonce or (c.nonces == 2) == charges.of_tenant):
                continue
            if c.group < FAST_GROUPS:
                h = &hashes.of[c.group]
                state = hashes.states[c.group]
                if state == HASH_UNKNOWN:
                    state = hashes.states[c.group] = self.hash_group(charges, request, c.group, h)
            else:
                h = &slow_hash
                state = self.hash_group(charges, request, c.group, h)
            if state != HASH_KNOWN:
                if state == HASH_ABSENT and c.deny_missing and c.enforced and charges.reason is None:
                    charges.refuse("missing", f"{self.absent(request, i)}: needed by limit {self.limits[i].name}")
                continue
            charge = charges.add()
            charge.limit = i
            charge.hash.a = h.a ^ c.seed.a
            charge.hash.b = h.b ^ c.seed.b
            charge.hash = never_zero(charge.hash)
            if ahead != NULL:
                table_prefetch(ahead, charge.hash.a)
            elif mapped != NULL:
                prefetch_slot(home_slot(mapped, charge.hash.a))
            charge.numbers = c.numbers
            if charges.plan is not None and self.plans[i] is not None:
                found = (<dict>self.plans[i]).get(charges.plan)
                if found is not None:
                    charge.numbers = found
            if self.overrides is not None:
                self.override(charges, charge, c.group)
            charge.cost = c.cost
            if c.cost_kind != COST_FIXED:
                charge.cost = charges.stated_cost(c.cost_kind)
                charges.settleable = True
            elif charges.operations != 1 and c.algorithm != CONCURRENCY and c.nonces == 0:
                # A batch of ten logins is ten logins; but it is one request in flight.
                charge.cost = min(c.cost, MAX_COST // charges.operations) * charges.operations
            if c.algorithm == CONCURRENCY:
                charges.has_leases = True
        if charges.reason is not None:
            charges.keep_penalties()
        return 0

    cdef int read_nonce(self, Charges charges, object request, object nonce) except -1:
        """The nonce and the instant at which it was made. A value that cannot be one is the client's doing, hence a refusal;
        whether the instant is right is for the step to say, by the store's clock."""
        cdef object value, tenant, stamp
        cdef Py_ssize_t size_bytes
        try:
            value, stamp = nonce.value, nonce.timestamp
        except AttributeError:
            charges.refuse("invalid", f"nonce: expected an object with value and timestamp, not {type(nonce).__name__}")
            return 0
        if value is None or value == "":
            return 0
        if not PyUnicode_Check(value):
            charges.refuse("invalid", f"nonce.value: expected text, not {type(value).__name__}")
            return 0
        try:
            PyUnicode_AsUTF8AndSize(value, &size_bytes)
        except UnicodeEncodeError as error:
            charges.refuse("invalid", malformed("nonce.value", error))
            return 0
        if size_bytes > MAX_NONCE_BYTES:
            charges.refuse("invalid", f"nonce.value: {size_bytes} bytes, at most {MAX_NONCE_BYTES} are allowed")
            return 0
        tenant = self.fact(request, FACT_TENANT)
        if tenant is not None and not PyUnicode_Check(tenant):
            charges.refuse("invalid", f"tenant: expected text, not {type(tenant).__name__}")
            return 0
        if stamp is None or stamp == "":
            charges.refuse("invalid", "nonce.timestamp: absent; expected Unix time in seconds")
            return 0
        charges.nonce.stamp_us = stamp_of(stamp)
        if charges.nonce.stamp_us == NO_STAMP:
            charges.refuse("invalid", "nonce.timestamp: expected Unix time in seconds as a number")
            return 0
        charges.nonce.window_us, charges.nonce.skew_us = self.nonce_window_us, self.nonce_skew_us
        charges.of_tenant = bool(tenant)
        try:
            tenant = (tenant or "").encode()
        except UnicodeEncodeError as error:
            charges.refuse("invalid", malformed("tenant", error))
            return 0
        # Another tenant's nonce is another nonce, whatever stands in either.
        cdef bytes name = (<uint32_t>len(tenant)).to_bytes(4, "little") + tenant + value.encode()
        charges.more().nonce_name = name
        charges.nonce_hash = never_zero(siphash128(
            <const uint8_t *><const char *>name, len(name), self.registry.k0, self.registry.k1))
        charges.has_nonce = True
        return 0

    cdef int override(self, Charges charges, Charge *charge, int group) except -1:
        """The numbers that an operator has given this one key, if any."""
        cdef dict names = self.overrides[charge.limit]
        cdef object name, found = None
        if names is None:
            return 0
        name = names.get(self.partition(charges, group))
        if name is None or self.plans[charge.limit] is None:
            return 0
        if self.under is not None:
            found = (<dict>self.plans[charge.limit]).get(self.under + name)
        if found is None:
            found = (<dict>self.plans[charge.limit]).get(name)
        if found is not None:
            charge.numbers = found
        return 0

    cdef int read_price(self, Charges charges, object request) except -1:
        """What the request's GraphQL operations cost; what crosses a ceiling or cannot be priced is refused."""
        try:
            priced = self.price(request)
        except (TypeError, ValueError) as error:
            charges.refuse("invalid", str(error))
            return 0
        if priced is None:
            return 0
        reason, detail, operations, cost, type_cost = priced
        charges.is_priced = True
        charges.shows_cost = reason is None or reason == "graphql_cost"
        charges.operations = operations
        charges.graphql_cost = cost
        charges.graphql_type_cost = type_cost
        if reason is not None and self.graphql_shadows:
            charges.shadow_refusal(GRAPHQL_GUARD)
        elif reason is not None:
            charges.refuse(reason, detail)
        return 0

    cdef int64_t request_int(self, Charges charges, object value, str name, int64_t absent) except -1:
        """A count stated by the request: malformed ones are the client's, hence refusals."""
        cdef int overflow = 0
        cdef long long number
        if value is None:
            return absent
        if PyLong_Check(value) and not PyBool_Check(value):
            number = PyLong_AsLongLongAndOverflow(value, &overflow)
            if not overflow and 0 <= number < (<int64_t>1 << MAX_COST_BITS):
                return number
        charges.refuse("invalid", f"{name}: expected an integer from 0 to 2**53 - 1")
        return absent

    cdef object request_text(self, Charges charges, object value, str name):
        """A short text that goes into answers and receipts; None where it is absent or malformed."""
        cdef Py_ssize_t size_bytes
        if value is None:
            return None
        if not PyUnicode_Check(value):
            charges.refuse("invalid", f"{name}: expected text, not {type(value).__name__}")
            return None
        if ascii_of(value, &size_bytes) == NULL:
            try:
                PyUnicode_AsUTF8AndSize(value, &size_bytes)
            except UnicodeEncodeError as error:
                charges.refuse("invalid", malformed(name, error))
                return None
        if size_bytes > MAX_TEXT_BYTES:
            charges.refuse("invalid", f"{name}: {size_bytes} bytes, at most {MAX_TEXT_BYTES} are allowed")
            return None
        return value if size_bytes else None

    cdef int read_address(self, Charges charges, object text) except -1:
        """The address in its canonical form: 4 bytes, or the first ipv6_prefix bits of 16; mapped IPv4 is IPv4."""
        if text is None:
            return 0
        if not PyUnicode_Check(text):
            charges.refuse("invalid", f"ip: expected an address as text, not {type(text).__name__}")
        elif read_address(text, self.ipv6_prefix, &charges.address) < 0:
            charges.refuse("invalid", "ip: not an IPv4 or IPv6 address")
        return 0

    cdef object value_of(self, object request, int field):
        """A key field's value: a str that is not empty, or None."""
        cdef object value
        if self.is_attribute[field]:
            value = self.attribute_of(request, self.fields[field][11:])
        else:
            value = self.fact(request, FACT_KEYS + field)
            if field == self.path_field and value and self.normalise is not None:
                value = self.normalise(value)
        if value is None:
            return None
        if not PyUnicode_Check(value):
            raise TypeError(f"{self.fields[field]}: expected text, not {type(value).__name__}")
        return value if PyUnicode_GET_LENGTH(value) else None

    cdef object attribute_of(self, object request, str name):
        cdef object value = request.attributes
        if value is None:
            return None
        if not isinstance(value, dict):
            raise TypeError(f"attributes: expected an object, not {type(value).__name__}")
        value = value.get(name)
        if isinstance(value, bool):
            return "true" if value else "false"
        return str(value) if isinstance(value, (int, float)) else value

    cdef int hash_group(self, Charges charges, object request, int group, Hash128 *h) except -1:
        """Hashes the key fields. A HashState."""
        cdef KeyGroup *g = &self.groups[group]
        cdef Sip sip
        cdef const char *data
        cdef Py_ssize_t size_bytes
        cdef uint64_t lengths = 0
        cdef int i
        cdef object value
        sip_start(&sip, self.registry.k0, self.registry.k1)
        for i in range(g.size):
            data = self.plain(request, g.slots[i], &size_bytes)
            if data == NULL and g.fields[i] == self.ip_field:
                if charges.address.size_bytes == 0:
                    return HASH_ABSENT
                data = <const char *>charges.address.bytes
                size_bytes = charges.address.size_bytes
            elif data == NULL:
                try:
                    value = self.value_of(request, g.fields[i])
                    if value is None:
                        return HASH_ABSENT
                    data = PyUnicode_AsUTF8AndSize(value, &size_bytes)
                except (TypeError, ValueError) as error:
                    charges.refuse("invalid", malformed(self.fields[g.fields[i]], error))
                    return HASH_MALFORMED
            sip_field(&sip, i, data, size_bytes, &lengths)
        h[0] = sip_end(&sip, lengths)
        return HASH_KNOWN

    cdef object partition(self, Charges charges, int group):
        """The key's canonical bytes, each value behind its length, or the state that says why there are none."""
        cdef KeyGroup *g = &self.groups[group]
        cdef char room[PARTITION_BYTES]
        cdef const char *text
        cdef Py_ssize_t size_bytes, used = 0
        cdef list longer = None
        cdef uint32_t length
        cdef int i
        cdef object value
        for i in range(g.size):
            if g.fields[i] == self.ip_field:
                if charges.address.size_bytes == 0:
                    return HASH_ABSENT
                text, size_bytes = <char *>charges.address.bytes, charges.address.size_bytes
            else:
                try:
                    value = self.value_of(charges.request, g.fields[i])
                    if value is None:
                        return HASH_ABSENT
                    text = PyUnicode_AsUTF8AndSize(value, &size_bytes)
                except (TypeError, ValueError) as error:
                    charges.refuse("invalid", malformed(self.fields[g.fields[i]], error))
                    return HASH_MALFORMED
            if used + 4 + size_bytes > PARTITION_BYTES:
                longer = longer or []
                longer.append(room[:used])
                used = 0
                if size_bytes > PARTITION_BYTES - 4:
                    longer.append((<uint32_t>size_bytes).to_bytes(4, "little"))
                    longer.append(text[:size_bytes])
                    continue
            length = <uint32_t>size_bytes
            memcpy(&room[used], &length, 4)
            memcpy(&room[used + 4], text, size_bytes)
            used += 4 + size_bytes
        if longer is None:
            return room[:used]
        longer.append(room[:used])
        return b"".join(longer)

    cdef str absent(self, object request, int i):
        cdef KeyGroup *g = &self.groups[self.items[i].group]
        cdef int k
        for k in range(g.size):
            name = self.fields[g.fields[k]]
            if self.value_of(request, g.fields[k]) is None:
                return name
        return "key"

    def explain(self, request):
        """For each limit: (matched, why, key text or None). For people: it shows values, which nothing else here does."""
        cdef Charges charges = Charges.__new__(Charges)
        cdef list out = []
        cdef int i
        if type(request) is not self.request_type:
            self.learn(type(request))
        charges.policy = self
        charges.request = request
        self.read_address(charges, request.ip)
        try:
            selected = self.everything if self.select is None else self.select(request.method, request.path)
        except ValueError as error:
            charges.refuse("invalid", str(error))
        if charges.reason is not None:
            return [(False, charges.detail, None)] * self.n_told
        for i in range(self.n_told):
            limit = self.limits[i]
            if i not in selected:
                out.append((False, "method or path does not match", None))
                continue
            key = self.partition(charges, self.items[i].group)
            if isinstance(key, bytes):
                shown = ", ".join(f"{name}={self.shown(charges, request, name)}" for name in limit.key)
                out.append((True, "matches", shown))
            elif key == HASH_ABSENT:
                out.append((False, f"{self.absent_shown(charges, request, i)} is absent (missing = \"{limit.missing}\")", None))
            else:
                out.append((False, charges.detail, None))
        return out

    cdef str absent_shown(self, Charges charges, object request, int i):
        for name in self.limits[i].key:
            if self.shown(charges, request, name) is None:
                return name
        return "key"

    cdef object shown(self, Charges charges, object request, str name):
        if name == "ip":
            if charges.address.size_bytes == 0:
                return None
            raw = (<char *>charges.address.bytes)[:charges.address.size_bytes]
            import ipaddress
            text = str(ipaddress.ip_address(raw))
            return f"{text}/{self.ipv6_prefix}" if len(raw) == 16 else text
        return self.value_of(request, self.fields.index(name))


cdef inline void sip_field(Sip *sip, int i, const char *data, Py_ssize_t size_bytes, uint64_t *lengths) noexcept nogil:
    """Takes in field `i` of a key; its `lengths` begin with 0, and end the hash.

    Each field fills its last word up with zeros, and behind every second field, and the last, comes a word with the
    lengths of the two: read backwards that says where each began, so no two different keys have the same words.
    """
    cdef uint64_t part
    if i > 0 and i % 2 == 0:
        sip_word(sip, lengths[0])
        lengths[0] = 0
    part = sip_words(sip, <const uint8_t *>data, <size_t>size_bytes)
    if size_bytes % 8:
        sip_word(sip, part)
    lengths[0] |= <uint64_t><uint32_t>size_bytes << (32 * (i % 2))


cdef int64_t NO_STAMP = -(<int64_t>1 << 62)
cdef int64_t LAST_STAMP_US = <int64_t>1 << 60   # 36,000 years on either side: beyond any clock, and sums stay in int64


cdef int64_t stamp_of(object seconds) except? -1:
    """Unix seconds in whole microseconds, floored, within LAST_STAMP_US of the epoch; NO_STAMP for what is no number."""
    if isinstance(seconds, bool) or not isinstance(seconds, (int, float)):
        return NO_STAMP
    if seconds != seconds:
        return NO_STAMP
    if not -1e12 < seconds < 1e12:
        return LAST_STAMP_US if seconds > 0 else -LAST_STAMP_US
    if isinstance(seconds, int):
        return <int64_t>seconds * 1_000_000
    return <int64_t>(<object>(seconds * 1e6)).__floor__()


cdef str malformed(str field, object error):
    if isinstance(error, UnicodeEncodeError):
        return f"{field}: not text (a lone surrogate at position {error.start})"
    return str(error) if str(error).startswith(field) else f"{field}: {error}"
