"""What counts as a change: synthetic samples with known differences, files that are not what they should be."""

from __future__ import annotations

import json
import random

import pytest

from bench import compare, results, table
from bench.record import Measured, Row, Skipped
from bench.results import Results
from shield.server.sockets import UsageError

MACHINE = {"cpu": "one", "cores": 2, "python": "3.11"}


def noisy(middle: float, spread: float, seed: int, count: int = 30) -> list[float]:
    source = random.Random(seed)
    return [middle * source.uniform(1 - spread, 1 + spread) for _ in range(count)]


def file(*rows: Row, repeats: int = 10, machine: dict | None = None) -> Results:
    found = Results(machine or MACHINE, {"repeats": repeats})
    found.add("core", rows)
    return found


def verdict(before: Results, after: Results, least: float = 0.05) -> list[str]:
    return [change.verdict for change in compare.compare(before, after, least).changes]


def test_the_same_distribution_twice_is_no_change():
    for seed in range(40):
        one = file(Row("a", Measured(noisy(100, 0.2, seed)), "ns"))
        other = file(Row("a", Measured(noisy(100, 0.2, 1000 + seed)), "ns"))
        assert verdict(one, other) == [compare.SAME]


@pytest.mark.parametrize(
    ("unit", "wanted", "factor", "expected"),
    [
        ("ns", "", 1.1, compare.WORSE),
        ("ns", "", 0.9, compare.BETTER),
        ("checks/s", "", 0.9, compare.WORSE),
        ("checks/s", "", 1.1, compare.BETTER),
        ("times", "at least 40", 0.9, compare.WORSE),
        ("times", "at most 1.3", 1.1, compare.WORSE),
        ("times", "", 1.1, compare.CHANGED),
    ],
)
def test_ten_percent_beyond_the_noise_is_told(unit, wanted, factor, expected):
    before = file(Row("a", Measured(noisy(100, 0.03, 1)), unit, wanted))
    after = file(Row("a", Measured(noisy(100 * factor, 0.03, 2)), unit, wanted))
    assert verdict(before, after) == [expected]
    assert (compare.compare(before, after, 0.05).regressions > 0) == (expected == compare.WORSE)


def test_a_change_smaller_than_what_counts_is_none():
    before = file(Row("a", Measured(noisy(100, 0.001, 1)), "ns"))
    after = file(Row("a", Measured(noisy(104, 0.001, 2)), "ns"))
    assert verdict(before, after) == [compare.SAME]
    assert verdict(before, after, least=0.02) == [compare.WORSE]


def test_files_of_one_process_each_show_large_changes_only():
    before = file(Row("a", Measured(noisy(100, 0.01, 1)), "ns"), repeats=1)
    for factor, expected in ((1.1, compare.SAME), (1.3, compare.CHANGED)):
        after = file(Row("a", Measured(noisy(100 * factor, 0.01, 2)), "ns"), repeats=1)
        comparison = compare.compare(before, after, 0.05)
        assert [change.verdict for change in comparison.changes] == [expected]
        assert comparison.regressions == 0
        assert "one process each" in comparison.notes[0]


def test_a_slower_machine_is_not_slower_code():
    samples, pace = noisy(100, 0.02, 1), noisy(1000, 0.02, 2)
    before = file(Row("a", Measured(samples, pace), "ns"))
    both = file(Row("a", Measured([1.5 * s for s in samples], [1.5 * p for p in pace]), "ns"))
    assert verdict(before, both) == [compare.SAME]
    hiccup = file(Row("a", Measured(samples, [0.6 * p for p in pace]), "ns"))  # the quotient alone says slower
    assert verdict(before, hiccup) == [compare.SAME]
    code = file(Row("a", Measured([1.5 * s for s in samples], pace), "ns"))
    assert verdict(before, code) == [compare.WORSE]


def paired(ratios: list[float]) -> tuple[Results, Results]:
    before, after = (file(Row("a", Measured(noisy(100, 0.5, seed, len(ratios))), "ns")) for seed in (1, 2))
    after.rows[0]["ratios"] = ratios
    return before, after


def test_checkouts_that_took_turns_are_judged_by_their_ratios():
    # The samples are lost in noise; the ratios of neighbouring blocks are not.
    assert verdict(*paired(noisy(1.1, 0.03, 3, 12))) == [compare.WORSE]
    assert verdict(*paired(noisy(0.9, 0.03, 3, 12))) == [compare.BETTER]
    assert verdict(*paired(noisy(1.0, 0.03, 3, 12))) == [compare.SAME]


