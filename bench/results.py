"""What a run found, as JSON: the machine's facts, figures with their samples, points of plots, what was skipped."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from shield.server.sockets import UsageError

from .record import Found, Measured, Row, Series
from .significance import blocks

VERSION = 1
"""Of the file's shape. A file of another one is refused, not guessed at."""
MAX_SAMPLES = 48
"""A figure of a long run has thousands; so many medians of neighbours say as much about its noise."""

_UNITS_LESS_IS_BETTER = {"ns", "us", "ms", "s", "bytes", "KB", "MB", "commands"}


@dataclass
class Results:
    """One run, or several of the same."""

    machine: dict[str, Any]
    settings: dict[str, Any]
    rows: list[dict[str, Any]] = field(default_factory=list)
    series: list[dict[str, Any]] = field(default_factory=list)
    skipped: list[dict[str, str]] = field(default_factory=list)
    interrupted: bool = False
    faults: int = 0
    """Scenarios that ended by a fault of theirs; they are among what was skipped."""

    def add(self, scenario: str, found: Iterable[Found]) -> None:
        """What a scenario found."""
        for one in found:
            if isinstance(one, Row):
                self.rows.append({"scenario": scenario, **_of(one)})
            elif isinstance(one, Series):
                self.series.append({"scenario": scenario, **one._asdict()})
            else:
                self.skipped.append({"scenario": scenario, **one._asdict()})

    def text(self) -> str:
        """The file."""
        told = {
            "version": VERSION,
            "machine": self.machine,
            "settings": self.settings,
            "interrupted": self.interrupted,
            "rows": self.rows,
            "series": self.series,
            "skipped": self.skipped,
        }
        return json.dumps(told, indent=1, ensure_ascii=True) + "\n"


def _of(row: Row) -> dict[str, Any]:
    told = {**row._asdict(), "value": float(row.value), "better": better(row)}
    if isinstance(row.value, Measured):
        told["samples"] = _short(row.value.samples)
        if len(row.value.pace) == len(row.value.samples):
            told["pace"] = _short(row.value.pace)
    return told


def _short(samples: Sequence[float]) -> list[float]:
    return [float(f"{sample:.6g}") for sample in blocks(samples, MAX_SAMPLES)]


def better(row: Row) -> str:
    """Which way this figure is better: "less", "more", or "" where that depends on who reads it."""
    if row.wanted.startswith("at least"):
        return "more"
    if row.unit in _UNITS_LESS_IS_BETTER or row.wanted.startswith(("at most", "below")):
        return "less"
    return "more" if row.unit.endswith("/s") else ""


def write(path: Path, text: str) -> None:
    """UsageError when the file cannot be written."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    except OSError as error:
        raise UsageError(f"{path}: cannot be written: {error.strerror or error}") from None


def read(path: Path) -> Results:
    """A file that `--json` wrote. UsageError for any other."""
    try:
        told = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UsageError(f"{path}: cannot be read: {error.strerror or error}") from None
    except ValueError as error:
        raise UsageError(f"{path}: is no JSON: {error}") from None
    version = told.get("version") if isinstance(told, dict) else None
    if version != VERSION:
        raise UsageError(f"{path}: a result file of version {version!r}; this reads version {VERSION}: measure again")
    try:
        results = Results(
            told["machine"], told["settings"], told["rows"], told["series"], told["skipped"], told["interrupted"]
        )
        for row in results.rows:
            _ = row["scenario"], row["what"], row["unit"], row["better"], float(row["value"])
    except (KeyError, TypeError, ValueError) as error:
        raise UsageError(f"{path}: is not whole: {type(error).__name__} {error}") from None
    return results
