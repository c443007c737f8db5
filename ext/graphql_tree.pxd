# cython: language_level=3
"""What a GraphQL document becomes: one array of nodes, linked by index, over the document's own bytes.

Nothing here owns text. A name is an id, given out in the order in which names first appear (graphql_names.pxd), so
that two names are equal when their ids are.
"""

from libc.stdint cimport int32_t, int64_t, uint8_t, uint32_t, uint64_t

cdef enum NodeKind:
    FIELD = 1
    SPREAD
    INLINE
    ARGUMENT
    DIRECTIVE
    VARIABLE_DEFINITION
    NAMED_TYPE
    LIST_TYPE
    VARIABLE
    INT
    FLOAT
    STRING
    TRUE
    FALSE
    NULL_VALUE
    ENUM_VALUE
    LIST
    OBJECT
    OBJECT_FIELD

cdef struct Node:
    int32_t kind
    int32_t name    # id of the field, fragment, argument, variable, enum value or type
    int32_t alias   # FIELD: the response name. INLINE: the type condition or -1. *_TYPE: 1 when it ends in "!"
    int32_t args    # FIELD, DIRECTIVE: first argument. VARIABLE_DEFINITION: the type
    int32_t dirs    # first directive
    int32_t child   # first selection; ARGUMENT, OBJECT_FIELD: the value; LIST, OBJECT: first item; VARIABLE_DEFINITION: the default
    int32_t next    # next of the same list
    int32_t start   # of the text, in bytes
    int32_t end
    int32_t flag    # values: 1 when a variable stands somewhere inside

cdef enum DefinitionKind:
    QUERY = 0
    MUTATION = 1
    SUBSCRIPTION = 2
    FRAGMENT = 3

cdef struct Definition:
    int32_t kind
    int32_t name        # -1: anonymous
    int32_t condition   # FRAGMENT: the type's name
    int32_t variables   # first VARIABLE_DEFINITION
    int32_t dirs
    int32_t child       # first selection
    int32_t start
    int32_t first_spread, n_spreads
    # Figures of the definition itself, before its spreads are followed.
    int32_t depth, aliases, root_fields, fields
    int32_t walk            # most list fields of the introspection system on one path from the definition's root
    int32_t introspection   # the same, counted from a __schema or __type
    # The same with spreads followed; `state` is 0 before, 1 during and 2 after that.
    int32_t total_depth, total_aliases, total_root_fields, total_fields, total_walk, total_introspection
    int32_t state

cdef struct Spread:
    int32_t owner       # the definition it stands in
    int32_t name        # the fragment it names
    int32_t start
    int32_t depth       # fields around it
    int32_t walk        # list fields of the introspection system around it, from the definition's root
    int32_t introspection  # the same from the innermost __schema or __type around it; -1 outside both
    int32_t fragment    # the definition that it names

# What a document may have at most; each a ceiling of shield.graphql.Ceilings.
cdef struct Limits:
    int64_t document_bytes
    int32_t tokens, depth, aliases, root_fields, directives, duplicate_fields, value_depth
    int32_t fragments, operations, introspection_depth
    int32_t introspection  # 0: refused altogether
    int32_t work            # selections that the compiler may visit

cdef enum Outcome:
    FINE = 0
    INVALID
    TOO_MANY_BYTES
    TOO_MANY_TOKENS
    TOO_DEEP
    TOO_MANY_ALIASES
    TOO_MANY_ROOT_FIELDS
    TOO_MANY_DIRECTIVES
    TOO_MANY_DUPLICATES
    VALUE_TOO_DEEP
    TOO_MANY_FRAGMENTS
    TOO_MANY_OPERATIONS
    INTROSPECTION_TOO_DEEP
    INTROSPECTION_REFUSED
    FRAGMENT_CYCLE
    TOO_MUCH_WORK
    OUT_OF_MEMORY

# Names with a meaning, interned first and in this order by every name table.
cdef enum WellKnown:
    W_QUERY = 0
    W_MUTATION
    W_SUBSCRIPTION
    W_FRAGMENT
    W_ON
    W_TRUE
    W_FALSE
    W_NULL
    W_SKIP
    W_INCLUDE
    W_IF
    W_TYPENAME
    W_SCHEMA
    W_TYPE
    W_FIELDS
    W_INTERFACES
    W_POSSIBLE_TYPES
    W_INPUT_FIELDS
    W_INT
    W_FLOAT
    W_STRING
    W_BOOLEAN
    W_ID
    W_FIRST_PAGE_SIZE
    W_LAST_PAGE_SIZE = W_FIRST_PAGE_SIZE + 14
    WELL_KNOWN
