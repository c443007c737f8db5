"""A store that fails on demand."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Literal

from shield.errors import StoreError, StoreTimeout

if TYPE_CHECKING:
    from shield.core import Charges
    from shield.guard.idempotency import Claim
    from shield.store import Lease, Settlement, Store
    from shield.store.key_records import Ending, Outcome

Failure = Literal["refused", "timeout", "lost"]
"""refused: nothing was taken, StoreError. timeout: nothing was taken and nobody can know, StoreTimeout.
lost: it was taken, and the answer never arrived, StoreTimeout."""

_FAILURES = ("refused", "timeout", "lost")


class FailingStore:
    """Any store, failing on demand: the next operations, the N-th one, or every one, in one of three ways.

    Operations are `apply`, `settle`, `release` and `end`, counted from 1 in `operations`; `failed` names those that
    did not get through. To try every place where something can fail, fail the first operation, then the
    second, and so on, until a run has no failure left. It is never `local`, because a local store cannot be
    away. Everything else is the store's own.
    """

    local = False

    def __init__(self, store: Store) -> None:
        self.wrapped = store
        self.name = store.name
        self.operations = 0
        self.failed: list[tuple[int, str, Failure]] = []
        self._always: Failure | None = None
        self._planned: dict[int, Failure] = {}

    def fail_next(self, how: Failure = "timeout", *, times: int = 1) -> None:
        """The next operations fail."""
        for ahead in range(1, times + 1):
            self.fail_at(self.operations + ahead, how)

    def fail_at(self, operation: int, how: Failure = "timeout") -> None:
        """The operation with this number fails. ValueError when it is past already."""
        if operation <= self.operations:
            raise ValueError(f"operation {operation} is past: {self.operations} were asked for")
        self._planned[operation] = _known(how)

    def fail_always(self, how: Failure = "timeout") -> None:
        """Every operation fails, until `heal`."""
        self._always = _known(how)

    def heal(self) -> None:
        """From now on nothing fails; what was planned is forgotten."""
        self._always = None
        self._planned.clear()

    @property
    def ready(self) -> bool:
        return self._always is None and self.wrapped.ready

    async def open(self) -> None:
        await self.wrapped.open()

    async def close(self) -> None:
        await self.wrapped.close()

    async def apply(self, charges: Charges, claim: Claim | None = None) -> None:
        how = self._count("apply")
        if how in (None, "lost"):
            await (self.wrapped.apply(charges) if claim is None else self.wrapped.apply(charges, claim))
        self._raise(how, "apply")

    async def settle(self, settlement: Settlement) -> bool:
        how = self._count("settle")
        settled = await self.wrapped.settle(settlement) if how in (None, "lost") else False
        self._raise(how, "settle")
        return settled

    async def release(self, leases: Sequence[Lease]) -> int:
        how = self._count("release")
        freed = await self.wrapped.release(leases) if how in (None, "lost") else 0
        self._raise(how, "release")
        return freed

    async def end(self, ending: Ending) -> Outcome:
        how = self._count("end")
        outcome: Outcome = await self.wrapped.end(ending) if how in (None, "lost") else "lost"
        self._raise(how, "end")
        return outcome

    def stats(self) -> dict[str, Any]:
        return self.wrapped.stats()

    def __getattr__(self, name: str) -> Any:
        if name == "wrapped":  # not yet set: copying and pickling ask before __init__ has run
            raise AttributeError(name)
        return getattr(self.wrapped, name)

    def _count(self, operation: str) -> Failure | None:
        self.operations += 1
        how = self._planned.pop(self.operations, self._always)
        if how is not None:
            self.failed.append((self.operations, operation, how))
        return how

    def _raise(self, how: Failure | None, operation: str) -> None:
        if how == "refused":
            raise StoreError(f"{operation} number {self.operations}: connection refused, as planned")
        if how is not None:
            raise StoreTimeout(f"{operation} number {self.operations}: no answer, as planned")


def _known(how: Failure) -> Failure:
    if how not in _FAILURES:
        raise ValueError(f"found {how!r}; allowed: {', '.join(_FAILURES)}")
    return how
