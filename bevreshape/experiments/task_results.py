"""The outcomes of a study's task level, compared: IoU as a share of IPM's, steps and compute to such shares."""

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
"""With a fixed camera whose pose is not given."""

Key = tuple[TaskSetting, int, int]
"""Setting, steps and seed of a training."""


@dataclass(frozen=True)
class TaskResults:
    """What a study's task level has found.

    Attributes:
        plan: of it.
        outcomes: of every training that is done.
    """

    plan: TaskPlan
    outcomes: Mapping[Key, TaskOutcome]

    def of(self, setting: TaskSetting, steps: int | None = None) -> list[TaskOutcome]:
        """After so many steps, the largest budget where none are named; one a seed.

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
        """Mean test IoU, one a seed; 0 where training diverged."""
        return [outcome.iou.get("mean", 0.0) for outcome in self.of(setting, steps)]

    def unseen(self, setting: TaskSetting, what: str) -> list[float]:
        """Mean test IoU with cameras that are unseen in this respect, one a seed; 0 where training diverged."""
        return [outcome.unseen.get(what, 0.0) for outcome in self.of(setting)]

    def inspected(self, setting: TaskSetting) -> list[Inspected]:
        """Figures of the models, of the seeds whose training has not diverged.

        Raises:
            NotDoneError: when all have.
        """
        found = [outcome.inspected for outcome in self.of(setting) if outcome.inspected is not None]
        if not found:
            raise NotDoneError(setting.name)
        return found

    def seconds(self, setting: TaskSetting) -> float:
        """Of the longest trainings, their mean over the seeds; of the machine that did them."""
        return mean([outcome.seconds for outcome in self.of(setting)])

    def cost(self, setting: TaskSetting, what: str) -> int:
        """See :func:`~bevreshape.experiments.task_instruments.costs`; the same for all seeds.

        Raises:
            NotDoneError: when all have diverged.
        """
        for outcome in self.of(setting):
            if what in outcome.costs:
                return outcome.costs[what]
        raise NotDoneError(setting.name)

    def shares(self, setting: TaskSetting, steps: int | None = None) -> list[float]:
        """Of the IoU that IPM gets in the largest budget with the same cameras, one a seed; NaN where that is 0."""
        own = self.iou(setting, steps)
        whole = self.iou(TaskSetting("ipm", sigma_deg=setting.sigma_deg))
        return [mine / theirs if theirs else math.nan for mine, theirs in zip(own, whole, strict=False)]

    def unseeing(self, sigma: float) -> list[float]:
        """Mean IoU of IPM with the images of other samples, one a seed: what is right without looking, since streets
        are alike.

        Raises:
            NotDoneError: when one has diverged.
        """
        ipm = TaskSetting("ipm", sigma_deg=sigma)
        found = [outcome.inspected.iou_unrelated for outcome in self.of(ipm) if outcome.inspected is not None]
        if len(found) < self.plan.seeds:
            raise NotDoneError(ipm.name)
        return found

    def gain(self, setting: TaskSetting) -> list[float]:
        """What looking adds to the IoU, one a seed; not above 0 where it adds nothing."""
        return [iou - least for iou, least in zip(self.iou(setting), self.unseeing(setting.sigma_deg), strict=False)]

    def advantage(self, own: TaskSetting, other: TaskSetting) -> Comparison:
        """Of one setting over another, see :func:`ahead`."""
        return ahead(self.iou(own), self.iou(other))

    def steps_to(self, setting: TaskSetting, share: float) -> list[Bounds]:
        """Steps of whole trainings, each with its own schedule, until the test IoU is such a share of IPM's; one a
        seed."""
        curves = [self.shares(setting, steps) for steps in self.plan.steps]
        return [crossed(self.plan.steps, curve, share) for curve in zip(*curves, strict=True)]

    def history_to(self, setting: TaskSetting, share: float) -> list[Bounds]:
        """Steps within the longest training until the validation IoU is such a share of IPM's best; one a seed."""
        found = []
        reference = self.of(TaskSetting("ipm", sigma_deg=setting.sigma_deg))
        for own, ipm in zip(self.of(setting), reference, strict=False):
            whole = max((value for _, value in ipm.curve), default=math.nan)
            steps, values = [step for step, _ in own.curve], [value for _, value in own.curve]
            found.append(crossed(steps, values, share * whole))
        return found

    def compute_to(self, setting: TaskSetting, share: float, what: str = "flops") -> list[Bounds]:
        """FLOPs of forward passes of all samples of a training, until the same; one a seed."""
        sample = self.cost(setting, what) * self.plan.batch
        return [Bounds(one.low * sample, one.high * sample) for one in self.steps_to(setting, share)]

    def at_equal_compute(self, own: TaskSetting, other: TaskSetting) -> tuple[float, list[float], list[float]]:
        """FLOPs that the cheaper of two methods takes for the largest budget, and the IoU that each has for them: whole
        trainings, between two of which the IoU is taken to be linear in the logarithm of the steps."""
        batch, steps = self.plan.batch, self.plan.steps
        least = min(self.cost(setting, "flops") for setting in (own, other)) * batch * self.plan.longest

        def at(setting: TaskSetting) -> list[float]:
            lines = zip(*(self.iou(setting, budget) for budget in steps), strict=True)
            return [between(steps, line, least / (self.cost(setting, "flops") * batch)) for line in lines]

        return float(least), at(own), at(other)


def ahead(own: Sequence[float], other: Sequence[float]) -> Comparison:
    """How many times larger the first of two methods' IoU is, or what looking adds to it, seed by seed.

    IoU and not what it lacks of 1: as a share of IPM's it is what the task level measures by, IPM's own cancels, and
    within 10 % of each other means as much of IPM's IoU whatever that is. What images do not show keeps 1 − IoU far
    from 0, so that a ratio of these would call alike what is not.
    """
    shared = min(len(own), len(other))
    return Comparison.of([_lacking(value) for value in own[:shared]], [_lacking(value) for value in other[:shared]])


def _lacking(iou: float) -> Bounds:
    """The inverse of an IoU, less of which is better; where there is none it is unknown how much."""
    return Bounds.exactly(1 / iou) if iou > 0 else Bounds(1.0, math.inf)


def between(steps: Sequence[int], values: Sequence[float], at: float) -> float:
    """By interpolation in the logarithm of the steps; the first value before the first step."""
    if at <= steps[0]:
        return values[0]
    for (low, before), (high, after) in pairwise(zip(steps, values, strict=True)):
        if at <= high:
            return before + (after - before) * math.log(at / low) / math.log(high / low)
    return values[-1]


def crossed(steps: Sequence[int], values: Sequence[float], threshold: float) -> Bounds:
    """When a curve is at a threshold for the first time, by the same interpolation; up to the first step, or beyond the
    last, it is not known when."""
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
    """Of the seeds."""
    return statistics.mean(values)
