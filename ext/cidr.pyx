# cython: language_level=3
"""Is an address in one of a million networks? Sorted, merged ranges, looked up by halving.

IPv4: ranges of 32-bit numbers behind an index by the upper 16 bits, so that a look-up halves a few neighbours: 8 bytes a
network. IPv6: ranges of the upper 64 bits, 16 bytes a network, of which every 16th start stands in an array of its own
behind the same kind of index: most of a look-up stays in the cache. IPv6 networks longer than 64 bits (hosts) stand in a
third array by all their 128 bits, 32 bytes each.
Built once and never changed: whoever wants other networks builds another table and puts it in this one's place.
"""

cimport cython
from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_GET_SIZE
from libc.stdint cimport UINT64_MAX, uint8_t, uint32_t, uint64_t
from libc.stdlib cimport free, malloc, qsort, realloc
from libc.string cimport memchr, memcpy

from address cimport Address, inet_pton, read_address, AF_INET, AF_INET6

cdef extern from *:
    """
    #define SHIELD_PREFETCH_RANGE(p) __builtin_prefetch(p)
    """
    void SHIELD_PREFETCH_RANGE(const void *p) noexcept nogil

cdef enum:
    STRIDE = 16             # ranges, 256 bytes: four cache lines that are fetched at once
    LINE_RANGES = 4
    MAX_TEXT = 64
    MAX_BAD = 20            # lines that are shown
    NO_MEMORY = -1
    TOO_MANY = -2

cdef struct Range4:
    uint32_t first
    uint32_t last

cdef struct Range6:
    uint64_t first
    uint64_t last

cdef struct Host6:
    uint64_t first_high
    uint64_t first_low
    uint64_t last_high
    uint64_t last_low


cdef int by_first4(const void *a, const void *b) noexcept nogil:
    cdef uint32_t x = (<const Range4 *>a).first, y = (<const Range4 *>b).first
    return (x > y) - (x < y)

cdef int by_first6(const void *a, const void *b) noexcept nogil:
    cdef uint64_t x = (<const Range6 *>a).first, y = (<const Range6 *>b).first
    return (x > y) - (x < y)

cdef int by_first_host(const void *a, const void *b) noexcept nogil:
    cdef const Host6 *x = <const Host6 *>a
    cdef const Host6 *y = <const Host6 *>b
    if x.first_high != y.first_high:
        return 1 if x.first_high > y.first_high else -1
    return (x.first_low > y.first_low) - (x.first_low < y.first_low)

cdef int shrink(void **items, size_t size_bytes) noexcept nogil:
    cdef void *smaller = realloc(items[0], size_bytes)
    if smaller != NULL:
        items[0] = smaller
    return 0

cdef inline uint64_t be64(const uint8_t *p) noexcept nogil:
    cdef uint64_t out = 0
    cdef int i
    for i in range(8):
        out = (out << 8) | p[i]
    return out


