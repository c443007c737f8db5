"""What a figure remembers of how it was taken."""

from __future__ import annotations

from bench.record import Measured, interleaved


def test_a_figure_is_the_median_of_its_samples_and_keeps_them_in_order():
    one = Measured([3.0, 1.0, 2.0], [10.0, 11.0, 12.0])
    assert one == 2.0
    assert one.samples == (3.0, 1.0, 2.0)
    assert one.pace == (10.0, 11.0, 12.0)


def test_differences_and_ratios_are_taken_turn_by_turn():
    one, other = Measured([30.0, 10.0, 20.0], [1.0, 1.0, 1.0]), Measured([10.0, 4.0, 5.0], [1.0, 1.0, 1.0])
    difference, ratio = one - other, one / other
    assert isinstance(difference, Measured)
    assert isinstance(ratio, Measured)
    assert (difference, difference.samples, difference.pace) == (15.0, (20.0, 6.0, 15.0), (1.0, 1.0, 1.0))
    assert (ratio, ratio.samples, ratio.pace) == (4.0, (3.0, 2.5, 4.0), ())  # a ratio needs no pace
    assert (one / 10 + 1).samples == (4.0, 2.0, 3.0)
    assert (2 * one).samples == (60.0, 20.0, 40.0)


def test_figures_of_unequal_length_are_plain_numbers_together():
    assert type(Measured([1.0, 2.0]) - Measured([1.0])) is float


def test_works_take_turns():
    order: list[str] = []
    figures = interleaved([lambda calls: order.append("a"), lambda calls: order.append("b")], [1, 1], 0.001)
    assert order[:4] == ["a", "b", "a", "b"]
    assert len(figures[0].samples) == len(figures[1].samples) == len(figures[0].pace) >= 5
