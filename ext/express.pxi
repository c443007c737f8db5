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

    def __init__(self, Lane lane not None, answer_of, PlainCheck plain, service, Turns turns not None, *, bint at_once, int most,
                 Py_ssize_t most_bytes, bytes server not None):
        self.lane, self.answer_of, self.plain, self.service, self.turns = lane, answer_of, plain, service, turns
        self.at_once, self.most, self.most_bytes, self.server = at_once, most, most_bytes, server


@cython.final
cdef class Reader:
    """What one connection receives, while it belongs to the express lane.

    As long as `ready`, what comes begins a request and nothing stands in its way: it is answered and that is all. Whatever
    changes that on the connection takes `ready` away; then `received(data)` is asked, as it is for what is not `bytes`.
    `left(data, what)` gets what `look` could not see to.
    """

    cdef public bint ready
    cdef readonly double used_s
    """When it last received something, by the loop's clock."""
    cdef Express express
    cdef object loop, received, left, peer, write

    def __init__(self, Express express not None, loop, received, left):
        self.express, self.loop, self.received, self.left = express, loop, received, left

    def begin(self, peer, write):
        """Once there is a connection: who is at its other end, and what sends."""
        self.peer, self.write = peer, write

    def end(self):
        """There is none any more. Nothing is received or sent."""
        self.ready = False
        self.write = self.peer = None

    def used(self):
        """The connection is of use now."""
        self.used_s = monotonic_s()

    def data_received(self, data):
        """Called by the loop."""
        cdef object what
        if self.ready and type(data) is bytes and PyBytes_GET_SIZE(<bytes>data) > 0:
            what = self.look(<bytes>data)
            if what is not None:
                self.left(data, what)
        else:
            self.received(data)

    cpdef object look(self, bytes data):
        """Answers the requests of `data`. None when that was all; else (up to where, whether to close, the head that is not
        served or an error), as `Lane.serve` tells it."""
        cdef Express express = self.express
        cdef PlainCheck plain = None
        cdef Py_ssize_t at
        self.used_s = monotonic_s()
        express.turns.look_at(self.used_s if express.turns.clock is None else express.turns.now(), self.loop)
        if express.at_once and not express.turns.late and not express.service.draining:
            plain = express.plain
        sent, at, close, other = express.lane.serve(
            data, express.answer_of, plain, self.peer, express.most, express.most_bytes, express.server, date_line())
        if sent is not None and self.write is not None:
            self.write(sent)
        if other is None and not close and at == PyBytes_GET_SIZE(data):
            return None
        return at, close, other
