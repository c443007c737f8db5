"""Plots as inline SVG: axes, lines, points, bars. Every figure stands in a <title>, so that pointing at it shows it."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from html import escape

WIDTH, HEIGHT = 640, 300
_LEFT, _RIGHT, _TOP, _BOTTOM = 64, 16, 22, 40
COLOURS = ("var(--c1)", "var(--c2)", "var(--c3)", "var(--c4)", "var(--c5)", "var(--c6)")


@dataclass
class Line:
    """Points of one colour; `hollow` marks those that are in doubt."""

    name: str
    points: Sequence[tuple[float, float]]
    hollow: Sequence[bool] = ()
    dashed: bool = False
    marks: bool = True
    notes: Sequence[str] = field(default_factory=tuple)


def number(value: float) -> str:
    """Short, for an axis: 1.5k, 20M."""
    for size, letter in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= size:
            return f"{value / size:.3g}{letter}"
    return f"{value:.3g}"


def ticks(low: float, high: float, log: bool) -> list[float]:
    """Round values between the two: powers of ten on a logarithmic axis, else steps of 1, 2 or 5."""
    if log:
        first, last = math.floor(math.log10(low)), math.ceil(math.log10(high))
        found = [10.0**at for at in range(first, last + 1)]
        if last - first <= 2:
            found = [step * power for power in found for step in (1, 2, 5)]
        found = [one for one in found if low * 0.999 <= one <= high * 1.001]
        return found if len(found) > 2 else ticks(low, high, False)
    step = 10.0 ** math.floor(math.log10(max(high - low, 1e-12)))
    if (high - low) / step < 2:
        step /= 5
    elif (high - low) / step < 5:
        step /= 2
    return [at * step for at in range(math.ceil(low / step), math.floor(high / step + 1e-9) + 1)]


def lines(
    many: Sequence[Line],
    x_name: str,
    y_name: str,
    *,
    log_y: bool = False,
    x_of: Callable[[float], float] = lambda x: x,
    x_ticks: Sequence[tuple[float, str]] | None = None,
) -> str:
    """A plot of lines. `x_of` bends the x axis (its ticks are then given)."""
    points = [(x_of(x), y) for line in many for x, y in line.points if not log_y or y > 0]
    if not points:
        return "<p class='soft'>Nothing was measured.</p>"
    low_x, high_x = min(x for x, _ in points), max(x for x, _ in points)
    low_y, high_y = (min(y for _, y in points) if log_y else 0.0), max(y for _, y in points)
    if x_ticks is None:
        low_x = min(0.0, low_x)
        x_ticks = [(x, number(x)) for x in ticks(low_x, high_x * 1.02, False)]
        high_x *= 1.02
    if log_y:
        low_y, high_y = low_y / 1.3, high_y * 1.3
    else:
        high_y *= 1.08
    high_x, high_y = (high_x if high_x > low_x else low_x + 1), (high_y if high_y > low_y else low_y + 1)

    def at_x(x: float) -> float:
        return _LEFT + (x - low_x) / (high_x - low_x) * (WIDTH - _LEFT - _RIGHT)

    def at_y(y: float) -> float:
        part = math.log(y / low_y) / math.log(high_y / low_y) if log_y else (y - low_y) / (high_y - low_y)
        return HEIGHT - _BOTTOM - part * (HEIGHT - _TOP - _BOTTOM)

    drawn = []
    for y in ticks(low_y, high_y, log_y):
        drawn.append(f"<line class='grid' x1='{_LEFT}' x2='{WIDTH - _RIGHT}' y1='{at_y(y):.1f}' y2='{at_y(y):.1f}'/>")
        drawn.append(f"<text x='{_LEFT - 6}' y='{at_y(y) + 4:.1f}' text-anchor='end'>{number(y)}</text>")
    for x, name in x_ticks:
        x = x_of(x)
        if low_x - 1e-9 <= x <= high_x + 1e-9:
            bottom = HEIGHT - _BOTTOM
            drawn.append(f"<line class='grid' x1='{at_x(x):.1f}' x2='{at_x(x):.1f}' y1='{_TOP}' y2='{bottom}'/>")
            drawn.append(f"<text x='{at_x(x):.1f}' y='{bottom + 15}' text-anchor='middle'>{escape(name)}</text>")
    for at, line in enumerate(many):
        colour = COLOURS[at % len(COLOURS)]
        places = [(at_x(x_of(x)), at_y(y), x, y) for x, y in line.points if not log_y or y > 0]
        path = " ".join(f"{x:.1f},{y:.1f}" for x, y, _, _ in places)
        dash = " stroke-dasharray='5 4'" if line.dashed else ""
        drawn.append(f"<polyline fill='none' stroke='{colour}' stroke-width='2'{dash} points='{path}'/>")
        for nth, (px, py, x, y) in enumerate(places if line.marks else ()):
            hollow = nth < len(line.hollow) and line.hollow[nth]
            note = f" ({line.notes[nth]})" if nth < len(line.notes) and line.notes[nth] else ""
            title = escape(f"{line.name}: {x_name} {number(x)}, {y_name} {number(y)}{note}")
            drawn.append(
                f"<circle cx='{px:.1f}' cy='{py:.1f}' r='4' stroke='{colour}' stroke-width='2' "
                f"fill='{'var(--paper)' if hollow else colour}'><title>{title}</title></circle>"
            )
    drawn.append(f"<text x='{WIDTH - _RIGHT}' y='{HEIGHT - 6}' text-anchor='end'>{escape(x_name)}</text>")
    drawn.append(f"<text x='{_LEFT}' y='{_TOP - 6}'>{escape(y_name)}</text>")
    label = escape(f"{y_name} by {x_name}")
    return f"<svg viewBox='0 0 {WIDTH} {HEIGHT}' role='img' aria-label='{label}'>{''.join(drawn)}</svg>" + legend(
        [line.name for line in many]
    )


def legend(names: Sequence[str]) -> str:
    """Which colour is what; nothing for a single unnamed line."""
    keys = (
        f"<span><i style='background:{COLOURS[at % len(COLOURS)]}'></i>{escape(name)}</span>"
        for at, name in enumerate(names)
        if name
    )
    return f"<figcaption class='key'>{''.join(keys)}</figcaption>"


def bars(rows: Sequence[tuple[str, float, float, float, str]]) -> str:
    """Horizontal bars on a logarithmic scale: (name, value, low, high, beside it); low to high is a whisker."""
    rows = [row for row in rows if row[1] > 0]
    if not rows:
        return "<p class='soft'>Nothing was measured.</p>"
    left, right, each = 280, 100, 26
    everything = [value for row in rows for value in row[1:4] if value > 0]
    low, high = min(everything) / 1.6, max(everything) * 1.1

    def at(value: float) -> float:
        return left + math.log(max(value, low) / low) / math.log(high / low) * (WIDTH - left - right)

    drawn = []
    for nth, (name, value, least, most, beside) in enumerate(rows):
        y = nth * each + 4
        title = escape(f"{name}: {beside}, from {number(least)} to {number(most)}")
        drawn.append(
            f"<g><title>{title}</title><text x='{left - 8}' y='{y + 14}' text-anchor='end'>{escape(name)}</text>"
            f"<rect x='{left}' y='{y}' height='18' width='{max(1.0, at(value) - left):.1f}' "
            f"fill='{COLOURS[0 if nth == 0 else 1]}'/>"
            f"<line class='whisker' x1='{at(least):.1f}' x2='{at(most):.1f}' y1='{y + 9}' y2='{y + 9}'/>"
            f"<text x='{at(max(value, most)) + 6:.1f}' y='{y + 14}'>{escape(beside)}</text></g>"
        )
    height = len(rows) * each + 8
    return f"<svg viewBox='0 0 {WIDTH} {height}' role='img' aria-label='bars'>{''.join(drawn)}</svg>"
