# cython: language_level=3
"""Writing text by hand: every function puts its bytes at `at` and returns the place behind them.

The law of this file: nothing here looks for the end of the room. Whoever writes has asked for enough before, by the bounds
that stand with each function.
"""

from libc.stdint cimport int64_t, uint8_t, uint64_t
from libc.string cimport memcpy, strlen
from ticks cimport div_u128, u128

cdef extern from *:
    """
    static const char shield_pairs[] =
        "0001020304050607080910111213141516171819202122232425262728293031323334353637383940414243444546474849"
        "5051525354555657585960616263646566676869707172737475767778798081828384858687888990919293949596979899";
    """
    const char *DIGIT_PAIRS "shield_pairs"

cdef enum:
    WHOLE_BYTES = 20                   # 2**64 - 1
    SECONDS_BYTES = WHOLE_BYTES + 7    # and ".000001"
    ESCAPED_BYTES = 6                  # one byte as \u00XX
    PIECE_BLOCK = 32
    PIECE_PADDING = PIECE_BLOCK - 1

cdef struct Piece:
    const char *text
    Py_ssize_t size_bytes

cdef inline char *put(char *at, const char *text) noexcept nogil:
    """For literals: compilers know their length."""
    cdef size_t size_bytes = strlen(text)
    memcpy(at, text, size_bytes)
    return at + size_bytes

cdef inline char *put_piece(char *at, const Piece *piece) noexcept nogil:
    """A piece with PIECE_PADDING behind it, which needs as much room behind itself: most are shorter than a block, whose
    copy is two instructions and no call."""
    cdef Py_ssize_t i = 0
    while i < piece.size_bytes:
        memcpy(at + i, piece.text + i, PIECE_BLOCK)
        i += PIECE_BLOCK
    return at + piece.size_bytes

cdef inline char *put_whole(char *at, uint64_t value) noexcept nogil:
    """Decimal digits: WHOLE_BYTES."""
    cdef char digits[WHOLE_BYTES]
    cdef int first = WHOLE_BYTES
    if value < 10:
        at[0] = <char>(48 + value)
        return at + 1
    while value >= 10:
        first -= 2
        memcpy(&digits[first], DIGIT_PAIRS + 2 * (value % 100), 2)
        value //= 100
    if value:
        first -= 1
        digits[first] = <char>(48 + value)
    memcpy(at, &digits[first], WHOLE_BYTES - first)
    return at + WHOLE_BYTES - first

cdef inline char *put_seconds(char *at, u128 us) noexcept nogil:
    """Whole microseconds, below 2**83, as seconds: "2.0", "0.01", never an exponent. SECONDS_BYTES.

    The digits are exact, so whoever reads them as the nearest double has what correct division gives.
    """
    cdef uint64_t whole, part
    cdef int i
    if us == <u128>0:
        return put(at, b"0.0")
    whole = <uint64_t>div_u128(us, <u128>1_000_000)
    part = <uint64_t>(us - <u128>whole * <u128>1_000_000)
    at = put_whole(at, whole)
    at[0] = b"."
    for i in range(6, 0, -1):
        at[i] = <char>(48 + part % 10)
        part //= 10
    i = 6
    while i > 1 and at[i] == b"0":
        i -= 1
    return at + i + 1

cdef inline char *put_json(char *at, const char *text, Py_ssize_t size_bytes) noexcept nogil:
    """UTF-8 text as a JSON string (RFC 8259, section 7): at most 2 + ESCAPED_BYTES for each byte."""
    cdef const char *hexadecimal = b"0123456789abcdef"
    cdef Py_ssize_t i
    cdef uint8_t byte
    at[0] = b'"'
    at += 1
    for i in range(size_bytes):
        byte = <uint8_t>text[i]
        if byte == 0x22 or byte == 0x5C:
            at[0] = 0x5C
            at[1] = <char>byte
            at += 2
        elif byte < 0x20:
            at = put(at, b"\\u00")
            at[0] = hexadecimal[byte >> 4]
            at[1] = hexadecimal[byte & 15]
            at += 2
        else:
            at[0] = <char>byte
            at += 1
    at[0] = b'"'
    return at + 1
