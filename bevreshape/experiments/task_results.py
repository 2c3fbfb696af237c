"""Results of the task level: IoU as a fraction of IPM's, and the steps and compute to such fractions."""

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

from bevreshape.experiments.intervals import Bounds, Comparison
from bevreshape.experiments.outcomes import NotDoneError
from bevreshape.experiments.task_instruments import Inspected
from bevreshape.experiments.task_plan import TaskPlan, TaskSetting
from bevreshape.experiments.task_training import TaskOutcome

IPM, MLP, ATTENTION = TaskSetting("ipm"), TaskSetting("mlp"), TaskSetting("attention")

NAMED = {"IPM": IPM, "MLP": MLP, "attention": ATTENTION}
"""Settings of a fixed camera without the pose, by name."""

Key = tuple[TaskSetting, int, int]
"""Setting, steps and seed of a training."""


@dataclass(frozen=True)
class TaskResults:
    """Results of a study's task level.

    Attributes:
        plan: of the level.
        outcomes: of every training that is done.
        constant: by jitter and seed, the mean test IoU of the map of class frequencies, at the best thresholds.
    """

    plan: TaskPlan
    outcomes: Mapping[Key, TaskOutcome]
    constant: Mapping[tuple[float, int], float]

    def of(self, setting: TaskSetting, steps: int | None = None) -> list[TaskOutcome]:
        """Return the outcome of each seed after ``steps`` steps, by default the largest budget.

        Raises:
            NotDoneError: when one is not done.
        """
        steps = self.plan.longest if steps is None else steps
        seeds = range(self.plan.seeds_of(setting))
        for seed in seeds:
            if (setting, steps, seed) not in self.outcomes:
                raise NotDoneError(f"{setting.name}-steps{steps}-seed{seed}")
        if not seeds:
            raise NotDoneError(setting.name)
        return [self.outcomes[setting, steps, seed] for seed in seeds]

    def iou(self, setting: TaskSetting, steps: int | None = None) -> list[float]:
        """Return the mean test IoU of each seed; 0 if training diverged."""
        return [outcome.iou.get("mean", 0.0) for outcome in self.of(setting, steps)]

    def best_iou(self, setting: TaskSetting) -> list[float]:
        """Return the mean test IoU of each seed, each class at its best threshold; 0 if training diverged."""
        return [outcome.best_iou.get("mean", 0.0) for outcome in self.of(setting)]

    def unseen(self, setting: TaskSetting, what: str) -> list[float]:
        """Return the mean test IoU of each seed with cameras of this unseen kind; 0 if training diverged."""
        return [outcome.unseen.get(what, 0.0) for outcome in self.of(setting)]

    def inspected(self, setting: TaskSetting) -> list[Inspected]:
        """Return the values of the models whose training has not diverged.

        Raises:
            NotDoneError: when all have diverged.
        """
        found = [outcome.inspected for outcome in self.of(setting) if outcome.inspected is not None]
        if not found:
            raise NotDoneError(setting.name)
        return found

    def cost(self, setting: TaskSetting, what: str) -> int:
        """Return a value of :func:`~bevreshape.experiments.task_instruments.costs`; the same for all seeds.

        Raises:
            NotDoneError: when all have diverged.
        """
        for outcome in self.of(setting):
            if what in outcome.costs:
                return outcome.costs[what]
        raise NotDoneError(setting.name)

    def shares(self, setting: TaskSetting, steps: int | None = None) -> list[float]:
        """Return each seed's IoU relative to IPM's in the largest budget with the same cameras; NaN if that is 0."""
        own = self.iou(setting, steps)
        whole = self.iou(TaskSetting("ipm", sigma_deg=setting.sigma_deg))
        return [mine / theirs if theirs else math.nan for mine, theirs in zip(own, whole, strict=False)]

    def unseeing(self, sigma: float) -> list[float]:
        """Return the mean IoU of each seed without a look at the image, which is above 0 as streets are alike.

        It is the higher one of two: IPM's with the images of other samples, and that of the map of class frequencies.
        Each class has the threshold that is best for it.

        Raises:
            NotDoneError: when one is not done, or has diverged.
        """
        ipm = TaskSetting("ipm", sigma_deg=sigma)
        found = [outcome.inspected.best_iou_unrelated for outcome in self.of(ipm) if outcome.inspected is not None]
        if len(found) < self.plan.seeds:
            raise NotDoneError(ipm.name)
        for seed in range(self.plan.seeds):
            if (sigma, seed) not in self.constant:
                raise NotDoneError(f"constant-sigma{sigma:g}-seed{seed}")
        return [max(other, self.constant[sigma, seed]) for seed, other in enumerate(found)]

    def gain(self, setting: TaskSetting) -> list[float]:
        """Return the gain in IoU of each seed over that baseline, at the best thresholds too; at most 0 if images add
        nothing."""
        blind = self.unseeing(setting.sigma_deg)
        return [iou - least for iou, least in zip(self.best_iou(setting), blind, strict=False)]

    def advantage(self, own: TaskSetting, other: TaskSetting) -> Comparison:
        """Compare two settings by :func:`ahead`."""
        return ahead(self.iou(own), self.iou(other))

    def steps_to(self, setting: TaskSetting, share: float) -> list[Bounds]:
        """Return per seed the steps of whole trainings, each with its schedule, until the test IoU is a fraction
        ``share`` of IPM's."""
        curves = [self.shares(setting, steps) for steps in self.plan.steps]
        return [crossed(self.plan.steps, curve, share) for curve in zip(*curves, strict=True)]

    def history_to(self, setting: TaskSetting, share: float) -> list[Bounds]:
        """Return per seed the steps in the longest training until the validation IoU is ``share`` of IPM's best."""
        found = []
        reference = self.of(TaskSetting("ipm", sigma_deg=setting.sigma_deg))
        for own, ipm in zip(self.of(setting), reference, strict=False):
            whole = max((value for _, value in ipm.curve), default=math.nan)
            steps, values = [step for step, _ in own.curve], [value for _, value in own.curve]
            found.append(crossed(steps, values, share * whole))
        return found

    def compute_to(self, setting: TaskSetting, share: float, what: str = "flops") -> list[Bounds]:
        """Return per seed the FLOPs of forward passes of all training samples until :meth:`steps_to`."""
        sample = self.cost(setting, what) * self.plan.batch
        return [Bounds(one.low * sample, one.high * sample) for one in self.steps_to(setting, share)]

    def at_equal_compute(self, own: TaskSetting, other: TaskSetting) -> tuple[float, list[float], list[float]]:
        """Return the FLOPs of the cheaper method in the largest budget, and the IoU of both methods for these FLOPs.

        Between two budgets the IoU is interpolated linearly in the logarithm of the steps.
        """
        batch, steps = self.plan.batch, self.plan.steps
        least = min(self.cost(setting, "flops") for setting in (own, other)) * batch * self.plan.longest

        def at(setting: TaskSetting) -> list[float]:
            lines = zip(*(self.iou(setting, budget) for budget in steps), strict=True)
            return [between(steps, line, least / (self.cost(setting, "flops") * batch)) for line in lines]

        return float(least), at(own), at(other)


