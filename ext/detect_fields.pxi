# Part of detect.pyx: a request's facts as detectors ask for them, in text or as keyed hashes. A field may be derived: an
# address in its canonical bytes, the /24 or /48 around it, the path, its route, its query, the caller.

cdef enum Derived:
    PLAIN = 0
    ATTRIBUTE = 1
    IP = 2
    NETWORK = 3
    PATH = 4
    ROUTE = 5
    TARGET = 6
    QUERY = 7
    PRINCIPAL = 8

cdef dict DERIVED = {"ip": IP, "network": NETWORK, "path": PATH, "route": ROUTE, "target": TARGET, "query": QUERY, "principal": PRINCIPAL}
cdef tuple HEAVY = ("body", "graphql", "headers", "token", "attributes")
cdef tuple LONG = ("tenant", "user", "path", "api_key", "session", "user_agent")
cdef tuple PRINCIPALS = ("user", "api_key", "session", "ip")

cdef enum:
    MAX_FIELDS = 32         # different fields that one policy's detectors read
    MAX_SAMPLE = 256        # characters of a target that are kept
    MAX_KEPT_TEXT = 4_096   # characters of any fact of a request that is kept for a second
    HEAVY_FACTS = 5
    LONG_FACTS = 6


@cython.internal
@cython.final
cdef class Fields:
    """The fields that a policy's detectors read. `begin(request)` comes before the questions about one event."""

    cdef list names
    cdef int derived[MAX_FIELDS]
    cdef int principal[4]
    cdef uint64_t k0
    cdef uint64_t k1
    cdef int ipv6_prefix
    cdef object normalise
    cdef object locate
    cdef object request_type
    cdef Py_ssize_t offsets[MAX_FIELDS]
    cdef Py_ssize_t path_offset
    cdef Py_ssize_t method_offset
    cdef Py_ssize_t agent_offset
    cdef Py_ssize_t ip_offset
    cdef Py_ssize_t headers_offset
    cdef Py_ssize_t heavy_offsets[HEAVY_FACTS]
    cdef Py_ssize_t long_offsets[LONG_FACTS]
    # of the event at hand
    cdef Hash128 hashes[MAX_FIELDS]
    cdef int states[MAX_FIELDS]   # 0 not looked at, 1 hashed, 2 absent

    def __cinit__(self, bytes secret, object normalise, int ipv6_prefix, object locate):
        cdef int i
        self.k0 = int.from_bytes(secret[:8], "little")
        self.k1 = int.from_bytes(secret[8:], "little")
        self.normalise, self.ipv6_prefix, self.locate = normalise, ipv6_prefix, locate
        self.names = []
        for i, name in enumerate(PRINCIPALS):
            self.principal[i] = self.index(name)
        for name in ("network", "tenant"):  # what subjects are told by, whatever the keys are
            self.index(name)

    cdef int index(self, str name) except -1:
        """The field's number, a new one where it is asked for the first time."""
        if name not in self.names:
            if len(self.names) >= MAX_FIELDS:
                raise ValueError(f"detectors of one policy read at most {MAX_FIELDS} different fields")
            self.derived[len(self.names)] = ATTRIBUTE if name.startswith("attributes.") else DERIVED.get(name, PLAIN)
            self.names.append(name)
            self.request_type = None
        return self.names.index(name)

    cdef inline int learn(self, object request) except -1:
        """Where the facts of such a request lie."""
        if type(request) is not self.request_type:
            self.learn_type(type(request))
        return 0

    cdef int learn_type(self, type cls) except -1:
        cdef int i
        for i in range(len(self.names)):
            self.offsets[i] = slot_of(cls, self.names[i]) if self.derived[i] == PLAIN else 0
        self.path_offset, self.method_offset = slot_of(cls, "path"), slot_of(cls, "method")
        self.agent_offset, self.ip_offset = slot_of(cls, "user_agent"), slot_of(cls, "ip")
        self.headers_offset = slot_of(cls, "headers")
        for i in range(HEAVY_FACTS):
            self.heavy_offsets[i] = slot_of(cls, HEAVY[i])
        for i in range(LONG_FACTS):
            self.long_offsets[i] = slot_of(cls, LONG[i])
        self.request_type = cls
        return 0

    cdef bint is_light(self, object request) except -1:
        """Whether a request may be kept as it is: no body, no operations, no long texts."""
        cdef int i
        cdef object value
        for i in range(HEAVY_FACTS):
            if fact_of(request, self.heavy_offsets[i], <str>HEAVY[i]) is not None:
                return False
        for i in range(LONG_FACTS):
            value = fact_of(request, self.long_offsets[i], <str>LONG[i])
            if PyUnicode_Check(value) and PyUnicode_GET_LENGTH(value) > MAX_KEPT_TEXT:
                return False
        return True

    cdef inline void forget(self) noexcept:
        """Another event is at hand."""
        memset(self.states, 0, sizeof(self.states))

    cdef inline object target_of(self, object request):
        return fact_of(request, self.path_offset, "path")

    cdef object fact(self, object request, int field):
        """A plain field's value, whatever it is."""
        return fact_of(request, self.offsets[field], <str>self.names[field])

    cdef object value_of(self, object request, int field):
        """A field's value as text (an address in its canonical bytes), or None."""
        cdef int kind = self.derived[field], i
        cdef object value
        if kind == PLAIN:
            value = self.fact(request, field)
        elif kind == ATTRIBUTE:
            value = self.attribute(request, (<str>self.names[field])[11:])
            if value is not None and not PyUnicode_Check(value):
                value = str(value)
        elif kind == IP or kind == NETWORK:
            return self.address(request, kind == NETWORK)
        elif kind == PRINCIPAL:
            for i in range(4):
                value = self.value_of(request, self.principal[i])
                if value is not None:
                    return value
            return None
        else:
            value = self.target_of(request)
            if not PyUnicode_Check(value):
                return None
            if kind == PATH:
                value = self.path_of(value)
            elif kind == ROUTE:
                value = route_of(self.path_of(value))
                if value is not None and (<str>value).replace("/{}", "") in ("", "/"):
                    return None          # nothing of it is a name: no route of an API
            elif kind == QUERY:
                value = (<str>value).partition("?")[2]
        if PyUnicode_Check(value) and PyUnicode_GET_LENGTH(value):
            return value
        return None

    cdef object attribute(self, object request, str name):
        """As the request states it; country and asn, where it does not, as the database of places knows them."""
        cdef object value = request.attributes
        value = value.get(name) if isinstance(value, dict) else None
        if value is None and self.locate is not None and (name == "country" or name == "asn"):
            ip = fact_of(request, self.ip_offset, "ip")
            place = self.locate(ip) if ip.__class__ is str else None
            if place is not None:
                value = place.country if name == "country" else place.asn
        return value

    cdef object path_of(self, str target):
        cdef Py_ssize_t size
        cdef const char *data = ascii_of(target, &size)
        cdef Py_ssize_t i
        cdef char c, before = 0
        if data != NULL and size > 0 and data[0] == 47:
            for i in range(size):
                c = data[i]
                if c == 63 or c == 35:   # ? #
                    return target[:i] if i == 1 or data[i - 1] != 47 else target[:i - 1]
                if c == 37 or (before == 47 and (c == 47 or c == 46)):   # % // /.
                    break
                before = c
            else:
                return target if size == 1 or before != 47 else target[:size - 1]
        try:
            return self.normalise(target)
        except ValueError:
            return target[:MAX_SAMPLE]

    cdef object address(self, object request, bint network):
        cdef Address a
        cdef object text = fact_of(request, self.ip_offset, "ip")
        if text is None or read_address(text, 48 if network else self.ipv6_prefix, &a) <= 0:
            return None
        if network and a.size_bytes == 4:
            a.bytes[3] = 0
        return (<char *>a.bytes)[:a.size_bytes]

    cdef int field_hash(self, object request, int field) except -1:
        cdef Address a
        cdef object value
        cdef Hash128 h
        if self.derived[field] == IP:
            value = fact_of(request, self.ip_offset, "ip")
            if value is None or read_address(value, self.ipv6_prefix, &a) <= 0:
                self.states[field] = 2
                return 0
            self.hashes[field] = siphash128(a.bytes, a.size_bytes, self.k0, self.k1)
            self.states[field] = 1
            return 0
        value = self.value_of(request, field)
        if value is None:
            self.states[field] = 2
            return 0
        hash_key(value, self.k0, self.k1, &h)
        self.hashes[field] = h
        self.states[field] = 1
        return 0

    cdef int key_hash(self, object request, Spec *s, Hash128 *h) except -1:
        """1, or 0 where a field of the key is absent."""
        cdef uint64_t words[2 * MAX_KEY_FIELDS]
        cdef int k, field
        memset(words, 0, sizeof(words))
        for k in range(s.n_keys):
            field = s.key[k]
            if self.states[field] == 0:
                self.field_hash(request, field)
            if self.states[field] == 2:
                if not s.optional[k]:
                    return 0
                continue
            words[2 * k] = self.hashes[field].a
            words[2 * k + 1] = self.hashes[field].b
        if s.n_keys == 1:
            h.a, h.b = words[0] ^ s.seed_a, words[1] ^ s.seed_b
        else:
            h[0] = siphash128(<const uint8_t *>words, 16 * s.n_keys, s.seed_a, s.seed_b)
        h[0] = never_zero(h[0])
        return 1


cdef str route_of(str path):
    """The path with segments that look like identifiers (a digit in them, or longer than 24 characters) as {}."""
    cdef Py_ssize_t size
    cdef const char *data = ascii_of(path, &size)
    cdef Py_ssize_t i, start = 0
    cdef bint has_id = False, digit = False
    if data == NULL:
        return "/".join("{}" if len(part) > 24 or any("0" <= c <= "9" for c in part) else part for part in path.split("/"))
    for i in range(size + 1):
        if i == size or data[i] == 47:
            if digit or i - start > 24:
                has_id = True
                break
            start, digit = i + 1, False
        elif 48 <= data[i] <= 57:
            digit = True
    if not has_id:
        return path
    return "/".join(["{}" if is_id(part) else part for part in path.split("/")])

cdef bint is_id(str part):
    cdef Py_ssize_t size
    cdef const char *data = ascii_of(part, &size)
    cdef Py_ssize_t i
    if size > 24:
        return True
    for i in range(size):
        if 48 <= data[i] <= 57:
            return True
    return False
