"""The policy: one file, read into a frozen model or refused whole."""

from shield.policy.model import Identity, Limit, Numbers, Policy, SizeGuard

__all__ = ["Identity", "Limit", "Numbers", "Policy", "SizeGuard"]
