# What is counted of every decision, and the ids of requests that came without.

cdef enum:
    MAX_BUCKETS = 32
    MAX_PREFIX_BYTES = 32


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
        if reason == "ok":
            self.ok += 1
        else:
            self.others[reason] = self.others.get(reason, 0) + 1
        self.took(elapsed_s)

    cdef inline void allowed(self, double elapsed_s) noexcept:
        """One decision more that was allowed."""
        self.ok += 1
        self.took(elapsed_s)

    cdef inline void took(self, double elapsed_s) noexcept:
        cdef int i = 0
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
