"""From a policy to what decides by it."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

from shield.core import CompiledPolicy, Registry
from shield.guard.size import check_size
from shield.policy import Policy
from shield.policy.calendar import window_of
from shield.policy.matcher import Matcher
from shield.policy.path import normalise
from shield.policy.throttle import with_throttles

if TYPE_CHECKING:
    from shield.guard.graphql import PriceGuard


def compile_policy(
    policy: Policy, registry: Registry, prices: PriceGuard | None = None, under: str | None = None
) -> CompiledPolicy:
    """The policy resolved once, for one store's registry. `under`: as for CompiledPolicy, a throttle's prefix."""
    limits, replay = with_throttles(policy), None
    if policy.replay is not None:
        one = policy.replay
        limits = (*limits, *one.bounds)
        replay = one.required, one.window_us, one.future_skew_us, one.when_store_fails == "allow"
    matcher = Matcher(limits)
    guard = None
    if policy.size is not None:
        guard = partial(check_size, policy.size)
    return CompiledPolicy(
        registry,
        limits,
        select=None if matcher.unconditional else matcher.match,
        guard=guard,
        price=prices.check if prices is not None else None,
        max_cost=prices.max_cost if prices is not None else None,
        normalise=normalise,
        windows=[
            None if limit.align is None else partial(window_of, align=limit.align, timezone=limit.timezone or "UTC")
            for limit in limits
        ],
        ipv6_prefix=policy.identity.ipv6_prefix,
        under=under,
        replay=replay,
        overrides=[dict(policy.overrides.get(limit.name, {})) or None for limit in limits]
        if policy.overrides
        else None,
        shadows=policy.shadow_guards,
    )
