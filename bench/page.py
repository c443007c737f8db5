"""A run as one HTML page that needs no network and runs no script: plots, every figure with its spread, the machine."""

from __future__ import annotations

import statistics
from collections.abc import Callable
from html import escape
from typing import Any

from . import plots
from .plots import Line
from .results import Results
from .scaling import Law
from .scenarios import SCENARIOS
from .significance import blocks
from .table import shown, spread

_STYLE = """
:root { color-scheme: light dark; --ink: #1c2733; --soft: #5b6b7b; --line: #dde3ea; --paper: #fff; --no: #b3261e;
  --c1: #2f6db5; --c2: #c76b1e; --c3: #2e8b57; --c4: #8250b8; --c5: #b8336a; --c6: #5b6b7b; }
@media (prefers-color-scheme: dark) { :root { --ink: #e6edf3; --soft: #9aa9b8; --line: #2c3844; --paper: #14191f;
  --no: #ff8a80; --c1: #6aa7ec; --c2: #f0a35c; --c3: #63c493; --c4: #b791ec; --c5: #ef7fae; --c6: #9aa9b8; } }
body { font: 15px/1.5 system-ui, sans-serif; color: var(--ink); background: var(--paper); margin: 2rem auto;
  max-width: 72rem; padding: 0 1rem; }
h1 { font-size: 1.5rem; margin: 0 0 .25rem; } h2 { font-size: 1.15rem; margin: 2.2rem 0 .25rem; }
h3 { font-size: .95rem; margin: 0 0 .4rem; font-weight: 600; }
.soft { color: var(--soft); }
.plots { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(100%, 30rem), 1fr)); gap: 1.2rem 2rem; }
figure { margin: .8rem 0; } svg { width: 100%; height: auto; display: block; }
svg text { font: 11px system-ui, sans-serif; fill: var(--soft); }
.grid { stroke: var(--line); } .whisker { stroke: var(--ink); stroke-width: 1.5; }
.key { color: var(--soft); font-size: .85rem; display: flex; flex-wrap: wrap; gap: .2rem 1rem; }
.key i { display: inline-block; width: .8em; height: .8em; border-radius: 2px; margin-right: .35em; }
table { border-collapse: collapse; width: 100%; font-variant-numeric: tabular-nums; }
th, td { text-align: left; padding: .25rem .8rem .25rem 0; border-bottom: 1px solid var(--line); vertical-align: top; }
td.n { text-align: right; white-space: nowrap; } td.no { color: var(--no); font-weight: 600; }
.scroll { overflow-x: auto; }
"""


def render(results: Results) -> str:
    """The page."""
    machine, settings = results.machine, results.settings
    parts = [
        "<!doctype html>\n<html lang='en'><head><meta charset='utf-8'>",
        "<meta name='viewport' content='width=device-width'>",
        "<meta http-equiv='Content-Security-Policy' content=\"default-src 'none'; style-src 'unsafe-inline'\">",
        f"<title>Shield: what this machine does</title><style>{_STYLE}</style></head><body>",
        "<h1>Shield: what this machine does</h1>",
        f"<p class='soft'>{escape(str(machine.get('cpu', 'unknown processor')))}, {machine.get('cores', '?')} cores, "
        f"{escape(str(settings.get('began', '')))}"
        f"{', interrupted: the rest was not measured' if results.interrupted else ''}</p>",
    ]
    for name in dict.fromkeys(one["scenario"] for one in (*results.rows, *results.series, *results.skipped)):
        asks = SCENARIOS[name].asks if name in SCENARIOS else ""
        parts.append(f"<h2>{escape(name)}</h2><p class='soft'>{escape(asks)}</p>")
        drawn = [_figure(one) for one in results.series if one["scenario"] == name and one["kind"] in _PLOTS]
        if drawn:
            parts.append(f"<div class='plots'>{''.join(drawn)}</div>")
        parts.append(_table([row for row in results.rows if row["scenario"] == name]))
        for one in results.skipped:
            if one["scenario"] == name:
                parts.append(f"<p class='soft'>Skipped: {escape(one['what'])}: {escape(one['why'])}</p>")
    parts += ["<h2>The machine</h2>", _facts(machine), "<h2>The run</h2>", _facts(settings)]
    return "\n".join(parts) + "\n</body></html>\n"


