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
