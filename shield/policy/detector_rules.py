"""From the tables of `[[detector]]` to detectors: `use` filled in, then the rules that span several keys."""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from functools import cache
from importlib.resources import files
from types import MappingProxyType
from typing import Any

from shield.policy import detector as model
from shield.policy.detector import Condition, Detector
from shield.policy.detector_schema import DETECTOR, MAX_DETECTORS, MAX_RULES
from shield.policy.kinds import Table
from shield.policy.report import REFUSED, Report, suggestion

ALL = "packaged"  # `use = "packaged"`: all of them

_LEAKY = (model.COUNT, model.DISTINCT, model.SUM)
_OF = {model.DISTINCT: "a field", model.SUM: '"cost" or "bytes"', model.VALUE_CHANGE: '"cost" or "bytes"'}
_AMOUNTS = ("cost", "bytes")
_MAX_TICKS = 1 << 61


@cache
def packaged() -> Mapping[str, Mapping[str, Any]]:
    """The packaged detectors by name, as a file would have them."""
    text = files("shield.detect").joinpath("packaged.toml").read_text(encoding="utf-8")
    return MappingProxyType({one["name"]: MappingProxyType(one) for one in tomllib.loads(text)["detector"]})


def read_detectors(entries: object, report: Report) -> tuple[Detector, ...]:
    """The detectors of a policy. What is wrong is in the report."""
    if entries is None:
        return ()
    if not isinstance(entries, list):
        report.wrong("detector", entries, "a list of tables, [[detector]]")
        return ()
    detectors: list[Detector] = []
    first: dict[str, str] = {}
    for path, entry in _expanded(entries):
        found = _one(entry, path, report)
        if found is None:
            continue
        if found.name in first:
            report.wrong(f"{path}.name", found.name, "a name of its own", f"{first[found.name]} has it already")
        first.setdefault(found.name, path)
        detectors.append(found)
    if len(detectors) > MAX_DETECTORS:
        report.add("detector", f"found {len(detectors)} detectors; allowed: at most {MAX_DETECTORS}")
    rules = sum(len(one.on) + len(one.failing) for one in detectors)
    if rules > MAX_RULES:
        report.add("detector", f"found {rules} conditions in all detectors together; allowed: at most {MAX_RULES}")
    return tuple(detectors)


def _expanded(entries: list[Any]) -> list[tuple[str, Any]]:
    """`use = "packaged"` as one entry for each of them that the policy does not name itself."""
    named = {entry.get("use") for entry in entries if isinstance(entry, dict)}
    out: list[tuple[str, Any]] = []
    for at, entry in enumerate(entries[: MAX_DETECTORS + 1]):
        if isinstance(entry, dict) and entry.get("use") == ALL and "name" not in entry:
            out += [(f"detector[{at}]", {**entry, "use": name}) for name in packaged() if name not in named]
        else:
            out.append((f"detector[{at}]", entry))
    return out


def _one(entry: Any, path: str, report: Report) -> Detector | None:
    is_packaged = False
    if isinstance(entry, dict) and "use" in entry:
        known = packaged()
        used = entry["use"]
        if not isinstance(used, str) or used not in known:
            allowed = f"{', '.join(known)}, or {ALL} for all of them"
            report.wrong(f"{path}.use", used, allowed, suggestion(used, list(known)).removeprefix(", "))
            return None
        is_packaged = True
        entry = {**known[used], **{name: value for name, value in entry.items() if name != "use"}}
    if isinstance(entry, dict):
        entry = {**entry, **{name: [entry[name]] for name in ("on", "failing") if isinstance(entry.get(name), dict)}}
    values = DETECTOR.read(entry, path, report)
    if values is REFUSED or any(value is REFUSED for value in values.values()):
        return None
    problems = len(report.issues)
    _required(values, path, report)
    if len(report.issues) > problems:
        return None
    _consistent(values, path, report)
    if len(report.issues) > problems:
        return None
    return _build(values, is_packaged)


def _required(values: dict[str, Any], path: str, report: Report) -> None:
    needed = ["name", "on", "key", "measure"]
    measure = values["measure"]
    if measure in _LEAKY:
        needed.append("leak")
    if measure == model.RATIO:
        needed += ["share", "failing"]
    if measure in _OF:
        needed.append("of")
    for name in needed:
        if values[name] is None:
            report.add(f"{path}.{name}", f"missing; allowed: {_allowed(DETECTOR, name)}")


