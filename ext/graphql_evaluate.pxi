"""A program and one set of variables: the price."""

cdef int take_variables(Program p, object variables) except -1:
    """Refuses variables that are not of their declared types; sets what each stands for, and the conditions."""
    cdef int32_t i
    cdef Variable *v
    cdef PyObject *value
    cdef bint truth
    p.bits = 0
    for i in range(p.n_variables):
        v = &p.variables[i]
        value = NULL
        if variables is not None:
            value = PyDict_GetItemWithError(variables, p.variable_names[i])
        if value != NULL:
            check_object(p, v.ref, 0, value, p.variable_names[i], 0)
            v.state = GIVEN
            p.given[i] = value
        elif v.default >= 0:
            v.state = DEFAULTED
        elif v.ref.non_null & 1:
            raise Refusal("graphql_invalid", f"{p.variable_names[i]}: the variable is needed and was not given")
        else:
            v.state = UNDEFINED
        if v.bit >= 0:
            if v.state == GIVEN and PyBool_Check(<object>value):
                truth = <object>value is True
            elif v.state == DEFAULTED and p.nodes[v.default].kind != NULL_VALUE:
                truth = p.nodes[v.default].kind == TRUE
            else:
                raise Refusal("graphql_invalid", f"{p.variable_names[i]}: @skip or @include needs true or false")
            if truth:
                p.bits |= <uint64_t>1 << v.bit
    return 0

cdef inline int64_t size_of_use(Program p, const Use *u) noexcept nogil:
    """How many values the field has for each of its parent."""
    cdef int64_t largest = -1
    cdef int32_t i
    if not u.is_list:
        return 1
    for i in range(u.first_sized, u.first_sized + u.n_sized):
        largest = max(largest, p.slots[p.refs[i]].size)
    if largest < 0:
        for i in range(u.first_own, u.first_own + u.n_own):
            largest = max(largest, p.slots[p.refs[i]].size)
    return largest if largest >= 0 else p.default_size

cdef inline bint included(Program p, const Use *u) noexcept nogil:
    return (u.on & ~p.bits) == 0 and (u.off & p.bits) == 0

cdef inline Totals cost_of_use(Program p, const Use *u) noexcept nogil:
    cdef Totals t, inside
    cdef int64_t n
    inside.type = inside.field = <cost_t>0
    if u.child >= 0:
        inside = p.totals[u.child]
    if u.kind == U_FRAGMENT:
        return inside
    if u.kind == U_META:
        t.type = t.field = UNIT
        return t
    n = size_of_use(p, u)
    if p.dialect == IBM:
        t.type = cost_max(<cost_t>0, cost_times(n, cost_add(<cost_t>u.weight, inside.type)))
        t.field = cost_max(<cost_t>0, cost_add(u.call, cost_times(n, inside.field)))
    elif p.dialect == ROUTER:
        t.type = cost_max(<cost_t>0, cost_add(u.call, cost_times(n, cost_add(<cost_t>u.weight, inside.type))))
        t.field = t.type
    else:
        t.type = cost_add(UNIT, cost_times(n, inside.type))
        t.field = t.type
    return t

cdef inline Totals cost_of_group(Program p, const Group *g) noexcept nogil:
    cdef Totals largest, one
    cdef int32_t i
    largest.type = largest.field = <cost_t>0
    for i in range(g.first_use, g.first_use + g.n_uses):
        if included(p, &p.uses[i]):
            one = cost_of_use(p, &p.uses[i])
            largest.type = cost_max(largest.type, one.type)
            largest.field = cost_max(largest.field, one.field)
    return largest

cdef inline Totals cost_of_branch(Program p, const Branch *b) noexcept nogil:
    cdef Totals total, one
    cdef int32_t i
    total.type = total.field = <cost_t>0
    for i in range(b.first_group, b.first_group + b.n_groups):
        one = cost_of_group(p, &p.groups[i])
        total.type = cost_add(total.type, one.type)
        total.field = cost_add(total.field, one.field)
    return total

