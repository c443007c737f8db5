"""The policy: one file, read into a frozen model or refused whole."""

from shield.policy.model import GraphQLGuard, Identity, Limit, Numbers, Policy, SizeGuard

__all__ = ["GraphQLGuard", "Identity", "Limit", "Numbers", "Policy", "SizeGuard"]
