"""Results of a study's tensor level, and comparisons of its methods."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

from bevreshape.experiments.intervals import Bounds, Comparison, crossover, reached
from bevreshape.experiments.models import Query, called
from bevreshape.experiments.outcomes import NotDoneError, Outcomes
from bevreshape.experiments.pace import Pace
from bevreshape.experiments.plan import PAIRS, TensorPlan
from bevreshape.experiments.runs import Setting
from bevreshape.experiments.world import Pose

PACE = "pace"
"""Name of the entry with the seconds of a step."""

TO = 0.1
"""The error threshold of the primary rows: 90 % of the target's variance is explained."""


@dataclass(frozen=True)
class Results(Outcomes[TensorPlan]):
    """Results of a study's tensor level.

    Attributes:
        costs: of settings with a form of Q: parameters, flops and bytes of one sample of a training batch.
        paced: seconds of a step, if measured.
    """

    costs: Mapping[tuple[Setting, Query], Mapping[str, int]]
    paced: Pace | None

    @property
    def pace(self) -> Pace:
        """Return the seconds of a step of the methods of the primary rows.

        Raises:
            NotDoneError: when they are not measured.
        """
        if self.paced is None:
            raise NotDoneError(PACE)
        return self.paced

    def flops_to(self, setting: Setting, threshold: float) -> list[Bounds]:
        """Return per seed the FLOPs of forward passes until the error reaches the threshold."""
        return self.spent_to(
            setting, threshold, lambda recipe: self.plan.budget.batch * self.costs[setting, recipe.query]["flops"]
        )

    def seconds_to(self, setting: Setting, threshold: float) -> list[Bounds]:
        """Return per seed the seconds of training until the error reaches the threshold.

        Raises:
            NotDoneError: when the seconds of a step are not measured.
        """
        seconds = self.pace.seconds
        return self.spent_to(setting, threshold, lambda recipe: seconds[called(setting.method, recipe.query)])

    def advantage(self, pose: Pose, sigma: float, samples: int | None, steps: int) -> Comparison:
        """Compare the errors of attention and MLP: a cell of the chart."""
        mlp, attention = (Setting(one, pose, sigma, samples) for one in PAIRS[pose])
        return self.compare(attention, mlp, steps)

    def samples_to(self, method: str, threshold: float) -> list[Bounds]:
        """Return per seed the training samples with which the error of a fixed camera reaches the threshold.

        Training takes as many steps as were best on the tuning seeds.
        """
        return self._samples_to(method, threshold, 1.0, self.plan.primary_samples)

    def samples_at(self, method: str, threshold: float, scale: float) -> list[Bounds]:
        """Return the same at a scale of the capacity rows."""
        return self._samples_to(method, threshold, scale, self.plan.capacity_samples)

    def _samples_to(self, method: str, threshold: float, scale: float, amounts: Sequence[int]) -> list[Bounds]:
        settings = [Setting(method, samples=amount, scale=scale) for amount in amounts]
        errors = [self.errors(setting, self.best_steps(setting)) for setting in settings]
        shared = min(map(len, errors))  # a row that is not primary may have fewer
        return [reached(amounts, [line[seed] for line in errors], threshold) for seed in range(shared)]

    @cached_property
    def primary(self) -> dict[str, Comparison]:
        """Return the primary comparisons of attention with the MLP, which were fixed before any measurement."""
        sigma = self.plan.primary_sigma_deg
        mlp, attention = Setting("mlp"), Setting("attention")
        return {
            "fixed camera, error": self.advantage("unknown", 0.0, None, self.longest),
            "fixed camera, steps": Comparison.of(self.steps_to(attention, TO), self.steps_to(mlp, TO)),
            "fixed camera, compute": Comparison.of(self.flops_to(attention, TO), self.flops_to(mlp, TO)),
            "fixed camera, samples": Comparison.of(self.samples_to("attention", TO), self.samples_to("mlp", TO)),
            "moving camera, pose given": self.advantage("given", sigma, None, self.longest),
            "moving camera, pose in X": self.advantage("visible", sigma, None, self.longest),
        }

    def overtaken(self, pose: Pose, samples: int | None, steps: int) -> list[Bounds]:
        """Return per seed the σ from which attention is ahead."""
        levels = self.plan.sigma_deg
        cells = [self.advantage(pose, sigma, samples, steps).seeds for sigma in levels]
        shared = min(map(len, cells))
        return [crossover(levels, [(cell[i].low + cell[i].high) / 2 for cell in cells]) for i in range(shared)]
