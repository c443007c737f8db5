# cython: language_level=3
"""HTTP/1.1 requests whose framing is beyond doubt, found in the bytes of a connection, and answers as bytes.

    Lane.look(data, at) -> Head      what begins at `data[at]`, and whether the express lane may take it
    Lane.serve(data, ...)            answers of all that may be taken, in order
    render(answer, ...) -> bytes     one answer

The law here: whoever else reads the same bytes, a gateway in front or the full parser behind, must find the same
requests in them. So nothing is repaired or tolerated. What is taken is a plain subset of RFC 9112, sections 2 to 6:
CRLF line ends, one space where one belongs, token characters in names, no control characters in values, one Host, one
Content-Length of digits, no Transfer-Encoding, no obs-fold. All else is somebody else's to read, byte for byte.
"""

cimport cython
from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize, PyBytes_GET_SIZE
from cpython.unicode cimport PyUnicode_DecodeASCII, PyUnicode_DecodeUTF8
from libc.stdint cimport uint8_t, uint16_t, uint64_t
from libc.string cimport memchr, memcmp, memcpy

from http import HTTPStatus

cdef extern from "Python.h":
    const char *PyUnicode_AsUTF8AndSize(object text, Py_ssize_t *size) except NULL


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


@cython.final
cdef class Lane:
    """The routes of one express lane: pairs of a path and whatever stands for it. `posts` answer POST alone and need a
    body; `anys` answer any method and need none; `prefix` is like them, for all targets that start with its path.
    `hold_bytes`: the longest request, head and body, that is waited for.
    """

    cdef list posts, anys
    cdef bytes prefix
    cdef object prefix_route
    cdef Py_ssize_t hold_bytes

    def __init__(self, posts, anys, prefix, Py_ssize_t hold_bytes):
        self.posts = [(<bytes?>path, route) for path, route in posts]
        self.anys = [(<bytes?>path, route) for path, route in anys]
        self.prefix, self.prefix_route = prefix if prefix is not None else (b"", None)
        self.hold_bytes = hold_bytes
        for path, _ in self.posts + self.anys:
            if not path.startswith(b"/"):
                raise ValueError(f"a path starts with /, unlike {path!r}")

    cdef bint find(self, Head head, int method, bint *needs_body):
        """Whether method and target belong to a route, which the head then has."""
        cdef const char *target = PyBytes_AS_STRING(head.data) + head.start + head.target_start
        cdef const char *mark = <const char *>memchr(target, b"?", head.target_size)
        cdef Py_ssize_t size = head.target_size if mark == NULL else mark - target
        cdef tuple pair
        head.rest_start = <uint16_t>(head.target_start + head.target_size if mark == NULL else head.target_start + size + 1)
        needs_body[0] = method == POST
        if method == POST:
            for pair in self.posts:
                if is_path(<bytes>pair[0], target, size):
                    head.route = pair[1]
                    return True
        needs_body[0] = False
        for pair in self.anys:
            if is_path(<bytes>pair[0], target, size):
                head.route = pair[1]
                return True
        size = PyBytes_GET_SIZE(self.prefix)
        if 0 < size <= head.target_size and memcmp(PyBytes_AS_STRING(self.prefix), target, size) == 0:
            head.route = self.prefix_route
            head.rest_start = <uint16_t>(head.target_start + size)
            return True
        return False

    def serve(self, bytes data not None, answer_of, PlainCheck plain, peer, int most, Py_ssize_t most_bytes, bytes server not None,
              bytes date not None):
        """(bytes to send, what of `data` they answer, whether to close, the head that is not served or an error).

        `plain`, which may be None, is tried first for its route. `answer_of(head)` makes an Answer; None: this one must be waited for, and its head is handed back. What it raises
        is handed back too, for what came before is answered still. At most `most` requests are answered, and none more once `most_bytes` are there to be sent.
        """
        cdef Py_ssize_t at = 0, size = 0, total = PyBytes_GET_SIZE(data)
        cdef bytes out = None, one
        cdef list many = None
        cdef Head head
        cdef object other = None
        cdef Answer answer
        cdef bint close = False
        while at < total and most > 0 and size <= most_bytes:
            head = self.look(data, at)
            if head.verdict != _TAKE:
                other = head
                break
            head.peer = peer
            try:
                made = None
                if plain is not None and head.route is plain.route:
                    made = plain.answer(head)
                if made is None:
                    made = answer_of(head)
                if made is None:
                    other = head
                    break
                answer = <Answer?>made
                close = answer.close or head.close
                one = render(answer, close, head.method, server, date)
            except Exception as error:
                other = error
                break
            at = head.end
            most -= 1
            size += PyBytes_GET_SIZE(one)
            if out is None:
                out = one
            else:
                if many is None:
                    many = [out]
                many.append(one)
            if close:
                break
        if many is not None:
            out = b"".join(many)
        return out, at, close, other

    cpdef Head look(self, bytes data, Py_ssize_t at=0):
        """What begins at `data[at]`."""
        if data is None:
            raise TypeError("data is bytes")
        cdef Py_ssize_t total = PyBytes_GET_SIZE(data)
        if at < 0 or at > total:
            raise ValueError("at lies outside of data")
        cdef Head head = Head.__new__(Head)
        head.data = data
        head.start = at
        cdef const uint8_t *base = <const uint8_t *>PyBytes_AS_STRING(data) + at
        cdef Py_ssize_t size = total - at
        cdef Py_ssize_t bound = min(size, <Py_ssize_t>MAX_HEAD)
        cdef Py_ssize_t i, mark, value_end, length = -1
        cdef int method, m, seen = 0
        cdef bint needs_body = False
        cdef Field *field
        cdef const uint8_t *p
        cdef uint8_t c

        # The method: one of a few, in capitals, and a space.
        method = -1
        for m in range(METHODS):
            if memcmp(base, METHOD[m].name, min(size, <Py_ssize_t>METHOD[m].size)) == 0:
                method = m
                break
        if method < 0:
            return leave(head, "method")
        if size <= METHOD[method].size:
            head.verdict = _MORE
            head.why = "line"
            return head

        # The target: origin-form, so that no scheme or authority needs a reading. One space, the version, CRLF.
        i = METHOD[method].size
        head.target_start = <uint16_t>i
        if base[i] != b"/":
            return leave(head, "target")
        while i < bound and CLASS[base[i]] & TARGET_CHAR:
            i += 1
        head.target_size = <uint16_t>(i - head.target_start)
        if memcmp(base + i, " HTTP/1.1\r\n", min(bound - i, <Py_ssize_t>11)) != 0:
            return leave(head, "line")
        if bound - i < 11:
            return self.unfinished(head, size, "line")
        i += 11

        # Fields, each a line of its own, up to an empty line.
        while True:
            if i >= bound:
                return self.unfinished(head, size, "head")
            if base[i] == b"\r":
                break
            if head.count == MAX_FIELDS:
                return leave(head, "fields")
            field = &head.fields[head.count]
            mark = i
            while i < bound and CLASS[base[i]] & NAME_CHAR:
                i += 1
            if i >= bound:
                return self.unfinished(head, size, "head")
            if base[i] != b":" or i == mark:
                return leave(head, "name")
            field.name = <uint16_t>mark
            field.name_size = <uint16_t>(i - mark)
            i += 1
            while i < bound and (base[i] == b" " or base[i] == b"\t"):
                i += 1
            field.value = <uint16_t>i
            while i < bound and CLASS[base[i]] & VALUE_CHAR:
                i += 1
            if i >= bound:
                return self.unfinished(head, size, "head")
            value_end = i
            if base[i] != b"\r":
                return leave(head, "value")
            i += 1
            if i >= bound:
                return self.unfinished(head, size, "head")
            if base[i] != b"\n":
                return leave(head, "value")
            i += 1
            while value_end > field.value and (base[value_end - 1] == b" " or base[value_end - 1] == b"\t"):
                value_end -= 1
            field.value_size = <uint16_t>(value_end - field.value)
            head.count += 1

            # What decides about framing or the connection, and what may be there once. Sorted by length.
            p = base + field.name
            if field.name_size == 4:
                if same(p, "host", 4):
                    if seen & SEEN_HOST:
                        return leave(head, "twice")
                    seen |= SEEN_HOST
                elif same(p, "etag", 4):
                    return leave(head, "odd")
            elif field.name_size == 6:
                if same(p, "expect", 6) or same(p, "server", 6):
                    return leave(head, "expect")
            elif field.name_size == 7:
                if same(p, "upgrade", 7) or same(p, "trailer", 7):
                    return leave(head, "upgrade")
            elif field.name_size == 10:
                if same(p, "connection", 10):
                    if seen & SEEN_CONNECTION:
                        return leave(head, "connection")
                    seen |= SEEN_CONNECTION
                    if field.value_size == 5 and same(base + field.value, "close", 5):
                        head.close = True
                    elif not (field.value_size == 10 and same(base + field.value, "keep-alive", 10)):
                        return leave(head, "connection")
                elif same(p, "user-agent", 10):
                    if seen & SEEN_AGENT:
                        return leave(head, "twice")
                    seen |= SEEN_AGENT
            elif field.name_size == 12:
                if same(p, "content-type", 12):
                    if seen & SEEN_TYPE:
                        return leave(head, "twice")
                    seen |= SEEN_TYPE
                elif same(p, "max-forwards", 12):
                    return leave(head, "odd")
            elif field.name_size == 13:
                if same(p, "content-range", 13):
                    return leave(head, "odd")
            elif field.name_size == 14:
                if same(p, "content-length", 14):
                    if seen & SEEN_LENGTH:
                        return leave(head, "length")
                    seen |= SEEN_LENGTH
                    length = length_of(base + field.name + 15, field, value_end, base)
                    if length < 0:
                        return leave(head, "length")
                elif same(p, "http2-settings", 14):
                    return leave(head, "upgrade")
            elif field.name_size == 16:
                if same(p, "proxy-connection", 16):
                    return leave(head, "connection")
                if same(p, "content-location", 16):
                    return leave(head, "odd")
            elif field.name_size == 17:
                if same(p, "transfer-encoding", 17):
                    return leave(head, "coding")
            elif field.name_size > 13 and same(p, "sec-websocket-", 14):
                return leave(head, "upgrade")

        # The empty line.
        i += 1
        if i >= bound:
            return self.unfinished(head, size, "head")
        if base[i] != b"\n":
            return leave(head, "value")
        i += 1
        if not seen & SEEN_HOST:
            return leave(head, "host")
        head.method = <str>METHOD_NAMES[method]
        head.body_start = at + i
        head.body_size = length if length > 0 else 0
        head.end = head.body_start + head.body_size
        if length < 0 and not METHOD[method].bodiless:
            # No body by RFC 9112; but that of two senders, one forgot to say how long it is, is the older story.
            head.verdict = _PASS
            head.why = "no length"
        elif not self.find(head, method, &needs_body):
            head.verdict = _PASS
            head.why = "route"
        elif head.end <= total:
            head.verdict = _TAKE
        elif head.end - at > self.hold_bytes:
            head.verdict = _PASS
            head.why = "large"
        elif needs_body:
            head.verdict = _BODY
            head.why = "body"
        else:
            head.verdict = _PASS
            head.why = "no body"
        return head

    cdef Head unfinished(self, Head head, Py_ssize_t size, str why):
        """The head ends beyond what is here, or beyond the bound."""
        if size >= MAX_HEAD:
            return leave(head, "long head")
        head.verdict = _MORE
        head.why = why
        return head