def test_what_cannot_be_judged_says_why():
    few = file(Row("a", Measured([1.0, 2.0, 3.0]), "ns"), Row("b", 5.0, "bytes"))
    assert verdict(few, few) == ["no verdict: 3 samples", "no verdict: 1 sample"]
    many = Measured(noisy(100, 0.01, 1))
    there = file(Row("a", many, "ns"), Row("b", many, "times", "at most 1"))
    elsewhere = file(Row("a", many, "ns"), Row("b", many, "times", "at most 1"), machine={**MACHINE, "cpu": "other"})
    assert verdict(there, elsewhere) == ["no verdict: another machine", compare.SAME]
    noise = file(Row("a", Measured([-1.0, 2.0, 3.0, 4.0, 5.0]), "ns"))
    assert verdict(noise, noise) == ["no verdict: lost in its own noise"]


def test_too_few_samples_for_so_many_figures_are_no_verdict():
    # Six against six cannot be more uneven than 2 of 924 orders: enough for four figures at one in a hundred.
    samples = (1.0, 1.01, 1.02, 1.03, 1.04, 1.05)
    rows = [[Row(f"r{i}", Measured([x * y for y in samples]), "ns") for i in range(5)] for x in (1, 2)]
    assert verdict(file(*rows[0]), file(*rows[1])) == ["no verdict: too few samples for 5 figures"] * 5
    assert verdict(file(*rows[0][:4]), file(*rows[1][:4])) == [compare.WORSE] * 4
    before, after = paired([1.1 + i / 1000 for i in range(7)])  # 2 of 128
    assert verdict(before, after) == ["no verdict: too few samples for 1 figures"]


def test_rows_of_one_file_alone_are_named():
    comparison = compare.compare(file(Row("a", 1.0, "ns")), file(Row("b", 1.0, "ns")), 0.05)
    assert (comparison.only_before, comparison.only_after, comparison.changes) == (["a"], ["b"], [])


# ---- files -------------------------------------------------------------------------------------------------


def test_a_file_is_read_as_it_was_written(tmp_path):
    found = file(Row("a", Measured([1.0, 2.0, 4.0], [1.0, 1.0, 1.0]), "ns", "at most 3", True))
    found.add("peers", [Skipped("other", "not installed")])
    found.interrupted = True
    path = tmp_path / "new" / "r.json"
    results.write(path, found.text())
    again = results.read(path)
    assert again == found
    assert again.rows[0]["samples"] == [1.0, 2.0, 4.0]
    assert again.rows[0]["better"] == "less"


def test_long_runs_keep_medians_of_neighbours():
    found = file(Row("a", Measured([float(i) for i in range(4800)], [1.0] * 4800), "ns"))
    assert len(found.rows[0]["samples"]) == len(found.rows[0]["pace"]) == results.MAX_SAMPLES
    assert found.rows[0]["samples"][0] == 49.5


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ('{"machine": {}, "rows": []}', "version None; this reads version 1: measure again"),
        ('{"version": 99}', "version 99"),
        ("[]", "version None"),
        ("{", "is no JSON"),
        ('{"version": 1}', "is not whole: KeyError"),
    ],
)
def test_other_files_are_refused(tmp_path, text, said):
    path = tmp_path / "r.json"
    path.write_text(text)
    with pytest.raises(UsageError, match=said):
        results.read(path)
    with pytest.raises(UsageError, match="cannot be read"):
        results.read(tmp_path / "absent.json")
    with pytest.raises(UsageError, match="cannot be written"):
        results.write(path / "below", "")


# ---- tables ------------------------------------------------------------------------------------------------


def test_the_table_of_figures():
    found = file(
        Row("short", Measured([9.0, 10.0, 11.0, 10.0, 10.0]), "ns", "at most 9", False),
        Row("much longer", 1234.5, "/s"),
    )
    found.add("peers", [Skipped("other", "not installed")])
    found.interrupted = True
    assert table.figures(found).splitlines() == [
        "short         10.0  ns  ±5%  wanted at most 9: NO",
        "much longer  1,234  /s",
        "skipped: other: not installed",
        "interrupted: the rest was not measured",
    ]


def test_the_table_of_changes():
    before = file(Row("a", Measured([100.0] * 6), "ns"), Row("b", Measured([1.0] * 6), "ns"), Row("c", 1.0, "ns"))
    after = file(Row("a", Measured([120.0] * 6), "ns"), Row("b", Measured([1.0] * 6), "ns"), Row("d", 1.0, "ns"))
    told = table.changes(compare.compare(before, after, 0.05)).splitlines()
    assert told[0].split() == ["a", "100.0", "->", "120.0", "ns", "+20.0%", "p", "0.0025", "REGRESSION"]
    assert told[1:] == [
        "no change: 1 of 2 figures (beyond noise and 5%)",
        "only before: c",
        "only after: d",
    ]
    assert json.loads(before.text())["version"] == 1