@cython.final
cdef class PrefixTable:
    """Networks out of a text: one address or network a line; what follows "#" or ";" is a comment, and so is a further word.

    `bad` holds (line number, text) of the first lines that were none, `n_bad` how many there were. `max_networks` bounds
    what is kept; more raise ValueError.
    """

    cdef Range4 *v4
    cdef Range6 *v6
    cdef Host6 *hosts
    cdef uint64_t *tops
    cdef uint32_t *index
    cdef uint32_t *index6
    cdef readonly Py_ssize_t n_v4
    cdef readonly Py_ssize_t n_v6
    cdef readonly Py_ssize_t n_hosts
    cdef Py_ssize_t n_tops
    cdef readonly Py_ssize_t networks
    cdef readonly Py_ssize_t n_bad
    cdef readonly list bad
    cdef Py_ssize_t bad_lines[MAX_BAD]
    cdef const char *bad_words[MAX_BAD]   # into the text, while it is read
    cdef Py_ssize_t bad_sizes[MAX_BAD]

    def __cinit__(self, bytes text=b"", Py_ssize_t max_networks=4_000_000):
        cdef const char *at = PyBytes_AS_STRING(text)
        cdef Py_ssize_t size_bytes = PyBytes_GET_SIZE(text)
        cdef int wrong
        # A million lines take a quarter of a second: other threads decide meanwhile.
        with nogil:
            wrong = self.read(at, at + size_bytes, max_networks)
            if wrong == 0:
                wrong = self.settle()
        if wrong == NO_MEMORY:
            raise MemoryError
        if wrong == TOO_MANY:
            raise ValueError(f"more than {max_networks:,} networks")
        self.bad = [
            (self.bad_lines[i], self.bad_words[i][:self.bad_sizes[i]].decode("utf-8", "replace"))
            for i in range(min(self.n_bad, MAX_BAD))
        ]

    def __dealloc__(self):
        free(self.v4)
        free(self.v6)
        free(self.hosts)
        free(self.tops)
        free(self.index)
        free(self.index6)

    def __len__(self):
        return self.networks

    @property
    def size_bytes(self):
        """What the table takes."""
        return (self.n_v4 * sizeof(Range4) + self.n_v6 * sizeof(Range6) + self.n_hosts * sizeof(Host6)
                + self.n_tops * sizeof(uint64_t) + (65_537 * sizeof(uint32_t) if self.index != NULL else 0)
                + (65_537 * sizeof(uint32_t) if self.index6 != NULL else 0))

    cdef int grow(self, void **items, Py_ssize_t *room, Py_ssize_t n, size_t size_bytes) noexcept nogil:
        cdef void *grown
        if n < room[0]:
            return 0
        grown = realloc(items[0], (2 * room[0] + 1024) * size_bytes)
        if grown == NULL:
            return NO_MEMORY
        items[0] = grown
        room[0] = 2 * room[0] + 1024
        return 0

    cdef int read(self, const char *at, const char *end, Py_ssize_t max_networks) noexcept nogil:
        cdef const char *stop
        cdef const char *word
        cdef Py_ssize_t line = 0, room4 = 0, room6 = 0, room_hosts = 0
        cdef int bits
        cdef uint8_t a[16]
        cdef uint64_t high, low, mask
        cdef uint32_t number
        while at < end:
            line += 1
            stop = <const char *>memchr(at, 10, end - at)
            if stop == NULL:
                stop = end
            word = at
            at = stop + 1
            while word < stop and (word[0] == 32 or word[0] == 9):
                word += 1
            while stop > word and (stop[-1] == 13 or stop[-1] == 32 or stop[-1] == 9):
                stop -= 1
            if word == stop or word[0] == 35 or word[0] == 59:
                continue
            bits = network_of(word, stop, a)
            if bits < 0:
                if self.n_bad < MAX_BAD:
                    self.bad_lines[self.n_bad] = line
                    self.bad_words[self.n_bad] = word
                    self.bad_sizes[self.n_bad] = min(stop - word, MAX_TEXT)
                self.n_bad += 1
                continue
            if self.networks >= max_networks:
                return TOO_MANY
            self.networks += 1
            if bits >= 256:   # IPv4
                bits -= 256
                if self.grow(<void **>&self.v4, &room4, self.n_v4, sizeof(Range4)) < 0:
                    return NO_MEMORY
                number = (<uint32_t>a[0] << 24) | (<uint32_t>a[1] << 16) | (<uint32_t>a[2] << 8) | a[3]
                mask = (<uint64_t>0xFFFFFFFF) >> bits
                self.v4[self.n_v4].first = number & ~<uint32_t>mask
                self.v4[self.n_v4].last = number | <uint32_t>mask
                self.n_v4 += 1
                continue
            high, low = be64(a), be64(a + 8)
            if bits <= 64:
                if self.grow(<void **>&self.v6, &room6, self.n_v6, sizeof(Range6)) < 0:
                    return NO_MEMORY
                mask = UINT64_MAX >> bits if bits < 64 else 0
                self.v6[self.n_v6].first, self.v6[self.n_v6].last = high & ~mask, high | mask
                self.n_v6 += 1
            else:
                if self.grow(<void **>&self.hosts, &room_hosts, self.n_hosts, sizeof(Host6)) < 0:
                    return NO_MEMORY
                mask = UINT64_MAX >> (bits - 64) if bits < 128 else 0
                self.hosts[self.n_hosts].first_high = self.hosts[self.n_hosts].last_high = high
                self.hosts[self.n_hosts].first_low, self.hosts[self.n_hosts].last_low = low & ~mask, low | mask
                self.n_hosts += 1
        return 0

    cdef int settle(self) noexcept nogil:
        """Sorts, merges what overlaps or touches, gives back what was not needed, and builds what finds the place."""
        cdef Py_ssize_t i, n
        cdef uint32_t top
        if self.n_v4:
            qsort(self.v4, self.n_v4, sizeof(Range4), by_first4)
            n = 0
            for i in range(1, self.n_v4):
                if self.v4[n].last == 0xFFFFFFFFU or self.v4[i].first <= self.v4[n].last + 1:
                    self.v4[n].last = max(self.v4[n].last, self.v4[i].last)
                else:
                    n += 1
                    self.v4[n] = self.v4[i]
            self.n_v4 = n + 1
            shrink(<void **>&self.v4, self.n_v4 * sizeof(Range4))
            # index[t]: the first range that ends at or behind the first address whose upper bits are t.
            self.index = <uint32_t *>malloc(65_537 * sizeof(uint32_t))
            if self.index == NULL:
                return NO_MEMORY
            i = 0
            for top in range(65_536):
                while i < self.n_v4 and self.v4[i].last < (top << 16):
                    i += 1
                self.index[top] = <uint32_t>i
            self.index[65_536] = <uint32_t>self.n_v4
        if self.n_v6:
            qsort(self.v6, self.n_v6, sizeof(Range6), by_first6)
            n = 0
            for i in range(1, self.n_v6):
                if self.v6[n].last == UINT64_MAX or self.v6[i].first <= self.v6[n].last + 1:
                    self.v6[n].last = max(self.v6[n].last, self.v6[i].last)
                else:
                    n += 1
                    self.v6[n] = self.v6[i]
            self.n_v6 = n + 1
            shrink(<void **>&self.v6, self.n_v6 * sizeof(Range6))
            self.n_tops = (self.n_v6 + STRIDE - 1) // STRIDE
            self.tops = <uint64_t *>malloc(self.n_tops * sizeof(uint64_t))
            if self.tops == NULL:
                return NO_MEMORY
            for i in range(self.n_tops):
                self.tops[i] = self.v6[i * STRIDE].first
            # index6[t]: the first of the tops whose upper bits are t or more.
            self.index6 = <uint32_t *>malloc(65_537 * sizeof(uint32_t))
            if self.index6 == NULL:
                return NO_MEMORY
            i = 0
            for top in range(65_536):
                while i < self.n_tops and (self.tops[i] >> 48) < top:
                    i += 1
                self.index6[top] = <uint32_t>i
            self.index6[65_536] = <uint32_t>self.n_tops
        if self.n_hosts:
            qsort(self.hosts, self.n_hosts, sizeof(Host6), by_first_host)
            n = 0
            for i in range(1, self.n_hosts):
                if self.hosts[i].first_high == self.hosts[n].first_high and (
                    self.hosts[n].last_low == UINT64_MAX or self.hosts[i].first_low <= self.hosts[n].last_low + 1
                ):
                    self.hosts[n].last_low = max(self.hosts[n].last_low, self.hosts[i].last_low)
                else:
                    n += 1
                    self.hosts[n] = self.hosts[i]
            self.n_hosts = n + 1
            shrink(<void **>&self.hosts, self.n_hosts * sizeof(Host6))
        return 0

    cdef bint has4(self, uint32_t number) noexcept nogil:
        """The last range that starts at or before the number holds it, or none does."""
        cdef Py_ssize_t low, high, middle
        if self.n_v4 == 0:
            return False
        low = self.index[number >> 16]
        high = self.index[(number >> 16) + 1] + 1
        if high > self.n_v4:
            high = self.n_v4
        while low < high:
            middle = (low + high) >> 1
            if self.v4[middle].last < number:
                low = middle + 1
            else:
                high = middle
        return low < self.n_v4 and self.v4[low].first <= number <= self.v4[low].last

    cdef bint has6(self, uint64_t high_bits, uint64_t low_bits) noexcept nogil:
        cdef Py_ssize_t low, high, middle
        if self.n_v6:
            low, high = self.index6[high_bits >> 48], self.index6[(high_bits >> 48) + 1]
            while low < high:
                middle = (low + high) >> 1
                if self.tops[middle] <= high_bits:
                    low = middle + 1
                else:
                    high = middle
            if low > 0:
                low = (low - 1) * STRIDE
                high = min(low + STRIDE, self.n_v6)
                middle = low
                while middle < high:
                    SHIELD_PREFETCH_RANGE(&self.v6[middle])
                    middle += LINE_RANGES
                while low < high:
                    middle = (low + high) >> 1
                    if self.v6[middle].first <= high_bits:
                        low = middle + 1
                    else:
                        high = middle
                if low > 0 and high_bits <= self.v6[low - 1].last:
                    return True
        low, high = 0, self.n_hosts
        while low < high:
            middle = (low + high) >> 1
            if self.hosts[middle].first_high < high_bits or (
                self.hosts[middle].first_high == high_bits and self.hosts[middle].first_low <= low_bits
            ):
                low = middle + 1
            else:
                high = middle
        return low > 0 and self.hosts[low - 1].first_high == high_bits and low_bits <= self.hosts[low - 1].last_low

    def __contains__(self, object ip):
        """Whether this address, as text, is in one of the networks. What is no address is in none."""
        cdef Address a
        cdef int size = read_address(ip, 128, &a)
        if size == 4:
            return self.has4((<uint32_t>a.bytes[0] << 24) | (<uint32_t>a.bytes[1] << 16) | (<uint32_t>a.bytes[2] << 8) | a.bytes[3])
        if size == 16:
            return self.has6(be64(a.bytes), be64(a.bytes + 8))
        return False


