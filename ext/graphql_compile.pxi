"""From nodes to a program. Work is done once for each (type, selections) however many paths lead there, and counted:
what merging makes of hostile fragments is cut off at `work` selections visited.
"""

cdef enum:
    MAX_WALK = 500          # selections within each other through fragments: the compiler then needs 256 KB of stack
    MAX_CONDITIONS = 64     # variables that @skip and @include may hang on in one operation

# Selections that are to be collected, under the conditions of what they stand in.
cdef struct Item:
    int32_t first
    uint64_t on, off

# A field found by collecting; `next` leads to the next of its response name.
cdef struct Found:
    int32_t node, field, next
    uint64_t on, off

cdef struct Heap:           # of one response name
    int32_t first, last, child, n_sized

@cython.final
cdef class Compiler:
    """The state of one compilation; the arrays are stacks that nested selections share."""

    cdef Program p
    cdef Parser *parser
    cdef int32_t *schema_names      # by name of the document: the schema's id of it, -1
    cdef int32_t *variable_of       # by name of the document: the variable, -1
    cdef int32_t *fragment_of
    cdef int32_t *heap_at           # by response name: where its heap is, when `heap_round` says it is of this round
    cdef int32_t *heap_round
    cdef int32_t *fragment_round    # by definition: the round in which it was collected, and under which conditions
    cdef uint64_t *fragment_on
    cdef uint64_t *fragment_off
    cdef Item *items
    cdef Found *found
    cdef Heap *heaps
    cdef int32_t n_items, n_found, n_heaps, room_items, room_found, room_heaps
    cdef int32_t round
    cdef int64_t work
    cdef int32_t walk
    cdef dict sets                  # key of (type, context, items) -> set
    cdef dict slots                 # (field, node) -> slot
    cdef dict contexts              # tuple of (slot, trie) -> number
    cdef list context_of            # number -> tuple

    def __cinit__(self):
        self.sets = {}
        self.slots = {}
        self.contexts = {(): 0}
        self.context_of = [()]

    def __dealloc__(self):
        free(self.schema_names)
        free(self.variable_of)
        free(self.fragment_of)
        free(self.heap_at)
        free(self.heap_round)
        free(self.fragment_round)
        free(self.fragment_on)
        free(self.fragment_off)
        free(self.items)
        free(self.found)
        free(self.heaps)

    cdef int visit(self, int32_t node) except -1:
        self.work += 1
        if self.work > self.p.limits.work:
            raise Refusal("graphql_fragments", f"fragments: expand to more than {self.p.limits.work} selections",
                          self.work, self.p.limits.work)
        return 0

cdef int translate(Compiler c, const Definition *operation) except -1:
    """Takes the nodes over and puts the schema's ids, variables and fragments in place of the document's names."""
    cdef Parser *parser = c.parser
    cdef Program p = c.p
    cdef int32_t i, names = parser.names.count, at, count = 0
    cdef Node *n
    cdef Variable *v
    c.schema_names = <int32_t *>malloc(names * sizeof(int32_t))
    c.variable_of = <int32_t *>malloc(names * sizeof(int32_t))
    c.heap_at = <int32_t *>malloc(names * sizeof(int32_t))
    c.heap_round = <int32_t *>calloc(names, sizeof(int32_t))
    c.fragment_round = <int32_t *>calloc(parser.n_definitions, sizeof(int32_t))
    c.fragment_on = <uint64_t *>calloc(parser.n_definitions, sizeof(uint64_t))
    c.fragment_off = <uint64_t *>calloc(parser.n_definitions, sizeof(uint64_t))
    p.nodes = <Node *>malloc(parser.n_nodes * sizeof(Node))
    if (c.schema_names == NULL or c.variable_of == NULL or c.heap_at == NULL or c.heap_round == NULL or p.nodes == NULL
            or c.fragment_round == NULL or c.fragment_on == NULL or c.fragment_off == NULL):
        raise MemoryError
    memcpy(p.nodes, parser.nodes, parser.n_nodes * sizeof(Node))
    p.n_nodes = parser.n_nodes
    for i in range(names):
        c.variable_of[i] = -1
        if i < WELL_KNOWN:
            c.schema_names[i] = i
        elif p.schema is not None:
            c.schema_names[i] = name_find(&p.schema.names, parser.names.names[i].text, parser.names.names[i].size)
        else:
            c.schema_names[i] = -1
    at = operation.variables
    while at >= 0:
        count += 1
        at = p.nodes[at].next
    p.n_variables = count
    p.variables = <Variable *>calloc(max(1, count), sizeof(Variable))
    p.given = <PyObject **>calloc(max(1, count), sizeof(PyObject *))
    if p.variables == NULL or p.given == NULL:
        raise MemoryError
    p.variable_names = []
    at = operation.variables
    i = 0
    while at >= 0:
        n = &p.nodes[at]
        if c.variable_of[n.name] >= 0:
            raise p.refusal(at, "two variables of one name")
        c.variable_of[n.name] = i
        name = parser.names.names[n.name].text[:parser.names.names[n.name].size].decode()
        p.variable_names.append(PyUnicode_InternFromString(name.encode()))
        v = &p.variables[i]
        v.node = at
        v.default = n.child
        v.bit = -1
        v.ref = written_ref(c, n.args)
        i += 1
        at = n.next
    for i in range(p.n_nodes):
        n = &p.nodes[i]
        if n.kind == VARIABLE:
            n.name = c.variable_of[n.name]
        elif n.kind == SPREAD:
            n.name = c.fragment_of[n.name]
        elif n.kind == INLINE:
            n.alias = n.alias if n.alias < 0 else type_named(c, n.alias)
        elif n.name >= 0:
            n.name = c.schema_names[n.name]
    for i in range(p.n_variables):
        v = &p.variables[i]
        if v.ref.type >= 0 and p.schema.types[v.ref.type].kind in (OBJECT_TYPE, INTERFACE, UNION):
            raise p.refusal(v.node, f"${p.variable_names[i]}: {p.type_name(v.ref.type)} is not a type of values")
        if v.default >= 0:
            check_node(p, v.ref, 0, v.default, False)
    return 0

