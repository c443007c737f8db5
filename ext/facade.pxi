cdef class LocalDecider:
    """What `shield.Shield` is on top of: the way of a request through a store of this process, without Python in between.

    The facade says by `decide_here` what to decide with; without that it is asked itself, through `_decide_elsewhere`.
    """

    cdef CompiledPolicy policy
    cdef Table table
    cdef bint traced

    def decide_here(self, CompiledPolicy policy, Table table, *, bint traced):
        """From the next request on. `table` is None where the store must be awaited. `traced`: every decision is concluded."""
        self.policy, self.table, self.traced = policy, table, traced

    def check_nowait(self, request):
        """`check` for stores that need no I/O. ShieldError for others."""
        # Held: another thread may replace them while a plan runs Python code.
        cdef CompiledPolicy policy = self.policy
        cdef Table table = self.table
        if policy is None or table is None:
            return self._decide_elsewhere(request)
        cdef Charges charges = policy.plan(request, &table.keys)
        table.step(charges, read_clock(table.clock, 0), False)
        cdef Decision decision = decide(charges)
        if self.traced or (charges.admitted and (charges.settleable or charges.has_leases)):
            return self._conclude(charges, decision)
        return decision
