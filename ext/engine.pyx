# cython: language_level=3
"""From a request to a decision: what a compiled policy charges, one atomic step in memory, and the answer.

    CompiledPolicy.charges(request) -> Charges      pure: which buckets, how much
    Table.apply(charges)                            the one step that remembers anything (SharedTable: for all of a host)
    Decision(charges)                               pure: what it means; most of it is computed only when read

A remote store takes Table's place: it reads the charges through `Charges.bucket` and hands back what became of them
through `Charges.resolve`. The classes live in one extension because they read each other's structs; each has its own file.
"""

import heapq
import os
from collections import OrderedDict
from types import MemberDescriptorType

cimport cython
from cpython.buffer cimport PyBUF_WRITABLE, PyBuffer_Release, PyObject_GetBuffer
from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize, PyBytes_GET_SIZE
from cpython.mem cimport PyMem_Calloc, PyMem_Free, PyMem_Malloc, PyMem_Realloc
from cpython.object cimport PyObject
from cpython.pycapsule cimport PyCapsule_New
from cpython.unicode cimport PyUnicode_DecodeUTF8
from libc.stdint cimport INT64_MAX, int64_t, uint8_t, uint16_t, uint32_t, uint64_t
from libc.stdlib cimport qsort
from libc.string cimport memcpy, memmove, memset

from address cimport Address, read_address
from decided cimport DECIDED, Decided
from fence cimport (
    NONCE_EARLY, NONCE_FRESH, NONCE_FULL, NONCE_GONE, NONCE_SEEN, NONCE_STALE, NONCE_UNAVAILABLE, Fence, Nonce, fence_widen,
    judge_stamp,
)
from keys cimport (
    MAX_COST_BITS, PyBool_Check, PyLong_AsLongLongAndOverflow, PyLong_Check, PyUnicode_AsUTF8AndSize, PyUnicode_Check,
    PyUnicode_GET_LENGTH, ascii_at, ascii_of, never_zero, read_clock,
)
from keytable cimport (
    NUMBERS_BITS, SWEEP_SLOTS, SWEEP_SLOTS_FULL, Packed, KeyTable, packed_at, unpack, pack, pack_until, table_close, table_find,
    table_insert, table_open, table_prefetch, table_sweep,
)
from level cimport (
    CONCURRENCY, FIXED_WINDOW, SLIDING_WINDOW, TOKEN_BUCKET, UNTIL, Cell, Numbers, bucket_touch, cur_of, fits, forgettable, fresh, give_back,
    level_of, owe, penalise, prev_of, remaining, reset_after, retry_after, set_counts, set_level, take, ticks_of, touch,
    window_length,
)
from mapped_cell cimport (
    AT_BITS, AT_MASK, NARROW_TAGS, NARROW_UNIT_US, WIDE_TAGS, at_of, bucket_word, is_cell, owned_word, owner_of, read_bucket,
    read_window, window_word,
)
from result cimport make_status
from siphash cimport Hash128, Sip, sip_end, sip_start, sip_word, sip_words, siphash128
from slots cimport (
    CLAIM, LATER, LIVE, NO_ROOM, PROBES, Slot, Slots, generation_of, home_slot, identity_of, prefetch_slot, slot_bar, slot_candidate,
    slot_claim, slot_find, slots_for, vacancy, vacated,
)
from text cimport ESCAPED_BYTES, PIECE_PADDING, Piece, WHOLE_BYTES, put, put_json, put_piece, put_seconds, put_whole
from ticks cimport ceil_div, clip_us, clock_us, from_u128, mulhi, seconds, u128
from word cimport Word, add64, load64, max64, same_word, swap64, word_load, word_ready, word_swap

import msgspec

from shield.core.status import LimitStatus

cdef object encode_json = msgspec.json.encode

cdef dict ALGORITHMS = {
    "token-bucket": TOKEN_BUCKET, "sliding-window": SLIDING_WINDOW, "fixed-window": FIXED_WINDOW, "concurrency": CONCURRENCY,
}

cdef enum Verdict:
    FITS = 0
    OVER = 1
    FULL = 2           # no room for a newcomer's bucket, and the limit says to deny then
    UNAVAILABLE = 3    # no store, and the limit says to deny then

include "mapped.pxi"
include "registry.pxi"
include "wording.pxi"
include "compiled_policy.pxi"
include "charges.pxi"
include "step.pxi"
include "leases.pxi"
include "table.pxi"
include "places.pxi"
include "shared_table.pxi"
include "purse.pxi"
include "remote.pxi"
include "decision.pxi"
include "answer.pxi"
include "facade.pxi"
