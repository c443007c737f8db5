"""From a policy's detectors to what the compiled core measures by: bits, indexes and integers."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from shield.core.detect import Detectors
from shield.detect.traits import BIT, TRAITS, WORDS, of_agent, of_target
from shield.detect.travel import Locate
from shield.policy.detector import Condition, Detector
from shield.policy.matcher import Matcher
from shield.policy.path import normalise

# Traits have their bits from below; lists of user agents that a policy names have what is left of 32.
MAX_AGENT_LISTS = 32 - len(TRAITS)


class _Template:
    """What the matcher of limits wants to know of a rule."""

    def __init__(self, condition: Condition) -> None:
        self.methods = ()
        self.paths = condition.paths


def compile_detectors(
    detectors: Sequence[Detector], *, secret: bytes, ipv6_prefix: int = 64, locate: Locate | None = None
) -> Detectors:
    """The measuring core for these, in their order; of `travel` only which events are meant. `secret`: 16 bytes.

    ValueError where they read more different fields, or name more lists of agents, than there is room for.
    """
    conditions: list[Condition] = []
    rules: list[dict[str, Any]] = []
    agents: dict[tuple[str, ...], int] = {}
    for at, detector in enumerate(detectors):
        for failing, group in ((False, detector.on), (True, detector.failing)):
            for condition in group:
                conditions.append(condition)
                rules.append(_rule(condition, at, failing, detector, agents))
    if len(agents) > MAX_AGENT_LISTS:
        raise ValueError(f"found {len(agents)} lists of user agents; allowed: at most {MAX_AGENT_LISTS}")
    with_paths = any(condition.paths for condition in conditions)
    return Detectors(
        [_spec(detector) for detector in detectors],
        rules,
        secret=secret,
        traits_of=_traits_of(agents),
        words=WORDS,
        match=Matcher([_Template(one) for one in conditions]).match if with_paths else None,
        normalise=normalise,
        ipv6_prefix=ipv6_prefix,
        locate=locate,
    )


def _rule(
    condition: Condition, at: int, failing: bool, detector: Detector, agents: dict[tuple[str, ...], int]
) -> dict[str, Any]:
    need = sum(BIT[name] for name in condition.traits)
    if condition.agents:
        need |= agents.setdefault(
            condition.agents, 1 << (len(TRAITS) + len(agents)) if len(agents) < MAX_AGENT_LISTS else 0
        )
    facts = []
    if condition.countries:
        facts.append(("country", frozenset(condition.countries)))
    if condition.asns:
        facts.append(("asn", frozenset(condition.asns)))
    return {
        "detector": at,
        "failing": failing,
        "outcome": any(one.of_outcomes for one in detector.on),
        "statuses": frozenset(condition.statuses),
        "methods": condition.methods,
        "events": condition.events,
        "need": need,
        "without": sum(BIT[name] for name in condition.without),
        "has_path": bool(condition.paths),
        "facts": tuple(facts),
    }


def _spec(detector: Detector) -> dict[str, Any]:
    return {
        "identity": detector.identity,
        "measure": detector.measure,
        "key": detector.key,
        "of": detector.of,
        # A unit is as many ticks as the leak's period has microseconds, of which `leak_units` drain in each.
        "unit": detector.leak_us,
        "drain": detector.leak_units,
        "capacity": detector.capacity,
        "share": detector.share,
        "minimum": detector.minimum,
        "window_us": detector.window_us,
        "weight": detector.weight,
        "deviations": detector.deviations,
        "quiet_us": detector.quiet_us,
        "max_keys": detector.max_keys,
    }


def _traits_of(agents: dict[tuple[str, ...], int]) -> Callable[[str, bool], int]:
    lists = tuple(agents.items())

    def traits_of(text: str, is_agent: bool) -> int:
        if not is_agent:
            return of_target(text)
        bits = of_agent(text)
        if lists:
            lowered = text[:4_096].lower()
            for parts, bit in lists:
                if any(part in lowered for part in parts):
                    bits |= bit
        return bits

    return traits_of
