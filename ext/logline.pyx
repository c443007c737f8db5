# cython: language_level=3
"""Lines of access logs: common and combined format, what nginx and Traefik append to it, with or without a virtual host
or a syslog prefix in front. One pass over the bytes; what is no such line is None, never an error.

A request line that is none ("\\x16\\x03...") is kept: its whole text is the target, and there is no method.
"""

cimport cython
from cpython.unicode cimport PyUnicode_DecodeUTF8
from libc.stdint cimport int64_t
from libc.string cimport memchr, memcmp, memcpy

from address cimport Address, read_address
from keys cimport PyUnicode_Check

cdef enum:
    MAX_LINE_BYTES = 65_536      # servers bound a request line by 8 or 16 KB
    TIME_BYTES = 26              # 17/May/2015:10:05:03 +0000
    MAX_INTERNED = 65_536        # texts of which one object serves many lines


cdef inline int digit2(const char *s) noexcept nogil:
    if 48 <= s[0] <= 57 and 48 <= s[1] <= 57:
        return (s[0] - 48) * 10 + s[1] - 48
    return -1000

cdef inline int month_of(const char *s) noexcept nogil:
    cdef int i
    cdef const char *names = "JanFebMarAprMayJunJulAugSepOctNovDec"
    for i in range(12):
        if memcmp(names + 3 * i, s, 3) == 0:
            return i + 1
    return -1

cdef inline int64_t days_of(int64_t year, int month, int day) noexcept nogil:
    """Days since 1970 of a date of the Gregorian calendar (Hinnant, "chrono-compatible low-level date algorithms")."""
    cdef int64_t y = year - (month <= 2)
    cdef int64_t era = y // 400
    cdef int64_t yoe = y - era * 400
    cdef int64_t doy = (153 * (month + (-3 if month > 2 else 9)) + 2) // 5 + day - 1
    return era * 146_097 + yoe * 365 + yoe // 4 - yoe // 100 + doy - 719_468

cdef int64_t seconds_of(const char *s) noexcept nogil:
    """Unix seconds of "17/May/2015:10:05:03 +0000"; -1 for what is no such time."""
    cdef int day = digit2(s), month = month_of(s + 3), century = digit2(s + 7), year = digit2(s + 9)
    cdef int hour = digit2(s + 12), minute = digit2(s + 15), second = digit2(s + 18)
    cdef int zone_hour = digit2(s + 22), zone_minute = digit2(s + 24)
    cdef int zone
    if s[2] != 47 or s[6] != 47 or s[11] != 58 or s[14] != 58 or s[17] != 58 or s[20] != 32:
        return -1
    if not (1 <= day <= 31 and month > 0 and 19 <= century <= 29 and year >= 0 and 0 <= hour <= 23):
        return -1
    if not (0 <= minute <= 59 and 0 <= second <= 60 and 0 <= zone_hour <= 15 and 0 <= zone_minute <= 59):
        return -1
    if s[21] != 43 and s[21] != 45:
        return -1
    zone = (zone_hour * 60 + zone_minute) * 60
    if s[21] == 45:
        zone = -zone
    return days_of(century * 100 + year, month, day) * 86_400 + hour * 3_600 + minute * 60 + second - zone


