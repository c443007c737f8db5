"""What `check-policy` and `decide` print: text for people, JSON for programs."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

import msgspec

from shield.policy.model import CONCURRENCY, TOKEN_BUCKET, Limit, Numbers
from shield.rate import Rate, format_duration

if TYPE_CHECKING:
    from shield.core import LimitStatus
    from shield.decision import Decision
    from shield.errors import PolicyError
    from shield.policy import Policy
    from shield.shield import Explanation


# ---- policies ----------------------------------------------------------------------------------------------


def errors_text(error: PolicyError, file: str) -> str:
    """Every error with its path."""
    lines = [f"{file}: {_count(len(error.issues), 'error')}"]
    lines += [f"  {issue}" for issue in error.issues]
    return "\n".join(lines)


def errors_json(error: PolicyError, file: str) -> str:
    """The same, as one object."""
    issues = [{"path": issue.path, "message": issue.message} for issue in error.issues]
    return _json({"ok": False, "file": file, "errors": issues})


def policy_text(policy: Policy, file: str) -> str:
    """What a valid policy says, and what it probably does not mean."""
    owner = f", owner {policy.owner}" if policy.owner else ""
    lines = [
        f"{file}: valid: policy {policy.name!r}{owner}, {_count(len(policy.limits), 'limit')}, "
        f"fingerprint {policy.fingerprint}"
    ]
    if policy.limits:
        head = ("limit", "counts by", "algorithm", "allows", "for", "cost", "else")
        rows = [
            (
                limit.name,
                ", ".join(limit.key),
                limit.algorithm,
                allowance(limit, limit.numbers),
                _matches(limit),
                str(limit.cost),
                _conduct(limit),
            )
            for limit in policy.limits
        ]
        lines += ["", *_table(head, rows)]
    lines += _sources(policy)
    if policy.size is not None:
        largest = "any size" if policy.size.max_body_bytes is None else f"at most {policy.size.max_body_bytes:,} bytes"
        lines += ["", f"bodies: {largest}, {', '.join(policy.size.content_types) or 'any type'}"]
    lines += [f"warning: {warning}" for warning in policy.warnings()]
    return "\n".join(lines)


def _sources(policy: Policy) -> list[str]:
    """Whose word is taken for who a request comes from."""
    identity = policy.identity
    if identity.failures is None:
        return []
    lines = [
        f"tokens of {one.issuer} ({', '.join(one.algorithms)}; keys: {one.jwks or one.secret}): "
        + ", ".join(f"{field} = {claim}" for field, claim in one.claims.items())
        for one in identity.jwt
    ]
    if identity.api_keys is not None:
        lines.append(f"API keys of {identity.api_keys.store}")
    without = "has no tenant, user and plan" if identity.anonymous else "is refused"
    allowed = allowance(identity.failures, identity.failures.numbers)
    lines.append(f"a request without any {without}; failures by address: {allowed}")
    return ["", *lines]


def policy_json(policy: Policy, file: str) -> str:
    """The same, as one object."""
    return _json(
        {
            "ok": True,
            "file": file,
            "name": policy.name,
            "owner": policy.owner,
            "fingerprint": policy.fingerprint,
            "warnings": list(policy.warnings()),
            "limits": [
                {
                    "name": limit.name,
                    "key": list(limit.key),
                    "algorithm": limit.algorithm,
                    "allows": allowance(limit, limit.numbers),
                    "plans": {plan: allowance(limit, numbers) for plan, numbers in limit.plans.items()},
                    "match": {"method": list(limit.methods), "path": list(limit.paths)},
                    "cost": limit.cost,
                    "mode": limit.mode,
                }
                for limit in policy.limits
            ],
        }
    )


def allowance(limit: Limit, numbers: Numbers) -> str:
    """What the numbers allow, in the words of a policy file."""
    if limit.algorithm == TOKEN_BUCKET:
        return f"{_refill(numbers)}, burst {numbers.limit:,}"
    if limit.algorithm == CONCURRENCY:
        return f"{numbers.limit} in flight, ttl {format_duration(limit.ttl_us or 0)}"
    if limit.window_us is None:
        return f"{numbers.limit:,} per month ({limit.timezone})"
    if limit.align is not None:
        return f"{numbers.limit:,} per {limit.align} ({limit.timezone})"
    return f"{numbers.limit:,} per {format_duration(limit.window_us)}"


def _refill(numbers: Numbers) -> str:
    """A reduced rate in a unit that people use: 1/20ms is 50/s."""
    for period_us in (1_000_000, 60_000_000, 3_600_000_000, 86_400_000_000):
        count, rest = divmod(numbers.refill_units * period_us, numbers.refill_us)
        if not rest:
            return str(Rate(count, period_us))
    return str(Rate(numbers.refill_units, numbers.refill_us))


def _matches(limit: Limit) -> str:
    method, path = " ".join(limit.methods), " ".join(limit.paths)
    return " ".join(part for part in (method, path) if part) or "every request"


def _conduct(limit: Limit) -> str:
    notes = []
    if limit.mode != "enforce":
        notes.append(limit.mode)
    if limit.count_denied:
        notes.append("counts denied")
    if limit.missing != "skip":
        notes.append(f"missing: {limit.missing}")
    if limit.plans:
        notes.append(_count(len(limit.plans), "plan"))
    return ", ".join(notes) or "-"


# ---- decisions ---------------------------------------------------------------------------------------------


def decision_json(decision: Decision, seen: Sequence[Explanation]) -> str:
    """The decision as /v1/check answers it; with explanations, both in one object."""
    told = msgspec.json.decode(decision.to_json())
    if not seen:
        return _json(told)
    statuses = {status.name: status for status in decision.limits}
    explained = []
    for one in seen:
        status = statuses.get(one.name)
        entry: dict[str, Any] = {"name": one.name, "matched": one.matched, "why": one.why, "key": one.key}
        if status is not None:
            entry |= {"allowed": status.allowed, "limit": status.limit, "remaining": status.remaining}
        explained.append(entry)
    return _json({"decision": told, "explain": explained})


def decision_text(decision: Decision, seen: Sequence[Explanation]) -> str:
    """The verdict in a line, then a line for each limit."""
    lines = [_verdict(decision)]
    if decision.detail:
        lines.append(decision.detail)
    if decision.graphql is not None and decision.detail is None:
        operations, cost, type_cost = decision.graphql
        lines.append(f"GraphQL: {_count(operations, 'operation')}, cost {cost:,}, type cost {type_cost:,}")
    if decision.degraded:
        lines.append("degraded: the store's truth is not known")
    if seen:
        statuses = {status.name: status for status in decision.limits}
        head = ("limit", "matched", "why", "key", "verdict", "cost", "left", "full in")
        rows = [_explained(one, statuses.get(one.name), decision) for one in seen]
        lines += ["", *_table(head, rows)]
    return "\n".join(lines)


def _verdict(decision: Decision) -> str:
    if decision.allowed:
        return f"allowed: {decision.status} {decision.reason}"
    violated = f" by {', '.join(decision.violated)}" if decision.violated else ""
    again = decision.retry_after
    if again is None:
        later = "; it would never fit" if decision.violated else ""
    else:
        later = f"; retry after {again:g} s"
    return f"refused: {decision.status} {decision.reason}{violated}{later}"


def _explained(one: Explanation, status: LimitStatus | None, decision: Decision) -> tuple[str, ...]:
    matched = "yes" if one.matched else "no"
    if status is None:
        return (one.name, matched, one.why, one.key or "-", "-", "-", "-", "-")
    if status.allowed:
        verdict = "fits"
    elif one.name in decision.shadow:
        verdict = "would refuse (shadow)"
    else:
        verdict = "refuses"
    return (
        *(one.name, matched, one.why, one.key or "-", verdict, str(status.cost)),
        *(f"{status.remaining:,} of {status.limit:,}", f"{status.reset_after:g} s"),
    )


# ---- layout ------------------------------------------------------------------------------------------------


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    """Columns as wide as what is in them; text stays printable whatever it holds."""
    cells = [list(head), *([_printable(cell) for cell in row] for row in rows)]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in cells]
    return [lines[0], "-" * max(map(len, lines)), *lines[1:]]


def _printable(text: str) -> str:
    shown = text if text.isprintable() else repr(text)
    return shown if len(shown) <= 80 else shown[:77] + "..."


def _count(number: int, what: str) -> str:
    return f"{number} {what}" if number == 1 else f"{number} {what}s"


def _json(value: Any) -> str:
    return msgspec.json.format(msgspec.json.encode(value), indent=2).decode()
