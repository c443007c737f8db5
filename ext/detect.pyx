# cython: language_level=3
"""Detectors: what each key of each detector has done lately, in bounded memory, updated as requests and outcomes stream by.

A detector measures one thing per key. `count`, `distinct` and `sum` are leaky buckets: an event pours in one unit, one
unit if its value is new, or its value; the bucket drains at a rate, and what would lift it above its capacity is a
detection, after which it is empty. So with capacity 5 the sixth event detects. `ratio` watches a share of failures over
two half-weighted windows; `change` compares a key's rate in the present bin, or each of its values, with the key's own
exponentially weighted mean and deviation.

Which detectors an event concerns is found by masks, one bit a rule: by kind, status, method and event, so a rule that
does not match costs nothing. Of each key only a keyed 128-bit hash is kept.

Bounds. A detector remembers at most `max_keys` keys in a table of sets of WAYS places, allocated as keys come. When a set
is full, a drained place is taken, else the one with the lowest level, and that is counted: newcomers by the million push
out each other and not the key that is near its threshold. Different values of a key stand in BLOCK_BYTES: exactly up to
EXACT fingerprints of 32 bits, then as the registers of a HyperLogLog (Flajolet et al. 2007), counted by the inverse of
the chance of a change (Cohen 2014, Ting 2014); after MAX_DISTINCT values it starts over, which can only count a value
twice, never miss one.
"""

cimport cython
from cpython.mem cimport PyMem_Calloc, PyMem_Free
from cpython.object cimport PyObject
from cpython.ref cimport Py_INCREF, Py_XDECREF
from libc.math cimport sqrt
from libc.stdint cimport int64_t, uint8_t, uint16_t, uint32_t, uint64_t
from libc.stdlib cimport qsort
from libc.string cimport memcpy, memset

from address cimport Address, read_address
from keys cimport (
    PyBool_Check, PyLong_AsLongLongAndOverflow, PyLong_Check, PyUnicode_AsUTF8AndSize, PyUnicode_Check, PyUnicode_GET_LENGTH,
    ascii_of, hash_key, never_zero,
)
from measure cimport (
    BLOCK_BYTES, COUNT, DISTINCT, EXACT, MAX_KEY_FIELDS, MATCH, RANK, RATE_CHANGE, RATIO, REGISTERS, RING, SUM, UNSENT,
    VALUE_CHANGE, Entry, Rule, Seen, Spec, late_part, learn_value, lowest, novelty, one_more, raise_register, settle,
    share_of, share_reached, to_registers, turn_bins, turn_window, weight_of,
)
from plain_target cimport OTHER_TARGET, STATIC_TARGET, Words, add_word, kind_of, word_hash
from siphash cimport Hash128, siphash128
from request_slots cimport fact_of, slot_of

cdef dict MEASURES = {"count": COUNT, "distinct": DISTINCT, "sum": SUM, "ratio": RATIO, "change": RATE_CHANGE, "value-change": VALUE_CHANGE,
                      "travel": MATCH}

include "detect_fields.pxi"
include "detect_rules.pxi"
include "detect_table.pxi"
include "detect_verdict.pxi"
include "detect_changes.pxi"