@cython.final
cdef class LineReader:
    """Reads lines; texts that come again are the same object, and a time that was just read is not read again."""

    cdef dict texts
    cdef char last_time[TIME_BYTES]
    cdef int64_t last_us

    def __cinit__(self):
        self.texts = {}
        self.last_us = -1

    cdef str text(self, const char *data, Py_ssize_t size):
        return PyUnicode_DecodeUTF8(data, size, "replace")

    cdef str kept(self, const char *data, Py_ssize_t size):
        """The same, for texts of which there are few."""
        cdef object text = self.text(data, size)
        cdef object known = self.texts.get(text)
        if known is not None:
            return known
        if len(self.texts) < MAX_INTERNED and size <= 512:
            self.texts[text] = text
        return text

    def read(self, bytes line):
        """(microseconds since 1970, address, user, method, target, status, bytes, host, agent, referer), or None. The
        referer only where it holds "${", which no address of a page does and attacks on loggers do."""
        cdef const char *start = line
        cdef const char *end = start + len(line)
        cdef const char *at
        cdef const char *stop
        cdef const char *q
        cdef int64_t now_us, size_bytes = 0
        cdef int status
        cdef Address address
        cdef object ip, user = None, host = None, method = None, target, agent = None, referer = None
        while end > start and (end[-1] == 10 or end[-1] == 13):
            end -= 1
        if end - start > MAX_LINE_BYTES or end - start < TIME_BYTES + 12:
            return None
        # The time, in brackets.
        at = start
        while True:
            at = <const char *>memchr(at, 91, end - at)
            if at == NULL or end - at < TIME_BYTES + 2:
                return None
            at += 1
            if at[TIME_BYTES] == 93 and at[2] == 47:
                break
        if self.last_us >= 0 and memcmp(at, self.last_time, TIME_BYTES) == 0:
            now_us = self.last_us
        else:
            now_us = seconds_of(at) * 1_000_000
            if now_us < 0:
                return None
            memcpy(self.last_time, at, TIME_BYTES)
            self.last_us = now_us
        # Before it: [syslog prefix: ][virtual host ]address identity user
        stop = at - 1
        q = start
        while q < stop - 1:
            if q[0] == 58 and q[1] == 32 and q > start and q[-1] == 93:   # "]: " ends a syslog tag
                start = q + 2
            q += 1
        q = <const char *>memchr(start, 32, stop - start)
        if q == NULL:
            return None
        ip = self.kept(start, q - start)
        if read_address(ip, 128, &address) <= 0:
            host = ip
            start = q + 1
            q = <const char *>memchr(start, 32, stop - start)
            if q == NULL:
                return None
            ip = self.kept(start, q - start)
            if read_address(ip, 128, &address) <= 0:
                return None
            if ":" in host:
                host = host.partition(":")[0]
        q = <const char *>memchr(q + 1, 32, stop - q - 1)
        if q != NULL:
            while stop > q + 1 and stop[-1] == 32:
                stop -= 1
            if stop > q + 1 and not (stop - q == 2 and q[1] == 45):
                user = self.kept(q + 1, stop - q - 1)
        # After it: "request" status bytes
        at += TIME_BYTES + 1
        if end - at < 7 or at[0] != 32 or at[1] != 34:
            return None
        at += 2
        stop = quote_end(at, end)
        if stop == NULL:
            return None
        method, target = self.request(at, stop)
        at = stop + 1
        if end - at < 4 or at[0] != 32:
            return None
        if not (49 <= at[1] <= 53 and digit2(at + 2) >= 0 and (end - at == 4 or at[4] == 32)):
            if at[1] == 45 and (end - at == 2 or at[2] == 32):
                status = 0
                at += 2
            else:
                return None
        else:
            status = (at[1] - 48) * 100 + digit2(at + 2)
            at += 4
        if at < end:
            at += 1
            while at < end and 48 <= at[0] <= 57:
                if size_bytes < (<int64_t>1 << 52):
                    size_bytes = size_bytes * 10 + at[0] - 48
                at += 1
            if at < end and at[0] == 45:
                at += 1
        # "referer" "agent"
        if end - at > 3 and at[0] == 32 and at[1] == 34:
            stop = quote_end(at + 2, end)
            if stop != NULL and holds_expression(at + 2, stop):
                referer = self.text(at + 2, stop - at - 2)
            if stop != NULL and end - stop > 3 and stop[1] == 32 and stop[2] == 34:
                at = stop + 3
                stop = quote_end(at, end)
                if stop != NULL and not (stop - at == 1 and at[0] == 45):
                    agent = self.kept(at, stop - at)
        return now_us, ip, user, method, target, status, size_bytes, host, agent, referer

    cdef tuple request(self, const char *at, const char *stop):
        cdef const char *first = <const char *>memchr(at, 32, stop - at)
        cdef const char *last = stop
        cdef const char *c
        if first == NULL or first == at or first - at > 32:
            return None, self.text(at, stop - at)
        c = at
        while c < first:
            if not (65 <= c[0] <= 90 or c[0] == 95 or c[0] == 45):
                return None, self.text(at, stop - at)
            c += 1
        while last > first and last[0] != 32:
            last -= 1
        if last > first and stop - last > 5 and memcmp(last + 1, "HTTP", 4) == 0:
            stop = last
        return self.kept(at, first - at), self.text(first + 1, stop - first - 1)


cdef inline bint holds_expression(const char *at, const char *end) noexcept nogil:
    """Whether "${" is in it."""
    while True:
        at = <const char *>memchr(at, 36, end - at) if at < end else NULL
        if at == NULL:
            return False
        at += 1
        if at < end and at[0] == 123:
            return True

cdef inline const char *quote_end(const char *at, const char *end) noexcept nogil:
    """The closing quote; a quote behind a backslash is part of the text."""
    while at < end:
        if at[0] == 92:
            at += 1
        elif at[0] == 34:
            return at
        at += 1
    return NULL
