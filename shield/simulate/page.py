"""The report as one HTML page that needs no network: figures, plots as inline SVG, tables.

Everything that came out of a log is escaped, and the page runs no script.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from html import escape
from typing import Any

from shield.simulate.replay import Outcome
from shield.simulate.report import evidence, shown_time

_MOST_BARS = 240
_WIDTH, _HEIGHT = 960, 180

_STYLE = """
:root { color-scheme: light dark; --ink: #1c2733; --soft: #5b6b7b; --line: #d7dee6; --paper: #fff; --ok: #4c78a8;
  --no: #d1495b; --mark: #e0a100; }
@media (prefers-color-scheme: dark) { :root { --ink: #e6edf3; --soft: #9aa9b8; --line: #33404d; --paper: #14191f; } }
body { font: 15px/1.5 system-ui, sans-serif; color: var(--ink); background: var(--paper); margin: 2rem auto;
  max-width: 62rem; padding: 0 1rem; }
h1 { font-size: 1.5rem; margin: 0 0 .25rem; } h2 { font-size: 1.1rem; margin: 2rem 0 .5rem; }
p.soft, td.soft, figcaption { color: var(--soft); }
.figures { display: flex; flex-wrap: wrap; gap: 1rem; margin: 1rem 0; }
.figures div { border: 1px solid var(--line); border-radius: 6px; padding: .5rem 1rem; min-width: 8rem; }
.figures b { display: block; font-size: 1.4rem; font-variant-numeric: tabular-nums; }
table { border-collapse: collapse; width: 100%; font-variant-numeric: tabular-nums; }
td { white-space: nowrap; max-width: 18rem; overflow: hidden; text-overflow: ellipsis; }
td:last-child { white-space: normal; max-width: none; overflow-wrap: anywhere; }
th, td { text-align: left; padding: .3rem .6rem .3rem 0; border-bottom: 1px solid var(--line); vertical-align: top; }
td.n, th.n { text-align: right; } code { font-size: .85em; overflow-wrap: anywhere; }
figure { margin: 1rem 0; } svg { width: 100%; height: auto; }
svg text { font: 11px system-ui, sans-serif; fill: var(--soft); }
.key i { display: inline-block; width: .8em; height: .8em; border-radius: 2px; margin: 0 .3em 0 1em; }
"""


def render(told: dict[str, Any], outcome: Outcome, compared: dict[str, Any] | None, suggested: Sequence[Any]) -> str:
    """The page."""
    refused, requests = told["refused"], told["requests"]
    parts = [
        "<!doctype html>\n<html lang='en'><head><meta charset='utf-8'>",
        "<meta name='viewport' content='width=device-width'>",
        "<meta http-equiv='Content-Security-Policy' content=\"default-src 'none'; style-src 'unsafe-inline'\">",
        f"<title>Shield: {escape(told['policy']['name'])} on recorded traffic</title><style>{_STYLE}</style></head>",
        "<body>",
        f"<h1>{escape(told['policy']['name'])} on recorded traffic</h1>",
        f"<p class='soft'>policy {escape(told['policy']['fingerprint'])}, {escape(told['from'] or 'no requests')}"
        f" to {escape(told['to'] or '')}</p>",
        _figures(
            (
                ("requests", f"{requests:,}"),
                ("refused", f"{refused:,} ({refused / requests:.2%})" if requests else "0"),
                ("clients", f"{told['clients']['total']:,}"),
                ("clients refused", f"{told['clients']['refused']:,}"),
                ("detections", f"{len(told['detections']) + told['detections_left_off']:,}"),
                ("lines not read", f"{told['malformed']['total']:,}"),
            )
        ),
        "<h2>Over time</h2>",
        _timeline(outcome),
    ]
    if compared is not None:
        parts += ["<h2>Compared with the other policy</h2>", _compared(compared)]
    if suggested:
        parts += ["<h2>Suggested limits by address</h2>", _suggested(suggested)]
    parts += ["<h2>Detections</h2>", _detections(told)]
    parts += ["<h2>Who was refused, by what, when</h2>", _refusals(told)]
    if told["shadow"]:
        parts += ["<h2>What shadow mode would have refused</h2>", _shadow(told["shadow"])]
    parts += ["<h2>Requests by client</h2>", _clients(outcome)]
    parts += ["<h2>Closest to a limit</h2>", _closest(told)]
    if told["malformed"]["total"]:
        parts += ["<h2>Lines that were not read</h2>", _malformed(told)]
    return "\n".join(parts) + "\n</body></html>\n"


def _figures(figures: Iterable[tuple[str, str]]) -> str:
    return "<div class='figures'>" + "".join(f"<div><b>{value}</b>{name}</div>" for name, value in figures) + "</div>"


def _timeline(outcome: Outcome) -> str:
    if not outcome.minutes:
        return "<p class='soft'>No requests.</p>"
    first, last = min(outcome.minutes), max(outcome.minutes)
    step = max(1, -(-(last - first + 1) // _MOST_BARS))
    bars: dict[int, list[int]] = {}
    for minute, counts in outcome.minutes.items():
        bar = bars.setdefault((minute - first) // step, [0, 0, 0])
        for at in range(3):
            bar[at] += counts[at]
    many = (last - first) // step + 1
    highest = max(allowed + refused for allowed, refused, _ in bars.values()) or 1
    width = _WIDTH / many
    marks = []
    for at, (allowed, refused, detected) in sorted(bars.items()):
        x, up, down = at * width, allowed / highest * _HEIGHT, refused / highest * _HEIGHT
        when = escape(shown_time((first + at * step) * 60_000_000) or "")
        title = f"<title>{when}: {allowed:,} allowed, {refused:,} refused, {detected:,} detections</title>"
        shape = f"x='{x:.2f}' width='{max(width * 0.9, 0.6):.2f}'"
        marks.append(
            f"<g>{title}<rect {shape} y='{_HEIGHT - up + 16:.2f}' height='{up:.2f}' fill='var(--ok)'/>"
            f"<rect {shape} y='{_HEIGHT - up - down + 16:.2f}' height='{down:.2f}' fill='var(--no)'/>"
            + (f"<circle cx='{x + width / 2:.2f}' cy='7' r='4' fill='var(--mark)'/>" if detected else "")
            + "</g>"
        )
    every = f"{step} min" if step < 60 else f"{step / 60:.1f} h"
    return (
        f"<figure><svg viewBox='0 0 {_WIDTH} {_HEIGHT + 36}' role='img' aria-label='requests over time'>"
        f"{''.join(marks)}"
        f"<text x='0' y='{_HEIGHT + 32}'>{escape(shown_time(first * 60_000_000) or '')}</text>"
        f"<text x='{_WIDTH}' y='{_HEIGHT + 32}' text-anchor='end'>{escape(shown_time(last * 60_000_000) or '')}</text>"
        f"<text x='0' y='12'>{highest:,} in {every}</text></svg><figcaption class='key'>"
        "<i style='background:var(--ok)'></i>allowed<i style='background:var(--no)'></i>refused"
        "<i style='background:var(--mark)'></i>detection</figcaption></figure>"
    )


def _shadow(counts: dict[str, int]) -> str:
    rows = "".join(f"<tr><td>{escape(name)}</td><td class='n'>{n:,}</td></tr>" for name, n in sorted(counts.items()))
    return f"<table><tr><th>limit or guard</th><th class='n'>requests</th></tr>{rows}</table>"


def _clients(outcome: Outcome) -> str:
    """How many clients made how many requests, in powers of two: the crowd, and who stands out of it."""
    groups: dict[int, list[int]] = {}
    for requests, refused in outcome.clients.values():
        group = groups.setdefault(max(0, requests.bit_length() - 1), [0, 0])
        group[1 if refused else 0] += 1
    if not groups:
        return "<p class='soft'>None.</p>"
    highest = max(sum(group) for group in groups.values())
    rows = []
    for at, power in enumerate(sorted(groups)):
        spared, touched = groups[power]
        y, left = at * 20, 130
        scale = (_WIDTH - left - 110) / highest
        label = f"{1 << power:,}" if power == 0 else f"{1 << power:,} to {(2 << power) - 1:,}"
        rows.append(
            f"<text x='{left - 8}' y='{y + 13}' text-anchor='end'>{label}</text>"
            f"<rect x='{left}' y='{y + 2}' height='15' width='{spared * scale:.2f}' fill='var(--ok)'/>"
            f"<rect x='{left + spared * scale:.2f}' y='{y + 2}' height='15' width='{touched * scale:.2f}' "
            "fill='var(--no)'/>"
            f"<text x='{left + (spared + touched) * scale + 6:.2f}' y='{y + 13}'>{spared + touched:,} clients</text>"
        )
    return (
        f"<figure><svg viewBox='0 0 {_WIDTH} {len(groups) * 20 + 4}' role='img' aria-label='clients by requests'>"
        f"{''.join(rows)}</svg><figcaption class='key'><i style='background:var(--ok)'></i>never refused"
        "<i style='background:var(--no)'></i>refused at least once</figcaption></figure>"
    )


def _detections(told: dict[str, Any]) -> str:
    rows = [
        (
            one["at"],
            f"<b>{escape(one['detector'])}</b><br><span class='soft'>{escape(', '.join(one['owasp']))}</span>",
            escape(one["subject"]),
            escape(evidence(one))
            + "".join(
                f"<br><code>{escape(str(sample['target'])[:160])}</code>"
                for sample in one["samples"]
                if sample["target"]
            ),
        )
        for one in told["detections"][:500]
    ]
    return _table(("when", "detector", "who", "evidence"), rows, raw=True)


def _refusals(told: dict[str, Any]) -> str:
    rows = [
        (
            one["client"],
            one["by"],
            f"{one['count']:,} of {one['requests']:,}",
            one["first"],
            one["last"],
            one["sample"] or "",
        )
        for one in told["refusals"]
    ]
    more = f"<p class='soft'>and {told['refusals_left_off']:,} more</p>" if told["refusals_left_off"] else ""
    return _table(("client", "by", "refused", "first", "last", "for example"), rows) + more


def _closest(told: dict[str, Any]) -> str:
    rows = [
        (name, one["key"], f"{one['left']:.1%}" if one["left"] > 0 else "none")
        for name, closest in told["closest"].items()
        for one in closest
    ]
    return _table(("limit", "key", "least that was left"), rows)


def _malformed(told: dict[str, Any]) -> str:
    rows = [
        (why, f"{count:,}", "  |  ".join(told["malformed"]["samples"].get(why, ())[:2]))
        for why, count in told["malformed"]["reasons"].items()
    ]
    return _table(("why", "lines", "for example"), rows)


def _compared(told: dict[str, Any]) -> str:
    rows = [
        (one["client"], f"{one['old']:,}", f"{one['new']:,}", f"{one['requests']:,}")
        for one in told["changed"]["clients"]
    ]
    return (
        f"<p>Refused before: {told['old']['refused']:,}; now: {told['new']['refused']:,} of {told['requests']:,}. "
        f"Clients refused only now: {told['newly_refused']['total']:,}; only before: {told['spared']['total']:,}.</p>"
        + _table(("client", "refused before", "refused now", "requests"), rows)
    )


def _suggested(found: Sequence[Any]) -> str:
    rows = [
        (
            f"{one['percentile']:g}",
            one["rate"],
            f"{one['burst']:,}",
            f"{one['clients_touched']:,} ({one['clients_share']:.2%})",
            f"{one['requests_refused']:,} ({one['requests_share']:.2%})",
        )
        for one in found
    ]
    return _table(("percentile", "rate", "burst", "clients touched", "requests refused"), rows)


def _table(head: Sequence[str], rows: Sequence[Sequence[str]], raw: bool = False) -> str:
    if not rows:
        return "<p class='soft'>None.</p>"
    cells = "".join(f"<th>{escape(name)}</th>" for name in head)
    body = "".join(
        "<tr>" + "".join(f"<td>{cell if raw else escape(cell)}</td>" for cell in row) + "</tr>" for row in rows
    )
    return f"<table><thead><tr>{cells}</tr></thead><tbody>{body}</tbody></table>"