def _figure(series: dict[str, Any]) -> str:
    return f"<figure><h3>{escape(series['what'])}</h3>{_PLOTS[series['kind']](series['points'])}</figure>"


def _load(points: list[dict[str, Any]]) -> str:
    hollow = [bool(one["doubt"]) for one in points]
    notes = [one["doubt"] or f"{one['achieved']:,.0f}/s answered in time" for one in points]
    made = [
        Line(name, [(one["offered"], one[name]) for one in points], hollow, notes=notes)
        for name in ("p50", "p99", "p99.9")
    ]
    return plots.lines(made, "requests a second, offered", "milliseconds", log_y=True) + _doubt(any(hollow))


def _percentiles(points: list[dict[str, Any]]) -> str:
    import math

    def bend(percentile: float) -> float:
        """Each nine as wide as the one before."""
        return -math.log10(1 - min(percentile, 99.9999) / 100)

    made = [
        Line(
            f"{one['name']}{' (in doubt)' if one['doubt'] else ''}",
            [(at["percentile"], at["ms"]) for at in one["curve"]],
            [bool(one["doubt"])] * len(one["curve"]),
        )
        for one in points
    ]
    names = [(percentile, f"{percentile:g}") for percentile in (0, 50, 90, 99, 99.9, 99.99, 99.999)]
    return plots.lines(made, "percentile", "milliseconds", log_y=True, x_of=bend, x_ticks=names) + _doubt(
        any(one["doubt"] for one in points)
    )


def _doubt(any_: bool) -> str:
    why = "Hollow points are in doubt: the generator, or its neighbours, were late themselves."
    return f"<p class='soft'>{why}</p>" if any_ else ""


def _scaling(points: list[dict[str, Any]]) -> str:
    (told,) = points
    law = Law(*told["law"])
    samples = {int(n): xs for n, xs in told["samples"].items()}
    far = max(8, 2 * max(samples))
    counts = [1 + (far - 1) * at / 40 for at in range(41)]
    return plots.lines(
        [
            Line("measured", [(n, statistics.median(xs)) for n, xs in samples.items()]),
            Line("fitted law", [(n, law.throughput(n)) for n in counts], marks=False),
            Line("linear", [(1, law.rate), (far, law.rate * far)], dashed=True, marks=False),
        ],
        "workers",
        "checks a second",
    ) + (
        f"<p class='soft'>A worker {law.rate:,.0f}/s, contention {law.sigma:.4f}, coherence {law.kappa:.6f}; "
        f"measured up to {max(samples)}.</p>"
    )


def _peers(points: list[dict[str, Any]]) -> str:
    rows = []
    for one in points:
        samples = blocks(one["samples"])
        rows.append((one["name"], one["value"], min(samples), max(samples), f"{shown(one['value'])} {one['unit']}"))
    return plots.bars(rows)


def _time(points: list[dict[str, Any]]) -> str:
    made = [
        Line(name, [(one["at_s"], one[name]) for one in points]) for name in points[0] if name not in ("at_s", "doubt")
    ]
    return plots.lines(made, "seconds", "", log_y=True)


_PLOTS: dict[str, Callable[[list[dict[str, Any]]], str]] = {
    "load": _load,
    "percentiles": _percentiles,
    "scaling": _scaling,
    "peers": _peers,
    "time": _time,
}


def _table(rows: list[dict[str, Any]]) -> str:
    if not rows:
        return ""
    cells = []
    for row in rows:
        wanted = f"wanted {escape(row['wanted'])}: {'yes' if row['met'] else 'no'}" if row["wanted"] else ""
        cells.append(
            f"<tr><td>{escape(row['what'])}</td><td class='n'>{shown(row['value'])}</td><td>{escape(row['unit'])}</td>"
            f"<td class='n'>{spread(row)}</td><td{'' if row['met'] else ' class=no'}>{wanted}</td></tr>"
        )
    return f"<div class='scroll'><table>{''.join(cells)}</table></div>"


def _facts(facts: dict[str, Any]) -> str:
    rows = []
    for name, value in facts.items():
        if isinstance(value, dict):
            value = ", ".join(f"{key} {one}" for key, one in value.items())
        elif isinstance(value, list):
            value = ", ".join(map(str, value))
        rows.append(f"<tr><td>{escape(name.replace('_', ' '))}</td><td>{escape(str(value))}</td></tr>")
    return f"<div class='scroll'><table>{''.join(rows)}</table></div>"
