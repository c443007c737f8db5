"""What fragments add to the figures of a document: each is followed once, however often it is named.

A fragment's own depth, aliases and root fields are known from the pass; those of what it names are added where it is
named, saturating. Two to the fortieth fields are forty additions. A fragment that leads back to itself is refused.
"""

cdef enum:
    PLENTY = (1 << 30) - 1  # figures stop here: two of them still fit into 32 bits

cdef inline int32_t plus(int32_t a, int32_t b) noexcept nogil:
    return a + b if a + b < PLENTY else PLENTY

cdef bint resolve_names(Parser *p, int32_t *fragment_of) noexcept nogil:
    """Which definition each spread names; `fragment_of` maps a name's id to a fragment, -1 for none."""
    cdef int32_t i, j
    cdef Definition *d
    for i in range(p.names.count):
        fragment_of[i] = -1
    for i in range(p.n_definitions):
        d = &p.definitions[i]
        if d.kind == FRAGMENT:
            if fragment_of[d.name] >= 0:
                return refuse(p, INVALID, b"two fragments of one name", d.start, 0)
            fragment_of[d.name] = i
        else:
            if d.name < 0 and p.operations > 1:
                return refuse(p, INVALID, b"an operation without a name among several", d.start, 0)
            for j in range(i):
                if p.definitions[j].kind != FRAGMENT and p.definitions[j].name == d.name:
                    return refuse(p, INVALID, b"two operations of one name", d.start, 0)
    for i in range(p.n_spreads):
        p.spreads[i].fragment = fragment_of[p.spreads[i].name]
        if p.spreads[i].fragment < 0:
            return refuse(p, INVALID, b"a fragment that is not defined", p.spreads[i].start, 0)
    return True

cdef inline void add_spread(Definition *d, const Spread *s, const Definition *f) noexcept nogil:
    d.total_aliases = plus(d.total_aliases, f.total_aliases)
    d.total_fields = plus(d.total_fields, f.total_fields)
    d.total_depth = max(d.total_depth, plus(s.depth, f.total_depth))
    d.total_walk = max(d.total_walk, plus(s.walk, f.total_walk))
    d.total_introspection = max(d.total_introspection, f.total_introspection)
    if s.introspection >= 0:
        d.total_introspection = max(d.total_introspection, plus(s.introspection, f.total_walk))
    if s.depth == 0:
        d.total_root_fields = plus(d.total_root_fields, f.total_root_fields)

cdef inline void start_following(Definition *d) noexcept nogil:
    d.state = 1
    d.total_depth = d.depth
    d.total_aliases = d.aliases
    d.total_fields = d.fields
    d.total_root_fields = d.root_fields
    d.total_walk = d.walk
    d.total_introspection = d.introspection

cdef bint follow(Parser *p, int32_t *stack, int32_t *cursor) noexcept nogil:
    """Fills the totals of every definition. `stack` and `cursor` have room for one entry a definition."""
    cdef int32_t i, height, at
    cdef Definition *d
    cdef Spread *s
    for i in range(p.n_definitions):
        if p.definitions[i].state:
            continue
        stack[0] = i
        cursor[i] = 0
        height = 1
        start_following(&p.definitions[i])
        while height:
            at = stack[height - 1]
            d = &p.definitions[at]
            if cursor[at] == d.n_spreads:
                d.state = 2
                height -= 1
                continue
            s = &p.spreads[d.first_spread + cursor[at]]
            if p.definitions[s.fragment].state == 1:
                return refuse(p, FRAGMENT_CYCLE, b"a fragment that leads back to itself", s.start, 0)
            if p.definitions[s.fragment].state == 0:
                stack[height] = s.fragment
                cursor[s.fragment] = 0
                height += 1
                start_following(&p.definitions[s.fragment])
                continue
            add_spread(d, s, &p.definitions[s.fragment])
            cursor[at] += 1
    return True

cdef bint within_ceilings(Parser *p, const Definition *d) noexcept nogil:
    """Whether one operation, its fragments followed, is below the ceilings on depth, aliases, root fields, introspection."""
    if d.total_depth > p.limits.depth:
        return refuse(p, TOO_DEEP, b"fields within each other", d.start, d.total_depth)
    if d.total_aliases > p.limits.aliases:
        return refuse(p, TOO_MANY_ALIASES, b"aliases", d.start, d.total_aliases)
    if d.total_root_fields > p.limits.root_fields:
        return refuse(p, TOO_MANY_ROOT_FIELDS, b"root fields", d.start, d.total_root_fields)
    if d.total_introspection > p.limits.introspection_depth:
        return refuse(p, INTROSPECTION_TOO_DEEP, b"lists of the introspection system within each other", d.start,
                      d.total_introspection)
    return True
