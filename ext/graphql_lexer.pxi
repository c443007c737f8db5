"""Tokens, one at a time, from the bytes of a document (GraphQL specification, October 2021, section 2.1, and the
descriptions before executable definitions of September 2025). The text is valid UTF-8 by the time it arrives here: from
0x80 on nothing but a byte order mark may stand outside strings and comments.
"""

cdef enum CharClass:
    OTHER = 0
    NAME_START
    DIGIT
    PUNCTUATOR
    IGNORED

cdef uint8_t CLASS[256]

cdef void fill_classes() noexcept:
    cdef int c
    for c in range(256):
        CLASS[c] = OTHER
    for c in range(26):
        CLASS[65 + c] = CLASS[97 + c] = NAME_START
    CLASS[b'_'] = NAME_START
    for c in range(10):
        CLASS[48 + c] = DIGIT
    for c in b"!$&():=@[]{}|":
        CLASS[c] = PUNCTUATOR
    for c in b" \t\r\n,":
        CLASS[c] = IGNORED

fill_classes()

# Kinds of token: a punctuator is its own character.
cdef enum Token:
    T_END = 0
    T_SPREAD = 1
    T_NAME = 2
    T_INT = 3
    T_FLOAT = 4
    T_STRING = 5

cdef struct Frame:
    int32_t owner   # the node whose selections these are, -1: the definition itself
    int32_t last    # the last selection so far
    int32_t serial  # fields with one serial are merged by response name: inline fragments keep their parent's
    int32_t depth   # fields around these selections, in this definition
    int32_t walk    # list fields of the introspection system on the way here
    int32_t introspection  # the same from the innermost __schema or __type; -1 outside

cdef struct Parser:
    const char *text
    int32_t size, at
    int32_t token, start, end, name  # the token looked at; `name` is the id of a T_NAME
    int32_t tokens
    int outcome
    int32_t where       # of the trouble, in bytes
    int64_t figure      # what was counted when a ceiling was crossed
    const char *what    # the trouble in words
    Limits limits
    NameTable names
    int32_t well_known
    Node *nodes
    int32_t n_nodes, room_nodes
    Definition *definitions
    int32_t n_definitions, room_definitions
    Spread *spreads
    int32_t n_spreads, room_spreads
    Frame *frames
    int32_t n_frames, room_frames
    uint64_t *seen      # (serial, response name) of every field: finds duplicates
    uint32_t seen_mask
    uint32_t *seen_at   # places taken in `seen`, so that it is emptied in proportion to what was put in
    int32_t n_seen
    int32_t serials, directives, duplicates, fields, fragments, operations

cdef bint refuse(Parser *p, int outcome, const char *what, int32_t where, int64_t figure) noexcept nogil:
    """Ends the pass; always False. The first trouble is the one that is told."""
    if p.outcome == FINE:
        p.outcome = outcome
        p.what = what
        p.where = where
        p.figure = figure
    return False

cdef inline bint is_letter(uint8_t c) noexcept nogil:
    return CLASS[c] == NAME_START

cdef bint lex_number(Parser *p, int32_t at) noexcept nogil:
    """The lookahead behind a number matters: 0xF, 01 and 1.2.3 are no two tokens."""
    cdef const char *text = p.text
    cdef int32_t size = p.size, digits
    p.token = T_INT
    if text[at] == b'-':
        at += 1
    if at < size and text[at] == b'0':
        at += 1
        if at < size and CLASS[<uint8_t>text[at]] == DIGIT:
            return refuse(p, INVALID, b"a number with a leading zero", p.start, 0)
    else:
        digits = at
        while at < size and CLASS[<uint8_t>text[at]] == DIGIT:
            at += 1
        if at == digits:
            return refuse(p, INVALID, b"a number without digits", p.start, 0)
    if at < size and text[at] == b'.':
        p.token = T_FLOAT
        at += 1
        digits = at
        while at < size and CLASS[<uint8_t>text[at]] == DIGIT:
            at += 1
        if at == digits:
            return refuse(p, INVALID, b"a number that ends in a point", p.start, 0)
    if at < size and (text[at] == b'e' or text[at] == b'E'):
        p.token = T_FLOAT
        at += 1
        if at < size and (text[at] == b'+' or text[at] == b'-'):
            at += 1
        digits = at
        while at < size and CLASS[<uint8_t>text[at]] == DIGIT:
            at += 1
        if at == digits:
            return refuse(p, INVALID, b"an exponent without digits", p.start, 0)
    if at < size and (text[at] == b'.' or is_letter(<uint8_t>text[at])):
        return refuse(p, INVALID, b"a number run together with what follows it", p.start, 0)
    p.end = p.at = at
    return True

cdef inline int hex_of(uint8_t c) noexcept nogil:
    if 48 <= c <= 57:
        return c - 48
    if 65 <= c <= 70:
        return c - 55
    if 97 <= c <= 102:
        return c - 87
    return -1

