cdef struct NumbersWords:
    uint32_t numbers
    Piece policy         # "user-burst";q=200;w=2
    Piece policy_json    # the same as it stands inside a JSON string
    Piece one            # true,"cost":1,"limit":200,"remaining":

cdef struct LimitWords:
    Piece name           # "user-burst"
    Piece status         # {"name":"user-burst","allowed":
    Piece state          # "user-burst";r=
    Piece state_json
    int first            # of the limit's NumbersWords: its own numbers, then those of its plans
    int n_numbers


@cython.final
cdef class Wording:
    """What answers under one policy say about its limits whatever was asked: written, and escaped, once."""

    cdef LimitWords *limits
    cdef NumbersWords *numbers
    cdef list kept            # the bytes that the pieces point into

    def __cinit__(self, tuple limits, list entries):
        """`entries`: for each limit the numbers its charges may have, as (registry entry, RateLimit-Policy item, limit)."""
        cdef int i, at = 0
        self.kept = []
        self.limits = <LimitWords *>PyMem_Calloc(len(limits) + 1, sizeof(LimitWords))
        self.numbers = <NumbersWords *>PyMem_Calloc(sum(map(len, entries)) + 1, sizeof(NumbersWords))
        if self.limits == NULL or self.numbers == NULL:
            raise MemoryError
        for i in range(len(limits)):
            name = encode_json(limits[i].name)
            state = f'"{limits[i].name}";r='
            self.keep(&self.limits[i].name, name)
            self.keep(&self.limits[i].status, b'{"name":%s,"allowed":' % name)
            self.keep(&self.limits[i].state, state.encode())
            self.keep(&self.limits[i].state_json, inside_json(state))
            self.limits[i].first = at
            self.limits[i].n_numbers = len(entries[i])
            for entry, item, limit in entries[i]:
                self.numbers[at].numbers = entry
                self.keep(&self.numbers[at].policy, item.encode())
                self.keep(&self.numbers[at].policy_json, inside_json(item))
                self.keep(&self.numbers[at].one, b'true,"cost":1,"limit":%d,"remaining":' % limit)
                at += 1

    def __dealloc__(self):
        PyMem_Free(self.limits)
        PyMem_Free(self.numbers)

    cdef int keep(self, Piece *piece, bytes text) except -1:
        cdef bytes padded = text + bytes(PIECE_PADDING)
        self.kept.append(padded)
        piece.text = padded
        piece.size_bytes = len(text)
        return 0

    cdef const NumbersWords *of_numbers(self, const Charge *charge) noexcept:
        cdef const LimitWords *words = &self.limits[charge.limit]
        cdef int i
        for i in range(words.first, words.first + words.n_numbers):
            if self.numbers[i].numbers == charge.numbers:
                return &self.numbers[i]
        return &self.numbers[words.first]


cdef bytes inside_json(str text):
    cdef bytes quoted = encode_json(text)
    return quoted[1 : len(quoted) - 1]


cdef str policy_item(object limit, const Numbers *n):
    """One item of RateLimit-Policy: draft-ietf-httpapi-ratelimit-headers, section 3."""
    cdef object window_us = n.window_us
    cdef str item = f'"{limit.name}";q={n.limit}'
    if n.algorithm == CONCURRENCY:
        return item + ';qu="concurrent-requests"'
    if limit.cost == "bytes":
        item += ';qu="content-bytes"'
    if n.algorithm == TOKEN_BUCKET:
        window_us = from_u128(ceil_div((<u128>n.limit) * (<u128>n.unit), <u128>n.refill))
    elif n.calendar:
        window_us = 86_400_000_000 if limit.align == "day" else 0
    if window_us >= 1_000_000:
        item += f";w={-(-window_us // 1_000_000)}"
    return item