cdef Py_ssize_t length_of(const uint8_t *after_colon, Field *field, Py_ssize_t value_end, const uint8_t *base) noexcept:
    """A Content-Length of plain digits, -1 for anything else: signs, lists, leading zeros, more than one space."""
    cdef const uint8_t *value = base + field.value
    cdef Py_ssize_t i, length = 0
    cdef Py_ssize_t size = field.value_size
    if size < 1 or size > MAX_DIGITS or (size > 1 and value[0] == b"0"):
        return -1
    if value - after_colon > 1 or (value - after_colon == 1 and after_colon[0] != b" "):
        return -1
    if base[value_end] != b"\r":
        return -1
    for i in range(size):
        if value[i] < 48 or value[i] > 57:
            return -1
        length = length * 10 + (value[i] - 48)
    return length


# ---- answers ---------------------------------------------------------------------------------------------------------

cdef dict STATUS_LINES = {
    status.value: f"HTTP/1.1 {status.value} {status.phrase}\r\n".encode() for status in HTTPStatus
}


cdef inline char *put(char *to, const char *what, Py_ssize_t size) noexcept:
    memcpy(to, what, size)
    return to + size


cdef bint is_plain(const char *text, Py_ssize_t size) noexcept:
    """No control character but a tab: nothing that could end a line."""
    cdef Py_ssize_t i
    for i in range(size):
        if not CLASS[<uint8_t>text[i]] & VALUE_CHAR:
            return False
    return True


