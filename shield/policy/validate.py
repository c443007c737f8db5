"""From what a file holds to the model: every key by the schema, then the rules that span several keys.

A wrong file is refused whole. Everything that is wrong is found in one run; a rule is skipped only where a
value that it needs was refused already.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

from shield.errors import PolicyError
from shield.policy import schema
from shield.policy.abuse import Blocks
from shield.policy.abuse_schema import blocks_of, events_of
from shield.policy.calendar import DAY, MONTH
from shield.policy.detector_rules import read_detectors
from shield.policy.graphql_rules import Read, graphql_of
from shield.policy.idempotency_rules import idempotency_of
from shield.policy.identity_rules import identity_of
from shield.policy.kinds import Key
from shield.policy.model import (
    CONCURRENCY,
    FIXED_WINDOW,
    IDENTITY_FAILURES,
    TOKEN_BUCKET,
    Limit,
    Numbers,
    Policy,
    SizeGuard,
)
from shield.policy.replay import replay_of
from shield.policy.report import REFUSED, Report, join
from shield.rate import Rate, parse_duration

# The deepest policy there is (limit, plans, plan, key) has 5 levels; the rest is room for a helpful error.
MAX_DEPTH = 16

_DAY_US = 86_400_000_000
_DEFAULT_TTL_US = parse_duration("60s")
_PERIODS = {
    DAY: 'a count per day, because of align = "day"',
    MONTH: 'a count per month, because of align = "month"',
    None: 'a fixed period; a month needs align = "month"',
}
_UNITS_ALLOWED = f"a count from 1 to {schema.MAX_UNITS:,}"


def _reads_nothing(name: str, max_bytes: int) -> str:
    raise ValueError("this policy is no file, and names none")


def build(tree: object, source: str | None = None, directory: str | None = None, read: Read = _reads_nothing) -> Policy:
    """The policy that this tree of dicts, lists and scalars says. Raises PolicyError with every issue.

    `directory` is where the relative names of files in it start; `read` gives the text of those that the policy is
    made of.
    """
    report = Report()
    _bound_depth(tree, report)
    policy = None if report.issues else _policy(tree, report, directory, read)
    if report.issues or policy is None:
        raise PolicyError(report.issues, source)
    return policy


def _bound_depth(tree: object, report: Report) -> None:
    level: list[object] = [tree]
    for _ in range(MAX_DEPTH + 1):
        below: list[object] = []
        for item in level:
            if isinstance(item, dict):
                below += item.values()
            elif isinstance(item, list):
                below += item
        if not below:
            return
        level = below
    report.add("", f"found tables or lists nested deeper than {MAX_DEPTH}; allowed: at most {MAX_DEPTH}")


def _policy(tree: object, report: Report, directory: str | None, read: Read) -> Policy | None:
    if isinstance(tree, dict):
        tree = _flat_fields(tree)
    values = schema.POLICY.read(tree, "", report)
    if values is REFUSED:
        return None
    limits = _limits(values["limit"], report)
    guard = values["guard"]
    replay = replay_of(guard if guard in (None, REFUSED) else guard["replay"], report)
    signed = replay is not None and bool(replay.schemes)
    places = _places(values["limit"])
    identity = identity_of(values["identity"], limits, places, report, directory, signed=signed)
    size = _size(guard)
    graphql = graphql_of(guard if guard in (None, REFUSED) else guard["graphql"], limits, report, read)
    idempotency = idempotency_of(guard if guard in (None, REFUSED) else guard["idempotency"], report)
    detectors = read_detectors(values["detector"], report)
    blocks, events = blocks_of(values["blocks"]), events_of(values["events"])
    if report.issues:
        return None
    return Policy(
        version=values["version"],
        name=values["name"],
        owner=values["owner"],
        settle_within_us=values["settle_within"],
        identity=identity,
        limits=tuple(limit for limit in limits if identity.failures is None or limit.name != IDENTITY_FAILURES),
        size=size,
        graphql=graphql,
        replay=replay,
        idempotency=idempotency,
        detectors=detectors,
        blocks=blocks or Blocks(),
        events=events,
    )


def _flat_fields(tree: dict[Any, Any]) -> dict[Any, Any]:
    """The same tree with `attributes.country = "X"`, a nested table in TOML, as the field it means."""
    identity = tree.get("identity")
    if not isinstance(identity, dict):
        return tree
    flat = {name: _flat(item) if name == "headers" else item for name, item in identity.items()}
    if isinstance(identity.get("jwt"), list):
        flat["jwt"] = [
            {name: _flat(item) if name == "claims" else item for name, item in one.items()}
            if isinstance(one, dict)
            else one
            for one in identity["jwt"]
        ]
    return tree | {"identity": flat}


def _flat(table: Any) -> Any:
    nested = table.get("attributes") if isinstance(table, dict) else None
    if not isinstance(nested, dict):
        return table
    flat = {name: item for name, item in table.items() if name != "attributes"}
    return flat | {f"attributes.{name}": item for name, item in nested.items()}


def _size(guard: Any) -> SizeGuard | None:
    if guard is None or guard is REFUSED or guard["size"] is None or guard["size"] is REFUSED:
        return None
    return SizeGuard(**guard["size"])


def _places(entries: Any) -> dict[str, int]:
    """Where in the file each limit is, by its name."""
    if entries is REFUSED:
        return {}
    return {values["name"]: at for at, values in enumerate(entries) if values is not REFUSED}


def _limits(entries: Any, report: Report) -> tuple[Limit, ...]:
    if entries is REFUSED:
        return ()
    limits: list[Limit] = []
    first: dict[str, int] = {}
    for at, values in enumerate(entries):
        if values is REFUSED:
            continue
        path = f"limit[{at}]"
        name = values["name"]
        if name is not REFUSED and first.setdefault(name, at) != at:
            report.wrong(f"{path}.name", name, "a name of its own", f"limit[{first[name]}] has it already")
        limit = _limit(values, path, report)
        if limit is not None:
            limits.append(limit)
    return tuple(limits)


def _limit(values: dict[str, Any], path: str, report: Report) -> Limit | None:
    algorithm = values["algorithm"]
    if algorithm is REFUSED:
        return None
    _only(schema.LIMIT.keys, values, algorithm, path, report)
    numbers = _numbers(values, algorithm, path, report)
    align, timezone = _aligned(values, path, report) if algorithm == FIXED_WINDOW else (None, None)
    plans = _plans(values, algorithm, numbers, path, report)
    _conduct(values, algorithm, path, report)
    match = values["match"] if values["match"] is not None else {"method": None, "path": None}
    if numbers is None or plans is None or match is REFUSED or any(item is REFUSED for item in values.values()):
        return None
    rate: Rate | None = values["rate"]
    default_full = "deny" if algorithm == CONCURRENCY else "share"
    return Limit(
        name=values["name"],
        key=values["key"],
        algorithm=algorithm,
        numbers=numbers,
        plans=plans,
        window_us=None if rate is None or algorithm == TOKEN_BUCKET else rate.period_us,
        align=align,
        timezone=timezone,
        ttl_us=(values["ttl"] or _DEFAULT_TTL_US) if algorithm == CONCURRENCY else None,
        methods=match["method"] or (),
        paths=match["path"] or (),
        missing=values["missing"],
        when_store_fails=values["when_store_fails"],
        when_full=values["when_full"] or default_full,
        count_denied=values["count_denied"],
        mode=values["mode"],
        cost=values["cost"],
        lease=values["lease"] or "off",
    )


def _only(keys: tuple[Key, ...], values: Mapping[str, Any], algorithm: str, path: str, report: Report) -> None:
    """Keys that this algorithm does not know."""
    for key in keys:
        value = values[key.name]
        if key.only and algorithm not in key.only and value is not None:
            known = " or ".join(key.only)
            report.add(
                join(path, key.name),
                f"found in a {algorithm} limit; allowed: only with algorithm = {known}",
            )


def _numbers(values: Mapping[str, Any], algorithm: str, path: str, report: Report) -> Numbers | None:
    """The limit's own numbers, or None when they are wrong, which has been reported."""
    required = "limit" if algorithm == CONCURRENCY else "rate"
    given = values[required]
    if given is None:
        help_text = next(key.kind.allowed for key in schema.LIMIT.keys if key.name == required)
        report.add(join(path, required), f"missing in a {algorithm} limit; allowed: {help_text}")
    if given is None or given is REFUSED:
        return None
    if algorithm == CONCURRENCY:
        return Numbers(given)
    if values["burst"] is REFUSED:
        return None
    return _from_rate(given, values["burst"], algorithm, path, report)


