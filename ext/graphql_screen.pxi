"""The way in: a pass over a document with the ceilings of one configuration, and the compiler behind it."""

@cython.final
cdef class Screen:
    """The ceilings on a document's structure, and the memory to look at one document after the other."""

    cdef Parser parser
    cdef int32_t *scratch
    cdef int32_t room
    cdef bint busy

    def __cinit__(
        self, *, int64_t document_bytes, int tokens, int depth, int aliases, int root_fields, int directives,
        int duplicate_fields, int value_depth, int fragments, int operations, int introspection_depth, int introspection,
        int work,
    ):
        cdef Limits limits
        limits.document_bytes = document_bytes
        limits.tokens = tokens
        limits.depth = depth
        limits.aliases = aliases
        limits.root_fields = root_fields
        limits.directives = directives
        limits.duplicate_fields = duplicate_fields
        limits.value_depth = min(value_depth, <int>MAX_VALUE_DEPTH)
        limits.fragments = fragments
        limits.operations = operations
        limits.introspection_depth = introspection_depth
        limits.introspection = introspection
        limits.work = work
        if not parser_open(&self.parser, &limits, int.from_bytes(os.urandom(8), "little"),
                           int.from_bytes(os.urandom(8), "little")):
            raise MemoryError

    def __dealloc__(self):
        parser_close(&self.parser)
        free(self.scratch)

    cdef int run(self, const char *text, int64_t size) except -1:
        """The pass and the fragments; raises Refusal."""
        cdef Parser *p = &self.parser
        cdef int32_t wanted
        if not parse_document(p, text, size):
            raise refusal_of(p)
        wanted = p.names.count + 2 * p.n_definitions
        if wanted > self.room:
            free(self.scratch)
            self.scratch = <int32_t *>malloc(2 * wanted * sizeof(int32_t))
            if self.scratch == NULL:
                self.room = 0
                raise MemoryError
            self.room = 2 * wanted
        if not resolve_names(p, self.scratch):
            raise refusal_of(p)
        if not follow(p, self.scratch + p.names.count, self.scratch + p.names.count + p.n_definitions):
            raise refusal_of(p)
        return 0

    cdef int32_t operation(self, str name) except -1:
        """The definition that is to be run."""
        cdef Parser *p = &self.parser
        cdef int32_t i, found = -1
        cdef bytes wanted = None if name is None else name.encode("utf-8", "replace")
        for i in range(p.n_definitions):
            if p.definitions[i].kind == FRAGMENT:
                continue
            if wanted is None:
                if found >= 0:
                    raise Refusal("graphql_invalid", "operation_name: the document has several operations, name one")
                found = i
            elif p.definitions[i].name >= 0 and (
                p.names.names[p.definitions[i].name].text[:p.names.names[p.definitions[i].name].size] == wanted
            ):
                found = i
        if found < 0:
            raise Refusal("graphql_invalid", "the document has no operation" if wanted is None
                          else f"operation_name: the document has no operation {kind_of(name)}")
        if not within_ceilings(p, &p.definitions[found]):
            raise refusal_of(p)
        return found

    def screen(self, query, str operation_name=None):
        """(tokens, depth, aliases, root fields, directives, duplicate fields, fields, fragments, operations, introspection
        depth) of the document, of which depth, aliases, root and all fields and introspection are the operation's own.
        Raises Refusal for the first ceiling crossed."""
        cdef Py_ssize_t size
        cdef const char *text
        cdef Definition *d
        cdef Parser *p = &self.parser
        text = utf8_of(query, &size)
        self.run(text, size)
        d = &p.definitions[self.operation(operation_name or None)]
        return (p.tokens, d.total_depth, d.total_aliases, d.total_root_fields, p.directives, p.duplicates, d.total_fields,
                p.fragments, p.operations, max(0, d.total_introspection))

    def compile(self, query, str operation_name, SchemaTable schema, int dialect, default_list_size):
        """The operation as a Program. `default_list_size` None is unbounded."""
        cdef Py_ssize_t size
        cdef const char *text
        if self.busy:
            raise RuntimeError("a Screen looks at one document at a time")
        text = utf8_of(query, &size)
        self.busy = True
        try:
            return self.compiled(text, size, operation_name or None, schema, dialect, default_list_size)
        finally:
            self.busy = False

    cdef Program compiled(self, const char *text, Py_ssize_t size, str operation_name, SchemaTable schema, int dialect,
                          object default_list_size):
        cdef Parser *p = &self.parser
        cdef Program program
        cdef Compiler c
        cdef Definition *d
        cdef int32_t i, condition, root = -1
        self.run(text, size)
        d = &p.definitions[self.operation(operation_name)]
        program = Program.__new__(Program)
        program.schema = schema if dialect != SHAPE else None
        program.dialect = dialect
        program.kind = d.kind
        program.limits = p.limits
        program.text = text[:size]
        program.source = program.text
        program.size = <int32_t>size
        program.default_size = UNBOUNDED if default_list_size is None else min(<int64_t>default_list_size, UNBOUNDED)
        if dialect == SHAPE:
            program.default_size = 1  # without a schema nobody knows what is a list
        program.operation_name = None if d.name < 0 else p.names.names[d.name].text[:p.names.names[d.name].size].decode()
        program.depth = d.total_depth
        program.aliases = d.total_aliases
        program.root_fields = d.total_root_fields
        program.fields = d.total_fields
        program.introspection_depth = max(0, d.total_introspection)
        program.tokens = p.tokens
        program.directives = p.directives
        program.duplicate_fields = p.duplicates
        program.fragments = p.fragments
        program.operations = p.operations
        c = Compiler.__new__(Compiler)
        c.p = program
        c.parser = p
        c.fragment_of = <int32_t *>malloc(p.names.count * sizeof(int32_t))
        if c.fragment_of == NULL:
            raise MemoryError
        memcpy(c.fragment_of, self.scratch, p.names.count * sizeof(int32_t))
        translate(c, d)
        for i in range(p.n_definitions):
            # From here on a fragment's condition is a type, or -2 for none.
            if p.definitions[i].kind == FRAGMENT:
                p.definitions[i].condition = type_named(c, p.definitions[i].condition)
        if dialect == SHAPE:
            program.root = compile_plain(c, -1, 0, d.child)
        else:
            root = schema.roots[d.kind]
            if root < 0:
                raise Refusal("graphql_invalid", f"the schema has no type for a {OPERATIONS[d.kind]}")
            if dialect == ROUTER:
                program.root_weight = 10_000_000_000 if d.kind == MUTATION else 0
                program.root = compile_plain(c, root, 0, d.child)
            else:
                program.root_weight = schema.types[root].weight
                c.items = <Item *>grown(c.items, &c.room_items, c.n_items, sizeof(Item))
                c.items[0].first = d.child
                c.items[0].on = c.items[0].off = 0
                c.n_items = 1
                program.root = compile_set(c, root, 0, 0, 1)
        program.totals = <Totals *>calloc(max(1, program.n_sets), sizeof(Totals))
        if program.totals == NULL:
            raise MemoryError
        return program


cdef const char *utf8_of(object query, Py_ssize_t *size) except NULL:
    """The bytes of a document given as str or bytes; refuses what is no valid UTF-8."""
    if PyUnicode_Check(query):
        try:
            return PyUnicode_AsUTF8AndSize(query, size)
        except UnicodeEncodeError:
            raise Refusal("graphql_invalid", "the document is not valid Unicode: it has half of a surrogate pair") from None
    if isinstance(query, bytes):
        try:
            (<bytes>query).decode("utf-8", "strict")
        except UnicodeDecodeError as error:
            raise Refusal("graphql_invalid", f"the document is not valid UTF-8 at byte {error.start}") from None
        size[0] = len(<bytes>query)
        return <const char *><bytes>query
    raise TypeError(f"query must be str or bytes, not {type(query).__name__}")
