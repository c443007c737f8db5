# Part of detect.pyx: which detectors an event concerns. Each rule (a condition of a detector) has one bit; masks by kind,
# status, method and event leave those that can match, so that a rule which does not costs nothing.

cdef enum:
    MAX_TRAITS_KEPT = 32_768   # memo of targets and agents: 32,768 texts of at most 512 characters
    MAX_TRAIT_TEXT = 512


@cython.internal
@cython.final
cdef class Rules:
    """The conditions of all detectors of a policy. `find` answers for one event, in `on` and `failing`."""

    cdef Rule rules[64]
    cdef int count
    cdef Fields fields
    cdef uint64_t by_kind[2]
    cdef uint64_t by_status[600]
    cdef uint64_t any_method
    cdef uint64_t any_event
    cdef uint64_t with_path
    cdef uint64_t with_facts
    cdef dict by_method
    cdef dict by_event
    cdef dict facts             # rule -> ((attribute, frozenset of values), ...)
    cdef Words words
    cdef uint32_t static_bit
    cdef object match
    cdef object traits_of
    cdef dict target_traits
    cdef dict agent_traits
    cdef int64_t trait_misses
    # of the event at hand: detectors, by their own bits
    cdef uint64_t on
    cdef uint64_t failing

    def __cinit__(self, rules, Fields fields, traits_of, words, match):
        cdef int i
        if len(rules) > 64:
            raise ValueError("at most 64 rules")
        self.fields, self.traits_of, self.match = fields, traits_of, match
        self.facts, self.by_method, self.by_event = {}, {}, {}
        self.target_traits, self.agent_traits = {}, {}
        self.count = len(rules)
        self.learn_words(words)
        for i in range(self.count):
            self.add(i, rules[i])

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

    cdef int add(self, int i, dict rule) except -1:
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

    cdef bint find(self, object request, bint outcome, object status, object event) except -1:
        """Whether the event concerns any detector. `on`: those that it does; `failing`: those it is a failure for."""
        cdef uint64_t mask = self.by_kind[outcome]
        cdef uint64_t bit
        cdef object method, found
        cdef uint32_t traits = 0
        cdef int i, traits_known = 0, code = 0
        cdef Rule *r
        self.on = self.failing = 0
        if mask == 0:
            return False
        self.fields.learn(request)
        if status is not None and PyLong_Check(status):
            code = status if 0 <= status < 600 else 0
        mask &= self.by_status[code]
        if mask & ~self.any_method:
            method = fact_of(request, self.fields.method_offset, "method")
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
            return False
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
                self.failing |= (<uint64_t>1) << r.detector
            else:
                self.on |= (<uint64_t>1) << r.detector
        return self.on != 0

    cdef uint64_t paths(self, object request) except? 0:
        cdef uint64_t mask = 0
        try:
            for index in self.match(fact_of(request, self.fields.method_offset, "method"), self.fields.target_of(request)):
                mask |= (<uint64_t>1) << <int>index
        except ValueError:
            return 0
        return mask

    cdef uint64_t fitting(self, object request, uint64_t mask) except? 0:
        """Those of the rules whose conditions on attributes hold."""
        cdef uint64_t out = 0, bit = mask
        cdef int i
        while bit:
            i = lowest(bit)
            bit &= bit - 1
            for name, values in <tuple>self.facts[i]:
                value = self.fields.attribute(request, name)
                if value is None or str(value) not in values:
                    break
            else:
                out |= (<uint64_t>1) << i
        return out

    cdef uint32_t traits(self, object request) except? 0:
        cdef object target = self.fields.target_of(request)
        cdef object agent = fact_of(request, self.fields.agent_offset, "user_agent")
        cdef object headers = fact_of(request, self.fields.headers_offset, "headers")
        cdef object referer
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
        if headers.__class__ is dict:
            referer = (<dict>headers).get("referer")
            if referer.__class__ is str and "${" in <str>referer:   # what attacks on loggers write there, too
                bits |= self.known(self.agent_traits, referer, True)
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
