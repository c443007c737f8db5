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
from libc.stdint cimport int64_t, uint8_t, uint32_t, uint64_t
from libc.string cimport memcpy, memset

from address cimport Address, read_address
from keys cimport (
    PyBool_Check, PyLong_AsLongLongAndOverflow, PyLong_Check, PyUnicode_AsUTF8AndSize, PyUnicode_Check, PyUnicode_GET_LENGTH,
    ascii_of, hash_key, never_zero,
)
from measure cimport (
    BLOCK_BYTES, COUNT, DISTINCT, EXACT, LONG_GAP_BINS, MAX_KEY_FIELDS, MATCH, RATE_CHANGE, RATIO, REGISTERS, RING, SUM, VALUE_CHANGE,
    Entry, Rule, Seen, Spec, drained_by, learn_value, lowest, merge_registers, novelty, one_more, settle, share_of,
    share_reached, turn_bins, turn_window, weight_of,
)
from plain_target cimport OTHER_TARGET, STATIC_TARGET, Words, add_word, kind_of, word_hash
from siphash cimport Hash128, siphash128
from request_slots cimport fact_of, slot_of

cdef enum:
    WAYS = 8
    MAX_FIELDS = 32         # different fields that one policy's detectors read
    SAMPLES = 5
    MAX_SAMPLE = 256        # characters of a target that are kept
    MAX_TRAITS_KEPT = 32_768   # memo of targets and agents: 32,768 texts of at most 512 characters
    MAX_TRAIT_TEXT = 512

cdef dict MEASURES = {"count": COUNT, "distinct": DISTINCT, "sum": SUM, "ratio": RATIO, "change": RATE_CHANGE, "value-change": VALUE_CHANGE,
                      "travel": MATCH}

cdef enum Derived:
    PLAIN = 0
    ATTRIBUTE = 1
    IP = 2
    NETWORK = 3
    PATH = 4
    ROUTE = 5
    TARGET = 6
    QUERY = 7
    PRINCIPAL = 8

cdef dict DERIVED = {"ip": IP, "network": NETWORK, "path": PATH, "route": ROUTE, "target": TARGET, "query": QUERY, "principal": PRINCIPAL}
cdef tuple PRINCIPALS = ("user", "api_key", "session", "ip")

