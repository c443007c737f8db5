# The way of a check request of which nothing is special, without Python in between: what follows is what Service and
# Metrics count with, and PlainCheck, which asks them in the order in which `Service.decide_nowait` does.

from time import perf_counter

from msgspec.structs import force_setattr

cdef enum:
    MAX_BUCKETS = 32
    MAX_PREFIX_BYTES = 32


cdef inline double now_s() except -1:
    return perf_counter()


@cython.final
cdef class RequestIds:
    """Ids for requests that came without: `prefix`, a hyphen and a number in hexadecimal, counted from `number` on."""

    cdef public uint64_t number
    """Of the next one."""
    cdef char text[MAX_PREFIX_BYTES + 17]
    cdef int prefix_bytes

    def __init__(self, str prefix not None, uint64_t number=1):
        cdef Py_ssize_t size
        cdef const char *text = PyUnicode_AsUTF8AndSize(prefix, &size)
        if size > MAX_PREFIX_BYTES:
            raise ValueError(f"prefix: found {size} bytes; allowed: at most {MAX_PREFIX_BYTES}")
        memcpy(self.text, text, size)
        self.text[size] = b"-"
        self.prefix_bytes = <int>size + 1
        self.number = number

    cpdef str next(self):
        """An id."""
        cdef uint64_t left = self.number
        cdef int digits = 1, i
        while digits < 16 and left >> (4 * digits):
            digits += 1
        for i in range(digits):
            self.text[self.prefix_bytes + digits - 1 - i] = b"0123456789abcdef"[left & 15]
            left >>= 4
        self.number += 1
        return PyUnicode_DecodeUTF8(self.text, self.prefix_bytes + digits, NULL)


@cython.final
cdef class Tally:
    """Decisions by their reason and by how long they took. `bounds` are those of the latencies, in seconds, ascending."""

    cdef uint64_t ok
    cdef uint64_t buckets[MAX_BUCKETS + 1]
    cdef double bounds[MAX_BUCKETS]
    cdef int count
    cdef dict others
    cdef readonly double latency_sum_s

    def __init__(self, bounds):
        if len(bounds) > MAX_BUCKETS:
            raise ValueError(f"bounds: found {len(bounds)}; allowed: at most {MAX_BUCKETS}")
        for bound in bounds:
            self.bounds[self.count] = bound
            self.count += 1
        self.others = {}

    cpdef void decided(self, str reason, double elapsed_s) except *:
        """One decision more."""
        cdef int i = 0
        if reason == "ok":
            self.ok += 1
        else:
            self.others[reason] = self.others.get(reason, 0) + 1
        while i < self.count and self.bounds[i] < elapsed_s:
            i += 1
        self.buckets[i] += 1
        self.latency_sum_s += elapsed_s

    @property
    def reasons(self):
        """Decisions by their reason, of those that there were."""
        return {"ok": self.ok, **self.others} if self.ok else dict(self.others)

    @property
    def latency(self):
        """Decisions by the bound that they kept, and those that took longer than the last."""
        return [self.buckets[i] for i in range(self.count + 1)]


@cython.final
cdef class PlainCheck:
    """Answers check requests that come alone, well-formed and whole to a store in this process.

    `decode` makes a Request of a body and `unique` knows whether no name is in it twice. `shield` decides. What is
    allowed without further ado is counted by `tally`; `judged(decision, elapsed_s)` sees to all else. `failed(error)`
    makes the answer where there is no decision.
    """

    cdef readonly object route
    cdef object decode, unique, shield, judged, failed
    cdef RequestIds ids
    cdef Tally tally
    cdef Py_ssize_t max_bytes

    def __init__(self, route, Py_ssize_t max_bytes, *, decode, unique, shield, RequestIds ids not None,
                 Tally tally not None, judged, failed):
        self.route, self.max_bytes = route, max_bytes
        self.decode, self.unique, self.shield, self.ids = decode, unique, shield, ids
        self.tally, self.judged, self.failed = tally, judged, failed

    cpdef Answer answer(self, Head head):
        """The answer; None while nothing has happened yet, for a request that the common code must look at."""
        cdef Answer answer
        cdef bytes body
        cdef double started_s, elapsed_s
        if head.body_size > self.max_bytes:
            return None
        body = PyBytes_FromStringAndSize(PyBytes_AS_STRING(head.data) + head.body_start, head.body_size)
        try:
            request = self.decode(body)
        except Exception:
            return None  # a batch, or what is wrong is said there
        if request.cost is not None or not self.unique(body):
            return None
        try:
            if not request.request_id:
                force_setattr(request, "request_id", self.ids.next())
            started_s = now_s()
            decision = self.shield.check_nowait(request)
            elapsed_s = now_s() - started_s
            if decision.allowed and not decision.degraded and not decision.shadow:
                self.tally.decided("ok", elapsed_s)
            else:
                self.judged(decision, elapsed_s)
            answer = Answer.__new__(Answer)
            answer.status, answer.headers, answer.body = 200, JSON_TYPE, decision.to_json()
            return answer
        except Exception as error:
            return self.failed(error)
