"""The tensor level of a study: which methods are trained in which settings."""

import math
from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import product
from typing import Annotated

from annotated_types import Ge, Le

from bevreshape.errors import InputError
from bevreshape.experiments.runs import Budget, Setting
from bevreshape.experiments.tuning import FEWEST
from bevreshape.experiments.world import Pose

PAIRS: dict[Pose, tuple[str, str]] = {
    "unknown": ("mlp", "attention"),
    "visible": ("adaptive", "attention"),
    "given": ("adaptive", "posed"),
}
"""For each source of the pose, an MLP and an attention that can use it."""

THRESHOLDS = (0.5, 0.25, 0.1, 0.05)
"""Errors at which 50, 75, 90 and 95 % of the target's variance are explained."""

CURVE = (
    5,
    10,
    15,
    20,
    25,
    30,
    35,
    40,
    45,
    50,
    60,
    70,
    80,
    90,
    100,
    120,
    140,
    160,
    180,
    200,
    250,
    300,
    400,
    500,
    700,
    1000,
)
"""Steps at which the error of a fixed camera is measured."""

STEP_S = {
    "mlp": 0.001,
    "adaptive": 0.003,
    "positional": 0.002,
    "attention": 0.0035,
    "posed": 0.004,
    "continuous": 0.004,
}
"""Approximate seconds on one core for one step of one run of 8×16 features, to estimate a study's duration."""

Seeds = Annotated[int, Ge(2), Le(100)]
"""Number of seeds; one has no interval."""
Sigma = Annotated[float, Ge(0), Le(45)]
"""An angle in degrees."""
Samples = Annotated[int, Ge(1), Le(100_000)]


class SettingPlan(ABC):
    """The settings of a level, which are tuned and judged."""

    budget: Budget

    @abstractmethod
    def settings(self) -> list[Setting]:
        """Return all settings, each once."""

    @abstractmethod
    def seeds_of(self, setting: Setting) -> range:
        """Return the seeds that a setting is judged on."""

    @abstractmethod
    def tuned_by(self, setting: Setting) -> Setting:
        """Return the setting whose recipes this one uses."""

    @abstractmethod
    def at(self, setting: Setting) -> tuple[int, ...]:
        """Return the steps at which the error is measured, in addition to the budgets."""

    def tuning_seconds(self, setting: Setting) -> float:
        """Estimate the seconds to tune a setting on one core."""
        alive, steps = len(self.budget.candidates(setting)), 0
        for rung in self.budget.steps:
            steps += alive * rung
            alive = max(FEWEST, math.ceil(alive / 2))
        return _seconds(setting, steps * self.budget.tuning_seeds)

    def judging_seconds(self, setting: Setting) -> float:
        """Estimate the seconds to judge a setting on one core; about half of the budgets have their own recipe."""
        longest, *shorter = reversed(self.budget.steps)
        return _seconds(setting, (longest + sum(shorter) / 2) * len(self.seeds_of(setting)))


