"""The task level of a study: which models are trained on the synthetic world, and by which arguments of
``bevreshape.train``."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Annotated, Literal

from annotated_types import Ge, Gt, Le

from bevreshape.config.options import BatchSize, Count, CountOrNone, Steps
from bevreshape.errors import InputError
from bevreshape.experiments.models import Encoding
from bevreshape.experiments.plan import Seeds, Sigma
from bevreshape.experiments.tuning import FEWEST

Method = Literal["ipm", "mlp", "attention"]

RESHAPERS: dict[Method, str] = {"ipm": "ipm", "mlp": "mlp", "attention": "cross_attention"}
"""What a method is called in ``conf/reshaper``."""

ALONE = (
    "logger=none",
    "loader.num_workers=0",
    "log_images.num_samples=1",
    "log_images.every_n_validations=1000",
    "+trainer.enable_progress_bar=false",
)
"""Arguments that decide how a training is watched and nothing of what comes of it."""


def typed(arguments: Sequence[str]) -> list[str]:
    """Arguments as records keep them, as the program is given them: records outlive the names of its keys."""
    return [argument.replace("data.batch_size=", "loader.batch_size=") for argument in arguments]


SAMPLE_S = 0.006
"""About how many seconds one core takes for a sample of 64×128 pixels, forward and backward; to say how long a study
takes."""

APART_S, INSPECTED_S = 4.0, 8.0
"""And about how many for all that is not training; and for the instruments and unseen cameras of the longest
trainings."""


@dataclass(frozen=True)
class TaskSetting:
    """What is trained on which cameras.

    IPM has the pose and nothing to learn of it; it is the reference. An MLP that is given the pose moves the image's
    rows and columns by it, an attention has keys that hold the direction of every ray: yaw, pitch and roll, all that
    varies in training, are known to both. (A camera's height is not known to the attention.)

    Attributes:
        method: which.
        pose: whether it is given, to other methods than IPM.
        sigma_deg: standard deviation of yaw; half as much of pitch and roll.
        encoding: of places, of an attention.
        permuted: tokens come in another order, the same for all samples of a seed.
    """

    method: Method
    pose: bool = False
    sigma_deg: float = 0.0
    encoding: Encoding = "sinusoidal"
    permuted: bool = False

    @property
    def name(self) -> str:
        """What tells it from others."""
        marks = [self.method, "given" if self.pose else "", f"sigma{self.sigma_deg:g}"]
        marks += ["" if self.encoding == "sinusoidal" else self.encoding, "permuted" if self.permuted else ""]
        return "-".join(mark for mark in marks if mark)

    @property
    def plain(self) -> bool:
        """Whether it has neither another encoding nor another order."""
        return self == TaskSetting(self.method, self.pose, self.sigma_deg)

    def arguments(self, seed: int) -> list[str]:
        """Of ``bevreshape.train``."""
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
        """What tells it from others that a plan judges."""
        return f"{self.setting.name}-steps{self.steps}-seed{self.seed}"


@dataclass(frozen=True)
class TaskPlan:
    """Which trainings there are.

    Attributes:
        arguments: of all of them, for ``bevreshape.train``.
        batch: samples a step.
        steps: of training, ascending; each is a budget of its own, with a schedule and a rate of its own.
        validations: of a training, evenly; the points of its curve.
        rates: of learning, to begin with.
        seeds: of every setting, of the world too.
        variant_seeds: of other encodings and other orders of tokens; 0 leaves them out.
        sigma_deg: standard deviations of yaw, ascending from 0.
        tuned_sigma_deg: one of these, at which rates are chosen.
        unseen_sigma_deg: of cameras that move in the test alone, or move otherwise there.
        unseen_height_m: standard deviation of a camera's height in the test alone.
        examined: samples that instruments look at, two or more.

    Raises:
        InputError: for numbers that make no plan.
    """

    arguments: tuple[str, ...]
    batch: BatchSize
    steps: tuple[Steps, ...]
    validations: Count
    rates: tuple[Annotated[float, Gt(0), Le(10)], ...]
    seeds: Seeds
    variant_seeds: CountOrNone
    sigma_deg: tuple[Sigma, ...]
    tuned_sigma_deg: Sigma
    unseen_sigma_deg: Sigma
    unseen_height_m: Annotated[float, Ge(0), Le(1)]
    examined: Annotated[int, Ge(2), Le(1024)]

    def __post_init__(self) -> None:
        if len(self.steps) < 2:
            raise InputError(f"plan.task.steps={list(self.steps)} must be two at least, for a curve")
        for key in ("steps", "rates", "sigma_deg"):
            values = getattr(self, key)
            if not values or sorted(set(values)) != list(values):
                raise InputError(f"plan.task.{key}={list(values)} must be different numbers in ascending order")
        if self.sigma_deg[0] != 0:
            raise InputError(f"plan.task.sigma_deg={list(self.sigma_deg)} must begin with 0, the fixed camera")
        if self.tuned_sigma_deg not in self.sigma_deg:
            raise InputError(
                f"plan.task.tuned_sigma_deg={self.tuned_sigma_deg:g} must be one of {list(self.sigma_deg)}"
            )
        if self.variant_seeds not in (0, *range(2, self.seeds + 1)):
            raise InputError(
                f"plan.task.variant_seeds={self.variant_seeds} must be 0, which leaves them out, or 2 to "
                f"seeds={self.seeds}"
            )

    @property
    def longest(self) -> int:
        """The largest budget."""
        return self.steps[-1]

    def compared(self) -> Iterator[TaskSetting]:
        """Every method with every camera."""
        for sigma in self.sigma_deg:
            yield TaskSetting("ipm", sigma_deg=sigma)
            for pose in (False, True):
                yield TaskSetting("mlp", pose, sigma)
                yield TaskSetting("attention", pose, sigma)

    def variants(self) -> Iterator[TaskSetting]:
        """Other encodings and orders of tokens, with a fixed camera."""
        if self.variant_seeds:
            yield TaskSetting("mlp", permuted=True)
            yield TaskSetting("attention", permuted=True)
            yield TaskSetting("attention", encoding="none")
            for permuted in (False, True):
                yield TaskSetting("attention", encoding="learned", permuted=permuted)

    def tuned(self) -> list[TaskSetting]:
        """The settings in which rates are chosen."""
        return list(dict.fromkeys(map(self.tuned_by, self.compared())))

    def tuned_by(self, setting: TaskSetting) -> TaskSetting:
        """The setting whose rates this one takes."""
        return TaskSetting(setting.method, setting.pose, self.tuned_sigma_deg)

    def seeds_of(self, setting: TaskSetting) -> int:
        """How many."""
        return self.seeds if setting.plain else self.variant_seeds

    def judged(self) -> list[tuple[TaskSetting, int, int]]:
        """Setting, steps and seed of every training that is judged: all budgets with a fixed camera whose pose is not
        given, the largest elsewhere."""
        found = []
        for setting in (*self.compared(), *self.variants()):
            curve = setting.plain and setting.sigma_deg == 0 and not setting.pose
            for steps in self.steps if curve else self.steps[-1:]:
                for seed in range(self.seeds_of(setting)):
                    found.append((setting, steps, seed))
        return found

    def common(self, setting: TaskSetting, seed: int) -> list[str]:
        """Arguments of all trainings of a setting and seed."""
        given = [*self.arguments, *setting.arguments(seed), f"data.batch_size={self.batch}"]
        return [*given, f"seed={seed}", f"data.seed={seed}"]

    def given(self, training: Training) -> list[str]:
        """All arguments of ``bevreshape.train`` that decide what comes of a training."""
        return [
            *self.common(training.setting, training.seed), f"optimizer.lr={training.rate:.4g}",
            f"trainer.max_steps={training.steps}",
            f"trainer.val_check_interval={max(1, training.steps // self.validations)}",
        ]  # fmt: skip

    def unseen(self, setting: TaskSetting) -> dict[str, dict[str, float]]:
        """Jitters of cameras in the test, by what is unseen of them."""
        found = {"height": {**angles(setting.sigma_deg), "height_m": self.unseen_height_m}}
        if setting.sigma_deg != self.unseen_sigma_deg:
            found["angles"] = angles(self.unseen_sigma_deg)
        return found

    def judging_seconds(self, steps: int) -> float:
        """About how long it takes to train and measure, on one core."""
        return self._seconds(steps) + (INSPECTED_S if steps == self.longest else 0.0)

    def tuning_seconds(self) -> float:
        """About how long it takes to choose the rates of a setting: the better half goes on."""
        alive, found = len(self.rates), 0.0
        for steps in self.steps:
            found += alive * self._seconds(steps)
            alive = max(FEWEST, math.ceil(alive / 2))
        return found

    def _seconds(self, steps: int) -> float:
        return steps * self.batch * SAMPLE_S + APART_S


def angles(sigma_deg: float) -> dict[str, float]:
    """Standard deviations of a camera's pose."""
    return {"yaw_deg": sigma_deg, "pitch_deg": sigma_deg / 2, "roll_deg": sigma_deg / 2}


def jitter(sigma_deg: float) -> list[str]:
    """Arguments of cameras that move."""
    return [f"data.jitter.{key}={value:g}" for key, value in angles(sigma_deg).items()]
