cdef dict STATUS_OF = {
    "ok": 200, "limit": 429, "concurrency": 429, "blocked": 403, "challenge": 403, "invalid": 400, "missing": 400,
    "identity": 401, "unregistered": 404, "too_large": 413, "content_type": 415, "store_full": 503, "store_unavailable": 503,
    "graphql_invalid": 400, "graphql_cost": 422, "graphql_type_cost": 422, "graphql_depth": 422, "graphql_aliases": 422,
    "graphql_tokens": 422, "graphql_fields": 422, "graphql_directives": 422, "graphql_fragments": 422, "graphql_batch": 422,
    "graphql_introspection": 422, "graphql_unknown_hash": 422,
    "idempotency_missing": 400, "idempotency_invalid": 400, "idempotency_in_flight": 409, "idempotency_mismatch": 422,
    "nonce_missing": 401, "stale": 401, "replay": 409,
}


cdef Decision decide(Charges charges):
    """What the charges' outcome means."""
    cdef Decision d = Decision.__new__(Decision)
    d.charges = charges
    d.allowed = charges.admitted
    if charges.admitted:
        d.reason = "ok"
        d.status = 200
    else:
        d.reason = charges.reason if charges.reason is not None else denial(charges)
        if d.reason is LIMIT:
            d.status = 429
        elif charges.stored_answer() is not None:
            d.status = charges.stored_answer().shown_status
        else:
            d.status = STATUS_OF[d.reason]
    return d


# A limit outranks concurrency, and both outrank a store that could not say.
cdef str LIMIT = "limit"
cdef tuple DENIALS = ("", "store_unavailable", "store_full", "concurrency", LIMIT)


cdef str denial(Charges charges):
    cdef int i, rank = 0
    cdef Charge *charge
    for i in range(charges.n):
        charge = &charges.items[i]
        if charge.verdict == FITS or not charges.policy.items[charge.limit].enforced:
            continue
        if charge.verdict == OVER and charges.policy.items[charge.limit].nonces != 0:
            rank = max(rank, 2)
        elif charge.verdict == OVER:
            rank = max(rank, 3 if charges.policy.items[charge.limit].algorithm == CONCURRENCY else 4)
        else:
            rank = max(rank, 2 if charge.verdict == FULL else 1)
    return <str>DENIALS[rank]


@cython.final
cdef class Attached:
    """What follows few decisions."""

    cdef object receipt
    cdef object idempotency
    cdef list lease_handles
    cdef bytes idempotency_json         # the two members as an answer has them, once one was written; None: both are null
    cdef bytes response_json


