"""Why a document is refused: the contract's reason, a sentence, and where in the document."""

cdef const char *REASONS[17]
REASONS[:] = [
    b"", b"graphql_invalid", b"graphql_tokens", b"graphql_tokens", b"graphql_depth", b"graphql_aliases", b"graphql_fields",
    b"graphql_directives", b"graphql_fields", b"graphql_depth", b"graphql_fragments", b"graphql_batch",
    b"graphql_introspection", b"graphql_introspection", b"graphql_fragments", b"graphql_fragments", b"",
]


class Refusal(Exception):
    """A document that cannot be priced, or crosses a ceiling.

    `reason` is of the contract's list; `figure` and `ceiling` are None where nothing was counted; `line` and `column`
    count from 1, and are None where no place in the document is meant.
    """

    def __init__(self, reason, message, figure=None, ceiling=None, line=None, column=None):
        super().__init__(message)
        self.reason = reason
        self.message = message
        self.figure = figure
        self.ceiling = ceiling
        self.line = line
        self.column = column


cdef tuple place_of(const char *text, int32_t size, int32_t at):
    """Line and column, from 1, of a place given in bytes; columns count characters."""
    cdef int32_t line = 1, start = 0, i = 0
    at = max(0, min(at, size))
    while i < at:
        if text[i] == b'\n' or (text[i] == b'\r' and not (i + 1 < size and text[i + 1] == b'\n')):
            line += 1
            start = i + 1
        i += 1
    return line, len(text[start:at].decode("utf-8", "replace")) + 1


cdef int64_t ceiling_of(const Limits *limits, int outcome) noexcept:
    if outcome == TOO_MANY_BYTES:
        return limits.document_bytes
    if outcome == TOO_MANY_TOKENS:
        return limits.tokens
    if outcome == TOO_DEEP:
        return limits.depth
    if outcome == TOO_MANY_ALIASES:
        return limits.aliases
    if outcome == TOO_MANY_ROOT_FIELDS:
        return limits.root_fields
    if outcome == TOO_MANY_DIRECTIVES:
        return limits.directives
    if outcome == TOO_MANY_DUPLICATES:
        return limits.duplicate_fields
    if outcome == VALUE_TOO_DEEP:
        return limits.value_depth
    if outcome == TOO_MANY_FRAGMENTS:
        return limits.fragments
    if outcome == TOO_MANY_OPERATIONS:
        return limits.operations
    if outcome == INTROSPECTION_TOO_DEEP:
        return limits.introspection_depth
    if outcome == TOO_MUCH_WORK:
        return limits.work
    return -1


cdef object refusal_of(const Parser *p):
    """The trouble of a pass as an exception."""
    line, column = place_of(p.text, p.size, p.where)
    if p.outcome == OUT_OF_MEMORY:
        return MemoryError()
    reason = REASONS[p.outcome].decode()
    what = p.what.decode()
    ceiling = ceiling_of(&p.limits, p.outcome)
    if p.outcome == TOO_DEEP and p.figure <= ceiling:
        # The stack of selections: fragments in place nest without adding to the depth of fields.
        ceiling = MAX_NESTING
    if p.outcome == INTROSPECTION_REFUSED:
        return Refusal(reason, "introspection is switched off", None, None, line, column)
    if ceiling < 0:
        return Refusal(reason, what, None, None, line, column)
    return Refusal(reason, f"{what}: found {p.figure}; allowed: at most {ceiling}", p.figure, ceiling, line, column)