cdef dict JSON_TYPE = {"Content-Type": "application/json"}


@cython.final
@cython.freelist(16)
cdef class Answer:
    """One answer. `close` ends the connection after it. `headers` may be shared and are never changed.

    A lane adds what belongs to the connection and the message: Server, Date, Content-Length, Connection.
    """

    cdef readonly int status
    cdef readonly dict headers
    cdef readonly bytes body
    cdef public bint close

    def __init__(self, int status=200, dict headers=None, bytes body=None, bint close=False):
        self.status = status
        self.headers = JSON_TYPE if headers is None else headers
        self.body = body
        self.close = close


cpdef bytes render(Answer answer, bint close, str method, bytes server, bytes date):
    """An answer to a request of this method. `server` and `date` are the whole lines that belong into every one.

    The answer to HEAD says how long the body is and leaves it out. ValueError for a name or value that could not stand in
    a line.
    """
    cdef dict headers = answer.headers
    cdef bytes body = answer.body
    cdef bint head_only = method == "HEAD"
    cdef bytes line = STATUS_LINES.get(answer.status)
    if line is None:
        line = f"HTTP/1.1 {answer.status} \r\n".encode()
    cdef Py_ssize_t body_size = 0 if body is None else PyBytes_GET_SIZE(body)
    cdef Py_ssize_t name_size, value_size, total
    cdef const char *name_text
    cdef const char *value_text
    cdef bint told = not (head_only and body_size == 0)
    cdef char digits[20]
    cdef int at = 20
    cdef Py_ssize_t left = body_size
    total = PyBytes_GET_SIZE(line) + PyBytes_GET_SIZE(server) + PyBytes_GET_SIZE(date) + 2
    if told:
        while True:
            at -= 1
            digits[at] = <char>(48 + left % 10)
            left //= 10
            if left == 0:
                break
        total += 18 + 20 - at
    if close:
        total += 19
    if not head_only:
        total += body_size
    for name, value in headers.items():
        name_text = PyUnicode_AsUTF8AndSize(name, &name_size)
        value_text = PyUnicode_AsUTF8AndSize(value, &value_size)
        if not is_plain(name_text, name_size) or not is_plain(value_text, value_size):
            raise ValueError("a header field would break its line")
        total += name_size + value_size + 4
    cdef bytes out = PyBytes_FromStringAndSize(NULL, total)
    cdef char *to = PyBytes_AS_STRING(out)
    to = put(to, PyBytes_AS_STRING(line), PyBytes_GET_SIZE(line))
    for name, value in headers.items():
        name_text = PyUnicode_AsUTF8AndSize(name, &name_size)
        value_text = PyUnicode_AsUTF8AndSize(value, &value_size)
        to = put(to, name_text, name_size)
        to = put(to, ": ", 2)
        to = put(to, value_text, value_size)
        to = put(to, "\r\n", 2)
    to = put(to, PyBytes_AS_STRING(server), PyBytes_GET_SIZE(server))
    if told:
        to = put(to, "Content-Length: ", 16)
        to = put(to, digits + at, 20 - at)
        to = put(to, "\r\n", 2)
    to = put(to, PyBytes_AS_STRING(date), PyBytes_GET_SIZE(date))
    if close:
        to = put(to, "Connection: close\r\n", 19)
    to = put(to, "\r\n", 2)
    if body is not None and not head_only:
        to = put(to, PyBytes_AS_STRING(body), body_size)
    return out


include "plain_check.pxi"
