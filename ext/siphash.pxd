# cython: language_level=3
"""SipHash-1-3 with 128-bit output (Aumasson and Bernstein, "SipHash: a fast short-input PRF", 2012; 128-bit variant from
the authors' reference, `siphash.c`; 1 and 3 rounds as CPython, Rust and Ruby hash their tables with). Keyed with a random secret, so that nobody outside can aim two keys at one place, and
wide enough that two keys never share a bucket by chance, though tables keep fewer bits of it (keytable.pxd, slots.pxd); the
key's own bytes are not kept."""

from libc.stdint cimport uint8_t, uint32_t, uint64_t
from libc.string cimport memcpy

cdef struct Hash128:
    uint64_t a
    uint64_t b

cdef extern from *:
    """
    #define SHIELD_ROTL(x, n) (((x) << (n)) | ((x) >> (64 - (n))))
    /* A macro: compilers do not inline a function at ten places, and the state must stay in registers. */
    #define SHIELD_SIP_ROUND(a, b, c, d) do { \
        a += b; b = SHIELD_ROTL(b, 13); b ^= a; a = SHIELD_ROTL(a, 32); \
        c += d; d = SHIELD_ROTL(d, 16); d ^= c; \
        a += d; d = SHIELD_ROTL(d, 21); d ^= a; \
        c += b; b = SHIELD_ROTL(b, 17); b ^= c; c = SHIELD_ROTL(c, 32); \
    } while (0)
    #if defined(__BYTE_ORDER__) && __BYTE_ORDER__ == __ORDER_BIG_ENDIAN__
    #define SHIELD_LE64(x) __builtin_bswap64(x)
    #define SHIELD_LE32(x) __builtin_bswap32(x)
    #else
    #define SHIELD_LE64(x) (x)
    #define SHIELD_LE32(x) (x)
    #endif
    """
    uint64_t le64 "SHIELD_LE64"(uint64_t x) nogil
    uint32_t le32 "SHIELD_LE32"(uint32_t x) nogil
    void sip_round "SHIELD_SIP_ROUND"(uint64_t a, uint64_t b, uint64_t c, uint64_t d) nogil

cdef struct Sip:
    uint64_t v0
    uint64_t v1
    uint64_t v2
    uint64_t v3

cdef inline void sip_start(Sip *s, uint64_t k0, uint64_t k1) noexcept nogil:
    s.v0 = 0x736f6d6570736575ULL ^ k0
    s.v1 = 0x646f72616e646f6dULL ^ k1 ^ 0xee
    s.v2 = 0x6c7967656e657261ULL ^ k0
    s.v3 = 0x7465646279746573ULL ^ k1

cdef inline void sip_word(Sip *s, uint64_t word) noexcept nogil:
    s.v3 ^= word
    sip_round(s.v0, s.v1, s.v2, s.v3)
    s.v0 ^= word

cdef inline uint64_t sip_words(Sip *s, const uint8_t *data, size_t size_bytes) noexcept nogil:
    """Takes in all whole words of `data`. The up to 7 bytes behind them, the first lowest."""
    cdef uint64_t word
    while size_bytes >= 8:
        memcpy(&word, data, 8)
        sip_word(s, le64(word))
        data += 8
        size_bytes -= 8
    return few_bytes(data, size_bytes)

cdef inline uint64_t few_bytes(const uint8_t *data, size_t size_bytes) noexcept nogil:
    """Without a loop: two loads that may overlap, or three bytes of which some are the same."""
    cdef uint32_t first, last
    if size_bytes >= 4:
        memcpy(&first, data, 4)
        memcpy(&last, data + size_bytes - 4, 4)
        return <uint64_t>le32(first) | (<uint64_t>le32(last) << (8 * (size_bytes - 4)))
    if size_bytes == 0:
        return 0
    return (<uint64_t>data[0] | (<uint64_t>data[size_bytes >> 1] << (8 * (size_bytes >> 1)))
            | (<uint64_t>data[size_bytes - 1] << (8 * (size_bytes - 1))))

cdef inline Hash128 sip_end(Sip *s, uint64_t last_word) noexcept nogil:
    cdef Hash128 out
    sip_word(s, last_word)
    s.v2 ^= 0xee
    sip_round(s.v0, s.v1, s.v2, s.v3); sip_round(s.v0, s.v1, s.v2, s.v3); sip_round(s.v0, s.v1, s.v2, s.v3)
    out.a = s.v0 ^ s.v1 ^ s.v2 ^ s.v3
    s.v1 ^= 0xdd
    sip_round(s.v0, s.v1, s.v2, s.v3); sip_round(s.v0, s.v1, s.v2, s.v3); sip_round(s.v0, s.v1, s.v2, s.v3)
    out.b = s.v0 ^ s.v1 ^ s.v2 ^ s.v3
    return out

cdef inline Hash128 siphash128(const uint8_t *data, size_t size_bytes, uint64_t k0, uint64_t k1) noexcept nogil:
    """Of bytes that lie in one piece, as the reference does it."""
    cdef Sip s
    sip_start(&s, k0, k1)
    return sip_end(&s, sip_words(&s, data, size_bytes) | (<uint64_t>size_bytes << 56))