cdef int network_of(const char *word, const char *stop, uint8_t *a) noexcept nogil:
    """The bits of the prefix (256 more for IPv4), or -1. Host bits that are set do not matter: lists are full of them."""
    cdef char text[MAX_TEXT]
    cdef Py_ssize_t size = 0
    cdef int bits = -1, most
    cdef Py_ssize_t i
    cdef bint mapped = True
    while word + size < stop and size < MAX_TEXT - 1:
        if word[size] == 32 or word[size] == 9 or word[size] == 35 or word[size] == 59 or word[size] == 44:
            break
        if word[size] == 0:
            return -1
        if word[size] == 47:
            break
        text[size] = word[size]
        size += 1
    text[size] = 0
    if word + size < stop and word[size] == 47:
        i = size + 1
        bits = 0
        while word + i < stop and 48 <= word[i] <= 57 and bits < 1000:
            bits = bits * 10 + word[i] - 48
            i += 1
        if i == size + 1 or (word + i < stop and word[i] != 32 and word[i] != 9 and word[i] != 35 and word[i] != 59
                             and word[i] != 44):
            return -1
    if inet_pton(AF_INET, text, a) == 1:
        most = 32
    elif inet_pton(AF_INET6, text, a) == 1:
        most = 128
        for i in range(10):
            mapped = mapped and a[i] == 0
        if mapped and a[10] == 0xFF and a[11] == 0xFF and (bits < 0 or bits >= 96):
            memcpy(a, a + 12, 4)
            most = 32
            bits = bits - 96 if bits >= 0 else bits
    else:
        return -1
    if bits < 0:
        bits = most
    if bits > most:
        return -1
    return bits + (256 if most == 32 else 0)


def canonical(object ip, int ipv6_prefix=64):
    """The bytes that an address counts by: 4, or 16 with what is behind the prefix cleared. None for what is no address."""
    cdef Address a
    if read_address(ip, ipv6_prefix, &a) <= 0:
        return None
    return (<char *>a.bytes)[:a.size_bytes]
