"""Shares, steps, compute and advantages of trainings whose figures are written down."""

import math

import pytest

from bevreshape.experiments.intervals import Bounds
from bevreshape.experiments.outcomes import NotDoneError
from bevreshape.experiments.task_instruments import Inspected
from bevreshape.experiments.task_plan import TaskPlan, TaskSetting
from bevreshape.experiments.task_results import TaskResults, ahead, between, crossed
from bevreshape.experiments.task_training import TaskOutcome

PLAN = TaskPlan((), 2, (100, 200, 400), 2, (0.01,), 2, 0, (0.0, 2.0), (0.0,), 5.0, 0.2, 2)
IPM, MLP, ATTENTION = TaskSetting("ipm"), TaskSetting("mlp"), TaskSetting("attention")


def outcome(iou: float | None, flops: int = 10, curve=((50, 0.1), (100, 0.2)), unrelated=0.1) -> TaskOutcome:
    if iou is None:
        return TaskOutcome((), {}, {}, None, {}, {}, "the loss is nan")
    costs = {"parameters": 1, "flops": flops, "reshaper_parameters": 1, "reshaper_flops": 2}
    inspected = Inspected(0.0, 0.0, 0.0, 0.5, 0.2, unrelated / 2, unrelated)
    return TaskOutcome(tuple(curve), {"mean": iou}, {"angles": iou / 2}, inspected, costs, {"mean": iou})


def within(low: float | int, high: float | int) -> Bounds:
    return Bounds(float(low), float(high))


def made(**ious) -> TaskResults:
    """Of IoU by steps, seed by seed."""
    settings = {"ipm": IPM, "mlp": MLP, "attention": ATTENTION}
    outcomes = {
        (settings[name], steps, seed): outcome(value, flops=40 if name == "attention" else 10)
        for name, seeds in ious.items()
        for seed, line in enumerate(seeds)
        for steps, value in zip(PLAN.steps, line, strict=True)
    }
    return TaskResults(PLAN, outcomes, {(0.0, 0): 0.05, (0.0, 1): 0.12})


RESULTS = made(
    ipm=[(0.1, 0.3, 0.5), (0.1, 0.3, 0.4)],
    mlp=[(0.1, 0.25, 0.5), (0.2, 0.4, 0.4)],
    attention=[(0.0, 0.1, 0.25), (0.1, 0.2, None)],
)


def test_shares_are_of_ipm_with_the_same_seed_in_its_largest_budget() -> None:
    assert RESULTS.shares(MLP) == [1.0, 1.0]
    assert RESULTS.shares(MLP, 200) == [0.5, 1.0]
    assert RESULTS.shares(ATTENTION) == [0.5, 0.0]  # the second diverged


def test_steps_to_a_share_are_those_of_whole_trainings() -> None:
    first, second = RESULTS.steps_to(MLP, 0.75)  # shares .2, .5, 1 of .5 and .5, 1, 1 of .4
    assert first.low == first.high == pytest.approx(200 * math.sqrt(2))
    assert second.low == second.high == pytest.approx(100 * math.sqrt(2))
    assert RESULTS.steps_to(MLP, 0.2) == [within(1, 100)] * 2
    assert RESULTS.steps_to(ATTENTION, 0.9) == [within(400, math.inf)] * 2


def test_compute_is_flops_of_all_samples() -> None:
    for what, flops in (("flops", 10), ("reshaper_flops", 2)):
        first, second = RESULTS.compute_to(MLP, 0.75, what)
        assert (first.low, second.high) == pytest.approx(
            (200 * math.sqrt(2) * 2 * flops, 100 * math.sqrt(2) * 2 * flops)
        )


def test_steps_within_a_training_are_to_ipms_best_validation() -> None:
    curves = {IPM: ((10, 0.3), (20, 0.4)), MLP: ((10, 0.1), (20, 0.2))}
    outcomes = {(s, 400, seed): outcome(0.5, curve=curves[s]) for s in curves for seed in (0, 1)}
    results = TaskResults(PLAN, outcomes, {})
    assert results.history_to(MLP, 0.375) == [within(10 * math.sqrt(2), 10 * math.sqrt(2))] * 2
    assert results.history_to(MLP, 0.6) == [within(20, math.inf)] * 2


def test_equal_compute_is_that_of_the_cheaper_method() -> None:
    """Attention takes four times the FLOPs of a sample, so the MLP's 400 steps are 100 of it."""
    flops, own, other = RESULTS.at_equal_compute(ATTENTION, MLP)
    assert flops == 400 * 2 * 10
    assert own == [0.0, 0.1]
    assert other == [0.5, 0.4]


def test_between_two_budgets_iou_is_linear_in_the_logarithm_of_steps() -> None:
    assert between((100, 400), (0.2, 0.4), 200.0) == pytest.approx(0.3)
    assert between((100, 400), (0.2, 0.4), 400.0) == pytest.approx(0.4)
    assert between((100, 400), (0.2, 0.4), 50.0) == 0.2
    assert between((100, 400), (0.2, 0.4), 1000.0) == 0.4


def test_a_threshold_is_crossed_where_interpolation_is_at_it() -> None:
    steps, values = (100, 200, 400), (0.1, 0.05, 0.3)
    for threshold in (0.11, 0.2, 0.29):
        (at,) = {crossed(steps, values, threshold).low, crossed(steps, values, threshold).high}
        assert between(steps, values, at) == pytest.approx(threshold)
    assert crossed(steps, values, 0.3).high == pytest.approx(400)
    assert crossed((), (), 0.1) == within(1, math.inf)


def test_an_advantage_is_the_ratio_of_iou_pair_by_pair() -> None:
    mean, *_ = ahead([0.4, 0.6], [0.2, 0.3]).interval()
    assert math.exp(mean) == pytest.approx(2)
    assert ahead([0.44, 0.43, 0.42], [0.43, 0.42, 0.41]).verdict() == "alike"
    assert ahead([0.2, 0.21], [0.4, 0.42]).verdict() == "behind"


def test_a_method_that_diverged_is_not_ahead_and_does_not_decide() -> None:
    found = RESULTS.advantage(ATTENTION, MLP)
    assert found.seeds[1].low == -math.inf
    assert str(ahead([0.0, 0.0], [0.4, 0.4])).startswith("at most")


def test_gain_is_relative_to_ipm_with_other_images() -> None:
    assert RESULTS.unseeing(0.0) == [0.1, 0.12]  # IPM's with other images, and the map of class frequencies
    assert RESULTS.gain(ATTENTION) == pytest.approx([0.15, -0.12])
    (first, second) = ahead(RESULTS.gain(ATTENTION), RESULTS.gain(MLP)).seeds
    assert math.exp(first.low) == math.exp(first.high) == pytest.approx(0.15 / 0.4)
    assert second.low == -math.inf


def test_missing_entries_raise() -> None:
    with pytest.raises(NotDoneError):
        RESULTS.iou(TaskSetting("mlp", True))
    with pytest.raises(NotDoneError):
        TaskResults(PLAN, {}, {}).cost(MLP, "flops")
    with pytest.raises(NotDoneError, match="constant-sigma0-seed0"):
        TaskResults(PLAN, RESULTS.outcomes, {}).unseeing(0.0)
    with pytest.raises(NotDoneError):
        RESULTS.iou(TaskSetting("attention", permuted=True))  # of no seed in this plan
