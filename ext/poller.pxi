# The sockets of connections that send nothing but plain requests, read and written without the event loop's transports.

cdef extern from *:
    """
    #include <errno.h>
    #ifdef __linux__
    #include <sys/epoll.h>
    #include <sys/socket.h>
    #include <unistd.h>
    typedef struct epoll_event shield_event;
    #define SHIELD_IN EPOLLIN
    static int shield_poll_new(void) { return epoll_create1(EPOLL_CLOEXEC); }
    static void shield_poll_end(int poll) { close(poll); }
    static int shield_poll_add(int poll, int end, void *whose) {
        struct epoll_event event = { .events = EPOLLIN | EPOLLRDHUP | EPOLLET, .data = { .ptr = whose } };
        return epoll_ctl(poll, EPOLL_CTL_ADD, end, &event);
    }
    static int shield_poll_drop(int poll, int end) { return epoll_ctl(poll, EPOLL_CTL_DEL, end, NULL); }
    static int shield_poll(int poll, shield_event *events, int most) { return epoll_wait(poll, events, most, 0); }
    static ssize_t shield_receive(int end, char *to, size_t most) { return recv(end, to, most, MSG_DONTWAIT); }
    static ssize_t shield_send(int end, const char *from, size_t size) {
        return send(end, from, size, MSG_DONTWAIT | MSG_NOSIGNAL);
    }
    #else
    typedef struct { unsigned events; union { void *ptr; } data; } shield_event;
    #define SHIELD_IN 1
    static int shield_poll_new(void) { return -1; }
    static void shield_poll_end(int poll) {}
    static int shield_poll_add(int poll, int end, void *whose) { return -1; }
    static int shield_poll_drop(int poll, int end) { return -1; }
    static int shield_poll(int poll, shield_event *events, int most) { return -1; }
    static ssize_t shield_receive(int end, char *to, size_t most) { return -1; }
    static ssize_t shield_send(int end, const char *from, size_t size) { return -1; }
    #endif
    """
    ctypedef struct shield_data:
        void *ptr
    ctypedef struct shield_event:
        unsigned int events
        shield_data data
    unsigned int SHIELD_IN
    int shield_poll_new()
    void shield_poll_end(int poll)
    int shield_poll_add(int poll, int end, void *whose)
    int shield_poll_drop(int poll, int end)
    int shield_poll(int poll, shield_event *events, int most)
    Py_ssize_t shield_receive(int end, char *to, size_t most)
    Py_ssize_t shield_send(int end, const char *start, size_t size)

cdef enum:
    # Connections that are served together. Each part's instructions are in the processor then, and what is decided is warm.
    POLLED_AT_ONCE = 64
    # Of one read. A connection that sends more at once is the transport's again.
    POLLED_BYTES = 65_536
    # Answers that wait to be sent together.
    POLLED_ANSWERS_BYTES = 65_536


cdef struct Unsent:
    PyObject *reader
    const char *start
    Py_ssize_t size


