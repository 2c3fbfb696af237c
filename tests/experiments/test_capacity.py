"""Capacity: counts on paper against real ones, equations against unknowns, and exponents of needs that are known."""

from dataclasses import replace
from itertools import product

import pytest
import torch

from bevreshape.experiments.capacity import NUSCENES, Size, on_paper, rows, samples_for_w
from bevreshape.experiments.plan import TensorPlan
from bevreshape.experiments.runs import Budget, Curve, Outcome, Setting, cost
from bevreshape.experiments.tensor_results import Results
from bevreshape.experiments.training import Recipe
from bevreshape.experiments.tuning import Tried, Tuned

PLAN = TensorPlan(
    budget=Budget((10,), 4, (0.01,), (0,), (0.0,), ("projected",), tuning_seeds=2, held_out=8),
    seeds=2,
    primary_seeds=2,
    sigma_deg=(0.0, 2.0),
    samples=(8,),
    tuned_sigma_deg=(0.0,),
    tuned_samples=(8,),
    primary_samples=(8,),
    primary_sigma_deg=2.0,
    scales=(0.5, 1.0, 2.0),
    capacity_samples=(4, 6, 8, 12, 16, 24, 32, 48),
)


@pytest.mark.parametrize("scale", [0.25, 0.5, 1.5])
@pytest.mark.parametrize("method", ["mlp", "positional", "attention", "continuous"])
def test_computed_costs_equal_counted_costs(method: str, scale: float) -> None:
    setting = Setting(method, scale=scale)
    size = Size(setting.world.source.tokens, len(setting.world.cells))
    assert on_paper(method, size) == cost(setting)


def test_nuscenes_by_hand() -> None:
    mlp, attention = on_paper("mlp", NUSCENES), on_paper("attention", NUSCENES)
    t, q = 10080, 40000
    assert mlp["parameters"] == t * q + 16 * 16
    assert attention["parameters"] == q * 64 + 64 * 64 + 16 * 64 + 64 * 64 + 16 * 16
    # X, values and output; A in addition is as large as the MLP's parameters
    assert mlp["bytes"] == 4 * (2 * t * 16 + q * 16)
    assert attention["bytes"] > 4 * t * q > 100 * mlp["bytes"]


@pytest.mark.parametrize("samples", [3, 4])
def test_an_mlp_is_determined_by_as_many_equations_as_unknowns(samples: int) -> None:
    t, q, c = 6, 3, 2
    generator = torch.Generator().manual_seed(0)
    x, w, v = (torch.randn(*shape, generator=generator).double() for shape in ((samples, t, c), (q, t), (c, c)))
    parts = torch.autograd.functional.jacobian(lambda w, v: w @ x @ v, (w, v))
    rank = torch.linalg.matrix_rank(torch.cat([part.flatten(3).flatten(0, 2) for part in parts], 1)).item()
    unknowns = q * t + c * c - 1  # W may be larger by what the read-out is smaller
    assert (rank == unknowns) == (samples >= samples_for_w(Size(t, q), c))


def made_up(needs: dict[str, dict[float, int]]) -> Results:
    """Errors that fall to 0.01 with as many samples as are needed."""
    recipe, outcomes, tuned = Recipe(0.01), {}, {}
    for method, scale, amount in product(needs, PLAN.scales, (*PLAN.capacity_samples, None)):
        setting = Setting(method, samples=amount, scale=scale)
        error = 0.01 if amount is None or amount >= needs[method][scale] else 1.0
        outcomes[setting] = Outcome(setting, (0, 1), (Curve(recipe, (10,), ((error, error),)),), {10: 0})
        tuned[PLAN.tuned_by(setting)] = Tuned({10: recipe}, (Tried(recipe, 10, -1.0),))
    costs = {
        (setting, "projected"): cost(setting)
        for setting in (Setting(method, scale=scale) for method, scale in product(needs, PLAN.scales))
    }
    return Results(PLAN, outcomes, tuned, costs, None)


def test_exponents_of_needs_that_grow_and_of_needs_that_do_not() -> None:
    results = made_up({"mlp": {0.5: 6, 1.0: 12, 2.0: 48}, "attention": {0.5: 8, 1.0: 8, 2.0: 8}})
    (row,) = [row for row in rows(results) if row.question.startswith("Capacity: samples")]
    bounds = {name: [float(x) for x in text.split("[")[1].rstrip("]").split(", ")] for name, text in row.value.items()}
    # 4..6 of 32 tokens, 8..12 of 128, 32..48 of 512: between log(32 / 6) and log(48 / 4) over log(16)
    assert bounds["MLP"] == pytest.approx([0.60, 0.90], abs=0.01)
    assert bounds["attention"] == pytest.approx([-0.10, 0.10], abs=0.01)  # 6 to 8 throughout
    assert row.absolute["MLP"] == "4 to 6, 8 to 12, 32 to 48"
    assert row.absolute["unknowns / equations of the MLP"] == "3.33, 8.33, 32.1"


def test_needs_beyond_all_samples_have_no_exponent() -> None:
    results = made_up({"mlp": {0.5: 6, 1.0: 12, 2.0: 99}, "attention": {0.5: 8, 1.0: 8, 2.0: 8}})
    (row,) = [row for row in rows(results) if row.question.startswith("Capacity: samples")]
    assert row.value["MLP"] == "not reached everywhere"
    assert row.absolute["MLP"].endswith("more than 48")


def test_recipes_are_those_of_as_many_samples_a_feature() -> None:
    plan = replace(PLAN, samples=(8, 32, 128), tuned_samples=(8, 32))
    assert plan.tuned_by(Setting("mlp", samples=32, scale=2.0)) == Setting("mlp", samples=8)
    assert plan.tuned_by(Setting("mlp", samples=8, scale=0.5)) == Setting("mlp", samples=32)
    assert plan.tuned_by(Setting("mlp", scale=2.0)) == Setting("mlp", scale=2.0)


def test_recipes_are_those_of_the_nearest_number_of_samples_and_of_the_larger_if_two_are_as_near() -> None:
    """With fewer samples the best recipe may be not to train."""
    plan = replace(PLAN, samples=(8, 32, 128), tuned_samples=(8, 32))
    moving = Setting("mlp", sigma_deg=2.0)
    tuned = [plan.tuned_by(replace(moving, samples=amount)).samples for amount in (8, 15, 16, 17, 32, 128, 129)]
    assert tuned == [8, 8, 32, 32, 32, 32, None]


def test_numbers_of_samples_of_a_primary_row_are_tuned_where_the_camera_is_fixed() -> None:
    plan = replace(PLAN, samples=(8, 32), tuned_samples=(8, 32), primary_samples=(4, 12, 16))
    for method in ("mlp", "attention"):
        for amount in (4, 8, 12, 16, 32):
            assert plan.tuned_by(Setting(method, samples=amount)) == Setting(method, samples=amount)
            assert plan.seeds_of(Setting(method, samples=amount)) == range(plan.primary_seeds)
        assert plan.tuned_by(Setting(method, samples=64, scale=2.0)) == Setting(method, samples=16)
    assert plan.tuned_by(Setting("adaptive", "given", samples=16)).samples == 32
    assert plan.tuned_by(Setting("attention", "visible", samples=4)).samples == 8
