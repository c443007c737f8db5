"""For those who test with Shield: clocks that stand, step and drift, a store that fails on demand, and law 1.

ManualClock, DriftingClock          clocks for `Shield(..., clock=)` and `TokenBucket(..., clock=)`
FailingStore                        any store, failing when it is told to
check_trace, check_window_trace     was ever more admitted than the limit says? Exact, in one pass
read_trace, replay_trace            the file of `shield serve --trace-decisions`; its format is in trace.py
"""

from shield.testing.clocks import DriftingClock, ManualClock
from shield.testing.failing import FailingStore, Failure
from shield.testing.law import Admission, Violation, check_trace, check_window_trace
from shield.testing.trace import read_trace, replay_trace

__all__ = [
    "Admission",
    "DriftingClock",
    "FailingStore",
    "Failure",
    "ManualClock",
    "Violation",
    "check_trace",
    "check_window_trace",
    "read_trace",
    "replay_trace",
]