@cython.final
@cython.freelist(64)
cdef class Decision:
    """The whole answer for one request. True as a condition when allowed. All but the verdict is computed when read.

    Durations are seconds, exact to the microsecond; `retry_after` is 0 when allowed and None when the cost never fits.
    """

    cdef readonly Charges charges
    cdef readonly bint allowed
    cdef readonly int status
    cdef readonly str reason
    cdef Attached attached                  # None: there is nothing in it

    def __init__(self, Charges charges not None):
        if charges.policy is None:
            raise ValueError("these charges are of no request")
        cdef Decision made = decide(charges)
        self.charges, self.allowed, self.status, self.reason = charges, made.allowed, made.status, made.reason

    def __bool__(self):
        return self.allowed

    def __repr__(self):
        return f"Decision({self.status} {self.reason}, violated={self.violated}, retry_after={self.retry_after})"

    def attach(self, receipt, leases):
        """For the facade: the handles for what comes after this decision."""
        cdef Attached attached = self.more()
        attached.receipt = receipt
        attached.lease_handles = list(leases) or None

    def own(self, idempotency):
        """For the facade: the request owns its idempotency key, and has to say what became of it."""
        self.more().idempotency = idempotency

    cdef Attached more(self):
        if self.attached is None:
            self.attached = Attached.__new__(Attached)
        return self.attached

    @property
    def receipt(self):
        """The handle for what comes after this decision; None where nothing can."""
        return None if self.attached is None else self.attached.receipt

    @property
    def idempotency(self):
        """shield.answer.Ownership, where this request now owns its idempotency key; else None."""
        return None if self.attached is None else self.attached.idempotency

    @property
    def has_sequel(self):
        """Something may come after: costs to settle or places to release."""
        return self.allowed and (self.charges.settleable or self.charges.has_leases)

    @property
    def has_too_many_nonces(self):
        """Whether it was refused because its tenant has as many nonces as it may."""
        return self.reason == "store_full" and self.charges.nonces_are_many()

    @property
    def detail(self):
        """A sentence that names the field, where a value or a guard refused; else None."""
        cdef Charges c = self.charges
        if c.nonce_verdict != NONCE_FRESH:
            return NONCE_DETAILS[c.nonce_verdict]
        if self.has_too_many_nonces:
            return "nonce: the tenant has as many as it may; see guard.replay.max_per_tenant"
        return c.detail

    @property
    def degraded(self):
        """True when some limit was decided without the store's truth, because the policy said so."""
        return self.charges.degraded

    @property
    def cost(self):
        return self.charges.request_cost

    @property
    def graphql(self):
        """(operations, cost, type cost) of the request's GraphQL operations; None where it has none. 2**53 - 1 is unbounded."""
        cdef Charges c = self.charges
        return (c.operations, c.graphql_cost, c.graphql_type_cost) if c.is_priced else None

    @property
    def request_id(self):
        return self.charges.request_id

    @property
    def leases(self):
        """Handles of the concurrency places this request holds; give them to `release`."""
        return list(self.attached.lease_handles or ()) if self.attached is not None else []

    @property
    def response(self):
        """For `idempotency_replay`: the answer that the key got the first time."""
        return self.charges.stored_answer()

    @property
    def violated(self):
        """Names of the limits that refused."""
        return self.refusing(1)

    @property
    def shadow(self):
        """Names of the guards and limits in shadow mode that would have refused."""
        cdef list guards = self.charges.shadowed()
        return self.refusing(0) if guards is None else [*guards, *self.refusing(0)]

    cdef list refusing(self, int enforced):
        cdef int i
        cdef Charges c = self.charges
        return [c.policy.names[c.items[i].limit] for i in range(c.n)
                if c.items[i].verdict != FITS and c.policy.items[c.items[i].limit].enforced == enforced
                and c.policy.items[c.items[i].limit].nonces == 0 and c.reason is None]

    @property
    def retry_after(self):
        """The longest wait among the limits that stand in the way, penalties of this refusal included; None is longest."""
        cdef u128 wait_us
        self.charges.know_ends()
        return seconds(wait_us) if self.wait(&wait_us) else None

    cdef bint wait(self, u128 *longest_us) noexcept:
        """`retry_after` in microseconds. False: waiting does not help."""
        cdef int i
        cdef Charges c = self.charges
        cdef CompiledLimit *limit
        cdef u128 wait_us
        longest_us[0] = <u128>0
        if self.allowed:
            return True
        if c.reason is not None:
            # A malformed or oversized request does not become right by waiting.
            longest_us[0] = <u128>c.retry_us
            return c.retry_us > 0
        for i in range(c.n):
            limit = &c.policy.items[c.items[i].limit]
            if not limit.enforced or (c.items[i].verdict == FITS and (not limit.count_denied or c.items[i].unknown)):
                continue
            if not c.refusal_wait_of(&c.items[i], &wait_us):
                return False
            if wait_us > longest_us[0]:
                longest_us[0] = wait_us
        return True

    @property
    def limits(self):
        """A `LimitStatus` for every limit that was asked, those in shadow mode included."""
        cdef int i
        cdef Charges c = self.charges
        if c.reason is not None:
            return []
        c.know_ends()
        return [c.status(&c.items[i]) for i in range(c.n)
                if not c.items[i].unknown and c.policy.items[c.items[i].limit].nonces == 0]

    @property
    def headers(self):
        """RateLimit-Policy, RateLimit (draft-ietf-httpapi-ratelimit-headers) and Retry-After (RFC 9110), and for GraphQL
        X-Cost-Estimated and X-Cost-Max, where they apply."""
        return header_fields(self)

    def as_dict(self):
        """The wire's decision object."""
        cdef dict out = {
            "allowed": self.allowed, "status": self.status, "reason": self.reason, "violated": self.violated,
            "retry_after": self.retry_after, "cost": self.cost,
            "limits": [{"name": s.name, "allowed": s.allowed, "cost": s.cost, "limit": s.limit, "remaining": s.remaining,
                        "reset_after": s.reset_after, "retry_after": s.retry_after} for s in self.limits],
            "headers": self.headers, "request_id": self.request_id, "degraded": self.degraded, "shadow": self.shadow,
            "receipt": self.receipt, "leases": self.leases,
            "idempotency": None if self.idempotency is None else self.idempotency.as_dict(),
            "response": None if self.response is None else self.response.as_dict(),
        }
        if self.detail is not None:
            out["detail"] = self.detail
        return out

    def to_json(self):
        """The wire's decision object as bytes: UTF-8 without white space, durations as decimal fractions of a second."""
        return answer_json(self)

    def tight(self):
        """(limit name, remaining, limit) of every limit of which less than half is left; most often none."""
        cdef int i
        cdef int64_t left, limit
        cdef list out = []
        cdef Charges c = self.charges
        if c.reason is None:
            for i in range(c.n):
                limit = c.policy.registry.items[c.items[i].numbers].limit
                if not c.items[i].unknown:
                    left = c.remaining_of(&c.items[i])
                    if left < limit - left:
                        out.append((c.policy.names[c.items[i].limit], left, limit))
        return out

    def explain(self):
        """Per charge: (limit name, cost, fits, remaining). For people."""
        cdef int i
        cdef Charges c = self.charges
        return [(c.policy.names[c.items[i].limit], c.items[i].cost, c.items[i].verdict == FITS,
                 None if c.items[i].unknown else c.remaining_of(&c.items[i])) for i in range(c.n)
                if c.policy.items[c.items[i].limit].nonces == 0]
