# cython: language_level=3
"""SipHash-1-3 with 128-bit output (Aumasson and Bernstein, "SipHash: a fast short-input PRF", 2012; 128-bit variant from
the authors' reference, `siphash.c`; 1 and 3 rounds as CPython, Rust and Ruby hash their tables with). Keyed with a random secret, so that nobody outside can aim two keys at one place, and
128 bits, so that two keys never share a bucket by chance (2^-64 at 2^32 live keys); the key's own bytes are not kept."""

from libc.stdint cimport uint8_t, uint64_t
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
    #else
    #define SHIELD_LE64(x) (x)
    #endif
    """
    uint64_t le64 "SHIELD_LE64"(uint64_t x) nogil
    void sip_round "SHIELD_SIP_ROUND"(uint64_t a, uint64_t b, uint64_t c, uint64_t d) nogil

cdef inline Hash128 siphash128(const uint8_t *data, size_t size_bytes, uint64_t k0, uint64_t k1) noexcept nogil:
    cdef uint64_t v0, v1, v2, v3
    cdef uint64_t word
    cdef size_t i, whole = size_bytes & ~(<size_t>7)
    cdef Hash128 out
    v0 = 0x736f6d6570736575ULL ^ k0
    v1 = 0x646f72616e646f6dULL ^ k1 ^ 0xee
    v2 = 0x6c7967656e657261ULL ^ k0
    v3 = 0x7465646279746573ULL ^ k1
    i = 0
    while i < whole:
        memcpy(&word, data + i, 8)
        word = le64(word)
        v3 ^= word
        sip_round(v0, v1, v2, v3)
        v0 ^= word
        i += 8
    word = (<uint64_t>size_bytes) << 56
    i = 0
    while whole + i < size_bytes:
        word |= (<uint64_t>data[whole + i]) << (8 * i)
        i += 1
    v3 ^= word
    sip_round(v0, v1, v2, v3)
    v0 ^= word
    v2 ^= 0xee
    sip_round(v0, v1, v2, v3); sip_round(v0, v1, v2, v3); sip_round(v0, v1, v2, v3)
    out.a = v0 ^ v1 ^ v2 ^ v3
    v1 ^= 0xdd
    sip_round(v0, v1, v2, v3); sip_round(v0, v1, v2, v3); sip_round(v0, v1, v2, v3)
    out.b = v0 ^ v1 ^ v2 ^ v3
    return out
