cdef enum:
    # Room for an answer: its fixed words, and for each charge the words around what Wording holds. Counted, then rounded up.
    ANSWER_BYTES = 640 + PIECE_PADDING
    SHADOW_NAME_BYTES = 32
    CHARGE_BYTES = 256
    # Answers of up to this size are written on the stack: a dozen limits.
    STACK_BYTES = 8192


cdef enum:
    # Of so many charges what remains is written once and copied: the more the rarer.
    TOLD = 16


cdef struct Told:
    # What an answer says first among its limits and again in a header field.
    int64_t left
    const char *digits
    Py_ssize_t size_bytes


cdef struct Texts:
    # What an answer takes from Python objects, which outlive it.
    Piece request_id
    Piece receipt
    Piece detail


cdef bytes answer_json(Decision d):
    """The wire's decision object: what `as_dict` says, member for member, without making any of it."""
    cdef char stack[STACK_BYTES]
    cdef char *start = stack
    cdef Texts texts
    cdef Py_ssize_t room_bytes = room_for(d, &texts)
    if room_bytes > STACK_BYTES:
        start = <char *>PyMem_Malloc(room_bytes)
        if start == NULL:
            raise MemoryError
    try:
        return start[:put_decision(start, d, &texts) - start]
    finally:
        if start != stack:
            PyMem_Free(start)


cdef Py_ssize_t room_for(Decision d, Texts *texts) except -1:
    """What the answer takes at most. All of it that may fail or run Python happens here."""
    cdef Charges c = d.charges
    cdef Piece lease
    c.know_ends()
    cdef Py_ssize_t room_bytes = ANSWER_BYTES + room_for_charges(c)
    room_bytes += read_text(c.request_id, &texts.request_id) + read_text(d.receipt, &texts.receipt)
    room_bytes += read_text(d.detail, &texts.detail)  # its texts are the policy's, the charges' or constants
    if c.shadowed() is not None:
        room_bytes += SHADOW_NAME_BYTES * len(c.shadowed())
    cdef object stored = c.stored_answer()
    cdef Attached attached = d.attached if stored is None else d.more()
    if attached is None:
        return room_bytes
    for handle in attached.lease_handles or ():
        room_bytes += 1 + read_text(handle, &lease)
    if attached.idempotency is not None or stored is not None:
        attached.idempotency_json = encode_json(None if attached.idempotency is None else attached.idempotency.as_dict())
        attached.response_json = encode_json(None if stored is None else stored.as_dict())
        room_bytes += len(attached.idempotency_json) + len(attached.response_json)
    return room_bytes


cdef char *put_decision(char *at, Decision d, const Texts *texts) except NULL:
    cdef Charges c = d.charges
    cdef Piece lease
    cdef char *end = put_answer(at, d, c)
    end = put_text(put(end, b',"request_id":'), &texts.request_id)
    end = put(end, b',"degraded":true,"shadow":[' if c.degraded else b',"degraded":false,"shadow":[')
    end = put_shadow(end, c)
    end = put_text(put(end, b'],"receipt":'), &texts.receipt)
    end = put(end, b',"leases":[')
    cdef Attached attached = d.attached
    if attached is not None and attached.lease_handles is not None:
        for handle in attached.lease_handles:
            read_text(handle, &lease)
            end = put(put_text(end, &lease), b",")
        end -= 1
    if attached is None or attached.idempotency_json is None:
        end = put(end, b'],"idempotency":null,"response":null')
    else:
        end = put_made(put(end, b'],"idempotency":'), attached.idempotency_json)
        end = put_made(put(end, b',"response":'), attached.response_json)
    if texts.detail.text != NULL:
        end = put_text(put(end, b',"detail":'), &texts.detail)
    return put(end, b"}")


# ---- for the express lane: decided.pxd says what each does ----------------------------------------------------------

cdef int decided_plain(object decision) except -1:
    cdef Decision d = <Decision?>decision
    return d.allowed and not d.charges.degraded and not d.shadow


cdef char *decided_json(object decision, char *at, Py_ssize_t room_bytes) except? NULL:
    cdef Texts texts
    cdef Decision d = <Decision?>decision
    if room_for(d, &texts) > room_bytes:
        return NULL
    return put_decision(at, d, &texts)


cdef Decided DECISIONS
DECISIONS.plain = decided_plain
DECISIONS.put_json = decided_json
_decided = PyCapsule_New(&DECISIONS, DECIDED, NULL)


cdef Py_ssize_t room_for_charges(Charges c) noexcept:
    """What the charges of an answer take at most, in JSON; header fields alone take less."""
    cdef Wording wording = c.policy.wording
    cdef LimitWords *words
    cdef Py_ssize_t room_bytes = 0
    cdef int i
    for i in range(c.n):
        words = &wording.limits[c.items[i].limit]
        room_bytes += (CHARGE_BYTES + words.name.size_bytes + words.status.size_bytes + words.state_json.size_bytes
                       + wording.of_numbers(&c.items[i]).policy_json.size_bytes)
    return room_bytes