cdef void add_up(Program p) noexcept nogil:
    """Every set once, from the innermost to the operation's."""
    cdef int32_t s, i
    cdef Totals total, one
    for s in range(p.n_sets):
        total.type = total.field = <cost_t>0
        for i in range(p.sets[s].first_branch, p.sets[s].first_branch + p.sets[s].n_branches):
            one = cost_of_branch(p, &p.branches[i])
            total.type = cost_max(total.type, one.type)
            total.field = cost_max(total.field, one.field)
        p.totals[s] = total
    total = p.totals[p.root]
    total.type = cost_max(<cost_t>0, cost_add(<cost_t>p.root_weight, total.type))
    if p.dialect != IBM:
        total.field = total.type
    p.result = total

cdef int evaluate(Program p, object variables) except -1:
    """Leaves the price in `result`. What no variable can change is worked out once."""
    cdef int32_t i
    if variables is not None and not isinstance(variables, dict):
        raise Refusal("graphql_invalid", "variables: must be an object")
    take_variables(p, variables)
    if p.settled and not p.dynamic:
        return 0
    for i in range(p.n_slots):
        if p.slots[i].dynamic:
            p.slots[i].size = size_now(p, p.slots[i].field, p.slots[i].node)
    for i in range(p.n_uses):
        if p.uses[i].dynamic:
            p.uses[i].call = call_cost(p, &p.schema.fields[p.uses[i].field], p.uses[i].node)
    add_up(p)
    p.settled = True
    return 0


@cython.final
@cython.freelist(64)
cdef class Price:
    """What one operation costs, and what was counted on the way.

    `cost` is what a limit is charged: `field_cost` in the dialect "ibm", the dialect's one figure in the others, rounded up
    to whole units. All saturate at 2^53 - 1; `saturated` says whether one did.
    """

    cdef Totals totals
    cdef Program program
    cdef object given

    @property
    def type_cost(self):
        return figure_of(self.totals.type)

    @property
    def field_cost(self):
        return figure_of(self.totals.field)

    @property
    def cost(self):
        return charge_of(self.totals.field)

    @property
    def type_charge(self):
        return charge_of(self.totals.type)

    @property
    def saturated(self):
        return bool(self.totals.field >= CAP or self.totals.type >= CAP)

    @property
    def depth(self):
        return self.program.depth

    @property
    def aliases(self):
        return self.program.aliases

    @property
    def tokens(self):
        return self.program.tokens

    @property
    def root_fields(self):
        return self.program.root_fields

    @property
    def directives(self):
        return self.program.directives

    @property
    def duplicate_fields(self):
        return self.program.duplicate_fields

    @property
    def fields(self):
        return self.program.fields

    @property
    def fragments(self):
        return self.program.fragments

    @property
    def operations(self):
        return self.program.operations

    @property
    def introspection_depth(self):
        return self.program.introspection_depth

    @property
    def operation(self):
        return OPERATIONS[self.program.kind]

    @property
    def operation_name(self):
        return self.program.operation_name

    @property
    def dialect(self):
        return DIALECT_NAMES[self.program.dialect]

    def costliest(self, int limit=5, *, bint by_type=False):
        """The paths that cost most by themselves, the largest first, each a PathCost."""
        evaluate(self.program, self.given)
        return costliest_paths(self.program, limit, by_type)

    def paths(self, int limit=1000, *, bint by_type=False):
        """The same of every path, in the document's order. Of exclusive types it is the costliest that is shown."""
        evaluate(self.program, self.given)
        return paths_in_order(self.program, limit, by_type)

    def __repr__(self):
        return f"Price(cost={self.cost}, type_cost={self.type_cost}, field_cost={self.field_cost}, dialect={self.dialect!r})"

OPERATIONS = ("query", "mutation", "subscription")
DIALECT_NAMES = ("ibm", "router", "shape")
