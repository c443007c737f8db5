"""A compiled operation: what is left of a document once its schema is known, to be evaluated for each set of variables.

    Set      selections on one type: the largest of its branches
    Branch   one object type that the value can be at run time: the sum of its groups
    Group    fields of one response name, which are one field: the largest of its uses
    Use      one field as written: list size * (weight + selections) + the call

Sets stand after all that they refer to, so evaluating is one loop from the first to the last; a set that several fields
refer to (a fragment named a thousand times) is one entry. In the router's and the shape dialect nothing is merged: every
selection is a group of its own and a fragment is a use without weight.
"""

cdef enum Dialect:
    IBM = 0
    ROUTER = 1
    SHAPE = 2

cdef enum UseKind:
    U_FIELD = 0
    U_FRAGMENT = 1  # stands for the selections of a fragment
    U_META = 2      # __schema and __type: answered from the schema, bounded by the ceilings on introspection

cdef struct Totals:
    cost_t type
    cost_t field

cdef struct Use:
    cost_t call             # of the call itself; recomputed for each set of variables when `dynamic`
    int64_t weight          # of one value
    uint64_t on, off        # conditions that must hold, and that must not
    int32_t kind, field, node, child
    int32_t first_sized, n_sized    # `refs` to sizes that an outer field hands down; they come first
    int32_t first_own, n_own        # `refs` to sizes of its own
    int32_t is_list, dynamic

cdef struct Group:
    int32_t first_use, n_uses

cdef struct Branch:
    int32_t first_group, n_groups, type

cdef struct Set:
    int32_t first_branch, n_branches

cdef struct Slot:           # the size that a field's arguments ask for
    int64_t size            # -1: none
    int32_t field, node, dynamic

cdef enum VariableState:
    UNDEFINED = 0
    DEFAULTED = 1
    GIVEN = 2

cdef struct Variable:
    TypeRef ref
    int32_t node, default, bit, state

cdef void *grown(void *array, int32_t *room, int32_t count, size_t size) except NULL:
    """The array with room for one entry more."""
    cdef int32_t wanted
    if count < room[0]:
        return array
    wanted = max(16, room[0] * 2)
    array = realloc(array, wanted * size)
    if array == NULL:
        raise MemoryError
    room[0] = wanted
    return array


@cython.final
cdef class Program:
    """One operation of one document, compiled. Not thread-safe beyond the GIL: it evaluates into its own arrays."""

    cdef SchemaTable schema
    cdef bytes text
    cdef const char *source
    cdef int32_t size
    cdef int dialect, kind
    cdef int64_t default_size   # of a list nobody sizes; UNBOUNDED
    cdef Limits limits
    cdef Node *nodes
    cdef int32_t n_nodes
    cdef Use *uses
    cdef Group *groups
    cdef Branch *branches
    cdef Set *sets
    cdef Slot *slots
    cdef int32_t *refs
    cdef Totals *totals         # by set
    cdef int32_t n_uses, n_groups, n_branches, n_sets, n_slots, n_refs
    cdef int32_t room_uses, room_groups, room_branches, room_sets, room_slots, room_refs
    cdef Variable *variables
    cdef PyObject **given
    cdef int32_t n_variables, n_bits
    cdef list variable_names
    cdef uint64_t bits          # conditions that hold now
    cdef int32_t root           # the set of the operation
    cdef int64_t root_weight
    cdef bint dynamic, settled
    cdef Totals result
    cdef readonly object operation_name
    cdef readonly int depth, aliases, tokens, root_fields, directives, duplicate_fields, fields, fragments, operations
    cdef readonly int introspection_depth

    def __dealloc__(self):
        free(self.nodes)
        free(self.uses)
        free(self.groups)
        free(self.branches)
        free(self.sets)
        free(self.slots)
        free(self.refs)
        free(self.totals)
        free(self.variables)
        free(self.given)

    @property
    def size_bytes(self):
        """Memory that it holds, for caches that bound theirs."""
        return (
            512 + len(self.text) + self.n_nodes * sizeof(Node) + self.room_uses * sizeof(Use) + self.room_groups * sizeof(Group)
            + self.room_branches * sizeof(Branch) + self.room_sets * sizeof(Set) + self.n_sets * sizeof(Totals)
            + self.room_slots * sizeof(Slot) + self.room_refs * sizeof(int32_t)
            + self.n_variables * (sizeof(Variable) + sizeof(PyObject *) + 64)
        )

    cdef object refusal(self, int32_t node, str message, str reason="graphql_invalid"):
        line, column = place_of(self.source, self.size, self.nodes[node].start if node >= 0 else 0)
        return Refusal(reason, message, None, None, line, column)

    cdef str text_of(self, int32_t node):
        """A node's own text, shortened: it comes from outside and goes into a sentence."""
        cdef Node *n = &self.nodes[node]
        cdef str text = self.source[n.start:min(n.end, n.start + 200)].decode("utf-8", "replace")
        return text if len(text) <= 64 else text[:64] + "..."

    cdef str type_name(self, int32_t type):
        return self.schema.strings[self.schema.types[type].name]

    def price(self, variables=None):
        """What it costs with these variables; raises Refusal when one is not of its type."""
        evaluate(self, variables)
        cdef Price price = Price.__new__(Price)
        price.totals = self.result
        price.program = self
        price.given = variables
        return price
