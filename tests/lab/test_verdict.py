"""Intervals against tables, bounds that stay bounds, and verdicts that are the same whichever way a claim points."""

import math

import pytest

from bevreshape.errors import InputError
from bevreshape.lab.verdict import Figure, Known, Verdict, above, all_of, below, crossover, estimate, where


def figures(*values: float, known: Known = Known.EXACT) -> list[Figure]:
    return [Figure(value, known) for value in values]


def test_interval_of_three_seeds_by_students_table() -> None:
    found = estimate(figures(1.0, 2.0, 3.0))
    half = 4.302653 * 1.0 / math.sqrt(3)  # t of 2 degrees of freedom at .975
    assert found.mean == 2.0
    assert (found.low, found.high) == pytest.approx((2 - half, 2 + half), rel=1e-5)


def test_ratios_are_averaged_as_ratios() -> None:
    up, down = estimate(figures(2.0, 8.0), ratios=True), estimate(figures(0.5, 0.125), ratios=True)
    assert up.mean == pytest.approx(4.0)
    assert down.mean == pytest.approx(1 / up.mean)
    assert (down.low, down.high) == pytest.approx((1 / up.high, 1 / up.low))


def test_a_bound_stays_a_bound() -> None:
    never, soon = Figure(500.0, Known.AT_LEAST), Figure(100.0)
    assert never.over(soon) == Figure(5.0, Known.AT_LEAST)
    assert soon.over(never) == Figure(0.2, Known.AT_MOST)
    assert never.over(never).known is Known.NOTHING
    found = estimate([never.over(soon), Figure(5.5)], ratios=True)
    assert found.high == math.inf
    assert found.censored == 1
    assert above(found, 1.0) is Verdict.HOLDS
    assert below(found, 100.0) is Verdict.OPEN
    unknown = estimate([never.over(never), Figure(1.0)], ratios=True)
    assert above(unknown, 0.0) is below(unknown, 9e9) is Verdict.OPEN
    assert str(unknown).startswith("unknown (1 of 2")


@pytest.mark.parametrize(
    ("values", "verdict"),
    [((1.4, 1.5, 1.6), Verdict.HOLDS), ((0.4, 0.5, 0.6), Verdict.FAILS), ((0.5, 1.0, 2.0), Verdict.OPEN)],
)
def test_the_interval_decides_and_both_directions_agree(values: tuple[float, ...], verdict: Verdict) -> None:
    assert above(estimate(figures(*values)), 1.0) is verdict
    mirrored = estimate(figures(*(2.0 - value for value in values)))
    assert below(mirrored, 1.0) is verdict


def test_parts_and_conditions() -> None:
    holds, fails, still_open = Verdict.HOLDS, Verdict.FAILS, Verdict.OPEN
    assert all_of([holds, holds]) is holds
    assert all_of([holds, still_open]) is still_open
    assert all_of([still_open, fails]) is fails
    assert where([("0°", holds), ("2°", holds)]) == "holds"
    assert where([("0°", fails), ("2°", holds), ("4°", holds)]) == "holds where 2°; 4° · does not hold where 0°"
    assert where([("0°", holds), ("2°", fails), ("4°", fails)]) == "holds where 0° · does not hold where 2°; 4°"
    assert where([("0°", fails), ("2°", still_open)]) == "does not hold where 0° · undecided where 2°"
    assert where([("0°", holds), ("2°", still_open)]) == "holds where 0° · undecided where 2°"


def test_crossover_lies_between_levels_and_is_a_bound_beyond_them() -> None:
    assert crossover([0, 1, 2], [-1.0, -0.5, 1.5]) == Figure(1.25, between=(1.0, 2.0))
    assert crossover([0, 1, 2], [0.5, 1.0, 1.0]) == Figure(0.0, Known.AT_MOST)
    assert crossover([0, 1, 2], [0.5, 1.0, -1.0]) == Figure(2.0, Known.AT_LEAST)
    assert crossover([0, 1, 2, 3], [-1.0, 1.0, -1.0, 1.0]) == Figure(2.5, between=(2.0, 3.0))
    with pytest.raises(InputError, match="must ascend"):
        crossover([1, 0], [1.0, 2.0])


def test_sentences() -> None:
    with pytest.raises(InputError, match="1 seed has no spread"):
        estimate(figures(1.0))
    with pytest.raises(InputError, match="two positive figures"):
        Figure(1.0).over(Figure(0.0))
    with pytest.raises(InputError, match="finite"):
        estimate(figures(1.0, math.nan))


def test_what_was_found_on_a_grid_keeps_its_bounds() -> None:
    mlp, attention = Figure(40, between=(30.0, 40.0)), Figure(70, between=(60.0, 70.0))
    ratio = attention.over(mlp)
    assert ratio.value == 1.75
    assert ratio.bracket == (1.5, 70 / 30)
    found = estimate([ratio] * 3, ratios=True)
    assert (found.mean, found.low, found.high) == pytest.approx((1.75, 1.5, 70 / 30))
    assert above(found, 1.0) is Verdict.HOLDS
    touching = estimate([Figure(8, between=(2.0, 8.0)).over(Figure(8, between=(2.0, 8.0)))] * 2, ratios=True)
    assert above(touching, 1.0) is Verdict.OPEN
    beyond = estimate([Figure(32, between=(8.0, 32.0)).over(Figure(8, between=(2.0, 8.0)))] * 2, ratios=True)
    assert above(beyond, 1.0) is Verdict.HOLDS  # more than 8 in parts of at most 8
    same = estimate([Figure(1.0)] * 2, ratios=True)
    assert above(same, 1.0) is Verdict.FAILS
    assert estimate([Figure(10, between=(0.0, 10.0)).over(mlp)] * 2, ratios=True).low == 0.0
