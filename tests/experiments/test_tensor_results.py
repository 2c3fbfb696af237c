"""What a mapping takes to be learned, where a setting's recipes have different forms of Q."""

import math

import pytest

from bevreshape.experiments.intervals import Bounds
from bevreshape.experiments.outcomes import NotDoneError
from bevreshape.experiments.pace import Pace
from bevreshape.experiments.plan import TensorPlan
from bevreshape.experiments.runs import Budget, Curve, Outcome, Setting
from bevreshape.experiments.tensor_results import Results
from bevreshape.experiments.training import Recipe
from bevreshape.experiments.tuning import Tuned

PLAN = TensorPlan(
    budget=Budget((10, 12), 4, (0.01,), (0,), (0.0,), ("projected", "direct"), tuning_seeds=1, held_out=8),
    seeds=2,
    primary_seeds=2,
    sigma_deg=(0.0, 2.0),
    samples=(8,),
    tuned_sigma_deg=(0.0,),
    tuned_samples=(8,),
    primary_samples=(8,),
    primary_sigma_deg=2.0,
    scales=(0.5, 1.0),
    capacity_samples=(8,),
)
SETTING = Setting("attention")


def made_up(paced: Pace | None) -> Results:
    """The projected recipe is at 0.1 after 9 to 10 steps, the direct one after 11 to 12 steps that are cheaper."""
    recipes = Recipe(0.01), Recipe(0.02, query="direct")
    curves = (
        Curve(recipes[0], (9, 10), ((0.4,), (0.1,))),
        Curve(recipes[1], (9, 10, 11, 12), ((0.4,), (0.4,), (0.4,), (0.1,))),
    )
    outcome = Outcome(SETTING, (0,), curves, {10: 0, 12: 1})
    costs = {(SETTING, "projected"): {"flops": 300}, (SETTING, "direct"): {"flops": 200}}
    tuned = Tuned({10: recipes[0], 12: recipes[1]}, ())
    return Results(PLAN, {SETTING: outcome}, {SETTING: tuned}, costs, paced)  # type: ignore[arg-type]


def test_every_step_costs_what_its_own_form_of_q_does() -> None:
    results = made_up(Pace("a processor", 1, {"attention": 0.5, "attention, direct Q": 0.45}))
    assert results.query(SETTING) == "direct"
    (steps,) = results.steps_to(SETTING, 0.1)
    assert steps.low <= 10 == steps.high
    (flops,) = results.flops_to(SETTING, 0.1)
    assert flops.high == 12 * 4 * 200  # samples of four a step; though the other one takes fewer steps
    (seconds,) = results.seconds_to(SETTING, 0.1)
    assert seconds == Bounds(steps.low * 0.5, steps.high * 0.5)


def test_all_seeds_have_the_recipe_that_is_cheapest_in_the_mean() -> None:
    """A recipe for each seed would make the faster one out of two that are alike and differ by chance."""
    recipes = Recipe(0.01), Recipe(0.02)
    curves = (
        Curve(recipes[0], (1, 2, 4, 8, 16), ((0.4, 0.4), (0.1, 0.4), (0.1, 0.4), (0.1, 0.4), (0.1, 0.1))),
        Curve(recipes[1], (1, 2, 4, 8, 16), ((0.4, 0.4), (0.4, 0.4), (0.1, 0.1), (0.1, 0.1), (0.1, 0.1))),
    )
    results = Results(PLAN, {SETTING: Outcome(SETTING, (0, 1), curves, {10: 0, 12: 1})}, {}, {}, None)
    assert results.steps_to(SETTING, 0.1) == [Bounds(2.0, 4.0), Bounds(2.0, 4.0)]  # √(4·4), not √(2·16) or 2 and 4


def test_a_recipe_by_which_fewer_seeds_get_there_is_not_taken() -> None:
    """A short budget's curve ends early, so that its misses look cheap."""
    recipes = Recipe(0.01), Recipe(0.02)
    curves = (
        Curve(recipes[0], (1, 10), ((0.4, 0.4), (0.4, 0.4))),
        Curve(recipes[1], (1, 10, 12), ((0.4, 0.4), (0.4, 0.4), (0.1, 0.4))),
    )
    results = Results(PLAN, {SETTING: Outcome(SETTING, (0, 1), curves, {10: 0, 12: 1})}, {}, {}, None)
    assert results.steps_to(SETTING, 0.1) == [Bounds(10.0, 12.0), Bounds(12.0, math.inf)]


def test_seconds_of_steps_that_are_not_measured_are_not_known() -> None:
    with pytest.raises(NotDoneError):
        made_up(None).seconds_to(SETTING, 0.1)
