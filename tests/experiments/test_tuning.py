"""Successive halving on errors whose best recipe is known."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from bevreshape.experiments.training import Recipe
from bevreshape.experiments.tuning import FACTOR, Halving, Tuned


class Bowl:
    """Errors that are lowest at a rate, and count what was trained."""

    def __init__(self, best: float, warmup: int = 0) -> None:
        self.best, self.warmup = best, warmup
        self.trained: list[tuple[int, int]] = []

    def __call__(self, recipes: Sequence[Recipe], steps: int) -> Tensor:
        self.trained.append((len(recipes), steps))
        return torch.tensor(
            [
                [
                    math.exp(abs(math.log(r.rate / self.best)) + 0.01 * abs(r.warmup - self.warmup) + seed - 9)
                    for seed in (0, 1)
                ]
                for r in recipes
            ]
        )


def test_the_best_recipe_is_found_and_half_is_dropped_each_time() -> None:
    bowl = Bowl(0.01, warmup=20)
    candidates = [Recipe(rate, warmup) for rate in (0.001, 0.003, 0.01, 0.03) for warmup in (0, 20)]
    tuned = Halving(candidates, bowl).run((10, 30, 100))
    assert set(tuned.best.values()) == {Recipe(0.01, 20)}
    assert bowl.trained == [(8, 10), (4, 30), (2, 100), (1, 100), (1, 100)]  # the last two are the rates around it


def test_a_best_rate_at_an_end_extends_the_grid() -> None:
    for best in (1.0, 1e-5):
        tuned = Halving([Recipe(rate) for rate in (0.001, 0.003, 0.01)], Bowl(best)).run((10,))
        rate = tuned.best[10].rate
        assert abs(math.log(rate / best)) <= math.log(FACTOR) / 2 + 1e-9
        tried = [one.recipe.rate for one in tuned.tried]
        assert min(tried) < rate < max(tried)


class Falling(Bowl):
    """The best rate falls with the steps."""

    def __call__(self, recipes: Sequence[Recipe], steps: int) -> Tensor:
        self.best = 1.0 / steps
        return super().__call__(recipes, steps)


def test_the_ends_of_every_rung_are_extended() -> None:
    """A rate that was dropped after a short rung may be the best one of a long rung."""
    tuned = Halving([Recipe(rate) for rate in (0.001, 0.01, 0.1, 1.0)], Falling(1.0)).run((10, 100, 1000))
    for steps in (10, 100, 1000):
        rates = [one.recipe.rate for one in tuned.tried if one.steps == steps]
        assert abs(math.log(tuned.best[steps].rate * steps)) <= math.log(FACTOR) / 2 + 1e-9
        assert min(rates) < tuned.best[steps].rate < max(rates)


class Overshooting(Bowl):
    """The error of a few samples: a short training is worse than none, a long one succeeds at a high rate."""

    def __call__(self, recipes: Sequence[Recipe], steps: int) -> Tensor:
        self.trained.append((len(recipes), steps))
        succeeds = {r: steps >= 1000 and 0.05 < r.rate < 0.5 and r.query == "direct" for r in recipes}
        lines = [
            [0.03 if succeeds[r] else 1.001 + max(r.rate, 1e-3) + (r.query == "projected") / 1e6] * 2 for r in recipes
        ]
        return torch.tensor(lines, dtype=torch.float64)


def test_no_rate_is_dropped_while_nothing_is_learned() -> None:
    """Otherwise the lowest rates, which do not train at all, would be the only ones to try the long budget."""
    candidates = [Recipe(rate, query=query) for rate in (0.003, 0.01, 0.03, 0.1) for query in ("projected", "direct")]
    overshooting = Overshooting(0.0)
    tuned = Halving(candidates, overshooting).run((50, 100, 1000))
    assert tuned.best[1000] == Recipe(0.1, query="direct")
    assert all(one.log_error > 0 for one in tuned.tried if one.steps < 1000)
    assert overshooting.trained[0] == (8, 50)


def test_diverged_recipes_are_never_best_and_end_the_extension() -> None:
    def measure(recipes: Sequence[Recipe], steps: int) -> Tensor:
        return torch.tensor([[1 / r.rate if r.rate < 0.5 else math.nan] * 2 for r in recipes])

    tuned = Halving([Recipe(0.1), Recipe(0.2)], measure).run((10,))
    assert tuned.best[10] == Recipe(0.2)
    assert math.inf in [one.log_error for one in tuned.tried]


def test_plain_values_are_the_same_again() -> None:
    tuned = Halving([Recipe(rate, 5, 0.1, "direct") for rate in (0.001, 0.003, 0.01)], Bowl(0.003)).run((10, 20))
    again = Tuned.from_plain(tuned.to_plain())
    assert again.best == tuned.best
    assert [one.recipe for one in again.tried] == [one.recipe for one in tuned.tried]
