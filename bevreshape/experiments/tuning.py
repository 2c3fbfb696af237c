"""Tuning by successive halving (Jamieson and Talwalkar 2016), on separate seeds."""

import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from torch import Tensor

from bevreshape.experiments.training import Recipe

FACTOR = math.sqrt(10)
"""Ratio of neighbouring rates when a grid is extended."""

Measure = Callable[[Sequence[Recipe], int], Tensor]
"""``measure(recipes, steps)``: errors (len(recipes), seeds) after training for so many steps."""

FEWEST = 2
"""Smallest number of candidates that halving keeps."""

LEARNED = math.log(0.9)
"""Logarithm of the error of a recipe that explains a tenth of the target's variance; above it nothing is learned."""

RULE = "half of a rung goes on, where none has learned also the best at every initial rate, both ends are extended"
"""What the recipes of a record depend on besides its settings: results by another rule are refused."""


@dataclass(frozen=True)
class Tried:
    """The result of a recipe after a number of steps.

    Attributes:
        recipe: of the training.
        steps: of training.
        log_error: mean over the tuning seeds of the logarithm of the error; infinite if one diverged.
    """

    recipe: Recipe
    steps: int
    log_error: float


@dataclass(frozen=True)
class Tuned:
    """Result of tuning.

    Attributes:
        best: the best recipe for every budget.
        tried: all results.
    """

    best: dict[int, Recipe]
    tried: tuple[Tried, ...]

    def to_plain(self) -> dict[str, Any]:
        """Return plain values for a JSON file."""
        return {
            "best": {str(steps): asdict(recipe) for steps, recipe in self.best.items()},
            "tried": [
                [
                    *asdict(one.recipe).values(),
                    one.steps,
                    round(one.log_error, 4) if math.isfinite(one.log_error) else None,
                ]
                for one in self.tried
            ],
        }

    @classmethod
    def from_plain(cls, plain: dict[str, Any]) -> "Tuned":
        """Build it from what :meth:`to_plain` returns."""
        best = {int(steps): Recipe(**recipe) for steps, recipe in plain["best"].items()}
        tried = [
            Tried(Recipe(*line[:-2]), line[-2], math.inf if line[-1] is None else line[-1]) for line in plain["tried"]
        ]
        return cls(best, tuple(tried))


class Halving:
    """Successive halving over recipes, with as many rungs as there are budgets.

    After the steps of a rung, the better half of the remaining recipes continues in the next, longer one. If the best
    rate is at an end of the rates of its rung, these are extended until it is not. A rate that was dropped after a
    shorter rung is then measured again: the best rate falls with the steps. If the best recipe of a rung has an error
    above :data:`LEARNED`, it also continues at every initial rate: with few samples a training of 50 steps is worse
    than none, so the lowest rate is best there, while one of 1000 steps with a high rate succeeds.

    Args:
        candidates: initial recipes.
        measure: trains and measures recipes.
    """

    def __init__(self, candidates: Sequence[Recipe], measure: Measure) -> None:
        self.candidates = list(candidates)
        self.measure = measure

    def run(self, budgets: Sequence[int]) -> Tuned:
        """Return the best recipe for each of the ascending budgets."""
        alive, tried, best = self.candidates, [], {}
        for steps in budgets:
            found = self._try(alive, steps)
            while (more := self._beyond(found)) is not None:
                found += self._try([more], steps)
            found.sort(key=_log_error)
            tried += found
            best[steps] = found[0].recipe
            alive = [one.recipe for one in found[: max(FEWEST, math.ceil(len(found) / 2))]]
            if found[0].log_error > LEARNED:
                rates = dict.fromkeys(one.rate for one in self.candidates)
                at_rates = [replace(best[steps], rate=rate) for rate in rates]
                alive += [recipe for recipe in at_rates if recipe not in alive]
        return Tuned(best, tuple(tried))

    def _try(self, recipes: Sequence[Recipe], steps: int) -> list[Tried]:
        errors = self.measure(recipes, steps)
        means = errors.log().nan_to_num(math.inf, math.inf).mean(1).tolist()
        return [Tried(recipe, steps, mean) for recipe, mean in zip(recipes, means, strict=True)]

    @staticmethod
    def _beyond(found: Sequence[Tried]) -> Recipe | None:
        """Return the best recipe with the next rate, if its rate is the lowest or highest found and it converged."""
        best, rates = min(found, key=_log_error), sorted({one.recipe.rate for one in found})
        if not math.isfinite(best.log_error):
            return None
        if best.recipe.rate == rates[-1]:
            return replace(best.recipe, rate=rates[-1] * FACTOR)
        if best.recipe.rate == rates[0]:
            return replace(best.recipe, rate=rates[0] / FACTOR)
        return None


def _log_error(tried: Tried) -> float:
    return tried.log_error
