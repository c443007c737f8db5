"""What is told on a terminal: the table of figures, the table of changes, how far a run has come."""

from __future__ import annotations

import statistics
import sys
import time
from collections.abc import Sequence
from types import TracebackType
from typing import Any

from .compare import SAME, Comparison
from .results import Results
from .significance import blocks


def spread(row: dict[str, Any]) -> str:
    """Half of the distance between the quartiles of the samples, in percent of the figure; empty for a lone one."""
    samples = blocks(row.get("samples", []))
    if len(samples) < 3 or not row["value"]:
        return ""
    low, _, high = statistics.quantiles(samples, n=4)
    return f"±{50 * (high - low) / abs(row['value']):.0f}%"


def shown(value: float) -> str:
    """A figure with as many digits as mean something."""
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:,.1f}" if abs(value) >= 1 else f"{value:.3f}"


def figures(results: Results) -> str:
    """The table: what, figure, unit, spread, and where something was wanted whether it was met."""
    rows = []
    for row in results.rows:
        wanted = f"wanted {row['wanted']}: {'yes' if row['met'] else 'NO'}" if row["wanted"] else ""
        rows.append((row["what"], shown(row["value"]), row["unit"], spread(row), wanted))
    lines = _columns(rows, right=(1, 3))
    lines += [f"skipped: {one['what']}: {one['why']}" for one in results.skipped]
    if results.interrupted:
        lines.append("interrupted: the rest was not measured")
    return "\n".join(lines)


def changes(comparison: Comparison) -> str:
    """The table of what changed; figures without a change are counted."""
    told = [change for change in comparison.changes if change.verdict != SAME]
    rows = [
        (
            change.what,
            f"{shown(change.before)} -> {shown(change.after)} {change.unit}",
            f"{change.ratio - 1:+.1%}",
            "" if change.low == change.high else f"({change.low - 1:+.1%} to {change.high - 1:+.1%})",
            f"p {change.chance:.2g}" if change.chance < 1 else "",
            change.verdict,
        )
        for change in told
    ]
    lines = _columns(rows, right=(1, 2))
    same = sum(change.verdict == SAME for change in comparison.changes)
    lines.append(f"no change: {same} of {len(comparison.changes)} figures (beyond noise and {comparison.least:.0%})")
    for name, names in (("before", comparison.only_before), ("after", comparison.only_after)):
        if names:
            lines.append(f"only {name}: {', '.join(names)}")
    lines += [f"note: {note}" for note in comparison.notes]
    return "\n".join(lines)


def _columns(rows: Sequence[Sequence[str]], right: Sequence[int]) -> list[str]:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return [
        "  ".join(
            cell.rjust(width) if at in right else cell.ljust(width)
            for at, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    ]


class Progress:
    """How far a run has come: a bar on a terminal, otherwise nothing. On standard error."""

    def __init__(self, steps: int, shown: bool | None = None) -> None:
        self._steps, self._done, self._started = steps, 0, time.monotonic()
        self._bar: Any = None
        if sys.stderr.isatty() if shown is None else shown:
            try:
                from rich.console import Console
                from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn
            except ModuleNotFoundError:
                return
            columns = (BarColumn(), TextColumn("{task.completed}/{task.total}"), TimeElapsedColumn())
            # It draws when a step begins and at no other time: a thread that draws would be measured too.
            self._bar = Progress(
                *columns, TextColumn("{task.description}"), console=Console(stderr=True), auto_refresh=False
            )
            self._task = self._bar.add_task("", total=steps)

    def step(self, name: str) -> None:
        """The next step begins."""
        if self._bar is not None:
            self._bar.update(self._task, description=name, completed=self._done, refresh=True)
        self._done += 1

    def __enter__(self) -> Progress:
        if self._bar is not None:
            self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bar is not None:
            self._bar.update(self._task, completed=self._done if error is None else self._done - 1, refresh=True)
            self._bar.stop()