cdef int32_t type_named(Compiler c, int32_t name) noexcept:
    """The schema's type of a name of the document; -2 when there is none."""
    cdef int32_t of_schema = c.schema_names[name], type = -1
    if c.p.schema is not None and of_schema >= 0:
        type = c.p.schema.type_of_name[of_schema]
    return type if type >= 0 else -2

cdef TypeRef written_ref(Compiler c, int32_t node) except *:
    """A variable's type."""
    cdef TypeRef ref
    cdef int32_t name
    ref.lists = 0
    ref.non_null = 0
    while c.p.nodes[node].kind == LIST_TYPE:
        if ref.lists >= 60:
            raise c.p.refusal(node, "list types within each other: more than allowed, 60")
        ref.non_null |= (<uint64_t>c.p.nodes[node].alias) << ref.lists
        ref.lists += 1
        node = c.p.nodes[node].child
    ref.non_null |= (<uint64_t>c.p.nodes[node].alias) << ref.lists
    name = c.p.nodes[node].name
    ref.type = type_named(c, name)
    ref.scalar = ANY_SCALAR
    if c.p.schema is None:
        ref.type = -1
        if name >= <int32_t>W_INT and name <= <int32_t>W_ID:
            ref.scalar = name - W_INT + INT_SCALAR
    elif ref.type < 0:
        raise c.p.refusal(node, f"{c.p.text_of(node)} is no type of the schema")
    else:
        ref.scalar = c.p.schema.types[ref.type].scalar
    return ref

cdef int conditions(Compiler c, int32_t d, uint64_t *on, uint64_t *off) except -1:
    """Adds what @skip and @include ask for; 0 when the selection can never be included, else 1."""
    cdef Program p = c.p
    cdef int32_t a, value, name
    cdef Variable *v
    while d >= 0:
        name = p.nodes[d].name
        if name == W_SKIP or name == W_INCLUDE:
            a = p.nodes[d].args
            if a < 0 or p.nodes[a].name != W_IF or p.nodes[a].next >= 0:
                raise p.refusal(d, "@skip and @include take one argument, 'if'")
            value = p.nodes[a].child
            if p.nodes[value].kind == TRUE or p.nodes[value].kind == FALSE:
                if (p.nodes[value].kind == TRUE) == (name == W_SKIP):
                    return 0
            elif p.nodes[value].kind == VARIABLE:
                if p.nodes[value].name < 0:
                    raise p.refusal(value, f"{p.text_of(value)} is not defined by the operation")
                v = &p.variables[p.nodes[value].name]
                if v.ref.lists or v.ref.scalar != BOOLEAN_SCALAR:
                    raise p.refusal(value, f"${p.variable_names[p.nodes[value].name]} is not a Boolean")
                if v.bit < 0:
                    if p.n_bits == MAX_CONDITIONS:
                        raise Refusal("graphql_directives", f"variables in @skip and @include: more than allowed, {MAX_CONDITIONS}",
                                      p.n_bits + 1, MAX_CONDITIONS)
                    v.bit = p.n_bits
                    p.n_bits += 1
                    p.dynamic = True
                if name == W_SKIP:
                    off[0] |= <uint64_t>1 << v.bit
                else:
                    on[0] |= <uint64_t>1 << v.bit
            else:
                raise p.refusal(value, f"{p.text_of(value)} is not a Boolean")
        elif p.schema is not None and p.nodes[d].args >= 0:
            check_directive(c, d)
        d = p.nodes[d].next
    return 0 if on[0] & off[0] else 1