@cython.final
cdef class Detectors:
    """The detectors of one policy. `specs` and `rules` are what shield.detect.compile made of it.

    `traits_of(text, is_agent)` answers the bits of a target or of a user agent; `match(method, path)` the indexes of the
    rules whose path templates fit, or None where no rule has one; `normalise(path)` may raise ValueError.
    """

    cdef Spec *specs
    cdef Rule *rules
    cdef int n_specs
    cdef int n_rules
    cdef uint64_t k0
    cdef uint64_t k1
    cdef uint64_t by_kind[2]
    cdef uint64_t by_status[600]
    cdef uint64_t any_method
    cdef uint64_t any_event
    cdef uint64_t with_path
    cdef uint64_t with_facts
    cdef dict by_method
    cdef dict by_event
    cdef Words words
    cdef uint32_t static_bit
    cdef object match
    cdef object traits_of
    cdef object normalise
    cdef dict facts             # rule -> ((attribute, frozenset of values), ...)
    cdef list fields
    cdef int derived[MAX_FIELDS]
    cdef int principal[4]
    cdef dict target_traits
    cdef dict agent_traits
    cdef int ipv6_prefix
    cdef object request_type
    cdef Py_ssize_t offsets[MAX_FIELDS]
    cdef Py_ssize_t path_offset
    cdef Py_ssize_t method_offset
    cdef Py_ssize_t agent_offset
    cdef Py_ssize_t ip_offset
    # of the event at hand
    cdef Hash128 hashes[MAX_FIELDS]
    cdef int states[MAX_FIELDS]   # 0 not looked at, 1 hashed, 2 absent
    cdef readonly int64_t trait_misses

    def __cinit__(self, specs, rules, *, secret, traits_of, words=(), match=None, normalise=None, int ipv6_prefix=64):
        cdef int i
        if len(secret) != 16:
            raise ValueError("the hashing secret has 16 bytes")
        if len(rules) > 64:
            raise ValueError("at most 64 rules")
        self.k0 = int.from_bytes(secret[:8], "little")
        self.k1 = int.from_bytes(secret[8:], "little")
        self.traits_of, self.match, self.normalise, self.ipv6_prefix = traits_of, match, normalise, ipv6_prefix
        self.fields, self.facts, self.by_method, self.by_event = [], {}, {}, {}
        self.target_traits, self.agent_traits = {}, {}
        self.n_specs, self.n_rules = len(specs), len(rules)
        self.specs = <Spec *>PyMem_Calloc(self.n_specs + 1, sizeof(Spec))
        self.rules = <Rule *>PyMem_Calloc(self.n_rules + 1, sizeof(Rule))
        if self.specs == NULL or self.rules == NULL:
            raise MemoryError
        self.learn_words(words)
        for i, name in enumerate(PRINCIPALS):
            self.principal[i] = self.field_index(name)
        for name in ("network", "tenant"):  # what subjects are told by, whatever the keys are
            self.field_index(name)
        for i in range(self.n_specs):
            self.compile(i, specs[i])
        for i in range(self.n_rules):
            self.add_rule(i, rules[i])

    def __dealloc__(self):
        cdef int i, k
        if self.specs != NULL:
            for i in range(self.n_specs):
                PyMem_Free(self.specs[i].entries)
                PyMem_Free(self.specs[i].blocks)
                for k in range(RING):
                    Py_XDECREF(self.specs[i].ring[k].target)
        PyMem_Free(self.specs)
        PyMem_Free(self.rules)

    cdef int learn_words(self, words) except -1:
        """`words`: (kind, text): 0 a segment of a path, 1 the first three letters of the first one, 2 a static extension."""
        cdef int c
        cdef bytes raw
        for c in range(256):
            self.words.ordinary[c] = (48 <= c <= 57) or (65 <= (c & 0xDF) <= 90 and c < 128) or c in (45, 95, 44, 43, 126)
        self.static_bit = 1
        if len(words) * 4 > 4096:
            raise ValueError("at most 1,024 words")
        for kind, text in words:
            raw = text.encode()
            add_word(&self.words, word_hash(<const uint8_t *><const char *>raw, len(raw)) ^ <uint64_t>kind)
        return 0

    cdef int field_index(self, str name) except -1:
        if name not in self.fields:
            if len(self.fields) >= MAX_FIELDS:
                raise ValueError(f"detectors of one policy read at most {MAX_FIELDS} different fields")
            self.derived[len(self.fields)] = ATTRIBUTE if name.startswith("attributes.") else DERIVED.get(name, PLAIN)
            self.fields.append(name)
            self.request_type = None
        return self.fields.index(name)

    cdef int compile(self, int i, dict spec) except -1:
        cdef Spec *s = &self.specs[i]
        cdef bytes identity = spec["identity"].encode()
        cdef Hash128 seed = siphash128(<const uint8_t *><const char *>identity, len(identity), self.k0, self.k1)
        s.seed_a, s.seed_b = seed.a, seed.b
        s.measure = MEASURES[spec["measure"]]
        for name in spec["key"]:
            s.optional[s.n_keys] = name.endswith("?")
            s.key[s.n_keys] = self.field_index(name.removesuffix("?"))
            s.n_keys += 1
        s.of = -1 if spec["of"] is None else self.field_index(spec["of"])
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

    cdef int add_rule(self, int i, dict rule) except -1:
        cdef uint64_t bit = (<uint64_t>1) << i
        cdef Rule *r = &self.rules[i]
        cdef int status
        r.detector, r.failing = rule["detector"], rule["failing"]
        r.need, r.without = rule["need"], rule["without"]
        r.reads_traits = r.need != 0 or r.without != 0
        self.by_kind[1 if rule["outcome"] else 0] |= bit
        for status in range(600):
            if not rule["statuses"] or status in rule["statuses"]:
                self.by_status[status] |= bit
        if rule["methods"]:
            for method in rule["methods"]:
                self.by_method[method] = self.by_method.get(method, 0) | bit
        else:
            self.any_method |= bit
        if rule["events"]:
            for event in rule["events"]:
                self.by_event[event] = self.by_event.get(event, 0) | bit
        else:
            self.any_event |= bit
        if rule["has_path"]:
            self.with_path |= bit
        if rule["facts"]:
            self.with_facts |= bit
            self.facts[i] = rule["facts"]
        return 0

    # ---- one event --------------------------------------------------------------------------------------------------

    cdef int learn(self, type cls) except -1:
        cdef int i
        for i in range(len(self.fields)):
            self.offsets[i] = slot_of(cls, self.fields[i]) if self.derived[i] == PLAIN else 0
        self.path_offset, self.method_offset = slot_of(cls, "path"), slot_of(cls, "method")
        self.agent_offset, self.ip_offset = slot_of(cls, "user_agent"), slot_of(cls, "ip")
        self.request_type = cls
        return 0

    def observe(self, request, bint outcome, status, event, int64_t now_us):
        """One request, or one outcome (`status`: HTTP status or None; `event`: text or None), at `now_us`.

        None, or a list of what was detected: (index of the detector, dict of evidence).
        """
        cdef uint64_t mask = self.by_kind[outcome]
        cdef uint64_t on = 0, failing = 0, bit
        cdef object method, found, detected
        cdef list out = None
        cdef uint32_t traits = 0
        cdef int i, traits_known = 0, code = 0
        cdef Rule *r
        if mask == 0:
            return None
        if type(request) is not self.request_type:
            self.learn(type(request))
        if status is not None and PyLong_Check(status):
            code = status if 0 <= status < 600 else 0
        mask &= self.by_status[code]
        if mask & ~self.any_method:
            method = fact_of(request, self.method_offset, "method")
            found = self.by_method.get(method) if method.__class__ is str else None
            mask &= self.any_method if found is None else (self.any_method | <uint64_t>found)
        if mask & ~self.any_event:
            found = self.by_event.get(event) if event.__class__ is str else None
            mask &= self.any_event if found is None else (self.any_event | <uint64_t>found)
        if mask & self.with_path:
            mask &= ~self.with_path | self.paths(request)
        if mask & self.with_facts:
            mask &= ~self.with_facts | self.fitting(request, mask & self.with_facts)
        if mask == 0:
            return None
        # Which detectors, by their own bits, and of those for which this is a failure.
        bit = mask
        while bit:
            i = lowest(bit)
            bit &= bit - 1
            r = &self.rules[i]
            if r.reads_traits:
                if not traits_known:
                    traits = self.traits(request)
                    traits_known = 1
                if (r.need & traits) != r.need or r.without & traits:
                    continue
            if r.failing:
                failing |= (<uint64_t>1) << r.detector
            else:
                on |= (<uint64_t>1) << r.detector
        if on == 0:
            return None
        memset(self.states, 0, len(self.fields) * sizeof(int))
        while on:
            i = lowest(on)
            on &= on - 1
            detected = self.measure(request, i, (failing >> i) & 1, now_us)
            if detected is not None:
                if out is None:
                    out = []
                out.append((i, detected))
        return out

    cdef uint64_t paths(self, object request) except? 0:
        cdef uint64_t mask = 0
        try:
            for index in self.match(fact_of(request, self.method_offset, "method"), fact_of(request, self.path_offset, "path")):
                mask |= (<uint64_t>1) << <int>index
        except ValueError:
            return 0
        return mask

    cdef uint64_t fitting(self, object request, uint64_t mask) except? 0:
        """Those of the rules whose conditions on attributes hold."""
        cdef uint64_t out = 0, bit = mask
        cdef int i
        attributes = request.attributes
        while bit:
            i = lowest(bit)
            bit &= bit - 1
            for name, values in <tuple>self.facts[i]:
                value = attributes.get(name) if isinstance(attributes, dict) else None
                if value is None or str(value) not in values:
                    break
            else:
                out |= (<uint64_t>1) << i
        return out

    cdef uint32_t traits(self, object request) except? 0:
        cdef object target = fact_of(request, self.path_offset, "path")
        cdef object agent = fact_of(request, self.agent_offset, "user_agent")
        cdef uint32_t bits = 0
        cdef Py_ssize_t size
        cdef const char *data
        cdef int kind
        if target.__class__ is str:
            data = ascii_of(target, &size)
            kind = OTHER_TARGET if data == NULL else kind_of(&self.words, <const uint8_t *>data, size)
            if kind == OTHER_TARGET:
                bits |= self.known(self.target_traits, target, False)
            elif kind == STATIC_TARGET:
                bits |= self.static_bit
        if agent.__class__ is str:
            bits |= self.known(self.agent_traits, agent, True)
        return bits

    cdef uint32_t known(self, dict memo, str text, bint is_agent) except? 0:
        cdef object bits = memo.get(text)
        if bits is not None:
            return bits
        self.trait_misses += 1
        bits = self.traits_of(text, is_agent)
        if PyUnicode_GET_LENGTH(text) <= MAX_TRAIT_TEXT:
            if len(memo) >= MAX_TRAITS_KEPT:
                memo.clear()
            memo[text] = bits
        return bits

    # ---- fields -----------------------------------------------------------------------------------------------------

    cdef object value_of(self, object request, int field):
        """A field's value as text (an address in its canonical bytes), or None."""
        cdef int kind = self.derived[field], i
        cdef object value
        if kind == PLAIN:
            value = fact_of(request, self.offsets[field], <str>self.fields[field])
        elif kind == ATTRIBUTE:
            value = request.attributes
            value = value.get((<str>self.fields[field])[11:]) if isinstance(value, dict) else None
            if value is not None and not PyUnicode_Check(value):
                value = str(value)
        elif kind == IP or kind == NETWORK:
            return self.address(request, kind == NETWORK)
        elif kind == PRINCIPAL:
            for i in range(4):
                value = self.value_of(request, self.principal[i])
                if value is not None:
                    return value
            return None
        else:
            value = fact_of(request, self.path_offset, "path")
            if not PyUnicode_Check(value):
                return None
            if kind == PATH:
                value = self.path_of(value)
            elif kind == ROUTE:
                value = route_of(self.path_of(value))
                if value is not None and (<str>value).replace("/{}", "") in ("", "/"):
                    return None          # nothing of it is a name: no route of an API
            elif kind == QUERY:
                value = (<str>value).partition("?")[2]
        if PyUnicode_Check(value) and PyUnicode_GET_LENGTH(value):
            return value
        return None

    cdef object path_of(self, str target):
        cdef Py_ssize_t size
        cdef const char *data = ascii_of(target, &size)
        cdef Py_ssize_t i
        cdef char c, before = 0
        if data != NULL and size > 0 and data[0] == 47:
            for i in range(size):
                c = data[i]
                if c == 63 or c == 35:   # ? #
                    return target[:i] if i == 1 or data[i - 1] != 47 else target[:i - 1]
                if c == 37 or (before == 47 and (c == 47 or c == 46)):   # % // /.
                    break
                before = c
            else:
                return target if size == 1 or before != 47 else target[:size - 1]
        try:
            return self.normalise(target)
        except ValueError:
            return target[:MAX_SAMPLE]

    cdef object address(self, object request, bint network):
        cdef Address a
        cdef object text = fact_of(request, self.ip_offset, "ip")
        if text is None or read_address(text, 48 if network else self.ipv6_prefix, &a) <= 0:
            return None
        if network and a.size_bytes == 4:
            a.bytes[3] = 0
        return (<char *>a.bytes)[:a.size_bytes]

    cdef int field_hash(self, object request, int field) except -1:
        cdef Address a
        cdef object value
        cdef Hash128 h
        if self.derived[field] == IP:
            value = fact_of(request, self.ip_offset, "ip")
            if value is None or read_address(value, self.ipv6_prefix, &a) <= 0:
                self.states[field] = 2
                return 0
            self.hashes[field] = siphash128(a.bytes, a.size_bytes, self.k0, self.k1)
            self.states[field] = 1
            return 0
        value = self.value_of(request, field)
        if value is None:
            self.states[field] = 2
            return 0
        hash_key(value, self.k0, self.k1, &h)
        self.hashes[field] = h
        self.states[field] = 1
        return 0

    cdef int key_hash(self, object request, Spec *s, Hash128 *h) except -1:
        """1, or 0 where a field of the key is absent."""
        cdef uint64_t words[2 * MAX_KEY_FIELDS]
        cdef int k, field
        memset(words, 0, sizeof(words))
        for k in range(s.n_keys):
            field = s.key[k]
            if self.states[field] == 0:
                self.field_hash(request, field)
            if self.states[field] == 2:
                if not s.optional[k]:
                    return 0
                continue
            words[2 * k] = self.hashes[field].a
            words[2 * k + 1] = self.hashes[field].b
        if s.n_keys == 1:
            h.a, h.b = words[0] ^ s.seed_a, words[1] ^ s.seed_b
        else:
            h[0] = siphash128(<const uint8_t *>words, 16 * s.n_keys, s.seed_a, s.seed_b)
        h[0] = never_zero(h[0])
        return 1

    # ---- measuring --------------------------------------------------------------------------------------------------

    cdef object measure(self, object request, int i, bint failed, int64_t now_us):
        cdef Spec *s = &self.specs[i]
        cdef Hash128 h
        cdef Entry *e
        cdef int64_t pour = 0
        cdef bint over = False
        cdef double value = 0, before = 0
        cdef object number
        if not self.key_hash(request, s, &h):
            return None
        if s.measure == MATCH:
            return {"key": h.a.to_bytes(8, "little") + h.b.to_bytes(8, "little")}
        if s.measure == SUM or s.measure == VALUE_CHANGE:
            number = fact_of(request, self.offsets[s.of], <str>self.fields[s.of])
            if number is None or not PyLong_Check(number) or PyBool_Check(number):
                return None
            pour = clipped(number)
            if pour <= 0:
                return None
        elif s.measure == DISTINCT:
            if self.states[s.of] == 0:
                self.field_hash(request, s.of)
            if self.states[s.of] == 2:
                return None
        e = self.entry(s, h, now_us)
        if e == NULL:
            return None
        self.remember(s, h, request, now_us)
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
                pour = <int64_t>(novelty(e, self.block(s, e), self.hashes[s.of]) * <double>s.unit)
            if pour > s.max_pour * s.unit:
                pour = s.max_pour * s.unit
            e.level += pour
            over = e.level > s.capacity
            if over and s.has_share and not share_reached(s, e, now_us):
                e.level = s.capacity  # full, and waiting for the share
                over = False
            value = <double>e.level / <double>s.unit
        elif s.measure == RATIO:
            over = share_reached(s, e, now_us)
            value = share_of(s, e, now_us)
        elif s.measure == RATE_CHANGE:
            turn_bins(s, e, now_us)
            e.level += 1
            before = e.mean + s.deviations * sqrt(e.variance)
            over = <int64_t>e.bins >= s.minimum and e.level > s.capacity and <double>e.level > before
            value = <double>e.level
        else:
            before = e.mean + s.deviations * sqrt(e.variance)
            over = <int64_t>e.bins >= s.minimum and pour > s.capacity and <double>pour > before
            value = <double>pour
            learn_value(s, e, <double>pour)
        if not over:
            return None
        return self.report(s, h, e, value, before, now_us)

    cdef object report(self, Spec *s, Hash128 h, Entry *e, double value, double before, int64_t now_us):
        """The evidence, unless the key is still quiet after its last detection: then one more repeat."""
        cdef bint quiet = now_us < e.quiet_us
        cdef object evidence = None
        if not quiet:
            evidence = {
                "value": value,
                "baseline": before,
                "share": share_of(s, e, now_us) if s.has_share else None,
                "events": e.events,
                "since_us": e.first_us,
                "repeats": e.repeats,
                "samples": self.samples(s, h),
            }
            e.quiet_us = now_us + s.quiet_us
            e.repeats = 0
        else:
            e.repeats = one_more(e.repeats)
        if s.measure <= RATIO:
            e.level, e.events, e.held, e.change = 0, 0, 0, 0
            e.total = e.failed = e.before_total = e.before_failed = 0
        return evidence

    cdef int remember(self, Spec *s, Hash128 h, object request, int64_t now_us) except -1:
        cdef Seen *seen = &s.ring[s.at % RING]
        cdef object target = fact_of(request, self.path_offset, "path")
        s.at += 1
        if not PyUnicode_Check(target):
            target = None
        elif PyUnicode_GET_LENGTH(target) > MAX_SAMPLE:
            target = target[:MAX_SAMPLE]
        Py_INCREF(target)
        Py_XDECREF(seen.target)
        seen.a, seen.b, seen.now_us, seen.target = h.a, h.b, now_us, <PyObject *>target
        return 0

    cdef list samples(self, Spec *s, Hash128 h):
        cdef list out = []
        cdef uint32_t k
        cdef Seen *seen
        for k in range(RING):
            seen = &s.ring[(s.at - 1 - k) % RING]
            if seen.target != NULL and seen.a == h.a and seen.b == h.b:
                out.append((seen.now_us, <object>seen.target))
                if len(out) == SAMPLES:
                    break
        out.reverse()
        return out

    # ---- the table --------------------------------------------------------------------------------------------------

    cdef inline uint8_t *block(self, Spec *s, Entry *e) noexcept:
        return s.blocks + <size_t>(e - s.entries) * BLOCK_BYTES

    cdef Entry *entry(self, Spec *s, Hash128 h, int64_t now_us) except? NULL:
        cdef Entry *first
        cdef Entry *e
        cdef Entry *victim
        cdef int k
        if s.entries == NULL:
            self.resize(s, 1 if s.max_sets == 1 else 2)
        while True:
            first = s.entries + <size_t>(h.a & (s.n_sets - 1)) * WAYS
            victim = NULL
            for k in range(WAYS):
                e = first + k
                if e.a == h.a and e.b == h.b:
                    settle(s, e, now_us)
                    return e
                if e.a == 0 and e.b == 0:
                    if victim == NULL or victim.a or victim.b:
                        victim = e
            if victim != NULL:
                s.keys += 1
                break
            for k in range(WAYS):
                e = first + k
                settle(s, e, now_us)
                if victim == NULL or weight_of(s, e, now_us) < weight_of(s, victim, now_us):
                    victim = e
            if weight_of(s, victim, now_us) <= 0:
                break
            if s.n_sets >= s.max_sets:
                s.pushed_out += 1
                break
            self.resize(s, s.n_sets * 2)
        memset(victim, 0, sizeof(Entry))
        victim.a, victim.b, victim.last_us = h.a, h.b, now_us
        return victim

    cdef int resize(self, Spec *s, uint32_t n_sets) except -1:
        """Twice the places; every key finds one, because a set's keys go to one of two sets."""
        cdef Entry *old = s.entries
        cdef uint8_t *old_blocks = s.blocks
        cdef uint32_t old_sets = s.n_sets, i
        cdef Entry *to
        cdef int k
        cdef Entry *entries = <Entry *>PyMem_Calloc(<size_t>n_sets * WAYS, sizeof(Entry))
        cdef uint8_t *blocks = NULL
        if entries == NULL:
            raise MemoryError
        if s.measure == DISTINCT:
            blocks = <uint8_t *>PyMem_Calloc(<size_t>n_sets * WAYS, BLOCK_BYTES)
            if blocks == NULL:
                PyMem_Free(entries)
                raise MemoryError
        for i in range(old_sets * WAYS):
            if old[i].a == 0 and old[i].b == 0:
                continue
            to = entries + <size_t>(old[i].a & (n_sets - 1)) * WAYS
            for k in range(WAYS):
                if to[k].a == 0 and to[k].b == 0:
                    to[k] = old[i]
                    if blocks != NULL:
                        memcpy(blocks + <size_t>(to + k - entries) * BLOCK_BYTES, old_blocks + <size_t>i * BLOCK_BYTES, BLOCK_BYTES)
                    break
        s.entries, s.blocks, s.n_sets = entries, blocks, n_sets
        PyMem_Free(old)
        PyMem_Free(old_blocks)
        return 0

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
        if type(request) is not self.request_type:
            self.learn(type(request))
        return self.value_of(request, self.field_index(field))

    def export(self, int64_t now_us, double at_least=0.5, int most=4096):
        """What other nodes need to know of keys at or past this part of their capacity: (detector, key hash, level in
        ticks, instant, block or None). Only leaky measures merge: the others compare a node with itself."""
        cdef int i
        cdef uint32_t k
        cdef Spec *s
        cdef Entry *e
        cdef list out = []
        for i in range(self.n_specs):
            s = &self.specs[i]
            if s.measure > SUM:
                continue
            for k in range(s.n_sets * WAYS):
                e = s.entries + k
                if (e.a or e.b) and e.level > 0:
                    settle(s, e, now_us)
                    if e.level > 0 and <double>e.level >= at_least * <double>s.capacity:
                        key = e.a.to_bytes(8, "little") + e.b.to_bytes(8, "little")
                        block = None
                        if s.measure == DISTINCT:
                            block = (<char *>self.block(s, e))[:(4 * e.held if e.held <= EXACT else REGISTERS)]
                        out.append((i, key, e.level, e.last_us, e.held, block))
                        if len(out) >= most:
                            return out
        return out

    def merge(self, int i, bytes key, int64_t level, int64_t at_us, int held, bytes block, int64_t now_us):
        """Takes another node's measure of a key in. Counts and sums add up; values that both saw count once.

        True when that lifts the key above its capacity; the bucket is emptied then."""
        cdef Spec *s
        cdef Entry *e
        cdef Hash128 h
        cdef int64_t drained
        cdef Hash128 value
        cdef int k
        cdef double fresh_units = 0
        if not 0 <= i < self.n_specs or len(key) != 16:
            raise ValueError("no such detector or key")
        s = &self.specs[i]
        if s.measure > SUM:
            raise ValueError("only counts, sums and distinct values merge")
        h.a, h.b = int.from_bytes(key[:8], "little"), int.from_bytes(key[8:], "little")
        e = self.entry(s, never_zero(h), now_us)
        if e == NULL:
            return False
        drained = level
        if now_us > at_us:
            drained = drained_by(level, now_us - at_us, s.drain)
        if s.measure == DISTINCT:
            if held <= EXACT:
                for k in range(min(held, len(block) // 4)):
                    memset(&value, 0, sizeof(value))
                    value.a = int.from_bytes(block[4 * k:4 * k + 4], "little")
                    fresh_units += novelty(e, self.block(s, e), value)
            elif len(block) == REGISTERS:
                fresh_units = merge_registers(e, self.block(s, e), <const uint8_t *><const char *>block)
            drained = min(drained, <int64_t>(fresh_units * <double>s.unit))
        if e.events == 0:
            e.first_us = at_us
            e.events = 1
        e.level += max(<int64_t>0, min(drained, s.max_pour * s.unit))
        if e.level > s.capacity and not s.has_share:
            e.level, e.held, e.change, e.events = 0, 0, 0, 0
            e.quiet_us = now_us + s.quiet_us
            return True
        return False


cdef inline int64_t clipped(object number) except? -1:
    cdef int overflow = 0
    cdef long long value = PyLong_AsLongLongAndOverflow(number, &overflow)
    if overflow:
        return (<int64_t>1) << 53 if overflow > 0 else -1
    return min(value, (<int64_t>1) << 53)

cdef str route_of(str path):
    """The path with segments that look like identifiers (a digit in them, or longer than 24 characters) as {}."""
    cdef Py_ssize_t size
    cdef const char *data = ascii_of(path, &size)
    cdef Py_ssize_t i, start = 0
    cdef bint has_id = False, digit = False
    if data == NULL:
        return "/".join("{}" if len(part) > 24 or any("0" <= c <= "9" for c in part) else part for part in path.split("/"))
    for i in range(size + 1):
        if i == size or data[i] == 47:
            if digit or i - start > 24:
                has_id = True
                break
            start, digit = i + 1, False
        elif 48 <= data[i] <= 57:
            digit = True
    if not has_id:
        return path
    return "/".join(["{}" if is_id(part) else part for part in path.split("/")])

cdef bint is_id(str part):
    cdef Py_ssize_t size
    cdef const char *data = ascii_of(part, &size)
    cdef Py_ssize_t i
    if size > 24:
        return True
    for i in range(size):
        if 48 <= data[i] <= 57:
            return True
    return False