cdef Py_ssize_t read_text(object value, Piece *text) except -1:
    """The UTF-8 of a str, or no text for None; and the room that its JSON takes at most."""
    text.text = NULL
    text.size_bytes = 4  # null
    if value is not None:
        text.text = ascii_of(value, &text.size_bytes)
        if text.text == NULL:
            text.text = PyUnicode_AsUTF8AndSize(value, &text.size_bytes)
    return 2 + ESCAPED_BYTES * text.size_bytes


cdef char *put_made(char *at, bytes json) noexcept:
    """JSON that is made already."""
    memcpy(at, <const char *>json, len(json))
    return at + len(json)


cdef char *put_text(char *at, const Piece *text) noexcept:
    return put(at, b"null") if text.text == NULL else put_json(at, text.text, text.size_bytes)


cdef char *put_answer(char *at, Decision d, Charges c) noexcept:
    """The members up to the header fields."""
    cdef u128 wait_us
    cdef bint ends = d.wait(&wait_us)
    cdef Told told[TOLD]
    cdef char *members
    cdef char *value
    cdef char *end
    cdef Py_ssize_t size_bytes
    cdef const char *reason = ascii_of(d.reason, &size_bytes)
    at = put(at, b'{"allowed":true,"status":' if d.allowed else b'{"allowed":false,"status":')
    at = put_whole(at, <uint64_t>d.status)
    at = put_json(put(at, b',"reason":'), reason, size_bytes)
    at = put_refusing(put(at, b',"violated":['), c, 1)
    at = put(at, b'],"retry_after":')
    at = put_seconds(at, wait_us) if ends else put(at, b"null")
    at = put_whole(put(at, b',"cost":'), <uint64_t>c.request_cost)
    at = put_statuses(put(at, b',"limits":['), c, told)
    members = at = put(at, b'],"headers":{')
    value = put(at, b'"RateLimit-Policy":"')
    end = put_policies(value, c, True)
    if end != value:
        at = put(end, b'",')
    value = put(at, b'"RateLimit":"')
    end = put_states(value, c, True, told)
    if end != value:
        at = put(end, b'",')
    if not d.allowed and ends:
        at = put_whole(put(at, b'"Retry-After":"'), <uint64_t>ceil_div(wait_us, <u128>1_000_000))
        at = put(at, b'",')
    if c.shows_cost:
        at = put_whole(put(at, b'"X-Cost-Estimated":"'), <uint64_t>c.graphql_cost)
        at = put(at, b'",')
        if c.policy.max_cost >= 0:
            at = put_whole(put(at, b'"X-Cost-Max":"'), <uint64_t>c.policy.max_cost)
            at = put(at, b'",')
    if at != members:
        at -= 1  # the last comma
    return put(at, b"}")


cdef char *put_shadow(char *at, Charges c) except NULL:
    """Names of the guards and limits in shadow mode that would have refused."""
    cdef char *start = at
    if c.shadowed() is not None:
        for name in c.shadowed():
            raw = (<str>name).encode()
            at = put(at, b'"' if at == start else b',"')
            memcpy(at, <const char *>raw, len(raw))
            at = put(at + len(raw), b'"')
    if at == start:
        return put_refusing(at, c, 0)
    cdef char *end = put_refusing(at + 1, c, 0)
    if end == at + 1:
        return at
    at[0] = 44   # a comma
    return end


cdef char *put_refusing(char *at, Charges c, int enforced) noexcept:
    """Names of the limits that refused, of enforced limits or of those in shadow mode."""
    cdef bint first = True
    cdef int i
    if c.reason is not None:
        return at
    for i in range(c.n):
        if (c.items[i].verdict != FITS and c.policy.items[c.items[i].limit].enforced == enforced
                and c.policy.items[c.items[i].limit].nonces == 0):
            at = put_piece(at if first else put(at, b","), &c.policy.wording.limits[c.items[i].limit].name)
            first = False
    return at


