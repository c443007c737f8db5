"""One pass from the bytes of a document to its nodes, without recursion, counting as it goes.

The grammar is that of executable documents; whatever a schema is needed for is left to the compiler. Selections nest on an
explicit stack; values on a small one of their own. The first ceiling that is crossed ends the pass, so the time a
document takes is bounded by the ceilings and not by its size.
"""

cdef enum:
    MAX_NESTING = 512      # braces and brackets within each other: bounds both stacks, whatever the ceilings say
    MAX_VALUE_DEPTH = 64   # the largest ceiling on lists and objects within each other
    SEEN_ROOM = 256

cdef inline int32_t new_node(Parser *p, int32_t kind) noexcept nogil:
    """-1 when there is no memory. The array doubles, so that growing costs little per node."""
    cdef Node *nodes
    cdef int32_t at = p.n_nodes
    if at == p.room_nodes:
        nodes = <Node *>realloc(p.nodes, <size_t>p.room_nodes * 2 * sizeof(Node))
        if nodes == NULL:
            refuse(p, OUT_OF_MEMORY, b"no memory", p.start, 0)
            return -1
        p.nodes = nodes
        p.room_nodes *= 2
    p.n_nodes = at + 1
    cdef Node *n = &p.nodes[at]
    n.kind = kind
    n.name = n.alias = n.args = n.dirs = n.child = n.next = -1
    n.start = p.start
    n.end = p.end
    n.flag = 0
    return at

cdef bint unexpected(Parser *p, const char *wanted) noexcept nogil:
    return refuse(p, INVALID, wanted, p.start, 0)

cdef inline bint expect(Parser *p, int32_t token, const char *wanted) noexcept nogil:
    if p.token != token:
        return unexpected(p, wanted)
    return lex(p)

cdef struct Container:
    int32_t node, last

cdef int32_t parse_value(Parser *p, bint constant) noexcept nogil:
    """The value at the token looked at, with all that is inside it; the node, or -1."""
    cdef Container stack[MAX_VALUE_DEPTH + 1]
    cdef int32_t depth = 0, top = -1, node, field, i
    while True:
        field = -1
        if depth and p.nodes[stack[depth - 1].node].kind == OBJECT:
            if p.token == b'}':
                p.nodes[stack[depth - 1].node].end = p.end
                depth -= 1
                if not lex(p):
                    return -1
                if depth == 0:
                    return top
                continue
            if p.token != T_NAME:
                unexpected(p, b"expected a field of an input object")
                return -1
            field = new_node(p, OBJECT_FIELD)
            if field < 0:
                return -1
            p.nodes[field].name = p.name
            if not lex(p) or not expect(p, b':', b"expected ':' after an input field's name"):
                return -1
        elif depth and p.token == b']':
            p.nodes[stack[depth - 1].node].end = p.end
            depth -= 1
            if not lex(p):
                return -1
            if depth == 0:
                return top
            continue
        node = new_node(p, 0)
        if node < 0:
            return -1
        if depth:
            # Hook it into what it is inside of.
            i = field if field >= 0 else node
            if field >= 0:
                p.nodes[field].child = node
            if stack[depth - 1].last < 0:
                p.nodes[stack[depth - 1].node].child = i
            else:
                p.nodes[stack[depth - 1].last].next = i
            stack[depth - 1].last = i
        else:
            top = node
        if p.token == b'[' or p.token == b'{':
            if depth >= p.limits.value_depth:
                refuse(p, VALUE_TOO_DEEP, b"lists and input objects within each other", p.start, depth + 1)
                return -1
            p.nodes[node].kind = LIST if p.token == b'[' else OBJECT
            stack[depth].node = node
            stack[depth].last = -1
            depth += 1
            if not lex(p):
                return -1
            continue
        if p.token == b'$':
            if constant:
                unexpected(p, b"a variable where a constant is needed")
                return -1
            if not lex(p):
                return -1
            if p.token != T_NAME:
                unexpected(p, b"expected a variable's name after '$'")
                return -1
            p.nodes[node].kind = VARIABLE
            p.nodes[node].name = p.name
            p.nodes[node].flag = 1
            for i in range(depth):
                p.nodes[stack[i].node].flag = 1
        elif p.token == T_INT:
            p.nodes[node].kind = INT
        elif p.token == T_FLOAT:
            p.nodes[node].kind = FLOAT
        elif p.token == T_STRING:
            p.nodes[node].kind = STRING
        elif p.token == T_NAME:
            p.nodes[node].name = p.name
            p.nodes[node].kind = (
                TRUE if p.name == W_TRUE else FALSE if p.name == W_FALSE else NULL_VALUE if p.name == W_NULL else ENUM_VALUE
            )
        else:
            unexpected(p, b"expected a value")
            return -1
        p.nodes[node].end = p.end
        if not lex(p):
            return -1
        if depth == 0:
            return top