def _from_rate(rate: Rate, burst: int | None, algorithm: str, path: str, report: Report) -> Numbers | None:
    at = join(path, "rate")
    if rate.period_us is None and algorithm != FIXED_WINDOW:
        allowed = 'a fixed period; a month needs algorithm = "fixed-window" and align = "month"'
        report.wrong(at, str(rate), allowed)
        return None
    if burst is None and rate.count > schema.MAX_UNITS:
        default = "burst defaults to the count: set burst, or a shorter period"
        report.wrong(at, str(rate), _UNITS_ALLOWED, default if algorithm == TOKEN_BUCKET else "")
        return None
    if algorithm == TOKEN_BUCKET:
        return Numbers(burst or rate.count, *rate.reduced)
    return Numbers(rate.count)


def _aligned(values: Mapping[str, Any], path: str, report: Report) -> tuple[str | None, str | None]:
    """(align, timezone) of a fixed window, checked against the rate's period."""
    align, timezone, rate = values["align"], values["timezone"], values["rate"]
    if align is None and timezone not in (None, REFUSED):
        report.wrong(f"{path}.timezone", timezone, 'only together with align = "day" or "month"')
    if align is REFUSED or not isinstance(rate, Rate):
        return None, None
    fits = {DAY: rate.period_us == _DAY_US, MONTH: rate.period_us is None, None: rate.period_us is not None}
    if not fits[align]:
        report.wrong(f"{path}.rate", str(rate), _PERIODS[align])
    return align, (timezone or "UTC") if align is not None else None