def _consistent(values: dict[str, Any], path: str, report: Report) -> None:
    measure, of, leak = values["measure"], values["of"], values["leak"]
    if of is not None and measure not in _OF:
        report.wrong(f"{path}.of", of, f"only with measure = {', '.join(_OF)}")
    elif of in _AMOUNTS and measure == model.DISTINCT:
        report.wrong(f"{path}.of", of, "a field that is no amount, for different values")
    elif of is not None and of not in _AMOUNTS and measure in (model.SUM, model.VALUE_CHANGE):
        report.wrong(f"{path}.of", of, _OF[measure])
    if leak is not None:
        if leak.period_us is None:
            report.wrong(f"{path}.leak", str(leak), "a fixed period")
        elif (values["capacity"] or 0) + 1 > _MAX_TICKS // leak.reduced[1]:
            report.wrong(
                f"{path}.leak",
                str(leak),
                "a faster leak, or a smaller capacity: together they pass what can be counted",
            )
    if (values["share"] is None) != (values["failing"] is None):
        report.add(f"{path}.share", "share and failing go together; allowed: both, or neither")
    outcomes = {one.of_outcomes for one in _conditions(values["on"])}
    if len(outcomes) > 1:
        report.add(
            f"{path}.on",
            "found conditions on requests and conditions on outcomes (status, event): an event would count twice; "
            "allowed: one or the other",
        )
    if values["failing"] is not None and not all(one.of_outcomes for one in _conditions(values["failing"])):
        report.add(f"{path}.failing", "found a condition without status or event; allowed: conditions on outcomes")
    if values["factor"] is not None and values["action"] != model.THROTTLE:
        report.wrong(f"{path}.factor", values["factor"], 'only with action = "throttle"')
    if values["subject"] is None and _subject(values["key"]) is None:
        report.add(f"{path}.subject", f"missing, as the key names none; allowed: {_allowed(DETECTOR, 'subject')}")


def _conditions(entries: Any) -> tuple[Condition, ...]:
    return tuple(
        Condition(
            methods=one["method"] or (),
            paths=one["path"] or (),
            statuses=tuple(sorted({status for group in one["status"] or () for status in group})),
            events=one["event"] or (),
            traits=one["trait"] or (),
            without=one["without"] or (),
            agents=tuple(text.lower() for text in one["user_agent"] or ()),
            countries=one["country"] or (),
            asns=one["asn"] or (),
        )
        for one in entries or ()
    )


def _subject(key: tuple[str, ...]) -> str | None:
    return next((name for name in (field.removesuffix("?") for field in key) if name in model.SUBJECTS), None)


def _build(values: dict[str, Any], is_packaged: bool) -> Detector:
    measure = values["measure"]
    leak_units, leak_us = values["leak"].reduced if values["leak"] is not None else (1, 1)
    changes = measure in (model.CHANGE, model.VALUE_CHANGE)
    return Detector(
        name=values["name"],
        on=_conditions(values["on"]),
        failing=_conditions(values["failing"]),
        key=values["key"],
        measure=measure,
        of=values["of"],
        capacity=values["capacity"] or 0,
        leak_units=leak_units,
        leak_us=leak_us,
        share=values["share"] or 0.0,
        minimum=values["minimum"] or (model.DEFAULT_WARM_UP if changes else 1),
        window_us=values["window"] or 60_000_000,
        weight=values["weight"],
        deviations=values["deviations"],
        distance_km=values["distance_km"],
        speed_kmh=values["speed_kmh"],
        quiet_us=values["quiet"],
        action=values["action"],
        subject=values["subject"] or _subject(values["key"]) or "ip",
        max_keys=values["max_keys"],
        covers=values["covers"] or (),
        severity=values["severity"],
        oat=values["oat"] or (),
        api=values["api"] or (),
        note=values["note"] or "",
        packaged=is_packaged,
        factor=values["factor"] or model.DEFAULT_FACTOR,
        mode=values["mode"],
    )


def _allowed(table: Table, name: str) -> str:
    return next(key.kind.allowed for key in table.keys if key.name == name)
