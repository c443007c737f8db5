"""What can go wrong, as plain Python: one root, and children that say whose fault it is.

A refusal is a value (`shield.Decision`), and an error only where code must not go on and nobody looks at a value:
`Refused`, of a slot and of a limited function. The others are faults: a policy file that is wrong,
input of the caller's own that cannot be read, a store that did not answer. `transient` says whether the same call
may succeed later without anything being mended.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from shield.core import Decision


class ShieldError(Exception):
    """The root of everything Shield raises."""

    transient = False


class PolicyIssue(NamedTuple):
    """One thing wrong with a policy: `path` as in `limit[2].rate`, and what was found and what is allowed."""

    path: str
    message: str

    def __str__(self) -> str:
        return f"{self.path}: {self.message}" if self.path else self.message


class PolicyError(ShieldError):
    """A policy was refused whole; `issues` lists everything that is wrong with it."""

    def __init__(self, issues: Iterable[PolicyIssue], source: str | None = None) -> None:
        self.issues = tuple(issues)
        self.source = source
        count = f"{len(self.issues)} error" + ("s" if len(self.issues) != 1 else "")
        head = f"{source}: {count}" if source else count
        super().__init__("\n".join([head, *(f"  {issue}" for issue in self.issues)]))


class RequestError(ShieldError, ValueError):
    """The caller handed over something that is no request; `field` names the part that is wrong."""

    def __init__(self, field: str, message: str) -> None:
        self.field = field
        super().__init__(f"{field}: {message}" if field else message)


class ReceiptError(ShieldError, ValueError):
    """A receipt, lease or owner that Shield did not issue, that was altered, or that has expired."""


class StoreError(ShieldError):
    """The store's truth about this step is not known. What happens then is each limit's `when_store_fails`."""

    transient = True


class StoreTimeout(StoreError):
    """No answer within the deadline. The step may or may not have been taken; it is never sent twice."""


class StoreProtocolError(StoreError):
    """The store answered something that is no answer to what was asked."""

    transient = False


class Refused(ShieldError):
    """What stands behind a slot or a limited function may not be done now; `decision` says why and when it may."""

    def __init__(self, decision: Decision) -> None:
        self.decision = decision
        detail = f": {decision.detail}" if decision.detail else ""
        wait_s = decision.retry_after
        super().__init__(f"{decision.reason}{detail}" + (f"; retry after {wait_s:.6f} s" if wait_s else ""))
