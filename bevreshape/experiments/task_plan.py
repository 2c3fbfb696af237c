"""The plan of the task level: models trained on the synthetic world, and their arguments of ``bevreshape.train``."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Annotated, Literal

from annotated_types import Ge, Gt, Le

from bevreshape.config.options import BatchSize, Count, CountOrNone, Steps
from bevreshape.errors import InputError
from bevreshape.experiments.models import Encoding
from bevreshape.experiments.plan import Seeds, Sigma, apart
from bevreshape.experiments.tuning import FEWEST

Method = Literal["ipm", "mlp", "attention"]

RESHAPERS: dict[Method, str] = {"ipm": "ipm", "mlp": "mlp", "attention": "cross_attention"}
"""Names of the methods in ``conf/reshaper``."""

ALONE = (
    "logger=none",
    "loader.num_workers=0",
    "log_images.num_samples=1",
    "log_images.every_n_validations=1000",
    "+trainer.enable_progress_bar=false",
)
"""Arguments of logging, which do not change the result of a training."""


def typed(arguments: Sequence[str]) -> list[str]:
    """Return arguments of records with the current names of keys, since records keep the names of their time."""
    return [argument.replace("data.batch_size=", "loader.batch_size=") for argument in arguments]


SAMPLE_S = 0.006
"""Approximate seconds on one core per sample of 64×128 pixels, forward and backward, to estimate a study's duration."""

APART_S, INSPECTED_S = 4.0, 8.0
"""Approximate seconds per run apart from training, and of instruments and unseen cameras of the longest trainings."""


@dataclass(frozen=True)
class TaskSetting:
    """A method and its cameras.

    IPM, the reference, uses the pose and learns nothing about it. If the pose is given, an MLP shifts the rows and
    columns of the features by it, and the keys of an attention contain the direction of every ray. Both get yaw, pitch
    and roll, which are all that varies in training. The attention does not get the camera's height.

    Attributes:
        method: the method.
        pose: whether methods other than IPM get the pose.
        sigma_deg: standard deviation of yaw; half as much of pitch and roll.
        encoding: of positions, for an attention.
        permuted: tokens are permuted, in the same way for all samples of a seed.
    """

    method: Method
    pose: bool = False
    sigma_deg: float = 0.0
    encoding: Encoding = "sinusoidal"
    permuted: bool = False

    @property
    def name(self) -> str:
        """Return a unique name."""
        marks = [self.method, "given" if self.pose else "", f"sigma{self.sigma_deg:g}"]
        marks += ["" if self.encoding == "sinusoidal" else self.encoding, "permuted" if self.permuted else ""]
        return "-".join(mark for mark in marks if mark)

    @property
    def plain(self) -> bool:
        """Return whether it has the default encoding and order of tokens."""
        return self == TaskSetting(self.method, self.pose, self.sigma_deg)

    def arguments(self, seed: int) -> list[str]:
        """Return arguments of ``bevreshape.train``."""
        given = [f"reshaper={RESHAPERS[self.method]}", *jitter(self.sigma_deg)]
        if self.pose:
            given.append("reshaper.calibration=true")
        if self.encoding != "sinusoidal":
            given.append(f"reshaper.token_encoding={self.encoding}")
        if self.permuted:
            target = "bevreshape.experiments.permuted.PermutedEncoder"
            given += [f"encoder._target_={target}", f"+encoder.permutation={seed}"]
        return given


@dataclass(frozen=True)
class Training:
    """One training."""

    setting: TaskSetting
    rate: float
    steps: int
    seed: int

    @property
    def name(self) -> str:
        """Return a name that is unique among the judged trainings of a plan."""
        return f"{self.setting.name}-steps{self.steps}-seed{self.seed}"