def _plans(
    values: Mapping[str, Any], algorithm: str, base: Numbers | None, path: str, report: Report
) -> Mapping[str, Numbers] | None:
    """Complete numbers by plan, or None when any are wrong, which has been reported."""
    entries = values["plans"]
    if entries is REFUSED:
        return None
    merged: dict[str, Numbers] = {}
    for plan, entry in entries.items():
        at = join(f"{path}.plans", plan)
        _only(schema.PLAN.keys, entry, algorithm, at, report)
        numbers = _plan_numbers(entry, values["rate"], algorithm, base, at, report)
        if numbers is not None:
            merged[plan] = numbers
    return MappingProxyType(merged) if len(merged) == len(entries) else None


def numbers_of_plan(
    entry: Mapping[str, Any], base_rate: Rate | None, algorithm: str, base: Numbers, report: Report
) -> Numbers | None:
    """What an entry of `plans`, which the schema has read, makes of a limit's numbers. None: see the report."""
    _only(schema.PLAN.keys, entry, algorithm, "", report)
    return _plan_numbers(entry, base_rate, algorithm, base, "", report)


def _plan_numbers(
    entry: Mapping[str, Any], base_rate: Any, algorithm: str, base: Numbers | None, path: str, report: Report
) -> Numbers | None:
    rate, burst, limit = entry["rate"], entry["burst"], entry["limit"]
    if REFUSED in (rate, burst, limit):
        return None
    if algorithm == CONCURRENCY:
        return None if limit is None else Numbers(limit)
    if rate is None:
        if algorithm != TOKEN_BUCKET or base is None or burst is None:
            return None
        return Numbers(burst, base.refill_units, base.refill_us)
    if algorithm != TOKEN_BUCKET and isinstance(base_rate, Rate) and rate.period_us != base_rate.period_us:
        report.wrong(
            f"{path}.rate",
            str(rate),
            f"a rate with the limit's own period, as in {str(base_rate)!r}, because the window is the limit's identity",
        )
        return None
    return _from_rate(rate, burst, algorithm, path, report)


def _conduct(values: Mapping[str, Any], algorithm: str, path: str, report: Report) -> None:
    """What does not go together, and what a concurrency limit cannot do."""
    if values["lease"] == "auto" and values["count_denied"] is True:
        allowed = "not together with count_denied: the store does not hear of refusals that leases decide"
        report.wrong(f"{path}.lease", "auto", allowed)
    if algorithm != CONCURRENCY:
        return
    if values["cost"] not in (REFUSED, "request") and isinstance(values["cost"], str):
        report.wrong(f"{path}.cost", values["cost"], 'a whole number or "request" for a concurrency limit')
    if values["when_full"] in ("share", "allow"):
        report.wrong(f"{path}.when_full", values["when_full"], '"deny": a concurrency limit always denies when full')