cdef int32_t hex4(Parser *p, int32_t at) noexcept nogil:
    """The value of four hexadecimal digits, or -1."""
    cdef int32_t value = 0, i
    cdef int digit
    if at + 4 > p.size:
        return -1
    for i in range(4):
        digit = hex_of(<uint8_t>p.text[at + i])
        if digit < 0:
            return -1
        value = value * 16 + digit
    return value

cdef int32_t lex_escape(Parser *p, int32_t at) noexcept nogil:
    """Where the escape sequence that starts at `at` ends, or -1."""
    cdef uint8_t c
    cdef int digit
    cdef int32_t value, n
    if at + 1 >= p.size:
        return -1
    c = <uint8_t>p.text[at + 1]
    if c != b'u':
        return at + 2 if c in (b'"', b'\\', b'/', b'b', b'f', b'n', b'r', b't') else -1
    if at + 2 < p.size and p.text[at + 2] == b'{':
        value = n = 0
        at += 3
        while at < p.size and n <= 8:
            if p.text[at] == b'}':
                return at + 1 if n and value <= 0x10FFFF and not 0xD800 <= value <= 0xDFFF else -1
            digit = hex_of(<uint8_t>p.text[at])
            if digit < 0 or value > 0x10FFFF:
                return -1
            value = value * 16 + digit
            n += 1
            at += 1
        return -1
    value = hex4(p, at + 2)
    if value < 0:
        return -1
    at += 6
    if 0xD800 <= value <= 0xDBFF:  # the first half of a pair
        if at + 1 >= p.size or p.text[at] != b'\\' or p.text[at + 1] != b'u':
            return -1
        value = hex4(p, at + 2)
        return at + 6 if 0xDC00 <= value <= 0xDFFF else -1
    return -1 if 0xDC00 <= value <= 0xDFFF else at

cdef bint lex_string(Parser *p, int32_t at) noexcept nogil:
    cdef const char *text = p.text
    cdef int32_t size = p.size
    cdef char c
    p.token = T_STRING
    if at + 2 < size and text[at + 1] == b'"' and text[at + 2] == b'"':
        at += 3
        while at + 2 < size:
            if text[at] == b'"' and text[at + 1] == b'"' and text[at + 2] == b'"':
                p.end = p.at = at + 3
                return True
            if text[at] == b'\\' and at + 3 < size and text[at + 1] == b'"' and text[at + 2] == b'"' and text[at + 3] == b'"':
                at += 4
            else:
                at += 1
        return refuse(p, INVALID, b"a block string that does not end", p.start, 0)
    at += 1
    while at < size:
        c = text[at]
        if c == b'"':
            p.end = p.at = at + 1
            return True
        if c == b'\\':
            at = lex_escape(p, at)
            if at < 0:
                return refuse(p, INVALID, b"a string with a bad escape sequence", p.start, 0)
        elif c == b'\n' or c == b'\r':
            break
        else:
            at += 1
    return refuse(p, INVALID, b"a string that does not end", p.start, 0)

cdef bint lex(Parser *p) noexcept nogil:
    """Looks at the next token. False when there is none that is right, or one too many."""
    cdef const char *text = p.text
    cdef int32_t at = p.at, size = p.size
    cdef uint8_t c, kind
    while at < size:
        c = <uint8_t>text[at]
        kind = CLASS[c]
        if kind == IGNORED:
            at += 1
            continue
        if kind == OTHER:
            if c == b'#':
                at += 1
                while at < size and text[at] != b'\n' and text[at] != b'\r':
                    at += 1
                continue
            if c == 0xEF and at + 2 < size and <uint8_t>text[at + 1] == 0xBB and <uint8_t>text[at + 2] == 0xBF:
                at += 3  # a byte order mark
                continue
        p.tokens += 1
        if p.tokens > p.limits.tokens:
            return refuse(p, TOO_MANY_TOKENS, b"tokens", at, p.tokens)
        p.start = at
        if kind == NAME_START:
            at += 1
            while at < size and (CLASS[<uint8_t>text[at]] == NAME_START or CLASS[<uint8_t>text[at]] == DIGIT):
                at += 1
            p.token = T_NAME
            p.end = p.at = at
            p.name = name_of(&p.names, text + p.start, at - p.start)
            return p.name >= 0 or refuse(p, OUT_OF_MEMORY, b"no memory", p.start, 0)
        if kind == PUNCTUATOR:
            p.token = c
            p.end = p.at = at + 1
            return True
        if kind == DIGIT or c == b'-':
            return lex_number(p, at)
        if c == b'"':
            return lex_string(p, at)
        if c == b'.' and at + 2 < size and text[at + 1] == b'.' and text[at + 2] == b'.':
            p.token = T_SPREAD
            p.end = p.at = at + 3
            return True
        return refuse(p, INVALID, b"a character that is not allowed here", at, 0)
    p.token = T_END
    p.start = p.end = p.at = size
    return True
