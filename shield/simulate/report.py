"""What came out of a simulation, as one plain object: the JSON form, from which text and page are made too."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any, Final

from shield.detect.detection import Detection
from shield.simulate.records import Source
from shield.simulate.replay import Outcome

# As many lines as somebody reads of one table.
MOST_SHOWN: Final = 50


def as_object(outcome: Outcome, source: Source) -> dict[str, Any]:
    """Everything, with times in ISO 8601 (UTC) and tables cut to MOST_SHOWN, each with how many there were."""
    refused = outcome.requests - outcome.allowed
    clients = sorted(outcome.clients.items(), key=lambda one: (-one[1][1], -one[1][0]))
    refusals = sorted(outcome.refusals.items(), key=lambda one: -one[1].count)
    return {
        "policy": {"name": outcome.policy.name, "fingerprint": outcome.policy.fingerprint},
        "lines": source.lines,
        "malformed": {
            "total": source.unread.total,
            "reasons": source.unread.counts,
            "samples": source.unread.samples,
        },
        "requests": outcome.requests,
        "allowed": outcome.allowed,
        "refused": refused,
        "from": shown_time(outcome.first_us),
        "to": shown_time(outcome.last_us),
        "reasons": outcome.reasons,
        "limits": outcome.by_limit,
        "shadow": outcome.shadow,
        "clients": {"total": len(outcome.clients), "refused": sum(1 for _, seen in clients if seen[1])},
        "refusals": [
            {
                "client": client,
                "by": by,
                "count": one.count,
                "requests": outcome.clients.get(client, [0])[0],
                "first": shown_time(one.first_us),
                "last": shown_time(one.last_us),
                "sample": one.sample,
            }
            for (client, by), one in refusals[:MOST_SHOWN]
        ],
        "refusals_left_off": max(0, len(refusals) - MOST_SHOWN) + outcome.refusals_left_off,
        "closest": {
            name: [
                {"key": key, "left": round(left, 4)} for key, left in sorted(least.items(), key=lambda one: one[1])[:10]
            ]
            for name, least in outcome.closest.items()
        },
        "detections": [detection_object(one) for one in outcome.detections],
        "detections_left_off": outcome.detections_left_off,
        "detectors": outcome.detectors,
    }


def detection_object(one: Detection) -> dict[str, Any]:
    """One detection with its evidence."""
    detector = one.detector
    return {
        "detector": one.name,
        "at": shown_time(one.at_us),
        "subject": one.subject,
        "key": dict(one.key),
        "severity": detector.severity,
        "action": detector.action,
        "owasp": [*detector.oat, *detector.api],
        "value": round(one.value, 3),
        "threshold": round(one.threshold, 3),
        "measure": detector.measure,
        "of": detector.of,
        "share": None if one.share is None else round(one.share, 3),
        "events": one.events,
        "since": shown_time(one.since_us),
        "repeats": one.repeats,
        "places": list(one.places),
        "samples": [{"at": shown_time(sample.at_us), "target": sample.target} for sample in one.samples],
    }


def shown_time(instant: int | None, unit_us: int = 1) -> str | None:
    """ISO 8601 in UTC, with fractions only where there are any."""
    if instant is None:
        return None
    moment = datetime.fromtimestamp(instant * unit_us / 1_000_000, UTC)
    return moment.isoformat().replace("+00:00", "Z")


def compared(old: Outcome, new: Outcome) -> dict[str, Any]:
    """The difference that a new policy makes: who is refused more or less than before."""
    changed: list[dict[str, Any]] = []
    for client, (requests, refused) in new.clients.items():
        before = old.clients.get(client, [requests, 0])[1]
        if before != refused:
            changed.append({"client": client, "requests": requests, "old": before, "new": refused})
    changed.sort(key=lambda one: -abs(int(one["new"]) - int(one["old"])))
    newly = [one for one in changed if one["old"] == 0]
    spared = [one for one in changed if one["new"] == 0]
    found_before = {(one.name, one.subject) for one in old.detections}
    found_now = {(one.name, one.subject) for one in new.detections}
    return {
        "old": {
            "policy": old.policy.name,
            "fingerprint": old.policy.fingerprint,
            "refused": old.requests - old.allowed,
        },
        "new": {
            "policy": new.policy.name,
            "fingerprint": new.policy.fingerprint,
            "refused": new.requests - new.allowed,
        },
        "requests": new.requests,
        "newly_refused": {"total": len(newly), "clients": newly[:MOST_SHOWN]},
        "spared": {"total": len(spared), "clients": spared[:MOST_SHOWN]},
        "changed": {"total": len(changed), "clients": changed[:MOST_SHOWN]},
        "limits": {
            name: {"old": old.by_limit.get(name, 0), "new": new.by_limit.get(name, 0)}
            for name in sorted({*old.by_limit, *new.by_limit})
        },
        "detections": {
            "gone": [list(one) for one in sorted(found_before - found_now)[:MOST_SHOWN]],
            "new": [list(one) for one in sorted(found_now - found_before)[:MOST_SHOWN]],
        },
    }


def as_text(told: dict[str, Any]) -> str:
    """The same for a terminal."""
    lines = [
        f"policy {told['policy']['name']!r}, {told['policy']['fingerprint']}: {told['requests']:,} requests"
        + (f" from {told['from']} to {told['to']}" if told["requests"] else ""),
        f"allowed {told['allowed']:,}, refused {told['refused']:,} ({_share(told['refused'], told['requests'])}), "
        f"clients {told['clients']['total']:,}, of which refused at least once {told['clients']['refused']:,}",
    ]
    if told["malformed"]["total"]:
        lines.append(f"lines not read: {told['malformed']['total']:,}")
        for why, count in told["malformed"]["reasons"].items():
            lines.append(f"  {why}: {count:,}")
            lines += [f"    {sample}" for sample in told["malformed"]["samples"].get(why, ())[:2] if sample]
    if told["limits"]:
        lines += ["", "refused by limit"]
        lines += [f"  {name:<32} {count:>10,}" for name, count in sorted(told["limits"].items())]
    if told["shadow"]:
        lines += ["", "would have been refused by limits and guards in shadow mode"]
        lines += [f"  {name:<32} {count:>10,}" for name, count in sorted(told["shadow"].items())]
    if told["refusals"]:
        lines += ["", "who, by what, when"]
        for one in told["refusals"][:20]:
            lines.append(
                f"  {one['client']:<40} {one['by']:<24} {one['count']:>8,} of {one['requests']:,}  "
                f"{one['first']} to {one['last']}"
            )
    near = [(name, one) for name, rows in told["closest"].items() for one in rows if one["left"] > 0]
    if near:
        lines += ["", "closest to a limit without passing it"]
        near.sort(key=lambda one: float(one[1]["left"]))
        lines += [f"  {name:<32} {one['key']:<40} {one['left']:.0%} left" for name, one in near[:10]]
    lines += ["", f"detections: {len(told['detections']) + told['detections_left_off']:,}"]
    for one in told["detections"][:MOST_SHOWN]:
        lines.append(f"  {one['at']}  {one['detector']:<28} {one['subject']:<40} {evidence(one)}")
        lines += [f"      {_clip(sample['target'])}" for sample in one["samples"][-2:] if sample["target"]]
    if len(told["detections"]) > MOST_SHOWN:
        lines.append(f"  and {len(told['detections']) - MOST_SHOWN:,} more")
    return "\n".join(lines)


def evidence(one: dict[str, Any]) -> str:
    """Figures against threshold, in words."""
    what = {"distinct": f"different {one['of']}", "count": "events", "sum": f"of {one['of']}", "travel": "km/h"}
    words = f"{one['value']:g} {what.get(one['measure'], one['of'] or 'events')} against {one['threshold']:g}"
    if one["share"] is not None:
        words += f", {one['share']:.0%} failures"
    if one["places"]:
        words += f", {' to '.join(one['places'])}"
    repeats = f", {one['repeats']:,} repeats since the last" if one["repeats"] else ""
    return f"{words}, {one['events']:,} events since {one['since']}{repeats}"


def compared_text(told: dict[str, Any]) -> str:
    """The difference for a terminal."""
    lines = [
        f"old {told['old']['policy']!r} {told['old']['fingerprint']}: refuses {told['old']['refused']:,} of "
        f"{told['requests']:,}",
        f"new {told['new']['policy']!r} {told['new']['fingerprint']}: refuses {told['new']['refused']:,}",
        f"clients refused only by the new one {told['newly_refused']['total']:,}, only by the old one "
        f"{told['spared']['total']:,}, differently {told['changed']['total']:,}",
    ]
    for name, both in told["limits"].items():
        lines.append(f"  limit {name:<32} {both['old']:>10,} -> {both['new']:,}")
    for one in told["changed"]["clients"][:20]:
        lines.append(f"  {one['client']:<40} refused {one['old']:,} -> {one['new']:,} of {one['requests']:,}")
    for label, rows in told["detections"].items():
        lines += [f"  {label}: {name} {subject}" for name, subject in rows]
    return "\n".join(lines)


def _share(part: int, whole: int) -> str:
    return f"{part / whole:.2%}" if whole else "0%"


def _clip(text: str) -> str:
    shown = "".join(c if c.isprintable() else "?" for c in text)
    return shown if len(shown) <= 110 else shown[:107] + "..."
