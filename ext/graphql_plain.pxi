"""The dialects that merge nothing: `router`, priced against the types as they are written, and `shape`, without a schema.

    router   n * (w + selections) + arguments, w the field's @cost, else its type's, else 1 for what has fields; 10 for a
             mutation (Apollo's and The Guild's routers)
    shape    1 + n * selections for every field, n the largest page size among its arguments, else 1

A fragment is compiled once for each place in sized fields that it is named at, and is a use without weight.
"""

cdef int64_t page_size(Program p, int32_t node) except -2:
    """shape: the largest of the arguments whose names say that they are page sizes, inside input objects too; -1: none."""
    cdef int64_t largest = -1
    cdef int32_t a = p.nodes[node].args
    while a >= 0:
        largest = max(largest, page_size_in(p, p.nodes[a].name, resolved(p, p.nodes[a].child), node, 0))
        a = p.nodes[a].next
    return largest

cdef int64_t page_size_in(Program p, int32_t name, Value v, int32_t node, int32_t depth) except -2:
    cdef int64_t largest = -1
    cdef int32_t item
    if depth > 2 * MAX_VALUE_DEPTH:
        return -1
    if v.node >= 0 and p.nodes[v.node].kind == OBJECT:
        item = p.nodes[v.node].child
        while item >= 0:
            largest = max(largest, page_size_in(p, p.nodes[item].name, resolved(p, p.nodes[item].child), node, depth + 1))
            item = p.nodes[item].next
        return largest
    if v.object != NULL and isinstance(<object>v.object, dict):
        for key, one in (<dict><object>v.object).items():
            largest = max(largest, page_size_in(p, PAGE_SIZES.get(key, -1), of_object(<PyObject *>one), node, depth + 1))
        return largest
    # Compared as numbers: a C enum without negative members is unsigned, and -1 would be its largest.
    if name < <int32_t>W_FIRST_PAGE_SIZE or name > <int32_t>W_LAST_PAGE_SIZE or (v.node < 0 and v.object == NULL):
        return -1
    return size_of_value(p, v, node, False)

PAGE_SIZES = {}
cdef void fill_page_sizes():
    cdef int32_t i
    for i in range(W_FIRST_PAGE_SIZE, W_LAST_PAGE_SIZE + 1):
        PAGE_SIZES[(<bytes>WELL_KNOWN_NAMES[i]).decode()] = i

fill_page_sizes()

cdef int32_t compile_plain(Compiler c, int32_t type, int32_t context, int32_t first) except -1:
    """The set of some selections on a type as written; -1 for `type` in the shape dialect. Recursive like compile_set."""
    cdef Program p = c.p
    cdef int32_t at = first, target, i, first_group, inner
    cdef uint64_t on, off
    cdef Use u
    cdef list made = []
    cdef Node *n
    key = (type, context, first)
    known = c.sets.get(key)
    if known is not None:
        return known
    c.walk += 1
    if c.walk > MAX_WALK:
        raise Refusal("graphql_depth", f"selections within each other: more than allowed, {MAX_WALK}", c.walk, MAX_WALK)
    while at >= 0:
        c.visit(at)
        n = &p.nodes[at]
        on = off = 0
        if n.dirs >= 0 and not conditions(c, n.dirs, &on, &off):
            at = n.next
            continue
        memset(&u, 0, sizeof(Use))
        u.on = on
        u.off = off
        u.node = at
        u.field = u.child = -1
        u.first_sized = u.first_own = p.n_refs
        if n.kind != FIELD:
            u.kind = U_FRAGMENT
            target = type
            i = c.parser.definitions[n.name].condition if n.kind == SPREAD else n.alias
            if i != -1 and type >= 0:
                if i < 0 or p.schema.types[i].kind < OBJECT_TYPE or p.schema.types[i].kind > UNION:
                    raise p.refusal(at, "a fragment on what is no object type, interface or union of the schema")
                target = i
            u.child = compile_plain(c, target, context, c.parser.definitions[n.name].child if n.kind == SPREAD else n.child)
        elif type < 0:
            u.is_list = 1
            u.n_own = 1
            add_ref(p, slot_of(c, -1, at))
            if n.child >= 0:
                u.child = compile_plain(c, -1, 0, n.child)
        elif n.name == W_TYPENAME:
            at = n.next
            continue
        elif (n.name == W_SCHEMA or n.name == W_TYPE) and type == p.schema.roots[0]:
            u.kind = U_META
        else:
            i = p.schema.field_of(type, n.name)
            if i < 0:
                raise p.refusal(at, f"{p.text_of(at)} is no field of {p.type_name(type)}")
            fill_use(c, &u, i, at, on, off)
            inner = size_field(c, &u, i, at, c.context_of[context])
            if n.child >= 0:
                u.child = compile_plain(c, p.schema.fields[i].type, inner, n.child)
        made.append((<char *>&u)[:sizeof(Use)])
        at = p.nodes[at].next
    first_group = p.n_groups
    for raw in made:
        p.groups = <Group *>grown(p.groups, &p.room_groups, p.n_groups, sizeof(Group))
        p.groups[p.n_groups].first_use = p.n_uses
        p.groups[p.n_groups].n_uses = 1
        p.n_groups += 1
        p.uses = <Use *>grown(p.uses, &p.room_uses, p.n_uses, sizeof(Use))
        memcpy(&p.uses[p.n_uses], <char *><bytes>raw, sizeof(Use))
        p.n_uses += 1
    c.walk -= 1
    return new_set(c, key, [(first_group, p.n_groups - first_group, type)])
