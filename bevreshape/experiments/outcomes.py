"""Outcomes of a level's settings, and comparisons of two settings."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

from bevreshape.experiments.intervals import Bounds, Comparison, reached
from bevreshape.experiments.models import Query
from bevreshape.experiments.plan import SettingPlan
from bevreshape.experiments.runs import Outcome, Setting
from bevreshape.experiments.training import Recipe
from bevreshape.experiments.tuning import Tuned

P = TypeVar("P", bound=SettingPlan)


class NotDoneError(LookupError):
    """An entry that a row needs is not done yet."""


@dataclass(frozen=True)
class Outcomes(Generic[P]):
    """Results of a level.

    Attributes:
        plan: of the level.
        outcomes: of every setting that is done.
        tuned: recipes, by the setting in which they were tuned.
    """

    plan: P
    outcomes: Mapping[Setting, Outcome]
    tuned: Mapping[Setting, Tuned]

    @property
    def longest(self) -> int:
        """Return the largest budget."""
        return self.plan.budget.steps[-1]

    def outcome(self, setting: Setting) -> Outcome:
        """Return the outcome of a setting.

        Raises:
            NotDoneError: when it is not done.
        """
        if setting not in self.outcomes:
            raise NotDoneError(setting.name)
        return self.outcomes[setting]

    def errors(self, setting: Setting, steps: int | None = None) -> tuple[float, ...]:
        """Return the error of each seed after ``steps`` steps."""
        return self.outcome(setting).errors(self.longest if steps is None else steps)

    def compare(self, own: Setting, other: Setting, steps: int | None = None) -> Comparison:
        """Compare errors after ``steps`` steps, over the common seeds."""
        return paired(bounded(self.errors(own, steps)), bounded(self.errors(other, steps)))

    def steps_to(self, setting: Setting, threshold: float) -> list[Bounds]:
        """Return per seed the steps until the error reaches the threshold, by the recipe that is fastest over all."""
        return self.spent_to(setting, threshold, lambda _: 1.0)

    def spent_to(self, setting: Setting, threshold: float, price: Callable[[Recipe], float]) -> list[Bounds]:
        """Return per seed the cost of the steps to the threshold; a step costs ``price(recipe)``.

        All seeds have the same recipe, out of those that are best for some budget: the one by which most seeds get
        there, and of these the cheapest in the geometric mean. A recipe for each seed would favour the method whose
        runs differ more.
        """
        outcome, tried = self.outcome(setting), []
        for curve in outcome.curves:
            steps = [reached(curve.steps, errors, threshold) for errors in zip(*curve.errors, strict=True)]
            tried.append([Bounds(one.low * price(curve.recipe), one.high * price(curve.recipe)) for one in steps])
        return min(tried, key=_dearness)

    def best_steps(self, setting: Setting) -> int:
        """Return the budget with the lowest error in tuning.

        Raises:
            NotDoneError: when it is not done.
        """
        return min(self._tuned(setting).tried, key=lambda one: one.log_error).steps

    def query(self, setting: Setting) -> Query:
        """Return the form of Q that is best with the largest budget.

        Raises:
            NotDoneError: when it is not done.
        """
        return self._tuned(setting).best[self.longest].query

    def _tuned(self, setting: Setting) -> Tuned:
        by = self.plan.tuned_by(setting)
        if by not in self.tuned:
            raise NotDoneError(by.name)
        return self.tuned[by]


def _dearness(seeds: Sequence[Bounds]) -> tuple[int, float, float]:
    """Return a key: how many seeds miss the threshold, the cost of the others, and the negative cost of the misses."""
    reached_at = [math.log(one.high) for one in seeds if one.high < math.inf]
    missed_at = [math.log(one.low) for one in seeds if one.high == math.inf]
    return len(missed_at), math.fsum(reached_at), -math.fsum(missed_at)


def paired(own: Sequence[Bounds], other: Sequence[Bounds]) -> Comparison:
    """Compare over the common seeds, which are the first ones."""
    shared = min(len(own), len(other))
    return Comparison.of(own[:shared], other[:shared])


def bounded(errors: Sequence[float]) -> list[Bounds]:
    """Return errors as bounds; a diverged run is only known to be worse than predicting the mean."""
    return [Bounds(1.0, math.inf) if error == math.inf else Bounds.exactly(error) for error in errors]
