# As long as the longest line that is served at all. Longer heads are rare and in no hurry; and what arrives in crumbs is
# read again from its start for each, so this bounds the work that a byte can make.
HEAD_BYTES = 16_384
cdef enum:
    MAX_HEAD = 16_384
    MAX_FIELDS = 128      # below the server's own bound; a head with more is aiohttp's to judge
    MAX_DIGITS = 10       # of a Content-Length: beyond any bound of a body

# What may be done with what begins at a place.
TAKE = 0          # a whole request for a route of this lane
MORE = 1          # so far it could become one; its head ends in bytes that are not here yet
BODY = 2          # one with a whole head, whose body is not all here yet
PASS = 3          # a request whose end is certain, that is not for this lane
LEAVE = 4         # anything else: where it ends is not for this lane to say
cdef enum:
    _TAKE = 0
    _MORE = 1
    _BODY = 2
    _PASS = 3
    _LEAVE = 4

cdef enum:
    NAME_CHAR = 1     # tchar of RFC 9110, 5.6.2
    VALUE_CHAR = 2    # field-vchar, SP and HTAB of RFC 9110, 5.5, obs-text with them
    TARGET_CHAR = 4   # visible ASCII; a fragment's # does not belong into a request

cdef uint8_t CLASS[256]


cdef void classify():
    cdef int c
    for c in range(256):
        CLASS[c] = 0
        if c == 9 or (c >= 32 and c != 127):
            CLASS[c] |= VALUE_CHAR
        if 33 <= c <= 126 and c != b"#":
            CLASS[c] |= TARGET_CHAR
        if (c >= b"a" and c <= b"z") or (c >= b"A" and c <= b"Z") or (c >= b"0" and c <= b"9"):
            CLASS[c] |= NAME_CHAR
    for c in b"!#$%&'*+-.^_`|~":
        CLASS[c] |= NAME_CHAR

classify()


cdef struct Field:
    # Relative to the head's start, which is why a head has a bound.
    uint16_t name
    uint16_t name_size
    uint16_t value
    uint16_t value_size


cdef inline bint same(const uint8_t *found, const char *lower, Py_ssize_t size) noexcept nogil:
    """Whether these bytes are `lower` in any case of ASCII letters."""
    cdef Py_ssize_t i
    cdef uint8_t c
    for i in range(size):
        c = found[i]
        if c >= 65 and c <= 90:
            c |= 32
        if c != <uint8_t>lower[i]:
            return False
    return True


@cython.final
@cython.freelist(64)
cdef class Head:
    """What begins at one place. Where the verdict is TAKE, the whole request: method, target, headers, body.

    It is its own header fields: `get`, `getall` and `in` find names in any case.
    """

    cdef bytes data
    cdef Py_ssize_t body_start, body_size
    cdef readonly Py_ssize_t start
    """Where it begins in the data that was looked at."""
    cdef readonly int verdict
    cdef readonly str why
    """Where the verdict is not TAKE: the reason, of a closed list."""
    cdef readonly Py_ssize_t end
    """Where the request ends in `data`; beyond it while bytes are missing. 0 when that is not known."""
    cdef readonly str method
    cdef readonly bint close
    """The sender wants the connection closed after the answer."""
    cdef readonly object route
    """What the lane was given for the path that was found."""
    cdef public object peer
    cdef uint16_t target_start, target_size, rest_start
    cdef int count
    cdef Field fields[MAX_FIELDS]

    @property
    def headers(self):
        return self

    @property
    def target(self):
        """Path and query as they were sent."""
        return PyUnicode_DecodeASCII(
            PyBytes_AS_STRING(self.data) + self.start + self.target_start, self.target_size, NULL)

    @property
    def rest(self):
        """Of the target: the query, or what follows the prefix that was found."""
        return PyUnicode_DecodeASCII(
            PyBytes_AS_STRING(self.data) + self.start + self.rest_start, self.target_start + self.target_size - self.rest_start, NULL)

    @property
    def whole(self):
        """The body."""
        return PyBytes_FromStringAndSize(PyBytes_AS_STRING(self.data) + self.body_start, self.body_size)

    async def receive(self, max_bytes):
        """The body, which is always here."""
        return self.whole

    cdef str value_of(self, int i):
        return PyUnicode_DecodeUTF8(
            PyBytes_AS_STRING(self.data) + self.start + self.fields[i].value, self.fields[i].value_size, "surrogateescape")

    cdef int find(self, str name, int at) except -2:
        """The index of the next field of this name from `at` on; -1 when there is none."""
        cdef Py_ssize_t size
        cdef const char *wanted = PyUnicode_AsUTF8AndSize(name, &size)
        cdef const uint8_t *base = <const uint8_t *>PyBytes_AS_STRING(self.data) + self.start
        cdef int i
        cdef Py_ssize_t k
        cdef uint8_t a, b
        for i in range(at, self.count):
            if self.fields[i].name_size != size:
                continue
            for k in range(size):
                a, b = base[self.fields[i].name + k], <uint8_t>wanted[k]
                if a != b and ((a | 32) != (b | 32) or not 97 <= (a | 32) <= 122):
                    break
            else:
                return i
        return -1

    def get(self, str name not None, default=None, /):
        """The first value of a field."""
        cdef int i = self.find(name, 0)
        return default if i < 0 else self.value_of(i)

    def getall(self, str name not None, default, /):
        """Every value of a field, in order; `default` when there is none."""
        cdef int i = self.find(name, 0)
        cdef list values
        if i < 0:
            return default
        values = [self.value_of(i)]
        while i + 1 < self.count:
            i = self.find(name, i + 1)
            if i < 0:
                break
            values.append(self.value_of(i))
        return values

    def __contains__(self, name):
        return isinstance(name, str) and self.find(name, 0) >= 0

    def __iter__(self):
        """The names of all fields."""
        cdef const char *base = PyBytes_AS_STRING(self.data) + self.start
        cdef int i
        cdef list names = [
            PyUnicode_DecodeASCII(base + self.fields[i].name, self.fields[i].name_size, NULL) for i in range(self.count)]
        return iter(names)


# Methods by name, and whether a request of it without Content-Length surely has no body.
cdef struct Method:
    const char *name
    int size
    bint bodiless
cdef enum:
    METHODS = 7
cdef Method METHOD[METHODS]
METHOD[0] = Method("POST ", 5, False)
METHOD[1] = Method("GET ", 4, True)
METHOD[2] = Method("HEAD ", 5, True)
METHOD[3] = Method("PUT ", 4, False)
METHOD[4] = Method("PATCH ", 6, False)
METHOD[5] = Method("DELETE ", 7, True)
METHOD[6] = Method("OPTIONS ", 8, True)
cdef tuple METHOD_NAMES = ("POST", "GET", "HEAD", "PUT", "PATCH", "DELETE", "OPTIONS")
cdef enum:
    POST = 0

# Fields of which the full parser accepts one, beside those that decide about framing.
cdef enum:
    SEEN_HOST = 1
    SEEN_LENGTH = 2
    SEEN_CONNECTION = 4
    SEEN_TYPE = 8
    SEEN_AGENT = 16


cdef inline bint is_path(bytes path, const char *target, Py_ssize_t size) noexcept:
    return PyBytes_GET_SIZE(path) == size and memcmp(PyBytes_AS_STRING(path), target, size) == 0


cdef Head leave(Head head, str why):
    head.verdict = _LEAVE
    head.why = why
    return head