cdef char *put_statuses(char *at, Charges c, Told *told) noexcept:
    """What each limit said; `told` gets what remains of the first TOLD."""
    cdef bint first = True
    cdef int i
    cdef Charge *charge
    cdef u128 wait_us
    cdef const NumbersWords *words
    cdef int64_t left
    cdef const char *digits
    if c.reason is not None:
        return at
    for i in range(c.n):
        charge = &c.items[i]
        if charge.unknown or c.policy.items[charge.limit].nonces != 0:
            continue
        at = put_piece(at if first else put(at, b","), &c.policy.wording.limits[charge.limit].status)
        first = False
        words = c.policy.wording.of_numbers(charge)
        if charge.verdict == FITS and charge.cost == 1 and words.numbers == charge.numbers:
            at = put_piece(at, &words.one)
        else:
            at = put(at, b'true,"cost":' if charge.verdict == FITS else b'false,"cost":')
            at = put_whole(at, <uint64_t>charge.cost)
            at = put_whole(put(at, b',"limit":'), <uint64_t>c.policy.registry.items[charge.numbers].limit)
            at = put(at, b',"remaining":')
        left = c.remaining_of(charge)
        digits = at
        at = put_whole(at, <uint64_t>left)
        if i < TOLD:
            told[i] = Told(left, digits, at - digits)
        at = put_seconds(put(at, b',"reset_after":'), c.reset_of(charge))
        if charge.verdict == FITS:
            at = put(at, b',"retry_after":0.0}')
        elif c.refusal_wait_of(charge, &wait_us):
            at = put(put_seconds(put(at, b',"retry_after":'), wait_us), b"}")
        else:
            at = put(at, b',"retry_after":null}')
    return at


# ---- header fields (draft-ietf-httpapi-ratelimit-headers) -----------------------------------------------------------

cdef bint shows(Charges c, const Charge *charge) noexcept:
    """Whether header fields speak of this charge: not of limits in shadow mode, nor of what was decided without a bucket."""
    return (c.reason is None and c.policy.items[charge.limit].enforced and c.policy.items[charge.limit].nonces == 0
            and not charge.unknown)


cdef char *put_policies(char *at, Charges c, bint json) noexcept:
    """The value of RateLimit-Policy, empty where there is none; `json`: as it stands inside a JSON string."""
    cdef bint first = True
    cdef int i
    cdef const NumbersWords *words
    for i in range(c.n):
        if shows(c, &c.items[i]):
            words = c.policy.wording.of_numbers(&c.items[i])
            at = put_piece(at if first else put(at, b", "), &words.policy_json if json else &words.policy)
            first = False
    return at


cdef char *put_states(char *at, Charges c, bint json, const Told *told) noexcept:
    """The value of RateLimit, which after a refusal speaks of the violated limits only. `told`, which may be NULL: by
    `put_statuses`, which says of every limit that is spoken of here what remains."""
    cdef bint first = True
    cdef int i
    cdef const LimitWords *words
    cdef Charge *charge
    cdef Numbers *n
    cdef int64_t left
    cdef u128 wait_us
    for i in range(c.n):
        charge = &c.items[i]
        if not shows(c, charge) or not (c.admitted or charge.verdict != FITS):
            continue
        words = &c.policy.wording.limits[charge.limit]
        n = &c.policy.registry.items[charge.numbers]
        at = put_piece(at if first else put(at, b", "), &words.state_json if json else &words.state)
        first = False
        if told != NULL and i < TOLD:
            left = told[i].left
            memcpy(at, told[i].digits, WHOLE_BYTES)  # read where more was written behind them, and written over
            at += told[i].size_bytes
        else:
            left = c.remaining_of(charge)
            at = put_whole(at, <uint64_t>left)
        if charge.verdict >= FULL:
            at = put(at, b";t=1")
        elif n.algorithm != CONCURRENCY and left < n.limit and c.wait_of(charge, left + 1, &wait_us):
            at = put_whole(put(at, b";t="), <uint64_t>ceil_div(wait_us, <u128>1_000_000))
    return at


cdef dict header_fields(Decision d):
    """RateLimit-Policy, RateLimit and Retry-After (RFC 9110, 10.2.3), X-Cost-Estimated and X-Cost-Max, where they apply."""
    cdef Charges c = d.charges
    cdef char stack[STACK_BYTES]
    cdef char *start = stack
    cdef char *end
    cdef u128 wait_us
    cdef dict fields = {}
    c.know_ends()
    cdef Py_ssize_t room_bytes = room_for_charges(c)
    if room_bytes > STACK_BYTES:
        start = <char *>PyMem_Malloc(room_bytes)
        if start == NULL:
            raise MemoryError
    try:
        end = put_policies(start, c, False)
        if end != start:
            fields["RateLimit-Policy"] = PyUnicode_DecodeUTF8(start, end - start, NULL)
        end = put_states(start, c, False, NULL)
        if end != start:
            fields["RateLimit"] = PyUnicode_DecodeUTF8(start, end - start, NULL)
        if not d.allowed and d.wait(&wait_us):
            end = put_whole(start, <uint64_t>ceil_div(wait_us, <u128>1_000_000))
            fields["Retry-After"] = PyUnicode_DecodeUTF8(start, end - start, NULL)
        if c.shows_cost:
            fields["X-Cost-Estimated"] = str(c.graphql_cost)
            if c.policy.max_cost >= 0:
                fields["X-Cost-Max"] = str(c.policy.max_cost)
    finally:
        if start != stack:
            PyMem_Free(start)
    return fields