@dataclass(frozen=True)
class TaskPlan:
    """The trainings of the level.

    Attributes:
        arguments: of all trainings, for ``bevreshape.train``.
        batch: samples per step.
        steps: of training, ascending; each is a separate budget with its own schedule and rate.
        validations: of a training, evenly spaced; the points of its curve.
        rates: initial grid of learning rates.
        seeds: number per setting, of training and of the world.
        variant_seeds: number for other encodings and orders of tokens; 0 leaves them out.
        sigma_deg: standard deviations of yaw, ascending from 0.
        tuned_sigma_deg: members of ``sigma_deg`` at which rates are tuned; others use those of the nearest.
        unseen_sigma_deg: standard deviation of yaw only in the test.
        unseen_height_m: standard deviation of a camera's height only in the test.
        examined: samples for the instruments, two or more.

    Raises:
        InputError: when the values contradict each other.
    """

    arguments: tuple[str, ...]
    batch: BatchSize
    steps: tuple[Steps, ...]
    validations: Count
    rates: tuple[Annotated[float, Gt(0), Le(10)], ...]
    seeds: Seeds
    variant_seeds: CountOrNone
    sigma_deg: tuple[Sigma, ...]
    tuned_sigma_deg: tuple[Sigma, ...]
    unseen_sigma_deg: Sigma
    unseen_height_m: Annotated[float, Ge(0), Le(1)]
    examined: Annotated[int, Ge(2), Le(1024)]

    def __post_init__(self) -> None:
        if len(self.steps) < 2:
            raise InputError(f"plan.task.steps={list(self.steps)} must be two at least, for a curve")
        for key in ("steps", "rates", "sigma_deg", "tuned_sigma_deg"):
            values = getattr(self, key)
            if not values or sorted(set(values)) != list(values):
                raise InputError(f"plan.task.{key}={list(values)} must be different numbers in ascending order")
        if self.sigma_deg[0] != 0:
            raise InputError(f"plan.task.sigma_deg={list(self.sigma_deg)} must begin with 0, the fixed camera")
        if not set(self.tuned_sigma_deg) <= set(self.sigma_deg) or self.tuned_sigma_deg[0] != 0:
            raise InputError(
                f"plan.task.tuned_sigma_deg={list(self.tuned_sigma_deg)} must be out of "
                f"sigma_deg={list(self.sigma_deg)} and begin with 0, the fixed camera"
            )
        if self.variant_seeds not in (0, *range(2, self.seeds + 1)):
            raise InputError(
                f"plan.task.variant_seeds={self.variant_seeds} must be 0, which leaves them out, or 2 to "
                f"seeds={self.seeds}"
            )

    @property
    def longest(self) -> int:
        """Return the largest budget."""
        return self.steps[-1]

    def compared(self) -> Iterator[TaskSetting]:
        """Yield every method with every camera."""
        for sigma in self.sigma_deg:
            yield TaskSetting("ipm", sigma_deg=sigma)
            for pose in (False, True):
                yield TaskSetting("mlp", pose, sigma)
                yield TaskSetting("attention", pose, sigma)

    def variants(self) -> Iterator[TaskSetting]:
        """Yield other encodings and orders of tokens, with a fixed camera."""
        if self.variant_seeds:
            yield TaskSetting("mlp", permuted=True)
            yield TaskSetting("attention", permuted=True)
            yield TaskSetting("attention", encoding="none")
            for permuted in (False, True):
                yield TaskSetting("attention", encoding="learned", permuted=permuted)

    def tuned(self) -> list[TaskSetting]:
        """Return the settings in which rates are tuned."""
        return list(dict.fromkeys(map(self.tuned_by, (*self.compared(), *self.variants()))))

    def tuned_by(self, setting: TaskSetting) -> TaskSetting:
        """Return the setting whose rates this one uses: of the nearest jitter, without a mere relabelling of tokens."""
        renamed = setting.method != "attention" or setting.encoding == "learned"
        sigma = min(self.tuned_sigma_deg, key=lambda one: apart(one, setting.sigma_deg))
        return replace(setting, sigma_deg=sigma, permuted=setting.permuted and not renamed)

    def seeds_of(self, setting: TaskSetting) -> int:
        """Return the number of seeds of a setting."""
        return self.seeds if setting.plain else self.variant_seeds

    def judged(self) -> list[tuple[TaskSetting, int, int]]:
        """Return setting, steps and seed of every judged training.

        A fixed camera without the pose has all budgets, other settings only the largest.
        """
        found = []
        for setting in (*self.compared(), *self.variants()):
            curve = setting.plain and setting.sigma_deg == 0 and not setting.pose
            for steps in self.steps if curve else self.steps[-1:]:
                for seed in range(self.seeds_of(setting)):
                    found.append((setting, steps, seed))
        return found

    def worlds(self) -> list[tuple[float, int]]:
        """Return jitter and seed of every world in which trainings are judged."""
        return [(sigma, seed) for sigma in self.sigma_deg for seed in range(self.seeds)]

    def common(self, setting: TaskSetting, seed: int) -> list[str]:
        """Return the arguments of all trainings of a setting and seed."""
        given = [*self.arguments, *setting.arguments(seed), f"data.batch_size={self.batch}"]
        return [*given, f"seed={seed}", f"data.seed={seed}"]

    def given(self, training: Training) -> list[str]:
        """Return all arguments of ``bevreshape.train`` that determine the result of a training."""
        return [
            *self.common(training.setting, training.seed), f"optimizer.lr={training.rate:.4g}",
            f"trainer.max_steps={training.steps}",
            f"trainer.val_check_interval={max(1, training.steps // self.validations)}",
        ]  # fmt: skip

    def unseen(self, setting: TaskSetting) -> dict[str, dict[str, float]]:
        """Return jitters of cameras in the test, by the kind that is unseen in training.

        Left out is what no training could tell: a given height or pose that was the same in all of it. An MLP reads
        both, an attention no height, so the answer would lie in their construction.
        """
        found = {}
        if not setting.pose:
            found["height"] = {**angles(setting.sigma_deg), "height_m": self.unseen_height_m}
        if setting.sigma_deg != self.unseen_sigma_deg and (setting.sigma_deg or not setting.pose):
            found["angles"] = angles(self.unseen_sigma_deg)
        return found

    def judging_seconds(self, steps: int) -> float:
        """Estimate the seconds to train and measure on one core."""
        return self._seconds(steps) + (INSPECTED_S if steps == self.longest else 0.0)

    def tuning_seconds(self) -> float:
        """Estimate the seconds to tune the rates of a setting by successive halving."""
        alive, found = len(self.rates), 0.0
        for steps in self.steps:
            found += alive * self._seconds(steps)
            alive = max(FEWEST, math.ceil(alive / 2))
        return found

    def _seconds(self, steps: int) -> float:
        return steps * self.batch * SAMPLE_S + APART_S


def angles(sigma_deg: float) -> dict[str, float]:
    """Return the standard deviations of a camera's pose."""
    return {"yaw_deg": sigma_deg, "pitch_deg": sigma_deg / 2, "roll_deg": sigma_deg / 2}


def jitter(sigma_deg: float) -> list[str]:
    """Return the arguments of moving cameras."""
    return [f"data.jitter.{key}={value:g}" for key, value in angles(sigma_deg).items()]