@cython.final
cdef class Poller:
    """Connections of which the next bytes are read here, and no longer by their transports.

    A transport reads, makes a call of Python and queues what is written for the end of the loop's turn; for a request that
    is answered in three microseconds that is a sixth of all. Here one call of the loop serves all connections that have
    something, each with one `recv` and one `send`. Reading by the transport is paused meanwhile. Whatever is not a whole
    plain request on an open connection is the transport's: its end, its errors, and all that a `Reader` is not ready for.
    Where the system has no epoll, no connection is ever taken.
    """

    cdef int poll
    cdef Express express
    cdef object loop
    cdef set taken
    cdef char buffer[POLLED_BYTES]
    cdef char answers[POLLED_ANSWERS_BYTES]
    cdef Py_ssize_t used
    cdef Unsent unsent[POLLED_AT_ONCE]
    cdef int waiting

    def __cinit__(self, Express express not None, loop):
        self.express, self.loop = express, loop
        self.taken = set()
        self.poll = shield_poll_new()

    def __dealloc__(self):
        if self.poll >= 0:
            shield_poll_end(self.poll)

    cdef int take(self, Reader reader) except -1:
        """From now on its bytes are read here."""
        if shield_poll_add(self.poll, reader.end_fd, <PyObject *>reader) < 0:
            reader.end_fd = -1  # it stays where it is
            return 0
        if not self.taken:
            self.loop.add_reader(self.poll, self.readable)
        self.taken.add(reader)
        reader.polled, reader.unsure = True, True
        reader.transport.pause_reading()
        return 0

    cdef int release(self, Reader reader) except -1:
        """From now on its bytes are read by its transport."""
        reader.polled, reader.unsure = False, True
        shield_poll_drop(self.poll, reader.end_fd)
        self.taken.discard(reader)
        if not self.taken:
            self.loop.remove_reader(self.poll)
        reader.transport.resume_reading()
        return 0

    def readable(self):
        """Called by the loop when some connection has something: each has its turn once."""
        cdef Py_ssize_t left = len(self.taken)
        cdef int count = POLLED_AT_ONCE
        while left > 0 and count == POLLED_AT_ONCE:
            count = self.answer_some()
            left -= count

    cdef int answer_some(self) except -2:
        """How many connections had something, of those that are served together. -1: the system does not say."""
        cdef shield_event events[POLLED_AT_ONCE]
        cdef int i, count = shield_poll(self.poll, events, POLLED_AT_ONCE)
        cdef list readers = [<Reader>events[i].data.ptr for i in range(count)]  # none may go meanwhile
        cdef list received = [(<Reader>readers[i]).receive(events[i].events, self.buffer) for i in range(count)]
        cdef double now_s = monotonic_s()
        cdef PlainCheck plain = self.express.plainly(now_s, self.loop)
        cdef bytes date = date_line()
        for i in range(count):
            if received[i] is not None:
                (<Reader>readers[i]).used_s = now_s
                try:
                    self.answer(<Reader>readers[i], <bytes>received[i], plain, date)
                except Exception as error:
                    self.failed(<Reader>readers[i], error)
        self.send()
        return count

    cdef int answer(self, Reader reader, bytes data, PlainCheck plain, bytes date) except -1:
        """One of those that were read. Its answer waits to be sent, but nothing else happens before all that wait are."""
        cdef object what = None
        if not reader.polled:  # another one's request changed that since it was read
            self.send()
            reader.data_received(data)
            return 0
        if self.used + ROOM_BYTES > POLLED_ANSWERS_BYTES:
            self.send()
        try:
            if plain is not None and self.express.lane.only(
                    data, plain.here(self.answers + self.used), reader.peer, self.express.server, date):
                if plain.made is not None:
                    self.send()
                self.unsent[self.waiting] = Unsent(<PyObject *>reader, plain.start, plain.size)
                self.waiting += 1
                if plain.made is None and not plain.closes and PyBytes_GET_SIZE(data) < POLLED_BYTES:
                    self.used = plain.start + plain.size - self.answers
                    return 0
                self.send()
                what = (PyBytes_GET_SIZE(data), True, None) if plain.closes else None
            else:
                self.send()
                what = reader.others(data)
        except Exception as error:
            self.send()
            what = 0, False, error
        if what is not None:
            reader.left(data, what)
        elif PyBytes_GET_SIZE(data) == POLLED_BYTES and reader.polled:
            self.release(reader)  # there may be more, of which nobody will tell
        return 0

    cdef int send(self) except -1:
        """All that waits."""
        cdef int i, count = self.waiting
        cdef Reader reader
        self.waiting = 0
        self.used = 0
        for i in range(count):
            reader = <Reader>self.unsent[i].reader
            try:
                reader.send(self.unsent[i].start, self.unsent[i].size)
            except Exception as error:
                self.failed(reader, error)
        return 0

    cdef int failed(self, Reader reader, error) except -1:
        """What a transport does with a connection whose protocol raises."""
        cdef object transport = reader.transport
        reader.ready = False
        self.loop.call_exception_handler(
            {"message": "a connection failed", "exception": error, "transport": transport})
        if transport is not None:
            transport.abort()
        return 0
