# From what a connection receives to what it sends, where nothing has to wait: all of it in one call of the event loop.

cdef class Turns:
    """Whether the event loop is behind: its turns, from the first bytes that are read in one, take longer than `max_wait_s`.

    `clock` returns seconds and never goes back; None is the system's.
    """

    cdef readonly bint late
    """What is read or begun at present has waited too long, and not for the first time."""
    cdef public object clock
    cdef double max_wait_s, began_s
    cdef bint long_now, long_before

    def __init__(self, double max_wait_s, clock=None):
        self.max_wait_s, self.clock = max_wait_s, clock
        self.began_s = -1.0

    cdef double now(self) except? -1.0:
        return monotonic_s() if self.clock is None else self.clock()

    cpdef look(self, loop):
        """Called for each read, and for each request that begins in a task of its own."""
        self.look_at(self.now(), loop)

    cdef int look_at(self, double now_s, object loop) except -1:
        if self.began_s < 0:
            self.began_s = now_s
            loop.call_soon(self.turn_ended)
        elif now_s - self.began_s > self.max_wait_s:
            self.long_now = True
            self.late = self.long_before
        return 0

    def turn_ended(self):
        """Called by the loop."""
        self.began_s = -1.0
        self.long_before, self.long_now, self.late = self.long_now, False, False


cdef int64_t dated_s = -1
cdef bytes date_line_now = b""


cpdef bytes date_line():
    """The Date field of what is sent now, as a whole line."""
    global dated_s, date_line_now
    cdef int64_t now_s = unix_s(NULL)
    if now_s != dated_s:
        date_line_now = b"Date: %b\r\n" % (<str>formatdate(now_s, usegmt=True)).encode()
        dated_s = now_s
    return date_line_now


@cython.final
cdef class Express:
    """The express lane of one listener.

    `answer_of(head)` makes an Answer, or None for what must be waited for. `plain` is tried first, unless something stands
    in its way: the loop is late, `service` is `draining`, or decisions are not made `at_once`. At most `most` requests of a
    connection are answered in a turn, and none more once `most_bytes` are there to be sent. `server` is a whole line.
    """

    cdef public Lane lane
    cdef public bint at_once
    cdef object answer_of, service
    cdef public PlainCheck plain
    cdef Turns turns
    cdef int most
    cdef Py_ssize_t most_bytes
    cdef bytes server
    cdef Poller poller

    def __init__(self, Lane lane not None, answer_of, PlainCheck plain, service, Turns turns not None, *, bint at_once, int most,
                 Py_ssize_t most_bytes, bytes server not None):
        self.lane, self.answer_of, self.plain, self.service, self.turns = lane, answer_of, plain, service, turns
        self.at_once, self.most, self.most_bytes, self.server = at_once, most, most_bytes, server

    cdef PlainCheck plainly(self, double now_s, object loop):
        """What answers plain requests, if nothing is in its way. Called for whatever is read, at `now_s` of the system's clock."""
        self.turns.look_at(now_s if self.turns.clock is None else self.turns.now(), loop)
        return self.if_plain()

    cdef PlainCheck if_plain(self):
        return self.plain if self.at_once and not self.turns.late and not self.service.draining else None


@cython.final
cdef class Reader:
    """What one connection receives, while it belongs to the express lane.

    As long as `ready`, what comes begins a request and nothing stands in its way: it is answered and that is all. Whatever
    changes that on the connection takes `ready` away; then `received(data)` is asked, as it is for what is not `bytes`.
    `left(data, what)` gets what `look` could not see to. A connection that stays ready for a second read is read and
    written by a Poller from then on, until it is not ready. `unsure`: its transport may hold bytes that are to go first.
    """

    cdef bint is_ready
    cdef readonly double used_s
    """When it last received something, by the loop's clock."""
    cdef Express express
    cdef object loop, received, left, peer, write, transport
    cdef int end_fd
    cdef readonly bint polled
    """Whether what it receives is read by a Poller."""
    cdef bint unsure

    def __init__(self, Express express not None, loop, received, left):
        self.express, self.loop, self.received, self.left = express, loop, received, left
        self.end_fd = -1
        self.unsure = True

    def begin(self, transport):
        """Once there is a connection."""
        self.peer, self.write, self.transport = transport.get_extra_info("peername"), transport.write, transport
        end = transport.get_extra_info("socket")
        if end is not None and transport.get_extra_info("ssl_object") is None:
            self.end_fd = end.fileno()

    def end(self):
        """There is none any more. Nothing is received or sent."""
        self.ready = False
        self.write = self.peer = self.transport = None
        self.end_fd = -1

    @property
    def ready(self):
        return self.is_ready

    @ready.setter
    def ready(self, bint ready):
        self.is_ready = ready
        if not ready and self.polled:
            self.express.poller.release(self)

    def used(self):
        """The connection is of use now."""
        self.used_s = monotonic_s()

    def data_received(self, data):
        """Called by the loop."""
        cdef object what
        if self.is_ready and type(data) is bytes and PyBytes_GET_SIZE(<bytes>data) > 0:
            what = self.look(<bytes>data)
            if what is not None:
                self.left(data, what)
            elif self.end_fd >= 0 and self.is_ready and not self.polled and not self.transport.is_closing():
                if self.express.poller is None:
                    self.express.poller = Poller(self.express, self.loop)
                self.express.poller.take(self)
        else:
            self.received(data)

    cdef bytes receive(self, unsigned int events, char *buffer):
        """What is there to be read. None, and the connection is the transport's again, for anything else: it will find it too."""
        cdef Py_ssize_t size = -1
        if events == SHIELD_IN:
            size = shield_receive(self.end_fd, buffer, POLLED_BYTES)
        if size > 0:
            return PyBytes_FromStringAndSize(buffer, size)
        self.express.poller.release(self)
        return None

    cdef int send(self, const char *start, Py_ssize_t size) except -1:
        """Sends at once what the system takes; what it does not take, errors too, are the transport's to see to."""
        cdef Py_ssize_t sent = 0
        if self.write is None:
            return 0
        if self.unsure:
            self.unsure = not self.polled or self.transport.get_write_buffer_size() != 0
        if not self.unsure:
            sent = max(0, shield_send(self.end_fd, start, size))
            if sent == size:
                return 0
            self.unsure = True
        self.write(PyBytes_FromStringAndSize(start + sent, size - sent))
        return 0

    cdef object others(self, bytes data):
        """Answers the requests of `data` otherwise, and tells what `look` tells."""
        cdef Express express = self.express
        cdef Py_ssize_t at
        sent, at, close, other = express.lane.serve(data, express.answer_of, express.if_plain(), self.peer, express.most,
                                                    express.most_bytes, express.server, date_line())
        if sent is not None:
            self.send(PyBytes_AS_STRING(<bytes>sent), PyBytes_GET_SIZE(<bytes>sent))
        if other is None and not close and at == PyBytes_GET_SIZE(data):
            return None
        return at, close, other

    cpdef object look(self, bytes data):
        """Answers the requests of `data`. None when that was all; else (up to where, whether to close, the head that is not
        served or an error), as `Lane.serve` tells it."""
        cdef Express express = self.express
        cdef PlainCheck plain
        self.used_s = monotonic_s()
        plain = express.plainly(self.used_s, self.loop)
        try:
            if plain is None or not express.lane.only(data, plain.here(NULL), self.peer, express.server, date_line()):
                return self.others(data)
        except Exception as error:
            return 0, False, error
        self.send(plain.start, plain.size)
        return (PyBytes_GET_SIZE(data), True, None) if plain.closes else None