cdef int check_directive(Compiler c, int32_t d) except -1:
    """Arguments of a directive of the schema are of their types. Unknown directives cost nothing and are left alone."""
    cdef Program p = c.p
    cdef int32_t at = p.schema.directive_of(p.nodes[d].name), a = p.nodes[d].args, i
    if at < 0:
        return 0
    while a >= 0:
        i = p.schema.directives[at].first_arg
        while i < p.schema.directives[at].first_arg + p.schema.directives[at].n_args and p.schema.inputs[i].name != p.nodes[a].name:
            i += 1
        if i == p.schema.directives[at].first_arg + p.schema.directives[at].n_args:
            raise p.refusal(a, f"{p.text_of(a)} is no argument of {p.text_of(d)}")
        check_node(p, p.schema.inputs[i].ref, 0, p.nodes[a].child, p.schema.inputs[i].default >= 0)
        a = p.nodes[a].next
    return 0

cdef int check_arguments(Compiler c, const FieldInfo *f, int32_t node) except -1:
    cdef Program p = c.p
    cdef int32_t a = p.nodes[node].args, i
    while a >= 0:
        i = p.schema.argument_of(f, p.nodes[a].name)
        if i < 0:
            raise p.refusal(a, f"{p.text_of(a)} is no argument of {p.schema.strings[f.name]}")
        check_node(p, p.schema.inputs[i].ref, 0, p.nodes[a].child, p.schema.inputs[i].default >= 0)
        a = p.nodes[a].next
    for i in range(f.first_arg, f.first_arg + f.n_args):
        if p.schema.inputs[i].required:
            a = p.nodes[node].args
            while a >= 0 and p.nodes[a].name != p.schema.inputs[i].name:
                a = p.nodes[a].next
            if a < 0:
                raise p.refusal(node, f"{p.schema.strings[f.name]}: the argument {p.schema.strings[p.schema.inputs[i].name]} is missing")
    return 0

cdef bint has_variables(Program p, int32_t node) noexcept:
    """Whether an argument of the field or of one of its directives has a variable somewhere in it."""
    cdef int32_t a = p.nodes[node].args, d = p.nodes[node].dirs
    while a >= 0:
        if p.nodes[a].flag:
            return True
        a = p.nodes[a].next
    while d >= 0:
        a = p.nodes[d].args
        while a >= 0:
            if p.nodes[a].flag and p.nodes[d].name != W_SKIP and p.nodes[d].name != W_INCLUDE:
                return True
            a = p.nodes[a].next
        d = p.nodes[d].next
    return False

cdef int32_t slot_of(Compiler c, int32_t field, int32_t node) except -1:
    """The slot for the size that one written field asks for; made, checked and filled when nothing in it can vary."""
    cdef Program p = c.p
    cdef Slot *s
    key = (field, node)
    found = c.slots.get(key)
    if found is not None:
        return found
    p.slots = <Slot *>grown(p.slots, &p.room_slots, p.n_slots, sizeof(Slot))
    s = &p.slots[p.n_slots]
    s.field = field
    s.node = node
    s.dynamic = has_variables(p, node)
    s.size = -1
    if s.dynamic:
        p.dynamic = True
    else:
        s.size = size_now(p, field, node)
    c.slots[key] = p.n_slots
    p.n_slots += 1
    return p.n_slots - 1

cdef int64_t size_now(Program p, int32_t field, int32_t node) except -2:
    return asked_size(p, &p.schema.fields[field], node) if field >= 0 else page_size(p, node)

