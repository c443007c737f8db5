# The way of a check request of which nothing is special, from the body to the whole answer, without Python frames of ours.

cdef Decided *decided = <Decided *>PyCapsule_GetPointer(_decided, DECIDED)

cdef enum:
    # Room for an answer: its head is written last, backwards from the body. A dozen limits fit; more are rendered elsewhere.
    ANSWER_HEAD_BYTES = 256
    ANSWER_BODY_BYTES = 8192
    ROOM_BYTES = ANSWER_HEAD_BYTES + ANSWER_BODY_BYTES
    MAX_SERVER_BYTES = 64

cdef enum:
    SPECIAL_FACTS = 4

# Facts of a request that have a say in more than the limits: where one is stated, the common code looks.
cdef tuple SPECIAL = ("cost", "graphql", "nonce", "idempotency")


@cython.final
cdef class PlainCheck:
    """Answers check requests that come alone, well-formed and whole to a store in this process.

    `decode` makes a `kind`, which is Request, of a body. `shield.check_nowait` decides. What is allowed without further ado
    is counted by `tally`; `judged(decision, elapsed_s)` sees to all else. `failed(error)` makes the answer where there is no
    decision. `knows(head)`, where not every caller may ask, tells who may. In what it is asked and in what follows from a
    decision this does what `check_at_once` does, in the same order.
    """

    cdef readonly object route
    cdef object kind, decode, shield, judged, failed, knows
    cdef RequestIds ids
    cdef Tally tally
    cdef Py_ssize_t max_bytes, id_slot
    cdef Py_ssize_t special_slots[SPECIAL_FACTS]
    # Where the next answer is made, and the last one.
    cdef char own_room[ROOM_BYTES]
    cdef char *room
    cdef const char *start
    cdef Py_ssize_t size
    cdef bytes made
    cdef bint closes

    def __init__(self, route, Py_ssize_t max_bytes, *, kind, decode, shield, RequestIds ids not None,
                 Tally tally not None, judged, failed, knows=None):
        if not isinstance(kind, type):
            raise TypeError("kind is a class")
        self.route, self.max_bytes = route, max_bytes
        self.kind, self.decode, self.shield, self.ids, self.tally = kind, decode, shield, ids, tally
        self.judged, self.failed, self.knows = judged, failed, knows
        self.id_slot = slot_of(<type>kind, "request_id")
        for i in range(SPECIAL_FACTS):
            self.special_slots[i] = slot_of(<type>kind, <str>SPECIAL[i])
            if not self.special_slots[i] or not self.id_slot:
                raise TypeError(f"{kind.__name__} keeps its fields in no slots of its own")

    cdef bint is_plain(self, object request) noexcept:
        cdef const char *base = <const char *><PyObject *>request
        cdef int i
        if type(request) is not self.kind:
            return False
        for i in range(SPECIAL_FACTS):
            if (<PyObject **>(base + self.special_slots[i]))[0] != <PyObject *>None:
                return False
        return True

    cdef int name(self, object request) except -1:
        """Sees that a request of our own has an id: nobody else has seen it yet, and a copy costs."""
        cdef PyObject **slot = <PyObject **>(<char *><PyObject *>request + self.id_slot)
        cdef object before
        cdef str made
        if slot[0] == NULL:
            return 0
        before = <object>slot[0]
        if before is None or before == "":
            made = self.ids.next()
            Py_INCREF(made)
            slot[0] = <PyObject *>made
            Py_DECREF(before)
        return 0

    cdef PlainCheck here(self, char *room):
        """Itself, which makes the next answer in `room` of ROOM_BYTES, or in its own where that is NULL."""
        self.room = <char *>self.own_room if room == NULL else room
        return self

    cdef bytes answer(self, Head head, bint *close, bytes server, bytes date):
        """What `put` makes, as bytes; None where it makes nothing."""
        if not self.here(NULL).put(head, close, server, date):
            return None
        return PyBytes_FromStringAndSize(self.start, self.size) if self.made is None else self.made

    cdef bint put(self, Head head, bint *close, bytes server, bytes date) except -1:
        """Makes the whole answer, in `room` or of its own; False while nothing has happened yet, for a request that the common code must
        look at. `server` and `date` are whole lines. `close`: whether the connection ends with it, which may be set already.
        """
        cdef char *body = self.room + ANSWER_HEAD_BYTES
        cdef char *end
        cdef const char *asked = PyBytes_AS_STRING(head.data) + head.body_start
        cdef Answer other
        cdef double started_s, elapsed_s
        if head.body_size > self.max_bytes or PyBytes_GET_SIZE(server) > MAX_SERVER_BYTES or PyBytes_GET_SIZE(date) > MAX_SERVER_BYTES:
            return False
        if self.knows is not None and not self.knows(head):
            return False
        try:
            request = self.decode(PyBytes_FromStringAndSize(asked, head.body_size))
        except Exception:
            return False  # a batch, or what is wrong is said there
        if not self.is_plain(request) or not unique_members(asked, head.body_size):
            return False
        try:
            self.name(request)
            started_s = monotonic_s()
            decision = self.shield.check_nowait(request)
            elapsed_s = monotonic_s() - started_s
            if decided.plain(decision):
                self.tally.allowed(elapsed_s)
            else:
                self.judged(decision, elapsed_s)
            end = decided.put_json(decision, body, ANSWER_BODY_BYTES)
            if end != NULL:
                self.start = with_head(body, end, close[0], server, date)
                self.size, self.made = end - self.start, None
                return True
            other = Answer.__new__(Answer)
            other.status, other.headers, other.body = 200, JSON_TYPE, decision.to_json()
        except Exception as error:
            other = self.failed(error)
        close[0] = close[0] or other.close
        self.made = render(other, close[0], head.method, server, date)
        self.start, self.size = PyBytes_AS_STRING(self.made), PyBytes_GET_SIZE(self.made)
        return True


cdef const char *with_head(char *body, char *end, bint close, bytes server, bytes date) noexcept:
    """Where it begins: what `render` makes of status 200 and this body of JSON, which has ANSWER_HEAD_BYTES of room before
    it."""
    cdef const char *first = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\n"
    cdef const char *length = b"Content-Length: "
    cdef char digits[WHOLE_BYTES]
    cdef Py_ssize_t count = put_whole(digits, <uint64_t>(end - body)) - digits
    cdef Py_ssize_t size = 49 + PyBytes_GET_SIZE(server) + 16 + count + 2 + PyBytes_GET_SIZE(date) + (19 if close else 0) + 2
    cdef char *at = body - size
    at = put(at, first, 49)
    at = put(at, PyBytes_AS_STRING(server), PyBytes_GET_SIZE(server))
    at = put(at, length, 16)
    at = put(at, digits, count)
    at = put(at, "\r\n", 2)
    at = put(at, PyBytes_AS_STRING(date), PyBytes_GET_SIZE(date))
    if close:
        at = put(at, "Connection: close\r\n", 19)
    put(at, "\r\n", 2)
    return body - size
