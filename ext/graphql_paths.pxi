"""Where a price comes from: its paths, the costliest first or as the document has them."""

cdef enum:
    MAX_LOOKS = 4096    # selections looked at for one answer, however many paths a document has

cdef inline int64_t product(int64_t a, int64_t b) noexcept nogil:
    """Of two sizes of lists, saturating."""
    if a == 0 or b == 0:
        return 0
    return a * b if a <= UNBOUNDED // b else UNBOUNDED

cdef cost_t figure_in(const Totals *t, bint of_type) noexcept nogil:
    return t.type if of_type else t.field

cdef Totals own_cost(Program p, const Use *u, int64_t n) noexcept nogil:
    """What a use costs without its selections."""
    cdef Totals t
    if u.kind == U_META:
        t.type = t.field = UNIT
        return t
    t.type = cost_max(<cost_t>0, cost_times(n, <cost_t>u.weight))
    t.field = u.call
    if p.dialect == ROUTER:
        t.type = t.field = cost_add(u.call, t.type)
    elif p.dialect == SHAPE:
        t.type = t.field = UNIT
    return t

cdef str path_name(Program p, int32_t node):
    cdef Node *n = &p.nodes[node]
    cdef str text = p.source[n.start:n.end].decode("utf-8", "replace")
    return text if len(text) <= 64 else text[:64] + "..."

cdef list open_set(Program p, int32_t s, bint of_type):
    """The uses that make up a set's figure: those of its largest branch, the largest of each group, fragments opened."""
    cdef list uses = [], pending = [s]
    cdef int32_t i, j, g, best
    cdef cost_t largest, one
    cdef Totals t
    cdef Use *u
    while pending and len(uses) < MAX_LOOKS:
        s = pending.pop()
        best = -1
        largest = <cost_t>0
        for i in range(p.sets[s].first_branch, p.sets[s].first_branch + p.sets[s].n_branches):
            t = cost_of_branch(p, &p.branches[i])
            one = figure_in(&t, of_type)
            if best < 0 or one > largest:
                best = i
                largest = one
        if best < 0:
            continue
        inner = []
        for g in range(p.branches[best].first_group, p.branches[best].first_group + p.branches[best].n_groups):
            j = -1
            largest = <cost_t>0
            for i in range(p.groups[g].first_use, p.groups[g].first_use + p.groups[g].n_uses):
                if included(p, &p.uses[i]):
                    t = cost_of_use(p, &p.uses[i])
                    one = figure_in(&t, of_type)
                    if j < 0 or one > largest:
                        j = i
                        largest = one
            if j < 0:
                continue
            u = &p.uses[j]
            if u.kind == U_FRAGMENT:
                inner.append(u.child)
            else:
                uses.append(j)
        pending.extend(reversed(inner))
    return uses

cdef object row_of(Program p, str path, int64_t n, int64_t times, Totals own, Totals all_of_it):
    return path_cost_new(PathCost, (
        path, None if n >= UNBOUNDED else n, None if times >= UNBOUNDED else times, figure_of(cost_times(times, own.type)),
        figure_of(cost_times(times, own.field)), figure_of(cost_times(times, all_of_it.type)),
        figure_of(cost_times(times, all_of_it.field)),
    ))

cdef list paths_in_order(Program p, int limit, bint of_type):
    cdef list rows = [], stack = []
    cdef int32_t j
    cdef int64_t n, times
    cdef Use *u
    stack.append((p.root, "", 1, None))
    while stack and len(rows) < limit:
        s, prefix, mult, use = stack.pop()
        if use is not None:
            j = use
            u = &p.uses[j]
            times = mult
            n = size_of_use(p, u)
            path = prefix + path_name(p, u.node)
            rows.append(row_of(p, path, n, times, own_cost(p, u, n), cost_of_use(p, u)))
            if u.child < 0 or u.kind == U_META:
                continue
            s = u.child
            prefix = path + "."
            mult = product(times, n)
        for one in reversed(open_set(p, s, of_type)):
            stack.append((-1, prefix, mult, one))
    return rows

cdef list costliest_paths(Program p, int limit, bint of_type):
    """Best first: what a selection costs with all inside it bounds what anything in it costs by itself."""
    cdef list rows = [], heap = []
    cdef int32_t j, looks = 0, order = 0
    cdef int64_t n, times
    cdef Use *u
    cdef Totals own, whole
    heap.append((0, 0, None, p.root, "", 1))
    while heap and len(rows) < limit and looks < MAX_LOOKS:
        _, _, row, s, prefix, mult = heapq.heappop(heap)
        if row is not None:
            rows.append(row)
            continue
        for one in open_set(p, s, of_type):
            looks += 1
            order += 1
            j = one
            u = &p.uses[j]
            times = mult
            n = size_of_use(p, u)
            own = own_cost(p, u, n)
            whole = cost_of_use(p, u)
            name = path_name(p, u.node) + ("" if not u.is_list or (p.dialect == SHAPE and n == 1) else
                                           "[unbounded]" if n >= UNBOUNDED else f"[{n}]")
            row = row_of(p, prefix + name, n, times, own, whole)
            if row[3 if of_type else 4] > 0:
                heapq.heappush(heap, (-row[3 if of_type else 4], order, row, -1, "", 0))
            if u.child >= 0 and u.kind != U_META:
                heapq.heappush(heap, (-row[5 if of_type else 6], order + (1 << 20), None, u.child, prefix + name + ".",
                                      product(times, n)))
    return rows