cdef int add_ref(Program p, int32_t slot) except -1:
    p.refs = <int32_t *>grown(p.refs, &p.room_refs, p.n_refs, sizeof(int32_t))
    p.refs[p.n_refs] = slot
    p.n_refs += 1
    return 0

cdef int32_t context_number(Compiler c, tuple context) except -1:
    number = c.contexts.get(context)
    if number is None:
        number = len(c.context_of)
        c.contexts[context] = number
        c.context_of.append(context)
    return number

cdef int32_t size_field(Compiler c, Use *u, int32_t field, int32_t node, tuple context) except -1:
    """Fills the sizes of a use and returns the context that its own selections get.

    `context` holds (slot, trie): sizes that fields around it hand down, each with the names below that are still to come.
    """
    cdef Program p = c.p
    cdef FieldInfo *f = &p.schema.fields[field]
    cdef ListSize *l = &p.schema.list_sizes[f.list_size] if f.list_size >= 0 else NULL
    cdef int32_t slot = -1, at
    cdef list handed = []
    u.is_list = f.is_list
    u.first_sized = p.n_refs
    for outer, root in context:
        at = p.schema.trie[<int32_t>root].child
        while at >= 0:
            if p.schema.trie[at].name == f.name:
                if p.schema.trie[at].leaf and f.is_list:
                    add_ref(p, outer)
                if p.schema.trie[at].child >= 0:
                    handed.append((outer, at))
            at = p.schema.trie[at].next
    u.n_sized = p.n_refs - u.first_sized
    u.first_own = p.n_refs
    if l != NULL and (f.is_list or l.sized >= 0 or l.n_paths):
        slot = slot_of(c, field, node)
        if f.is_list and (l.sized < 0 or p.dialect == ROUTER):
            add_ref(p, slot)
        if l.sized >= 0:
            handed.append((slot, l.sized))
    if p.dialect == ROUTER and f.is_list:
        for outer, root in handed:
            if outer != slot:
                add_ref(p, outer)  # what passes through a list on its way down sizes that list too
    u.n_own = p.n_refs - u.first_own
    return context_number(c, tuple(handed)) if handed else 0

cdef int fill_use(Compiler c, Use *u, int32_t field, int32_t node, uint64_t on, uint64_t off) except -1:
    """All of a use but its sizes and its selections."""
    cdef Program p = c.p
    cdef FieldInfo *f = &p.schema.fields[field]
    check_arguments(c, f, node)
    if p.schema.types[f.type].kind >= OBJECT_TYPE:
        if p.nodes[node].child < 0:
            raise p.refusal(node, f"{p.schema.strings[f.name]}: fields of {p.type_name(f.type)} must be selected")
    elif p.nodes[node].child >= 0:
        raise p.refusal(node, f"{p.schema.strings[f.name]} is a {p.type_name(f.type)} and has no fields")
    u.kind = U_FIELD
    u.field = field
    u.node = node
    u.child = -1
    u.on = on
    u.off = off
    u.weight = p.schema.types[f.type].weight if p.dialect == IBM else f.router_weight
    u.dynamic = has_variables(p, node)
    u.call = <cost_t>0
    if not u.dynamic:
        u.call = call_cost(p, f, node)
    else:
        p.dynamic = True
    return 0

