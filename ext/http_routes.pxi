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

    cpdef bint only(self, bytes data, PlainCheck plain, peer, bytes server, bytes date) except -1:
        """Whether all of `data` is one check request of a connection that may go on, and `plain` has made its answer where it
        was told to. Nothing has happened otherwise."""
        if plain is None or server is None or date is None:
            raise TypeError("plain is a PlainCheck; server and date are bytes")
        cdef bint close = False
        cdef Head head
        if data is None or PyBytes_AS_STRING(data)[0] != b"P":
            return False  # most of the other routes' requests, without a look
        head = self.look(data)
        if head.verdict != _TAKE or head.close or head.end != PyBytes_GET_SIZE(data) or head.route is not plain.route:
            return False
        head.peer = peer
        if not plain.put(head, &close, server, date):
            return False
        plain.closes = close
        return True

    cpdef tuple serve(self, bytes data, answer_of, PlainCheck plain, peer, int most, Py_ssize_t most_bytes, bytes server,
                      bytes date):
        """(bytes to send, what of `data` they answer, whether to close, the head that is not served or an error).

        `plain`, which may be None, is tried first for its route. `answer_of(head)` makes an Answer; None: this one must be
        waited for, and its head is handed back. What it raises is handed back too, for what came before is answered still.
        At most `most` requests are answered, and none more once `most_bytes` are there to be sent. `server` and `date` are
        whole lines.
        """
        if data is None or server is None or date is None:
            raise TypeError("data, server and date are bytes")
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
            close = head.close
            one = None
            try:
                if plain is not None and head.route is plain.route:
                    one = plain.answer(head, &close, server, date)
                if one is None:
                    made = answer_of(head)
                    if made is None:
                        other = head
                        close = False
                        break
                    answer = <Answer?>made
                    close = answer.close or close
                    one = render(answer, close, head.method, server, date)
            except Exception as error:
                other = error
                close = False
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
