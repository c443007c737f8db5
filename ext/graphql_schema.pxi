"""What of a schema decides a price, as flat arrays: built once from the tables of shield.graphql.schema, then only read."""

cdef enum TypeKind:
    SCALAR = 0
    ENUM = 1
    OBJECT_TYPE = 2
    INTERFACE = 3
    UNION = 4
    INPUT_OBJECT = 5

cdef enum ScalarKind:
    ANY_SCALAR = 0
    INT_SCALAR = 1
    FLOAT_SCALAR = 2
    STRING_SCALAR = 3
    BOOLEAN_SCALAR = 4
    ID_SCALAR = 5

# A type as it is written around a name: `lists` pairs of brackets, and a bit for each "!" from the outside in.
cdef struct TypeRef:
    int32_t type        # -1: not of the schema
    int32_t scalar      # a ScalarKind, when the type is a scalar or not of the schema
    int32_t lists
    uint64_t non_null

cdef struct TypeInfo:
    int32_t name, kind, scalar
    int64_t weight              # of one value of it, in billionths; an abstract type's is the largest of its members'
    int32_t first_possible, n_possible  # the object types it can be at run time
    int32_t object              # its number among the object types, -1 for others
    int32_t first_input, n_inputs
    int32_t first_default, n_defaults   # input fields that have a default

cdef struct FieldInfo:
    int32_t parent, name, type
    int32_t is_list
    int64_t weight              # ibm: of one call, in billionths
    int64_t router_weight       # router: of one value
    int32_t first_arg, n_args
    int32_t list_size           # -1: none

cdef struct InputInfo:          # an argument or a field of an input object
    int32_t parent, name
    TypeRef ref
    int64_t weight              # ibm
    int64_t router_weight
    int32_t router_weighted     # whether @cost was given: the default of an object is another than that of a list
    int32_t costly              # whether any value of it can cost anything
    int32_t default             # of `defaults`, -1: none
    int32_t required

cdef struct ListSize:
    int64_t assumed             # -1: not given
    int64_t slicing_default     # -1: not given
    int32_t first_path, n_paths
    int32_t require_one
    int32_t sized               # root of the trie of sized fields, -1: it sizes itself

cdef struct Path:               # of a slicing argument: its name, then those of fields within
    int32_t first, n            # of `segments`

cdef struct Trie:
    int32_t name, leaf, child, next

cdef struct DirectiveInfo:
    int32_t name, first_arg, n_args, costly

cdef inline uint64_t pair_of(int32_t parent, int32_t name) noexcept nogil:
    return (<uint64_t><uint32_t>parent << 32) | <uint32_t>name

cdef struct PairMap:            # (parent, name) -> index, built once
    uint64_t *keys
    int32_t *values
    uint32_t mask

cdef bint pairs_open(PairMap *m, int64_t count) noexcept:
    cdef uint32_t room = 16
    while room < count * 2 + 2:
        room *= 2
    m.mask = room - 1
    m.keys = <uint64_t *>calloc(room, sizeof(uint64_t))
    m.values = <int32_t *>malloc(room * sizeof(int32_t))
    if m.keys == NULL or m.values == NULL:
        return False
    cdef uint32_t i
    for i in range(room):
        m.values[i] = -1
    return True

cdef void pairs_close(PairMap *m) noexcept:
    free(m.keys)
    free(m.values)

cdef inline uint32_t pair_slot(uint64_t key, uint32_t mask) noexcept nogil:
    return <uint32_t>(fold(key + 0x9E3779B97F4A7C15ULL, 0xD6E8FEB86659FD93ULL)) & mask

cdef void pairs_put(PairMap *m, int32_t parent, int32_t name, int32_t value) noexcept:
    cdef uint64_t key = pair_of(parent, name)
    cdef uint32_t slot = pair_slot(key, m.mask)
    while m.values[slot] >= 0:
        slot = (slot + 1) & m.mask
    m.keys[slot] = key
    m.values[slot] = value

cdef inline int32_t pairs_find(const PairMap *m, int32_t parent, int32_t name) noexcept nogil:
    cdef uint64_t key = pair_of(parent, name)
    cdef uint32_t slot = pair_slot(key, m.mask)
    while m.values[slot] >= 0:
        if m.keys[slot] == key:
            return m.values[slot]
        slot = (slot + 1) & m.mask
    return -1


cdef void *array_of(object rows, size_t size) except NULL:
    cdef void *array = calloc(max(1, len(rows)), size)
    if array == NULL:
        raise MemoryError
    return array