def ahead(own: Sequence[float], other: Sequence[float]) -> Comparison:
    """Compare the IoU (or the gain in IoU) of two methods by their ratio, seed by seed.

    The ratio of IoU equals the ratio of fractions of IPM's IoU. The ratio of 1 − IoU is not used: invisible parts of
    the map keep 1 − IoU far from 0, so different methods would seem alike.
    """
    shared = min(len(own), len(other))
    return Comparison.of([_lacking(value) for value in own[:shared]], [_lacking(value) for value in other[:shared]])


def _lacking(iou: float) -> Bounds:
    """Return the inverse of an IoU, for which less is better; unbounded if the IoU is not positive."""
    return Bounds.exactly(1 / iou) if iou > 0 else Bounds(1.0, math.inf)


def between(steps: Sequence[int], values: Sequence[float], at: float) -> float:
    """Interpolate in the logarithm of the steps; before the first step, return the first value."""
    if at <= steps[0]:
        return values[0]
    for (low, before), (high, after) in pairwise(zip(steps, values, strict=True)):
        if at <= high:
            return before + (after - before) * math.log(at / low) / math.log(high / low)
    return values[-1]


def crossed(steps: Sequence[int], values: Sequence[float], threshold: float) -> Bounds:
    """Return the step at which a curve first reaches a threshold, by the same interpolation.

    Only bounds are known before the first step and after the last.
    """
    if not values:  # it diverged
        return Bounds(1.0, math.inf)
    if values[0] >= threshold:
        return Bounds(1.0, float(steps[0]))
    for (low, before), (high, after) in pairwise(zip(steps, values, strict=True)):
        if after >= threshold:
            share = (threshold - before) / (after - before)
            return Bounds.exactly(low * (high / low) ** share)
    return Bounds(float(steps[-1]), math.inf)


def mean(values: Sequence[float]) -> float:
    """Return the mean over the seeds."""
    return statistics.mean(values)
