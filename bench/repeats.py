"""The same scenarios in processes of their own, several times; two checkouts in turns.

A process is what differs by itself: memory layout, hash seed, where the system put it. So each gives one sample, the
median of what it measured, and a verdict over such samples holds for the code and not for one lucky process. Of two
checkouts a process of each takes turns with one of the other (`turns`), and what such a pair gives is the ratio of
their blocks side by side.
"""

from __future__ import annotations

import json
import statistics
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from shield.server.sockets import UsageError

from . import machine, scenarios, turns
from .results import Results
from .table import Progress

Rows = dict[tuple[str, str, str], dict[str, Any]]


def run(
    names: Sequence[str], settings: dict[str, Any], trees: Sequence[Path | None], repeats: int, progress: Progress
) -> list[Results]:
    """What each tree's processes found; interrupted, what there was until then."""
    trees = [None if tree is None else tree.resolve() for tree in trees]
    for tree in trees:
        if tree is not None and not (tree / "shield" / "__init__.py").is_file():
            raise UsageError(f"--against {tree}: no checkout of Shield is there")
    found = [Results(machine.facts(), {**settings, "repeats": repeats}) for _ in trees]
    merged: list[Rows] = [{} for _ in trees]
    try:
        for turn in range(repeats):
            for name in names:
                progress.step(f"{name}, {turn + 1} of {repeats}")
                told = _children(name, settings, trees if turn % 2 == 0 else trees[::-1])
                told = told if turn % 2 == 0 else told[::-1]
                _pair(told)
                for at, one in enumerate(told):
                    _merge(merged[at], one)
                    if not turn:
                        found[at].series += one["series"]
                        found[at].skipped += one["skipped"]
    except KeyboardInterrupt:
        for of_tree in found:
            of_tree.interrupted = True
    for of_tree, rows in zip(found, merged, strict=True):
        of_tree.rows = [_closed(row) for row in rows.values()]
    return found


def _pair(told: Sequence[dict[str, Any]]) -> None:
    """Notes in the rows of the last how they stand to those of the first, block by block."""
    if len(told) != 2:
        return
    first = {(row["scenario"], row["what"], row["unit"]): row.get("samples", []) for row in told[0]["rows"]}
    for row in told[1]["rows"]:
        before = first.get((row["scenario"], row["what"], row["unit"]), [])
        pairs = [b / a for a, b in zip(before, row.get("samples", []), strict=False) if a > 0 and b > 0]
        if pairs:
            row["ratio"] = statistics.median(pairs)


def _merge(rows: Rows, found: dict[str, Any]) -> None:
    for row in found["rows"]:
        fresh = {**row, "samples": [], "pace": [], "ratios": []}
        fresh.pop("ratio", None)
        kept = rows.setdefault((row["scenario"], row["what"], row["unit"]), fresh)
        kept["samples"].append(row["value"])
        kept["pace"] += [statistics.median(row["pace"])] if row.get("pace") else []
        kept["ratios"] += [row["ratio"]] if "ratio" in row else []


def _closed(row: dict[str, Any]) -> dict[str, Any]:
    row["value"] = statistics.median(row["samples"])
    if len(row["pace"]) != len(row["samples"]):
        del row["pace"]
    if len(row["ratios"]) != len(row["samples"]):
        del row["ratios"]
    return row


def _children(name: str, settings: dict[str, Any], trees: Sequence[Path | None]) -> list[dict[str, Any]]:
    with tempfile.TemporaryDirectory(prefix="shield-bench-") as folder:
        files = [Path(folder, f"{at}.json") for at in range(len(trees))]
        told = json.dumps({**settings, "in_turns": len(trees) > 1})
        turns.alternate(
            [(tree, ("repeats", name, told, str(file))) for tree, file in zip(trees, files, strict=True)], folder
        )
        return [json.loads(file.read_text()) for file in files]


def main(name: str, settings: str, file: str) -> None:
    """A child: one scenario, into a file."""
    told = json.loads(settings)
    results = Results({}, told)
    if told["in_turns"]:
        turns.join()
    try:
        scenarios.run(name, told["seconds"], told["seed"], results)
    except KeyboardInterrupt:
        sys.exit(2)  # the parent was interrupted too, and tells
    Path(file).write_text(results.text())


if __name__ == "__main__":
    main(*sys.argv[1:])
