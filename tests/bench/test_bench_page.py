"""The page and its plots: what is drawn where, and that nothing is fetched or run."""

from __future__ import annotations

import re
from html.parser import HTMLParser

import pytest

from bench import page, plots
from bench.plots import Line
from bench.record import Measured, Row, Series, Skipped
from bench.results import Results


class Balanced(HTMLParser):
    """Every element is closed, in order."""

    VOID = frozenset(("meta", "line", "rect", "polyline", "br"))

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.seen: list[str] = []

    def handle_starttag(self, tag, attrs):
        self.seen.append(tag)
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.seen.append(tag)

    def handle_endtag(self, tag):
        if tag not in self.VOID:
            assert self.open.pop() == tag


def whole() -> Results:
    found = Results({"cpu": "<b>fast</b>", "cores": 2, "packages": {"uvloop": "1"}}, {"began": "now"}, interrupted=True)
    curve = [{"percentile": p, "ms": ms} for p, ms in ((0.0, 0.1), (50.0, 0.2), (99.0, 2.0))]
    load = [
        {"offered": o, "achieved": o, "p50": 0.1, "p99": 1.0 + o / 1000, "p99.9": 3.0, "doubt": d}
        for o, d in ((100.0, ""), (1000.0, "late"))
    ]
    found.add(
        "server",
        [
            Row("fast <enough>", Measured([1.0, 2.0, 3.0]), "ns", "at most 1", False),
            Skipped("p99", "the generator <was> late"),
            Series("load", "load", load),
            Series("percentiles", "percentiles", [{"name": "100/s", "curve": curve, "doubt": ""}]),
        ],
    )
    found.add(
        "capacity",
        [
            Series("scaling", "scaling", [{"law": [100.0, 0.1, 0.0], "samples": {"1": [100.0], "2": [180.0]}}]),
            Series("facts", "facts", [{"cores": 2}]),
        ],
    )
    bar = {"name": "other", "value": 3000.0, "unit": "ns", "samples": [2900.0, 3000.0, 3100.0]}
    found.add("peers", [Series("peers", "peers", [{**bar, "name": "Shield", "value": 60.0, "samples": [60.0]}, bar])])
    found.add("soak", [Series("soak", "time", [{"at_s": 1.0, "MB": 5.0}, {"at_s": 2.0, "MB": 6.0}])])
    return found


def test_the_page_is_whole_and_needs_nothing_from_outside():
    made = page.render(whole())
    parser = Balanced()
    parser.feed(made)
    assert parser.open == []
    assert parser.seen.count("svg") == 5
    assert "script" not in parser.seen
    assert not re.search(r"(src|href)=|url\(|https?:", made)
    assert "default-src 'none'" in made
    assert "prefers-color-scheme: dark" in made


def test_the_page_escapes_and_tells_what_is_in_doubt():
    made = page.render(whole())
    assert "&lt;b&gt;fast" in made
    assert "fast &lt;enough&gt;" in made
    assert "the generator &lt;was&gt; late" in made
    assert "interrupted: the rest was not measured" in made
    assert "Hollow points are in doubt" in made
    assert "class=no>wanted at most 1: no" in made


def test_an_empty_run_is_a_page_too():
    parser = Balanced()
    parser.feed(page.render(Results({}, {})))
    assert parser.open == []


def test_ticks_are_round():
    assert plots.ticks(0, 10, False) == [0, 2, 4, 6, 8, 10]
    assert plots.ticks(0, 3000, False) == [0, 500, 1000, 1500, 2000, 2500, 3000]
    assert plots.ticks(0.05, 200, True) == pytest.approx([0.1, 1, 10, 100])
    assert plots.ticks(1, 10, True) == [1, 2, 5, 10]
    assert plots.ticks(18, 45, True) == [20, 25, 30, 35, 40, 45]  # less than a decade
    assert [plots.number(x) for x in (0.5, 12, 1500, 20e6, 3e9)] == ["0.5", "12", "1.5k", "20M", "3G"]


def test_points_stand_where_their_figures_say():
    drawn = plots.lines([Line("a", [(0, 0), (100, 50)], [False, True], notes=["", "late"])], "x", "y")
    (first, second) = re.findall(r"<circle cx='([\d.]+)' cy='([\d.]+)'.*?fill='(.*?)'", drawn)
    # x from 0 to 102, y from 0 to 54: the plot area is 560 wide from 64 on and 238 high from 22 on.
    assert (float(first[0]), float(first[1]), first[2]) == (64.0, 260.0, "var(--c1)")
    assert float(second[0]) == pytest.approx(64 + 560 * 100 / 102, abs=0.1)
    assert float(second[1]) == pytest.approx(260 - 238 * 50 / 54, abs=0.1)
    assert second[2] == "var(--paper)"
    assert "a: x 100, y 50 (late)" in drawn
    assert "Nothing was measured" in plots.lines([Line("a", [])], "x", "y")
    assert "Nothing was measured" in plots.lines([Line("a", [(1, 0.0)])], "x", "y", log_y=True)


def test_bars_are_logarithmic_and_carry_their_spread():
    drawn = plots.bars([("ours", 10.0, 9.0, 12.0, "10 ns"), ("theirs", 1000.0, 900.0, 1100.0, "1,000 ns")])
    widths = [float(width) for width in re.findall(r"height='18' width='([\d.]+)'", drawn)]
    assert widths[0] < widths[1]
    assert drawn.count("class='whisker'") == 2
    assert "Nothing was measured" in plots.bars([])