cdef int32_t collect(Compiler c, int32_t first_item, int32_t last_item, int32_t object) except -1:
    """ibm: the fields that a value of one object type has of some selections, heaped by response name.

    Heaps and what is in them are pushed onto `heaps` and `found`; returns how many heaps.
    """
    cdef Program p = c.p
    cdef int32_t i, at, base = c.n_items, first_heap = c.n_heaps, kind, target, response
    cdef int32_t number = p.schema.types[object].object
    cdef uint64_t on, off
    cdef Node *n
    c.round += 1
    for i in range(last_item - 1, first_item - 1, -1):  # the first on top
        c.items = <Item *>grown(c.items, &c.room_items, c.n_items, sizeof(Item))
        c.items[c.n_items] = c.items[i]
        c.n_items += 1
    while c.n_items > base:
        at = c.items[c.n_items - 1].first
        on = c.items[c.n_items - 1].on
        off = c.items[c.n_items - 1].off
        if at < 0:
            c.n_items -= 1
            continue
        c.visit(at)
        n = &p.nodes[at]
        c.items[c.n_items - 1].first = n.next
        if n.dirs >= 0 and not conditions(c, n.dirs, &on, &off):
            continue
        kind = n.kind
        if kind == FIELD:
            if n.name == W_TYPENAME:
                if n.child >= 0:
                    raise p.refusal(at, "__typename has no fields")
                continue
            response = n.alias
            c.found = <Found *>grown(c.found, &c.room_found, c.n_found, sizeof(Found))
            c.found[c.n_found].node = at
            c.found[c.n_found].on = on
            c.found[c.n_found].off = off
            c.found[c.n_found].next = -1
            if c.heap_round[response] == c.round:
                i = c.heap_at[response]
                c.found[c.heaps[i].last].next = c.n_found
                c.heaps[i].last = c.n_found
            else:
                c.heaps = <Heap *>grown(c.heaps, &c.room_heaps, c.n_heaps, sizeof(Heap))
                c.heaps[c.n_heaps].first = c.heaps[c.n_heaps].last = c.n_found
                c.heaps[c.n_heaps].child = -1
                c.heap_round[response] = c.round
                c.heap_at[response] = c.n_heaps
                c.n_heaps += 1
            c.n_found += 1
            continue
        if kind == SPREAD:
            target = p.nodes[at].name
            if c.fragment_round[target] == c.round and (
                (c.fragment_on[target] | c.fragment_off[target]) == 0
                or (c.fragment_on[target] == on and c.fragment_off[target] == off)
            ):
                continue  # this fragment is in already, unconditionally or under the very same conditions
            c.fragment_round[target] = c.round
            c.fragment_on[target] = on
            c.fragment_off[target] = off
            i = c.parser.definitions[target].condition
            at = c.parser.definitions[target].child
        else:
            i = n.alias
            at = n.child
        if i != -1:
            if i < 0 or p.schema.types[i].kind < OBJECT_TYPE or p.schema.types[i].kind > UNION:
                raise p.refusal(at, "a fragment on what is no object type, interface or union of the schema")
            if not p.schema.can_be(i, number):
                continue
        c.items = <Item *>grown(c.items, &c.room_items, c.n_items, sizeof(Item))
        c.items[c.n_items].first = at
        c.items[c.n_items].on = on
        c.items[c.n_items].off = off
        c.n_items += 1
    return c.n_heaps - first_heap

cdef object key_of(Compiler c, int32_t type, int32_t context, int32_t first_item, int32_t last_item):
    """Sets of the same key are the same set."""
    cdef int32_t i
    if last_item - first_item == 1 and not (c.items[first_item].on | c.items[first_item].off):
        return type, context, c.items[first_item].first
    return type, context, (<char *>&c.items[first_item])[:(last_item - first_item) * sizeof(Item)]

cdef int32_t meta_use(Compiler c, int32_t node, uint64_t on, uint64_t off) except -1:
    cdef Program p = c.p
    cdef Use *u
    p.uses = <Use *>grown(p.uses, &p.room_uses, p.n_uses, sizeof(Use))
    u = &p.uses[p.n_uses]
    memset(u, 0, sizeof(Use))
    u.kind = U_META
    u.field = u.child = -1
    u.node = node
    u.on = on
    u.off = off
    p.n_uses += 1
    return 0

