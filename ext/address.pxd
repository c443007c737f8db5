# cython: language_level=3
"""Addresses in canonical bytes: 4 of IPv4 (mapped IPv4 is IPv4), or 16 of IPv6 of which the first `ipv6_prefix` bits count."""

from libc.stdint cimport uint8_t
from libc.string cimport memchr, memcpy, memset
from keys cimport PyUnicode_Check, ascii_of

cdef extern from "arpa/inet.h":
    int inet_pton(int family, const char *text, void *address) nogil
    enum:
        AF_INET
        AF_INET6

cdef struct Address:
    uint8_t bytes[16]
    int size_bytes

cdef inline bint read_v4(const char *data, Py_ssize_t size_bytes, uint8_t *out) noexcept nogil:
    """Four decimal numbers up to 255 without leading zeros, as inet_pton takes them, in a tenth of its time. Behind the data
    there is a NUL byte, as behind every str."""
    cdef Py_ssize_t i = 0
    cdef int part
    cdef unsigned int number, digit
    for part in range(4):
        if part > 0:
            if data[i] != 46:
                return False
            i += 1
        number = <unsigned int>data[i] - 48
        if number > 9:
            return False
        i += 1
        digit = <unsigned int>data[i] - 48
        if digit <= 9 and number > 0:
            number = 10 * number + digit
            i += 1
            digit = <unsigned int>data[i] - 48
            if digit <= 9:
                number = 10 * number + digit
                i += 1
        if number > 255:
            return False
        out[part] = <uint8_t>number
    return i == size_bytes

cdef inline bint read_v6(const char *data, Py_ssize_t size_bytes, uint8_t *out) noexcept nogil:
    """Groups of hexadecimal digits, with "::" or without, in a third of inet_pton's time. False: ask that."""
    cdef int groups[8]
    cdef int n = 0, gap = -1, digits, value, digit, k
    cdef Py_ssize_t i = 0
    cdef char c
    if size_bytes >= 2 and data[0] == 58 and data[1] == 58:
        gap, i = 0, 2
    while i < size_bytes:
        digits = value = 0
        while i < size_bytes and digits < 5:
            c = data[i]
            digit = c - 48 if 48 <= c <= 57 else c - 87 if 97 <= c <= 102 else c - 55 if 65 <= c <= 70 else -1
            if digit < 0:
                break
            value = value * 16 + digit
            digits += 1
            i += 1
        if digits == 0 or digits > 4 or n == 8:
            return False
        groups[n] = value
        n += 1
        if i == size_bytes:
            break
        if data[i] != 58 or i + 1 == size_bytes:
            return False
        i += 1
        if data[i] == 58:
            if gap >= 0:
                return False
            gap = n
            i += 1
    if n > 7 if gap >= 0 else n != 8:
        return False
    if gap < 0:
        gap = 8
    memset(out, 0, 16)
    for k in range(n):
        digit = k if k < gap else k + 8 - n
        out[2 * digit] = <uint8_t>(groups[k] >> 8)
        out[2 * digit + 1] = <uint8_t>(groups[k] & 0xFF)
    return True

cdef inline int read_address(object text, int ipv6_prefix, Address *a) noexcept:
    """The size in bytes; 0 for empty text, -1 for what is no address."""
    cdef Py_ssize_t size_bytes
    cdef int i, whole
    cdef const char *data
    a.size_bytes = 0
    if not PyUnicode_Check(text):
        return -1
    data = ascii_of(text, &size_bytes)
    if data == NULL or size_bytes > 45:
        return -1
    if size_bytes == 0:
        return 0
    if read_v4(data, size_bytes, a.bytes):
        a.size_bytes = 4
        return 4
    # inet_pton would stop at a NUL byte and believe what came before.
    if memchr(data, 0, size_bytes) != NULL:
        return -1
    if not read_v6(data, size_bytes, a.bytes) and inet_pton(AF_INET6, data, a.bytes) != 1:
        return -1
    for i in range(10):
        if a.bytes[i] != 0:
            break
    else:
        if a.bytes[10] == 0xFF and a.bytes[11] == 0xFF:
            memcpy(a.bytes, a.bytes + 12, 4)
            a.size_bytes = 4
            return 4
    whole = ipv6_prefix // 8
    if whole < 16:
        a.bytes[whole] = a.bytes[whole] & <uint8_t>(0xFF00 >> (ipv6_prefix % 8))
        memset(a.bytes + whole + 1, 0, 15 - whole)
    a.size_bytes = 16
    return 16
