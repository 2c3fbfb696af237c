"""Verdicts on data with a known answer."""

import math
from collections.abc import Callable
from itertools import product

import numpy as np
import pytest
from scipy.stats import binom, ttest_1samp

from bevreshape.errors import InputError
from bevreshape.experiments.intervals import (
    MARGIN,
    Bounds,
    Comparison,
    Verdict,
    crossover,
    exponent,
    holm,
    reached,
)

TRIALS = 1000


def of_logs(logs: np.ndarray) -> Comparison:
    return Comparison(tuple(Bounds.exactly(float(x)) for x in logs))


NOISES: dict[str, Callable[[np.random.Generator, tuple[int, ...]], np.ndarray]] = {
    "normal": lambda rng, shape: rng.standard_normal(shape),
    "heavy tails": lambda rng, shape: rng.standard_t(5, shape),
}


@pytest.mark.parametrize("noise", NOISES)
@pytest.mark.parametrize(
    ("truth", "wrong"),
    [
        (0.0, {Verdict.AHEAD, Verdict.BEHIND}),
        (MARGIN, {Verdict.AHEAD}),  # at the margin two methods are alike still
        (-MARGIN, {Verdict.BEHIND}),
        (MARGIN * 1.0001, {Verdict.ALIKE, Verdict.BEHIND}),
        (1.0, {Verdict.ALIKE, Verdict.BEHIND}),
    ],
)
@pytest.mark.parametrize("seeds", [3, 8])
def test_false_verdicts_on_null_data_are_rare(noise: str, truth: float, wrong: set[Verdict], seeds: int) -> None:
    draws = truth + 0.1 * NOISES[noise](np.random.default_rng(0), (TRIALS, seeds))
    false = sum(of_logs(logs).verdict() in wrong for logs in draws)
    assert false <= binom.ppf(0.9999, TRIALS, 0.025)


def test_true_differences_are_found() -> None:
    draws = math.log(1.5) + 0.1 * np.random.default_rng(1).standard_normal((300, 8))
    assert sum(of_logs(logs).verdict() is Verdict.AHEAD for logs in draws) > 290
    alike = 0.03 * np.random.default_rng(2).standard_normal((300, 8))
    assert sum(of_logs(logs).verdict() is Verdict.ALIKE for logs in alike) > 290


def test_holm_bounds_the_chance_of_any_false_verdict_of_six_rows() -> None:
    rng, false = np.random.default_rng(3), 0
    for _ in range(300):
        rows = {str(i): of_logs(MARGIN + 0.1 * rng.standard_normal(8)) for i in range(6)}
        false += any(verdict is Verdict.AHEAD for verdict in holm(rows).values())
    assert false <= binom.ppf(0.9999, 300, 0.05)


def test_holm_is_stricter_than_one_row_and_stops_at_the_first_open_one() -> None:
    clear, weak = of_logs(np.array([1.0, 1.1, 0.9, 1.0])), of_logs(np.array([0.10, 0.24, 0.32, 0.44]))
    assert weak.verdict() is Verdict.OPEN or weak.p <= 0.05
    rows = {"clear": clear, **{f"weak{i}": weak for i in range(5)}}
    assert holm(rows)["clear"] is Verdict.AHEAD
    assert {holm(rows)[f"weak{i}"] for i in range(5)} == {Verdict.OPEN}


def test_interval_and_p_are_those_of_the_t_test() -> None:
    logs = np.array([0.4, 0.7, 0.5, 0.9, 0.6])
    comparison = of_logs(logs)
    _, low, high = comparison.interval()
    expected = ttest_1samp(logs, 0).confidence_interval(0.95)
    assert (low, high) == pytest.approx((expected.low, expected.high))
    assert comparison.p == pytest.approx(2 * ttest_1samp(logs, MARGIN, alternative="greater").pvalue)


def test_p_says_from_which_alpha_on_there_is_a_verdict() -> None:
    rng = np.random.default_rng(4)
    for _ in range(200):
        comparison = of_logs(rng.normal(rng.normal(0, 0.3), 0.1, 6))
        if comparison.p < 0.999:
            assert comparison.verdict(comparison.p * 1.001) is not Verdict.OPEN
            assert comparison.verdict(comparison.p * 0.999) is Verdict.OPEN


def test_signs_and_pairs() -> None:
    assert Comparison.of([1.0, 2.0], [10.0, 20.0]).verdict() is Verdict.AHEAD  # less is better
    assert Comparison.of([10.0, 20.0], [1.0, 2.0]).verdict() is Verdict.BEHIND
    assert str(Comparison.of([1.0, 1.0], [4.0, 4.0])) == "4 [4, 4]"
    with pytest.raises(InputError, match="cannot be paired"):
        Comparison.of([1.0, 2.0], [1.0])
    with pytest.raises(InputError, match="two positive values"):
        Comparison.of([0.0, 1.0], [1.0, 1.0])


def test_unreached_thresholds_are_bounds() -> None:
    never = Bounds(300.0, math.inf)
    ours, theirs = [Bounds(20.0, 30.0)] * 3, [never] * 3
    later = Comparison.of(ours, theirs)
    assert later.verdict() is Verdict.AHEAD
    assert str(later) == "at least 10"
    assert Comparison.of(theirs, ours).verdict() is Verdict.BEHIND
    both = Comparison.of(theirs, theirs)
    assert both.verdict() is Verdict.OPEN
    assert str(both) == "unknown"


def test_reached_brackets_the_step() -> None:
    assert reached([10, 20, 30], [0.9, 0.4, 0.1], 0.5) == Bounds(10.0, 20.0)
    assert reached([10, 20, 30], [0.9, 0.4, 0.1], 0.01) == Bounds(30.0, math.inf)
    assert reached([10, 20], [0.3, 0.1], 0.5) == Bounds(1.0, 10.0)


def test_crossover_is_where_the_advantage_turns_for_good() -> None:
    levels = [0.0, 0.5, 1.0, 2.0, 4.0]
    found = crossover(levels, [math.log2(x / 1.3) if x else -9.0 for x in levels])  # a straight line in log₂ σ
    assert found.low == found.high == pytest.approx(1.3)
    assert crossover(levels, [1.0, -1.0, -1.0, -1.0, 1.0]).low == pytest.approx(math.sqrt(8))
    assert crossover(levels, [-1.0] * 5) == Bounds(4.0, math.inf)
    assert crossover(levels, [1.0] * 5) == Bounds(0.0, 0.0)
    with pytest.raises(InputError, match="must ascend"):
        crossover([1.0, 1.0], [0.0, 1.0])


def test_exponent_of_a_power_law() -> None:
    sizes = [16.0, 64.0, 256.0]
    found = exponent(sizes, [3 * size**1.5 for size in sizes])
    assert found.low == pytest.approx(1.5)
    assert found.high == pytest.approx(1.5)


def test_exponents_of_bounds_are_the_extremes_of_all_power_laws_within() -> None:
    sizes, amounts = (
        [32.0, 128.0, 512.0, 700.0],
        [Bounds(low, high) for low, high in ((2.0, 3.0), (8.0, 12.0), (24.0, 48.0), (40.0, 41.0))],
    )
    slopes = [np.polyfit(np.log(sizes), np.log(ends), 1)[0] for ends in product(*((b.low, b.high) for b in amounts))]
    found = exponent(sizes, amounts)
    assert found.low == pytest.approx(min(slopes))
    assert found.high == pytest.approx(max(slopes))
    assert exponent([1.0, 2.0, 4.0], [1.0, 2.0, Bounds(4.0, math.inf)]).high == math.inf
