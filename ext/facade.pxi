cdef class LocalDecider:
    """What `shield.Shield` is on top of: the way of a request through a store of this process or host, without Python in
    between.

    The facade says by `decide_here` what to decide with; without that it is asked itself, through `_decide_elsewhere`.
    """

    cdef CompiledPolicy policy
    cdef Table table
    cdef SharedTable shared
    cdef bint traced
    cdef Purses purses

    def decide_here(self, CompiledPolicy policy, table, *, bint traced):
        """From the next request on. `table`: a Table or SharedTable, None where the store must be awaited. `traced`: every
        decision is concluded."""
        self.policy, self.traced = policy, traced
        self.table = table if isinstance(table, Table) else None
        self.shared = table if isinstance(table, SharedTable) else None

    def check_nowait(self, request):
        """`check` for stores that need no I/O. ShieldError for others."""
        # Held: another thread may replace them while a plan runs Python code.
        cdef CompiledPolicy policy = self.policy
        cdef Table table = self.table
        cdef SharedTable shared = self.shared
        if policy is None or (table is None and shared is None):
            return self._decide_elsewhere(request)
        return self.through(policy, table, shared, request)

    def decide_from(self, Purses purses, *, bint at_once):
        """From the next request on: units held of a store elsewhere, None for nothing, for hot keys of the policy that was
        named last. `check_leased` decides with them only where nothing else is to be asked or told (`at_once`)."""
        if purses is not None:
            purses.policy = self.policy
        self.purses = purses if at_once and self.policy.leases else None

    def check_leased(self, request):
        """The decision of a request whose every charge is leased and held here; None where the store must be asked."""
        cdef CompiledPolicy policy = self.policy
        cdef Purses purses = self.purses
        if policy is None or purses is None:
            return None
        cdef Charges charges = policy.plan(request, NULL, NULL)
        if purses.step(charges) != PURSE_DECIDED:
            return None
        cdef Decision decision = decide(charges)
        if charges.admitted and charges.settleable:
            return self._conclude(charges, decision)
        return decision

    def decide_passed(self, CompiledPolicy policy not None, table not None, request):
        """`check_nowait` for a request that has been let through by what looks at it first."""
        if isinstance(table, Table):
            return self.through(policy, <Table>table, None, request)
        return self.through(policy, None, table, request)

    cdef object through(self, CompiledPolicy policy, Table table, SharedTable shared, object request):
        cdef Charges charges
        if table is not None:
            charges = policy.plan(request, &table.keys, NULL)
            table.step(charges, read_clock(table.clock, 0), False)
        else:
            charges = policy.plan(request, NULL, &shared.file.regions[KEYS])
            shared.step(charges, None, False)
        cdef Decision decision = decide(charges)
        if self.traced or (charges.admitted and (charges.settleable or charges.has_leases)):
            return self._conclude(charges, decision)
        return decision
