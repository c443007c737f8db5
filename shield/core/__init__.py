"""The compiled core: integers in, integers out. No I/O, no logging, no floats for time."""

try:
    from shield.core.engine import (
        Asked,
        Charges,
        CompiledPolicy,
        Decision,
        LeaseTable,
        LocalDecider,
        MappedFile,
        Outcome,
        Purse,
        Purses,
        Registry,
        SharedTable,
        Step,
        Steps,
        Table,
        check_command,
        next_batch,
        outcomes_in,
    )
    from shield.core.graphql import Price
    from shield.core.limiter import SlidingWindow, TokenBucket
    from shield.core.mapping import Mapping
    from shield.core.path import plain_end
except ImportError as _error:  # pragma: no cover - only on a broken installation
    if _error.name is not None and not _error.name.startswith("shield.core."):
        raise
    raise ImportError(
        "Shield's compiled modules are missing or do not fit this Python. Build them with "
        "`pip install .` from the source tree, or, in a development checkout, `python setup.py build_ext --inplace`; "
        "both need a C compiler. There is no slow fallback.",
        name=_error.name,
    ) from _error

from shield.core.bucket import Bucket
from shield.core.status import LimitStatus

__all__ = [
    "Asked",
    "Bucket",
    "Charges",
    "CompiledPolicy",
    "Decision",
    "LeaseTable",
    "Purse",
    "Purses",
    "LimitStatus",
    "LocalDecider",
    "MappedFile",
    "Mapping",
    "Outcome",
    "Price",
    "Registry",
    "SharedTable",
    "SlidingWindow",
    "Step",
    "Steps",
    "Table",
    "TokenBucket",
    "check_command",
    "next_batch",
    "outcomes_in",
    "plain_end",
]
