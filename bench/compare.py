"""What changed between two result files, and whether it is more than noise.

A figure changed when three things say so: ranks that uneven would come by chance in less than one of a hundred
comparisons of so many figures (Mann-Whitney, Holm), the interval of the ratio of the medians leaves 1 out (bootstrap),
and the ratio is further from 1 than `least`. Of two runs, one after the other, times must say so as they are and when
divided by the pace of the machine. Checkouts that took turns (`--against`) met the same machine: there the ratios of
their blocks, one for each pair of processes, are asked whether they lie around 1 (Wilcoxon).

Processes of the same code differ: by memory layout, by huge pages, by hash seed; some figures by a factor of two. Files
of one process each cannot see that, so what differs between them is told from ONE_PROCESS_LEAST on and never called a
regression; `--repeats` takes a process for each sample.
"""

from __future__ import annotations

import math
import statistics
from typing import Any, Final, NamedTuple

from .results import Results
from .significance import blocks, holm, mann_whitney, median_interval, ratio_interval, signed_rank

CHANCE: Final = 0.01
MIN_SAMPLES: Final = 5
"""Five against five are the fewest whose ranks can be more uneven than CHANCE: 2 of 252 orders."""
ONE_PROCESS_LEAST: Final = 0.15
_RATIOS: Final = {"times", "percent"}

SAME, BETTER, WORSE, CHANGED = "no change", "better", "REGRESSION", "changed"


class Change(NamedTuple):
    """One figure of both files."""

    scenario: str
    what: str
    unit: str
    before: float
    after: float
    ratio: float
    """After by before."""
    low: float
    high: float
    chance: float
    verdict: str
    """SAME, BETTER, WORSE, CHANGED (which way is better depends), or why there is none."""


class Comparison(NamedTuple):
    """Two files."""

    changes: list[Change]
    only_before: list[str]
    only_after: list[str]
    least: float
    notes: list[str]

    @property
    def regressions(self) -> int:
        return sum(change.verdict == WORSE for change in self.changes)


def compare(before: Results, after: Results, least: float) -> Comparison:
    """Every figure that is in both."""
    notes = []
    one_process = min(int(one.settings.get("repeats", 1)) for one in (before, after)) < MIN_SAMPLES
    if one_process:
        least = max(least, ONE_PROCESS_LEAST)
        notes.append("one process each: no regression can be told from another memory layout; --repeats 10 can")
    alike = all(before.machine.get(fact) == after.machine.get(fact) for fact in ("cpu", "cores", "python"))
    if not alike:
        notes.append("not the same machine or Python: only ratios are judged")
    old, new = _by_name(before), _by_name(after)
    changes = [_change(old[name], new[name], alike) for name in old if name in new]
    judged = [at for at, change in enumerate(changes) if not change.verdict]
    chances = holm([changes[at].chance for at in judged])
    for at, chance in zip(judged, chances, strict=True):
        change = changes[at]
        name = change.scenario, change.what, change.unit
        beyond = change.low > 1 or change.high < 1
        verdict = SAME
        if _least_chance(old[name], new[name]) * len(judged) >= CHANCE:
            verdict = f"no verdict: too few samples for {len(judged)} figures"
        elif chance < CHANCE and beyond and abs(change.ratio - 1) > least:
            way = "" if one_process else new[name]["better"]
            verdict = CHANGED if not way else BETTER if (change.ratio > 1) == (way == "more") else WORSE
        changes[at] = change._replace(chance=chance, verdict=verdict)
    return Comparison(
        changes,
        [name[1] for name in old if name not in new],
        [name[1] for name in new if name not in old],
        least,
        notes,
    )


def _by_name(results: Results) -> dict[tuple[str, str, str], dict[str, Any]]:
    return {(row["scenario"], row["what"], row["unit"]): row for row in results.rows}


def _change(old: dict[str, Any], new: dict[str, Any], alike: bool) -> Change:
    """With the verdict left open, or why there is none."""
    before, after = blocks(old.get("samples", [])), blocks(new.get("samples", []))
    ratios = new.get("ratios", [])
    few = min(len(before), len(after))
    ratio = float(new["value"]) / float(old["value"]) if old["value"] else 1.0
    low = high = ratio
    chance, verdict = 1.0, ""
    if few < MIN_SAMPLES:
        verdict = f"no verdict: {few or 1} sample{'s' * (few > 1)}"
    elif not alike and new["unit"] not in _RATIOS:
        verdict = "no verdict: another machine"
    elif not ratios and min(map(min, (before, after))) <= 0:
        verdict = "no verdict: lost in its own noise"
    elif len(ratios) >= MIN_SAMPLES:
        ratio, (low, high), chance = statistics.median(ratios), median_interval(ratios), signed_rank(ratios)
    else:
        ratio, low, high, chance = _difference(before, after)
        if old.get("pace") and new.get("pace"):
            of_pace = _difference(_by_pace(old), _by_pace(new))
            # Whichever says less: a slower machine moves the time alone, a hiccup of the pace the quotient alone.
            if (of_pace[0] > 1) != (ratio > 1):
                chance = 1.0
            elif abs(of_pace[0] - 1) < abs(ratio - 1):
                ratio, low, high = of_pace[:3]
            chance = max(chance, of_pace[3])
    return Change(
        new["scenario"], new["what"], new["unit"], old["value"], new["value"], ratio, low, high, chance, verdict
    )


def _least_chance(old: dict[str, Any], new: dict[str, Any]) -> float:
    """The smallest p that so many samples can have, were they as uneven as can be."""
    pairs = len(new.get("ratios", []))
    if pairs >= MIN_SAMPLES:
        return 2 / 2.0**pairs
    before, after = len(blocks(old["samples"])), len(blocks(new["samples"]))
    return 2 / math.comb(before + after, before)


def _difference(before: list[float], after: list[float]) -> tuple[float, float, float, float]:
    """The ratio of the medians, its interval, and how likely chance alone is."""
    ratio = statistics.median(after) / statistics.median(before)
    return ratio, *ratio_interval(before, after), mann_whitney(before, after)


def _by_pace(row: dict[str, Any]) -> list[float]:
    pairs = zip(blocks(row["samples"]), blocks(row["pace"]), strict=True)
    return [sample / pace for sample, pace in pairs]
