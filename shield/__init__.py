"""Shield decides every quota of a request in one atomic step, as a library and behind a gateway.

from shield import Shield, Policy, Request, TokenBucket, SlidingWindow
"""

from importlib.metadata import PackageNotFoundError, version

from shield.core import Decision, LimitStatus, SlidingWindow, TokenBucket
from shield.errors import PolicyError, ReceiptError, Refused, RequestError, ShieldError, StoreError, StoreTimeout
from shield.policy import Policy
from shield.rate import Rate
from shield.request import Request
from shield.shield import Shield

try:
    __version__ = version("shield-limiter")
except PackageNotFoundError:  # run from a source tree that was never installed
    __version__ = "0+source"

__all__ = [
    "Decision",
    "LimitStatus",
    "Policy",
    "PolicyError",
    "Rate",
    "ReceiptError",
    "Refused",
    "Request",
    "RequestError",
    "Shield",
    "ShieldError",
    "SlidingWindow",
    "StoreError",
    "StoreTimeout",
    "TokenBucket",
    "__version__",
]
