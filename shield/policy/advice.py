"""What a policy allows but whoever wrote it probably did not mean."""

from __future__ import annotations

from shield.policy.detector import THROTTLE
from shield.policy.model import CONCURRENCY, Limit, Policy
from shield.policy.throttle import field_of

# What every HTTP request has; anything else in a key may be absent and then switches the limit off for the
# request.
_ALWAYS_PRESENT = ("ip", "method", "path", "host")


def warnings(policy: Policy) -> tuple[str, ...]:
    """One sentence each, in a fixed order."""
    found = [*_coverage(policy)]
    for limit in policy.limits:
        found += _limit(limit)
    if any(network.endswith("/0") for network in policy.identity.trusted_proxies):
        found.append(
            "identity.trusted_proxies trusts every address: any client can choose its own address in X-Forwarded-For"
        )
    found += _sources(policy)
    found += _throttles(policy)
    if policy.size is not None and policy.size.max_body_bytes is None and not policy.size.content_types:
        found.append("guard.size checks nothing: it has neither max_body_bytes nor content_types")
    return tuple(found)


def _throttles(policy: Policy) -> list[str]:
    """Detectors that would throttle whom no limit counts by."""
    counted = {field for limit in policy.limits for field in limit.key}
    found = []
    for one in policy.detectors:
        if one.action == THROTTLE and one.subject != "principal" and field_of(one.subject) not in counted:
            found.append(
                f"detector {one.name} throttles by {one.subject}, but no limit has {field_of(one.subject)} in its key: "
                "nothing becomes less"
            )
    return found


def _sources(policy: Policy) -> list[str]:
    """Issuers whose tokens escape what the limits count by."""
    found = []
    for issuer in policy.identity.jwt:
        for field in ("tenant", "user"):
            counting = [limit.name for limit in policy.limits if field in limit.key and limit.missing == "skip"]
            if counting and field not in issuer.claims:
                found.append(
                    f"tokens of {issuer.name} give no {field} (claims), so these limits never count their requests: "
                    f"{', '.join(counting[:8])}"
                )
    return found


def _coverage(policy: Policy) -> list[str]:
    """Whether a request without user or tenant meets a limit at all."""
    enforced = [limit for limit in policy.limits if limit.mode == "enforce"]
    if not policy.limits:
        return ["the policy has no limits: every request is within quota"]
    if not enforced:
        return ["every limit is in shadow mode: no request is ever over quota"]
    meeting = [limit for limit in enforced if limit.cost != 0 and _counts_anonymous(limit)]
    if any(not limit.methods and not limit.paths for limit in meeting):
        return []
    advice = 'add a limit with key = ["ip"] that matches every request, or set missing = "deny"'
    if not meeting:
        return [f"a request without user or tenant would meet no limit at all: {advice}"]
    names = ", ".join(limit.name for limit in meeting[:8])
    return [
        f"a request without user or tenant would meet no limit at all outside of what {names} "
        f"{'matches' if len(meeting) == 1 else 'match'}: {advice}"
    ]


def _counts_anonymous(limit: Limit) -> bool:
    return limit.missing == "deny" or all(field in _ALWAYS_PRESENT for field in limit.key)


def _limit(limit: Limit) -> list[str]:
    found: list[str] = []
    if limit.cost == 0:
        found.append(f"limit {limit.name}: a cost of 0 is always allowed and counts nothing")
    if isinstance(limit.cost, int):
        short = [name for name, numbers in limit.plans.items() if limit.cost > numbers.limit]
        if limit.cost > limit.numbers.limit:
            found.append(
                f"limit {limit.name}: a cost of {limit.cost} never fits into {limit.numbers.limit}: every "
                "request that it matches is refused"
            )
        elif short:
            found.append(
                f"limit {limit.name}: a cost of {limit.cost} never fits for these plans, whose requests are "
                f"all refused: {', '.join(short[:8])}"
            )
    if limit.algorithm == CONCURRENCY and limit.count_denied:
        found.append(f"limit {limit.name}: count_denied does nothing for a concurrency limit")
    return found