cdef int32_t parse_arguments(Parser *p, bint constant) noexcept nogil:
    """`(name: value ...)`; the first ARGUMENT, -1 on trouble. The token looked at is the opening parenthesis."""
    cdef int32_t first = -1, last = -1, node, value
    if not lex(p):
        return -1
    while p.token != b')' or first < 0:
        if p.token != T_NAME:
            unexpected(p, b"expected an argument's name")
            return -1
        node = new_node(p, ARGUMENT)
        if node < 0:
            return -1
        p.nodes[node].name = p.name
        if last < 0:
            first = node
        else:
            p.nodes[last].next = node
        last = node
        if not lex(p) or not expect(p, b':', b"expected ':' after an argument's name"):
            return -1
        value = parse_value(p, constant)
        if value < 0:
            return -1
        p.nodes[node].child = value
        p.nodes[node].flag = p.nodes[value].flag
    return first if lex(p) else -1

cdef bint parse_directives(Parser *p, int32_t *first, bint constant) noexcept nogil:
    cdef int32_t last = -1, node, args
    while p.token == b'@':
        p.directives += 1
        if p.directives > p.limits.directives:
            return refuse(p, TOO_MANY_DIRECTIVES, b"directives", p.start, p.directives)
        if not lex(p):
            return False
        if p.token != T_NAME:
            return unexpected(p, b"expected a directive's name after '@'")
        node = new_node(p, DIRECTIVE)
        if node < 0:
            return False
        p.nodes[node].name = p.name
        if last < 0:
            first[0] = node
        else:
            p.nodes[last].next = node
        last = node
        if not lex(p):
            return False
        if p.token == b'(':
            args = parse_arguments(p, constant)
            if args < 0:
                return False
            p.nodes[node].args = args
    return True

cdef int32_t parse_type(Parser *p) noexcept nogil:
    """A type of a variable; the outermost node or -1. Lists are few: their closing brackets are counted back."""
    cdef int32_t lists[MAX_VALUE_DEPTH]
    cdef int32_t depth = 0, node, top = -1
    while p.token == b'[':
        if depth >= p.limits.value_depth:
            refuse(p, VALUE_TOO_DEEP, b"list types within each other", p.start, depth + 1)
            return -1
        node = new_node(p, LIST_TYPE)
        if node < 0:
            return -1
        p.nodes[node].alias = 0
        if depth:
            p.nodes[lists[depth - 1]].child = node
        else:
            top = node
        lists[depth] = node
        depth += 1
        if not lex(p):
            return -1
    if p.token != T_NAME:
        unexpected(p, b"expected a type")
        return -1
    node = new_node(p, NAMED_TYPE)
    if node < 0:
        return -1
    p.nodes[node].alias = 0
    p.nodes[node].name = p.name
    if depth:
        p.nodes[lists[depth - 1]].child = node
    else:
        top = node
    if not lex(p):
        return -1
    while True:
        if p.token == b'!':
            p.nodes[node].alias = 1
            if not lex(p):
                return -1
        if depth == 0:
            return top
        if not expect(p, b']', b"expected ']' after a list's type"):
            return -1
        depth -= 1
        node = lists[depth]

cdef bint parse_variables(Parser *p, int32_t *first) noexcept nogil:
    cdef int32_t last = -1, node, part
    if not lex(p):
        return False
    while p.token != b')' or last < 0:
        if p.token == T_STRING and not lex(p):  # a description
            return False
        if p.token != b'$':
            return unexpected(p, b"expected a variable definition")
        if not lex(p):
            return False
        if p.token != T_NAME:
            return unexpected(p, b"expected a variable's name after '$'")
        node = new_node(p, VARIABLE_DEFINITION)
        if node < 0:
            return False
        p.nodes[node].name = p.name
        if last < 0:
            first[0] = node
        else:
            p.nodes[last].next = node
        last = node
        if not lex(p) or not expect(p, b':', b"expected ':' after a variable's name"):
            return False
        part = parse_type(p)
        if part < 0:
            return False
        p.nodes[node].args = part
        if p.token == b'=':
            if not lex(p):
                return False
            part = parse_value(p, True)
            if part < 0:
                return False
            p.nodes[node].child = part
        part = -1
        if not parse_directives(p, &part, True):
            return False
        p.nodes[node].dirs = part
    return lex(p)