@dataclass(frozen=True)
class TensorPlan(SettingPlan):
    """The settings of the tensor level.

    Attributes:
        budget: the same for every method.
        seeds: number per setting.
        primary_seeds: number per setting of the primary rows.
        sigma_deg: standard deviations of yaw, ascending from 0.
        samples: numbers of training samples, ascending; a setting with new samples in every step is added.
        tuned_sigma_deg: members of ``sigma_deg`` at which recipes are tuned; others use those of the nearest.
        tuned_samples: likewise for ``samples``.
        primary_samples: numbers of training samples of the primary row on samples, ascending; each is tuned.
        primary_sigma_deg: of the moving camera in the primary rows.
        scales: of features and cells, relative to 8×16 features, for the rows on capacity.
        capacity_samples: numbers of training samples at each of these scales, ascending.
    """

    budget: Budget
    seeds: Seeds
    primary_seeds: Seeds
    sigma_deg: tuple[Sigma, ...]
    samples: tuple[Samples, ...]
    tuned_sigma_deg: tuple[Sigma, ...]
    tuned_samples: tuple[Samples, ...]
    primary_samples: tuple[Samples, ...]
    primary_sigma_deg: Sigma
    scales: tuple[Annotated[float, Ge(0.25), Le(4)], ...]
    capacity_samples: tuple[Samples, ...]

    def __post_init__(self) -> None:
        for key in ("sigma_deg", "samples", "primary_samples", "scales", "capacity_samples"):
            values = getattr(self, key)
            if not values or sorted(set(values)) != list(values):
                raise InputError(f"plan.tensor.{key}={list(values)} must be different numbers in ascending order")
        if len(self.scales) < 2:
            raise InputError(f"plan.tensor.scales={list(self.scales)} must be two or more, for an exponent")
        if self.sigma_deg[0] != 0:
            raise InputError(f"plan.tensor.sigma_deg={list(self.sigma_deg)} must begin with 0, the fixed camera")
        for key, among in (("tuned_sigma_deg", self.sigma_deg), ("tuned_samples", self.samples)):
            values = getattr(self, key)
            if not values or not set(values) <= set(among):
                raise InputError(f"plan.tensor.{key}={list(values)} must be some of {list(among)}")
        if self.primary_sigma_deg not in self.sigma_deg[1:]:
            raise InputError(
                f"plan.tensor.primary_sigma_deg={self.primary_sigma_deg} must be one of {list(self.sigma_deg[1:])}"
            )

    def chart(self) -> Iterator[Setting]:
        """Yield the settings of the crossover chart."""
        for (pose, pair), sigma, samples in product(PAIRS.items(), self.sigma_deg, (*self.samples, None)):
            for method in pair:
                yield Setting(method, pose, sigma, samples)

    def fixed(self) -> Iterator[Setting]:
        """Yield the settings of the primary row on samples."""
        for method, samples in product(PAIRS["unknown"], self.primary_samples):
            yield Setting(method, samples=samples)

    def others(self) -> Iterator[Setting]:
        """Yield settings of single rows: white noise, keys of position only, encodings, permuted tokens, larger maps,
        continuous queries."""
        yield Setting("positional")
        yield Setting("continuous")
        for method in ("mlp", "attention"):
            yield Setting(method, correlation_length=0.0)
            for scale in self.scales:
                for amount in (*self.capacity_samples, None):
                    yield Setting(method, scale=scale, samples=amount)
        yield Setting("mlp", permuted=True)
        yield Setting("attention", permuted=True)
        for permuted in (False, True):
            yield Setting("attention", encoding="learned", permuted=permuted)
        yield Setting("attention", encoding="none")

    def settings(self) -> list[Setting]:
        """Return all settings, each once."""
        return list(dict.fromkeys([*self.fixed(), *self.chart(), *self.others()]))

    def seeds_of(self, setting: Setting) -> range:
        """Return the seeds of a setting; those of primary rows have more."""
        fixed = setting.sigma_deg == 0 and setting.pose == "unknown" and setting.method in ("mlp", "attention")
        moving = setting.sigma_deg == self.primary_sigma_deg and setting.samples is None
        plain = setting == Setting(setting.method, setting.pose, setting.sigma_deg, setting.samples)
        control = setting == Setting("mlp", permuted=True)
        return range(self.primary_seeds if (plain and (fixed or moving)) or control else self.seeds)

    def tuned_by(self, setting: Setting) -> Setting:
        """Return the setting whose recipes this one uses: the nearest in the ratios of jitter and samples.

        Of two that are as near it is the one with more samples: with fewer, the best recipe may be not to train. At
        other scales it is that of scale 1 with as many samples per feature. A permutation that only relabels makes no
        difference.
        """
        setting = in_order(setting)
        sigma = min(self.tuned_sigma_deg, key=lambda one: apart(one, setting.sigma_deg))
        if setting.samples is None:
            return replace(setting, sigma_deg=sigma)
        amount, most = setting.samples / setting.scale**2, 4 * self.tuned_samples[-1]
        fixed = setting == Setting(setting.method, samples=setting.samples, scale=setting.scale)
        tuned = {*self.tuned_samples, *(self.primary_samples if fixed else ())}
        samples = min(tuned, key=lambda one: (round(abs(math.log(one / amount)), 9), -one))
        return replace(setting, sigma_deg=sigma, samples=samples if amount <= most else None, scale=1.0)

    def at(self, setting: Setting) -> tuple[int, ...]:
        """Return further steps at which the error is measured: a curve for a fixed camera with new samples."""
        return CURVE if setting.sigma_deg == 0 and setting.samples is None else ()


def _seconds(setting: Setting, steps: float | int) -> float:
    return STEP_S[setting.method] * setting.scale**4 * steps


def in_order(setting: Setting) -> Setting:
    """Return the setting, without a permutation that only relabels (MLP, learned encodings)."""
    renamed = setting.method == "mlp" or (setting.attends and setting.encoding == "learned")
    return replace(setting, permuted=False) if renamed else setting


def apart(one: float, other: float) -> float:
    """Return the logarithm of the ratio of two jitters without its sign; infinite if only one is 0."""
    if one == other:
        return 0.0
    return math.inf if one == 0 or other == 0 else abs(math.log(one / other))