@cython.final
cdef class Detectors:
    """The detectors of one policy. `specs` and `rules` are what shield.detect.compile made of it.

    `traits_of(text, is_agent)` answers the bits of a target or of a user agent; `match(method, path)` the indexes of the
    rules whose path templates fit, or None where no rule has one; `normalise(path)` may raise ValueError; `locate(ip)` the
    place of an address, for country and network where a request does not state them.
    """

    cdef Spec *specs
    cdef int n_specs
    cdef Fields fields
    cdef Rules rules
    cdef Changes changes         # None: nobody else is to hear of anything

    def __cinit__(self, specs, rules, *, secret, traits_of, words=(), match=None, normalise=None, int ipv6_prefix=64,
                  locate=None):
        cdef int i
        if len(secret) != 16:
            raise ValueError("the hashing secret has 16 bytes")
        self.fields = Fields(secret, normalise, ipv6_prefix, locate)
        self.n_specs = len(specs)
        self.specs = <Spec *>PyMem_Calloc(self.n_specs + 1, sizeof(Spec))
        if self.specs == NULL:
            raise MemoryError
        for i in range(self.n_specs):
            self.compile(i, specs[i])
        self.rules = Rules(rules, self.fields, traits_of, words, match)

    def __dealloc__(self):
        cdef int i
        if self.specs != NULL:
            for i in range(self.n_specs):
                drop_table(&self.specs[i])
        PyMem_Free(self.specs)

    @property
    def trait_misses(self):
        """How often a text had to be read for its traits."""
        return self.rules.trait_misses

    cdef int compile(self, int i, dict spec) except -1:
        cdef Spec *s = &self.specs[i]
        cdef bytes identity = spec["identity"].encode()
        cdef Hash128 seed = siphash128(<const uint8_t *><const char *>identity, len(identity), self.fields.k0, self.fields.k1)
        s.seed_a, s.seed_b = seed.a, seed.b
        s.measure = MEASURES[spec["measure"]]
        for name in spec["key"]:
            s.optional[s.n_keys] = name.endswith("?")
            s.key[s.n_keys] = self.fields.index(name.removesuffix("?"))
            s.n_keys += 1
        s.of = -1 if spec["of"] is None else self.fields.index(spec["of"])
        s.unit, s.drain = spec["unit"], spec["drain"]
        s.capacity = spec["capacity"] * s.unit
        s.max_pour = spec["capacity"] + 1
        s.window_us, s.quiet_us, s.minimum = spec["window_us"], spec["quiet_us"], spec["minimum"]
        s.share, s.weight, s.deviations = spec["share"], spec["weight"], spec["deviations"]
        s.has_share = spec["share"] > 0
        s.max_sets = 1
        while s.max_sets * 2 * WAYS <= <uint32_t>spec["max_keys"]:
            s.max_sets *= 2
        return 0

    # ---- one event --------------------------------------------------------------------------------------------------

    def observe(self, request, bint outcome, status, event, int64_t now_us):
        """One request, or one outcome (`status`: HTTP status or None; `event`: text or None), at `now_us`.

        None, or a list of what was detected: (index of the detector, dict of evidence).
        """
        cdef uint64_t on, failing
        cdef object detected
        cdef list out = None
        cdef int i
        if not self.rules.find(request, outcome, status, event):
            return None
        on, failing = self.rules.on, self.rules.failing
        self.fields.forget()
        while on:
            i = lowest(on)
            on &= on - 1
            detected = self.measure(request, i, (failing >> i) & 1, now_us)
            if detected is not None:
                if out is None:
                    out = []
                out.append((i, detected))
        return out

    cdef object measure(self, object request, int i, bint failed, int64_t now_us):
        cdef Spec *s = &self.specs[i]
        cdef Hash128 h
        cdef Entry *e
        cdef int64_t pour = 0
        cdef bint over = False
        cdef double value = 0, before = 0
        cdef object number, detected
        if not self.fields.key_hash(request, s, &h):
            return None
        if s.measure == MATCH:
            return {"key": key_bytes(h.a, h.b)}
        if s.measure == SUM or s.measure == VALUE_CHANGE:
            number = self.fields.fact(request, s.of)
            if number is None or not PyLong_Check(number) or PyBool_Check(number):
                return None
            pour = clipped(number)
            if pour <= 0:
                return None
        elif s.measure == DISTINCT:
            if self.fields.states[s.of] == 0:
                self.fields.field_hash(request, s.of)
            if self.fields.states[s.of] == 2:
                return None
        e = entry_of(s, h, now_us)
        remember(s, h, self.fields.target_of(request), now_us)
        if e.events == 0:
            e.first_us = now_us
        e.events = one_more(e.events)
        if s.has_share:
            turn_window(e, s.window_us, now_us)
            e.total += 1
            e.failed += failed
        if s.measure <= SUM:
            if s.measure == COUNT:
                pour = s.unit
            elif s.measure == SUM:
                pour = pour * s.unit if pour < s.max_pour else s.max_pour * s.unit
            else:
                pour = <int64_t>(novelty(e, block_of(s, e), <uint32_t>self.fields.hashes[s.of].a, True) * <double>s.unit)
            if pour > s.max_pour * s.unit:
                pour = s.max_pour * s.unit
            e.level += pour
        elif s.measure == RATE_CHANGE:
            turn_bins(s, e, now_us)
            e.level += 1
        if s.measure != VALUE_CHANGE:
            if self.changes is not None and (pour > 0 or s.measure >= RATIO or s.has_share):
                self.changes.note(i, s, e, request, pour, failed, now_us)
            over = is_over(s, e, now_us, &value, &before)
        else:
            value, before = <double>pour, beyond(s, e)
            over = <int64_t>e.bins >= s.minimum and pour > s.capacity and value > before
            learn_value(s, e, value)
        if not over:
            return None
        detected = evidence_of(s, h, e, value, before, now_us)
        if self.changes is not None:
            self.changes.cleared(i, s, e, request, now_us)
        return detected

    # ---- what others may look at ------------------------------------------------------------------------------------

    def stats(self):
        """For each detector: keys it remembers, keys pushed out while they still counted, bytes, and its bound of keys."""
        cdef int i
        cdef Spec *s
        cdef list out = []
        for i in range(self.n_specs):
            s = &self.specs[i]
            out.append({
                "keys": s.keys,
                "pushed_out": s.pushed_out,
                "size_bytes": s.n_sets * WAYS * (sizeof(Entry) + (BLOCK_BYTES if s.blocks != NULL else 0)),
                "max_keys": s.max_sets * WAYS,
            })
        return out

    def value(self, request, str field):
        """A field as detectors see it: text, an address as bytes, or None. For whoever reads a detection."""
        cdef int index = self.fields.index(field)
        self.fields.learn(request)
        return self.fields.value_of(request, index)

    # ---- several processes ------------------------------------------------------------------------------------------

    def share(self, lighten):
        """From now on it is noted what other processes are to hear of. `lighten(request)` answers with as much of a
        request as may be kept for some seconds."""
        if self.changes is None:
            self.changes = Changes(self.fields, lighten)

    def say(self, int64_t now_us, int most_bytes):
        """What this process has counted since it last said so, in at most so many bytes; b"" for nothing."""
        return b"" if self.changes is None else self.changes.say(self.specs, self.n_specs, now_us, most_bytes)

    def hear(self, bytes parcel, int64_t now_us, int64_t lag_us):
        """Takes in what another process said `lag_us` ago: [(detector, evidence, request)] of what goes too far by it.

        Who has no request of the key at hand is silent about it: whoever counted last has one. ValueError for what is
        no parcel, or before `share`."""
        if self.changes is None:
            raise ValueError("this process does not share what it sees")
        return self.changes.hear(self.specs, self.n_specs, parcel, now_us, max(<int64_t>0, lag_us))

    @property
    def unsaid(self):
        """Changes that others will not hear of: more keys in a second than there is room for."""
        return 0 if self.changes is None else self.changes.unsaid


cdef inline int64_t clipped(object number) except? -1:
    cdef int overflow = 0
    cdef long long value = PyLong_AsLongLongAndOverflow(number, &overflow)
    if overflow:
        return (<int64_t>1) << 53 if overflow > 0 else -1
    return min(value, (<int64_t>1) << 53)