cdef inline bint push(Parser *p, int32_t owner, int32_t serial, int32_t depth, int32_t walk, int32_t introspection) noexcept nogil:
    if p.n_frames >= p.room_frames:
        return refuse(p, TOO_DEEP, b"selections within each other", p.start, p.n_frames + 1)
    cdef Frame *f = &p.frames[p.n_frames]
    f.owner = owner
    f.last = -1
    f.serial = serial
    f.depth = depth
    f.walk = walk
    f.introspection = introspection
    p.n_frames += 1
    return True

cdef bint seen_grow(Parser *p) noexcept nogil:
    cdef uint32_t mask = p.seen_mask * 2 + 1, slot
    cdef int32_t i
    cdef uint64_t *seen = <uint64_t *>calloc(<size_t>mask + 1, sizeof(uint64_t))
    cdef uint32_t *places = <uint32_t *>malloc((<size_t>mask + 1) // 2 * sizeof(uint32_t))
    if seen == NULL or places == NULL:
        free(seen)
        free(places)
        return False
    for i in range(p.n_seen):
        slot = <uint32_t>fold(p.seen[p.seen_at[i]] ^ p.names.k0, p.names.k1) & mask
        while seen[slot]:
            slot = (slot + 1) & mask
        seen[slot] = p.seen[p.seen_at[i]]
        places[i] = slot
    free(p.seen)
    free(p.seen_at)
    p.seen = seen
    p.seen_at = places
    p.seen_mask = mask
    return True

cdef inline bint count_field(Parser *p, int32_t serial, int32_t response) noexcept nogil:
    """Counts the field as a duplicate if one of the same response name stands in the same selections."""
    cdef uint64_t key = (<uint64_t>(serial + 1) << 32) | <uint32_t>response
    cdef uint32_t slot = <uint32_t>fold(key ^ p.names.k0, p.names.k1) & p.seen_mask
    p.fields += 1
    while p.seen[slot]:
        if p.seen[slot] == key:
            p.duplicates += 1
            if p.duplicates > p.limits.duplicate_fields:
                return refuse(p, TOO_MANY_DUPLICATES, b"fields repeated in their own selections", p.start, p.duplicates)
            return True
        slot = (slot + 1) & p.seen_mask
    if p.n_seen * 2 >= <int32_t>p.seen_mask:
        if not seen_grow(p):
            return refuse(p, OUT_OF_MEMORY, b"no memory", p.start, 0)
        slot = <uint32_t>fold(key ^ p.names.k0, p.names.k1) & p.seen_mask
        while p.seen[slot]:
            slot = (slot + 1) & p.seen_mask
    p.seen[slot] = key
    p.seen_at[p.n_seen] = slot
    p.n_seen += 1
    return True

cdef bint parse_field(Parser *p, Definition *d) noexcept nogil:
    cdef Frame *f = &p.frames[p.n_frames - 1]
    cdef int32_t node = new_node(p, FIELD), args, walk = f.walk, introspection = f.introspection
    cdef int32_t serial = f.serial, depth = f.depth + 1, part
    cdef Node *n
    if node < 0:
        return False
    if f.last < 0:
        if f.owner < 0:
            d.child = node
        else:
            p.nodes[f.owner].child = node
    else:
        p.nodes[f.last].next = node
    f.last = node
    n = &p.nodes[node]
    n.name = n.alias = p.name
    if not lex(p):
        return False
    if p.token == b':':
        d.aliases += 1
        if d.aliases > p.limits.aliases:
            return refuse(p, TOO_MANY_ALIASES, b"aliases", p.start, d.aliases)
        if not lex(p):
            return False
        if p.token != T_NAME:
            return unexpected(p, b"expected a field's name after its alias")
        n.name = p.name
        if not lex(p):
            return False
    if depth > d.depth:
        d.depth = depth
        if depth > p.limits.depth:
            return refuse(p, TOO_DEEP, b"fields within each other", n.start, depth)
    if depth == 1:
        d.root_fields += 1
        if d.kind != FRAGMENT and d.root_fields > p.limits.root_fields:
            return refuse(p, TOO_MANY_ROOT_FIELDS, b"root fields", n.start, d.root_fields)
    d.fields += 1
    if not count_field(p, serial, n.alias):
        return False
    if n.name >= <int32_t>W_SCHEMA and n.name <= <int32_t>W_INPUT_FIELDS:
        if n.name <= W_TYPE:
            introspection = 0
            if not p.limits.introspection:
                return refuse(p, INTROSPECTION_REFUSED, b"introspection", n.start, 1)
        else:
            walk += 1
            if walk > d.walk:
                d.walk = walk
            if introspection >= 0:
                introspection += 1
                if introspection > d.introspection:
                    d.introspection = introspection
                    if introspection > p.limits.introspection_depth:
                        return refuse(p, INTROSPECTION_TOO_DEEP, b"lists of the introspection system within each other",
                                      n.start, introspection)
    if p.token == b'(':
        args = parse_arguments(p, False)
        if args < 0:
            return False
        p.nodes[node].args = args
    if p.token == b'@':
        part = -1
        if not parse_directives(p, &part, False):
            return False
        p.nodes[node].dirs = part
    if p.token == b'{':
        p.serials += 1
        return push(p, node, p.serials, depth, walk, introspection) and lex(p)
    return True

cdef bint new_spread(Parser *p, Definition *d, int32_t node) noexcept nogil:
    cdef Frame *f = &p.frames[p.n_frames - 1]
    cdef Spread *spreads
    if p.n_spreads == p.room_spreads:
        spreads = <Spread *>realloc(p.spreads, <size_t>p.room_spreads * 2 * sizeof(Spread))
        if spreads == NULL:
            return refuse(p, OUT_OF_MEMORY, b"no memory", p.start, 0)
        p.spreads = spreads
        p.room_spreads *= 2
    cdef Spread *s = &p.spreads[p.n_spreads]
    s.owner = p.n_definitions - 1
    s.name = p.nodes[node].name
    s.start = p.nodes[node].start
    s.depth = f.depth
    s.walk = f.walk
    s.introspection = f.introspection
    s.fragment = -1
    p.n_spreads += 1
    d.n_spreads += 1
    return True

cdef bint parse_fragment(Parser *p, Definition *d) noexcept nogil:
    """What stands behind `...`: the name of a fragment, or one written in place. The token looked at is the `...`."""
    cdef Frame *f = &p.frames[p.n_frames - 1]
    cdef int32_t node = new_node(p, INLINE), part = -1
    if node < 0:
        return False
    if f.last < 0:
        if f.owner < 0:
            d.child = node
        else:
            p.nodes[f.owner].child = node
    else:
        p.nodes[f.last].next = node
    f.last = node
    if not lex(p):
        return False
    if p.token == T_NAME and p.name != W_ON:
        p.nodes[node].kind = SPREAD
        p.nodes[node].name = p.name
        if not lex(p) or not parse_directives(p, &part, False):
            return False
        p.nodes[node].dirs = part
        return new_spread(p, d, node)
    if p.token == T_NAME:
        if not lex(p):
            return False
        if p.token != T_NAME:
            return unexpected(p, b"expected a type after 'on'")
        p.nodes[node].alias = p.name
        if not lex(p):
            return False
    if not parse_directives(p, &part, False):
        return False
    p.nodes[node].dirs = part
    if p.token != b'{':
        return unexpected(p, b"expected '{' or the name of a fragment after '...'")
    return push(p, node, f.serial, f.depth, f.walk, f.introspection) and lex(p)

cdef bint parse_selections(Parser *p, Definition *d) noexcept nogil:
    """The selections of a definition and all within them. The token looked at is the opening brace."""
    cdef Frame *f
    if p.token != b'{':
        return unexpected(p, b"expected '{'")
    p.serials += 1
    if not push(p, -1, p.serials, 0, 0, -1) or not lex(p):
        return False
    while p.n_frames:
        f = &p.frames[p.n_frames - 1]
        if p.token == T_NAME:
            if not parse_field(p, d):
                return False
        elif p.token == T_SPREAD:
            if not parse_fragment(p, d):
                return False
        elif p.token == b'}' and f.last >= 0:
            p.n_frames -= 1
            if not lex(p):
                return False
        else:
            return unexpected(p, b"expected a field, a fragment or '}'" if f.last >= 0 else b"expected a field or a fragment")
    return True

cdef Definition *new_definition(Parser *p) noexcept nogil:
    cdef Definition *definitions
    if p.n_definitions == p.room_definitions:
        definitions = <Definition *>realloc(p.definitions, <size_t>p.room_definitions * 2 * sizeof(Definition))
        if definitions == NULL:
            refuse(p, OUT_OF_MEMORY, b"no memory", p.start, 0)
            return NULL
        p.definitions = definitions
        p.room_definitions *= 2
    cdef Definition *d = &p.definitions[p.n_definitions]
    p.n_definitions += 1
    memset(d, 0, sizeof(Definition))
    d.name = d.condition = d.variables = d.dirs = d.child = -1
    d.start = p.start
    d.first_spread = p.n_spreads
    d.introspection = -1
    return d

cdef bint parse_definition(Parser *p) noexcept nogil:
    cdef Definition *d
    cdef bint described = p.token == T_STRING
    if described and not lex(p):
        return False
    if p.token == T_NAME and p.name == W_FRAGMENT:
        p.fragments += 1
        if p.fragments > p.limits.fragments:
            return refuse(p, TOO_MANY_FRAGMENTS, b"fragments", p.start, p.fragments)
    else:
        p.operations += 1
        if p.operations > p.limits.operations:
            return refuse(p, TOO_MANY_OPERATIONS, b"operations", p.start, p.operations)
    d = new_definition(p)
    if d == NULL:
        return False
    if p.token == b'{' and not described:
        return parse_selections(p, d)
    if p.token != T_NAME or p.name > W_FRAGMENT:
        return unexpected(p, b"expected a query, mutation, subscription or fragment")
    d.kind = p.name - W_QUERY
    if not lex(p):
        return False
    if d.kind == FRAGMENT:
        if p.token != T_NAME or p.name == W_ON:
            return unexpected(p, b"expected a fragment's name")
        d.name = p.name
        if not lex(p):
            return False
        if p.token != T_NAME or p.name != W_ON:
            return unexpected(p, b"expected 'on' after a fragment's name")
        if not lex(p):
            return False
        if p.token != T_NAME:
            return unexpected(p, b"expected a type after 'on'")
        d.condition = p.name
        if not lex(p):
            return False
    else:
        if p.token == T_NAME:
            d.name = p.name
            if not lex(p):
                return False
        if p.token == b'(' and not parse_variables(p, &d.variables):
            return False
    return parse_directives(p, &d.dirs, False) and parse_selections(p, d)

cdef bint parser_open(Parser *p, const Limits *limits, uint64_t k0, uint64_t k1) noexcept nogil:
    memset(p, 0, sizeof(Parser))
    p.limits = limits[0]
    p.room_nodes = 256
    p.room_definitions = 16
    p.room_spreads = 32
    p.room_frames = MAX_NESTING
    p.seen_mask = SEEN_ROOM - 1
    p.nodes = <Node *>malloc(p.room_nodes * sizeof(Node))
    p.definitions = <Definition *>malloc(p.room_definitions * sizeof(Definition))
    p.spreads = <Spread *>malloc(p.room_spreads * sizeof(Spread))
    p.frames = <Frame *>malloc(p.room_frames * sizeof(Frame))
    p.seen = <uint64_t *>calloc(SEEN_ROOM, sizeof(uint64_t))
    p.seen_at = <uint32_t *>malloc(SEEN_ROOM // 2 * sizeof(uint32_t))
    if not names_open(&p.names, k0, k1):
        return False
    return (p.nodes != NULL and p.definitions != NULL and p.spreads != NULL and p.frames != NULL and p.seen != NULL
            and p.seen_at != NULL and know_names(&p.names))

cdef void parser_close(Parser *p) noexcept nogil:
    free(p.nodes)
    free(p.definitions)
    free(p.spreads)
    free(p.frames)
    free(p.seen)
    free(p.seen_at)
    names_close(&p.names)

cdef void parser_reset(Parser *p, const char *text, int32_t size) noexcept nogil:
    cdef int32_t i
    names_cut(&p.names, WELL_KNOWN)
    for i in range(p.n_seen):
        p.seen[p.seen_at[i]] = 0
    p.text = text
    p.size = size
    p.at = p.tokens = p.where = p.n_seen = 0
    p.outcome = FINE
    p.what = NULL
    p.figure = 0
    p.n_nodes = p.n_definitions = p.n_spreads = p.n_frames = 0
    p.serials = p.directives = p.duplicates = p.fields = p.fragments = p.operations = 0

cdef bint parse_document(Parser *p, const char *text, int64_t size) noexcept nogil:
    """Fills the parser with one document; whether it is well-formed and below every ceiling that one pass can see."""
    parser_reset(p, text, <int32_t>min(size, INT32_MAX))
    if size > p.limits.document_bytes:
        return refuse(p, TOO_MANY_BYTES, b"bytes", 0, size)
    if not lex(p):
        return False
    if p.token == T_END:
        return refuse(p, INVALID, b"an empty document", 0, 0)
    while p.token != T_END:
        if not parse_definition(p):
            return False
    return True