cdef TypeRef ref_of(tuple row):
    cdef TypeRef ref
    ref.type, ref.scalar, ref.lists, ref.non_null = row
    return ref


@cython.final
cdef class SchemaTable:
    """The tables of one schema. Every argument is a list of tuples, described where shield.graphql.schema writes them."""

    cdef NameTable names
    cdef list texts             # keeps the bytes of the names
    cdef list strings           # the same names as str, for the keys of variables
    cdef list defaults
    cdef list enums             # by type: frozenset of the values of an enum, else None
    cdef dict input_types       # by type: dict of field name -> index of `inputs`
    cdef TypeInfo *types
    cdef FieldInfo *fields
    cdef InputInfo *inputs
    cdef ListSize *list_sizes
    cdef Path *paths
    cdef int32_t *segments
    cdef Trie *trie
    cdef DirectiveInfo *directives
    cdef int32_t *possible
    cdef int32_t *defaulted     # input fields that have a default, by input type
    cdef uint64_t *bits         # by type: the object types it can be
    cdef int32_t words          # of `bits`, for each type
    cdef PairMap field_map, input_map
    cdef int32_t *type_of_name  # by the id of a name, -1: no type
    cdef int32_t n_names, n_types, n_fields, n_inputs, n_directives
    cdef int32_t roots[3]

    def __cinit__(self, *, list names, list types, list fields, list inputs, list list_sizes, list paths, list trie,
                  list directives, tuple roots):
        cdef int32_t i, j, at, n
        cdef TypeInfo *t
        cdef bytes text
        cdef object key
        if not names_open(&self.names, int.from_bytes(os.urandom(8), "little"), int.from_bytes(os.urandom(8), "little")):
            raise MemoryError
        if not know_names(&self.names):
            raise MemoryError
        self.texts = [name.encode() for name in names]
        for text in self.texts:
            if name_of(&self.names, text, <int32_t>len(text)) < 0:
                raise MemoryError
        self.strings = [self.names.names[i].text[:self.names.names[i].size].decode() for i in range(self.names.count)]
        ids = {name: i for i, name in enumerate(self.strings)}
        self.n_names = self.names.count
        self.n_types = <int32_t>len(types)
        self.n_fields = <int32_t>len(fields)
        self.n_inputs = <int32_t>len(inputs)
        self.n_directives = <int32_t>len(directives)
        self.types = <TypeInfo *>array_of(types, sizeof(TypeInfo))
        self.fields = <FieldInfo *>array_of(fields, sizeof(FieldInfo))
        self.inputs = <InputInfo *>array_of(inputs, sizeof(InputInfo))
        self.list_sizes = <ListSize *>array_of(list_sizes, sizeof(ListSize))
        self.paths = <Path *>array_of(paths, sizeof(Path))
        self.trie = <Trie *>array_of(trie, sizeof(Trie))
        self.directives = <DirectiveInfo *>array_of(directives, sizeof(DirectiveInfo))
        self.segments = <int32_t *>array_of([segment for path in paths for segment in path], sizeof(int32_t))
        self.possible = <int32_t *>array_of([one for row in types for one in row[4]], sizeof(int32_t))
        self.type_of_name = <int32_t *>array_of(self.strings, sizeof(int32_t))
        self.defaulted = <int32_t *>array_of(inputs, sizeof(int32_t))
        self.enums = []
        self.input_types = {}
        self.defaults = []
        for i in range(self.n_names):
            self.type_of_name[i] = -1
        n = at = 0
        for i, (name, kind, scalar, weight, possible, first_input, n_inputs, values) in enumerate(types):
            t = &self.types[i]
            t.name = ids[name]
            t.kind = kind
            t.scalar = scalar
            t.weight = weight
            t.first_input = first_input
            t.n_inputs = n_inputs
            t.object = -1
            if kind == OBJECT_TYPE:
                t.object = n
                n += 1
            t.first_possible = at
            t.n_possible = <int32_t>len(possible)
            for one in possible:
                self.possible[at] = one
                at += 1
            self.type_of_name[t.name] = i
            self.enums.append(values)
        self.words = (n + 63) // 64 or 1
        self.bits = <uint64_t *>calloc(<size_t>max(1, self.n_types) * self.words, sizeof(uint64_t))
        if self.bits == NULL or not pairs_open(&self.field_map, len(fields)) or not pairs_open(&self.input_map, len(inputs)):
            raise MemoryError
        for i in range(self.n_types):
            t = &self.types[i]
            for j in range(t.first_possible, t.first_possible + t.n_possible):
                n = self.types[self.possible[j]].object
                self.bits[i * self.words + n // 64] |= (<uint64_t>1) << (n % 64)
        for i, (parent, name, type_, is_list, weight, router_weight, first_arg, n_args, list_size) in enumerate(fields):
            self.fields[i].parent = parent
            self.fields[i].name = ids[name]
            self.fields[i].type = type_
            self.fields[i].is_list = is_list
            self.fields[i].weight = weight
            self.fields[i].router_weight = router_weight
            self.fields[i].first_arg = first_arg
            self.fields[i].n_args = n_args
            self.fields[i].list_size = list_size
            pairs_put(&self.field_map, parent, self.fields[i].name, i)
        for i, (parent, name, ref, weight, router_weight, has_default, default) in enumerate(inputs):
            self.inputs[i].parent = parent
            self.inputs[i].name = ids[name]
            self.inputs[i].ref = ref_of(ref)
            self.inputs[i].weight = weight
            self.inputs[i].router_weighted = router_weight is not None
            self.inputs[i].router_weight = router_weight or 0
            self.inputs[i].costly = bool(
                weight or router_weight or (ref[0] >= 0 and self.types[<int32_t>ref[0]].kind == INPUT_OBJECT)
            )
            self.inputs[i].default = -1
            if has_default:
                self.inputs[i].default = <int32_t>len(self.defaults)
                self.defaults.append(default)
            self.inputs[i].required = (self.inputs[i].ref.non_null & 1) and not has_default
        at = 0
        for i in range(self.n_types):
            t = &self.types[i]
            if t.kind != INPUT_OBJECT:
                continue
            t.first_default = at
            by_name = {}
            for j in range(t.first_input, t.first_input + t.n_inputs):
                by_name[self.strings[self.inputs[j].name]] = j
                pairs_put(&self.input_map, i, self.inputs[j].name, j)
                if self.inputs[j].default >= 0:
                    self.defaulted[at] = j
                    at += 1
            t.n_defaults = at - t.first_default
            self.input_types[i] = by_name
        for i, (assumed, slicing_default, first_path, n_paths, require_one, sized) in enumerate(list_sizes):
            self.list_sizes[i].assumed = assumed
            self.list_sizes[i].slicing_default = slicing_default
            self.list_sizes[i].first_path = first_path
            self.list_sizes[i].n_paths = n_paths
            self.list_sizes[i].require_one = require_one
            self.list_sizes[i].sized = sized
        at = 0
        for i, path in enumerate(paths):
            self.paths[i].first = at
            self.paths[i].n = <int32_t>len(path)
            for segment in path:
                self.segments[at] = ids[segment]
                at += 1
        for i, (name, leaf, child, following) in enumerate(trie):
            self.trie[i].name = ids[name] if name else -1
            self.trie[i].leaf = leaf
            self.trie[i].child = child
            self.trie[i].next = following
        for i, (name, first_arg, n_args) in enumerate(directives):
            self.directives[i].name = ids[name]
            self.directives[i].first_arg = first_arg
            self.directives[i].n_args = n_args
            for j in range(first_arg, first_arg + n_args):
                self.directives[i].costly |= self.inputs[j].costly
        for i in range(3):
            self.roots[i] = roots[i]

    def __dealloc__(self):
        names_close(&self.names)
        free(self.types)
        free(self.fields)
        free(self.inputs)
        free(self.list_sizes)
        free(self.paths)
        free(self.segments)
        free(self.trie)
        free(self.directives)
        free(self.possible)
        free(self.defaulted)
        free(self.bits)
        free(self.type_of_name)
        pairs_close(&self.field_map)
        pairs_close(&self.input_map)

    cdef inline int32_t field_of(self, int32_t parent, int32_t name) noexcept nogil:
        return pairs_find(&self.field_map, parent, name) if name >= 0 else -1

    cdef inline int32_t input_of(self, int32_t parent, int32_t name) noexcept nogil:
        return pairs_find(&self.input_map, parent, name) if name >= 0 else -1

    cdef int32_t argument_of(self, const FieldInfo *field, int32_t name) noexcept nogil:
        cdef int32_t i
        for i in range(field.first_arg, field.first_arg + field.n_args):
            if self.inputs[i].name == name:
                return i
        return -1

    cdef int32_t directive_of(self, int32_t name) noexcept nogil:
        cdef int32_t i
        for i in range(self.n_directives):
            if self.directives[i].name == name:
                return i
        return -1

    cdef inline bint can_be(self, int32_t type, int32_t object) noexcept nogil:
        """Whether a value of an object type (by its number) is also one of `type`."""
        return (self.bits[type * self.words + object // 64] >> (object % 64)) & 1