cdef int32_t compile_set(Compiler c, int32_t type, int32_t context, int32_t first_item, int32_t last_item) except -1:
    """ibm: the set of the items on a type. Recursive; the depth is bounded by the ceiling on depth, and by MAX_WALK."""
    cdef Program p = c.p
    cdef int32_t i, j, k, t, first_heap, n_heaps, first_found, n, at, field, base, heap, inner, target
    cdef int32_t first_branch, first_group
    cdef list branches = []
    cdef bint same
    cdef Heap *h
    cdef Found *o
    cdef Use u
    cdef Use *made
    cdef tuple own_context
    key = key_of(c, type, context, first_item, last_item)
    known = c.sets.get(key)
    if known is not None:
        return known
    c.walk += 1
    if c.walk > MAX_WALK:
        raise Refusal("graphql_depth", f"selections within each other: more than allowed, {MAX_WALK}", c.walk, MAX_WALK)
    own_context = c.context_of[context]
    for i in range(p.schema.types[type].first_possible, p.schema.types[type].first_possible + p.schema.types[type].n_possible):
        t = p.schema.possible[i]
        first_heap = c.n_heaps
        first_found = c.n_found
        n_heaps = collect(c, first_item, last_item, t)
        uses = []
        for heap in range(first_heap, first_heap + n_heaps):
            # Which field of the schema it is; all of one response name are one field.
            j = c.heaps[heap].first
            field = p.schema.field_of(t, p.nodes[c.found[j].node].name)
            same = True
            base = c.n_items
            k = j
            while k >= 0:
                o = &c.found[k]
                o.field = field
                if p.nodes[o.node].name != p.nodes[c.found[j].node].name or p.nodes[o.node].name < 0:
                    if p.nodes[o.node].name >= 0 and field >= 0:
                        raise p.refusal(o.node, f"{p.text_of(o.node)} is the name of two different fields")
                    raise p.refusal(o.node, f"{p.text_of(o.node)} is no field of {p.type_name(t)}")
                same = same and o.on == c.found[j].on and o.off == c.found[j].off
                k = o.next
            if field < 0:
                at = p.nodes[c.found[j].node].name
                if (at == W_SCHEMA or at == W_TYPE) and t == p.schema.roots[0]:
                    uses.append(None)
                    continue
                raise p.refusal(c.found[j].node, f"{p.text_of(c.found[j].node)} is no field of {p.type_name(t)}")
            made_uses = []
            inner = 0
            handed = ()
            k = j
            while k >= 0:
                memset(&u, 0, sizeof(Use))
                fill_use(c, &u, field, c.found[k].node, c.found[k].on, c.found[k].off)
                inner = size_field(c, &u, field, c.found[k].node, own_context)
                if inner and k != j:
                    handed = handed + tuple(one for one in <tuple>c.context_of[inner] if one not in handed)
                elif inner:
                    handed = <tuple>c.context_of[inner]
                made_uses.append((<char *>&u)[:sizeof(Use)])
                if p.nodes[c.found[k].node].child >= 0:
                    c.items = <Item *>grown(c.items, &c.room_items, c.n_items, sizeof(Item))
                    c.items[c.n_items].first = p.nodes[c.found[k].node].child
                    c.items[c.n_items].on = 0 if same else c.found[k].on
                    c.items[c.n_items].off = 0 if same else c.found[k].off
                    c.n_items += 1
                k = c.found[k].next
            target = -1
            if c.n_items > base:
                target = compile_set(c, p.schema.fields[field].type, context_number(c, handed), base, c.n_items)
            c.n_items = base
            c.heaps[heap].child = target
            uses.append(made_uses)
        # What is inside stands in the program by now: this branch's own groups and uses follow in one piece.
        first_group = p.n_groups
        for heap in range(first_heap, first_heap + n_heaps):
            made_uses = uses[heap - first_heap]
            p.groups = <Group *>grown(p.groups, &p.room_groups, p.n_groups, sizeof(Group))
            p.groups[p.n_groups].first_use = p.n_uses
            if made_uses is None:
                k = c.heaps[heap].first
                while k >= 0:
                    meta_use(c, c.found[k].node, c.found[k].on, c.found[k].off)
                    k = c.found[k].next
            else:
                for raw in made_uses:
                    p.uses = <Use *>grown(p.uses, &p.room_uses, p.n_uses, sizeof(Use))
                    memcpy(&p.uses[p.n_uses], <char *><bytes>raw, sizeof(Use))
                    p.uses[p.n_uses].child = c.heaps[heap].child
                    p.n_uses += 1
            p.groups[p.n_groups].n_uses = p.n_uses - p.groups[p.n_groups].first_use
            p.n_groups += 1
        branches.append((first_group, p.n_groups - first_group, t))
        c.n_heaps = first_heap
        c.n_found = first_found
    c.walk -= 1
    return new_set(c, key, branches)

cdef int32_t new_set(Compiler c, object key, list branches) except -1:
    cdef Program p = c.p
    p.sets = <Set *>grown(p.sets, &p.room_sets, p.n_sets, sizeof(Set))
    p.sets[p.n_sets].first_branch = p.n_branches
    p.sets[p.n_sets].n_branches = <int32_t>len(branches)
    for first, count, t in branches:
        p.branches = <Branch *>grown(p.branches, &p.room_branches, p.n_branches, sizeof(Branch))
        p.branches[p.n_branches].first_group = first
        p.branches[p.n_branches].n_groups = count
        p.branches[p.n_branches].type = t
        p.n_branches += 1
    c.sets[key] = p.n_sets
    p.n_sets += 1
    return p.n_sets - 1
