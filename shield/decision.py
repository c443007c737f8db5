"""The answer to one request. The classes are compiled, because every request makes one; their stubs document them."""

from shield.core import Decision, LimitStatus

__all__ = ["Decision", "LimitStatus"]
