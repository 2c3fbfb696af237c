"""The runs of a study, as its plan has them."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import product
from typing import Any

from bevreshape.errors import InputError
from bevreshape.geometry import BEVGrid
from bevreshape.reshapers import FeatureShape

TOLD = ("mlp_told", "attention_told")
RIVALS = ("mlp", "attention")
VARIANTS = ("mlp_hidden", "attention_unplaced", "self_attention")
"""Of the rivals, for a fixed camera alone."""

TUNED = (
    *product(RIVALS, ("fixed", "moving", "shown", "encoder")),
    *((role, "moving") for role in TOLD),
    *((role, "fixed") for role in VARIANTS),
)
"""Who gets a learning rate for which camera: a fixed one, one that moves, one whose movement X shows; and for an encoder's
features of a fixed one."""

ROLES = (*RIVALS, *TOLD, *VARIANTS)
"""Who takes part at tensor level."""

PLAN_FILE = "plan.yaml"
"""In a study's folder, what was done there."""

KEYS = {
    "tensor": (
        "source", "grid", "steps", "batch", "evaluate_every", "rates", "threshold", "jitter_deg", "training_samples",
        "told_jitter_deg", "encoder_samples", "contenders",
    ),
    "task": ("arguments", "share", "jitter_deg", "scenes", "contenders"),
}  # fmt: skip
"""What a plan holds."""


LISTS = {"tensor": ("rates", "jitter_deg", "training_samples"), "task": ("jitter_deg", "scenes")}
"""Which of these are lists of numbers."""


def is_number(value: object) -> bool:
    """Whether it is one; true and false are none."""
    return isinstance(value, int | float) and not isinstance(value, bool)


@dataclass(frozen=True)
class Plan:
    """A plan of ``conf/plan``, checked: which runs there are.

    Attributes:
        seeds: of every run.
        tensor: as it stands in the file.
        task: likewise.

    Raises:
        InputError: when something is missing or out of range.
    """

    seeds: Sequence[int]
    tensor: Mapping[str, Any]
    task: Mapping[str, Any]

    @classmethod
    def read(cls, plain: Mapping[str, Any]) -> "Plan":
        """From plain values.

        Raises:
            InputError: an unknown key, or a value of another kind, or as the class.
        """
        wrong = sorted({"seeds", *KEYS} ^ set(plain))
        if wrong:
            raise InputError(f"plan: {', '.join(wrong)} missing or unknown; it takes seeds, {', '.join(KEYS)}")
        for group in KEYS:
            if not isinstance(plain[group], Mapping):
                raise InputError(f"plan.{group}={plain[group]!r} must be a mapping, as in conf/plan/quick.yaml")
        lists = {"seeds": plain["seeds"]} | {
            f"{group}.{key}": plain[group].get(key, []) for group, keys in LISTS.items() for key in keys
        }
        for key, values in lists.items():
            numbers = isinstance(values, list | tuple) and all(is_number(value) for value in values)
            if not numbers:
                raise InputError(f"plan.{key}={values!r} must be a list of numbers, such as [0, 1, 2]")
        try:
            return cls(**plain)
        except (TypeError, AttributeError) as error:
            raise InputError(
                f"plan: a value is of the wrong kind ({error}); compare it with conf/plan/quick.yaml"
            ) from None

    def __post_init__(self) -> None:
        for group, keys in KEYS.items():
            wrong = sorted(set(keys) ^ set(getattr(self, group)))
            if wrong:
                raise InputError(f"plan.{group}: {', '.join(wrong)} missing or unknown; it takes {', '.join(keys)}")
        if len(set(self.seeds)) != len(self.seeds) or len(self.seeds) < 2:
            raise InputError(f"plan.seeds={list(self.seeds)} must be two different ones at least; one has no spread")
        if set(self.tensor["contenders"]) != set(ROLES):
            raise InputError(
                f"plan.tensor.contenders are {', '.join(self.tensor['contenders'])}; the claims are about {', '.join(ROLES)}"
            )
        normalised = [role for role, given in self.tensor["contenders"].items() if given.get("normalise_values")]
        if normalised:
            raise InputError(
                f"plan.tensor.contenders.{normalised[0]}.normalise_values=true cannot reproduce X, which is the target here; "
                "set it to false"
            )
        missing = {"ipm", *RIVALS} - set(self.task["contenders"])
        if missing:
            raise InputError(f"plan.task.contenders lacks {', '.join(sorted(missing))}; the claims are about these")
        for key, values in {
            "tensor.jitter_deg": self.tensor["jitter_deg"],
            "task.jitter_deg": self.task["jitter_deg"],
            "tensor.training_samples": self.tensor["training_samples"],
            "task.scenes": self.task["scenes"],
            "tensor.rates": self.tensor["rates"],
        }.items():
            jitter = key.endswith("jitter_deg")
            if not values or sorted(set(values)) != list(values) or values[0] < 0 or (values[0] == 0 and not jitter):
                raise InputError(f"plan.{key}={list(values)} must be positive numbers in ascending order")
            if jitter and values[0] != 0:
                raise InputError(f"plan.{key}={list(values)} must begin with 0, the fixed camera")
        for key, value in {
            "tensor.threshold": self.tensor["threshold"], "task.share": self.task["share"],
            **{f"tensor.{key}": self.tensor[key] for key in ("steps", "batch", "evaluate_every", "encoder_samples")},
        }.items():  # fmt: skip
            if not is_number(value) or value <= 0:
                raise InputError(f"plan.{key}={value!r} must be a positive number")
        if self.grid.shape != (self.source.height, self.source.width):
            raise InputError(
                f"plan.tensor.grid has {self.grid.rows}×{self.grid.cols} cells and plan.tensor.source {self.source.height}×"
                f"{self.source.width} features; make them alike, since self-attention keeps the shape"
            )
        most = self.tensor["steps"] * self.tensor["batch"]
        if self.tensor["training_samples"][-1] >= most:
            raise InputError(
                f"plan.tensor.training_samples={list(self.tensor['training_samples'])} must stay below the {most} samples "
                "that steps × batch draw, which are compared with them"
            )
        if self.tensor["told_jitter_deg"] == 0 and len(self.tensor["jitter_deg"]) > 1:
            raise InputError(
                f"plan.tensor.told_jitter_deg=0 but plan.tensor.jitter_deg={list(self.tensor['jitter_deg'])}; rates for cameras "
                "that move are chosen at it, so let it be one of the others"
            )
        if self.tensor["told_jitter_deg"] not in self.tensor["jitter_deg"]:
            raise InputError(
                f"plan.tensor.told_jitter_deg={self.tensor['told_jitter_deg']} must be one of "
                f"plan.tensor.jitter_deg={list(self.tensor['jitter_deg'])}"
            )

    @property
    def source(self) -> FeatureShape:
        """Shape of the random fields; features are centred on their patches."""
        given = self.tensor["source"]
        return FeatureShape(**given, offset_px=(given["stride"] - 1) / 2)

    @property
    def grid(self) -> BEVGrid:
        """Cells of the tensor level."""
        given = self.tensor["grid"]
        return BEVGrid(tuple(given["forward_m"]), tuple(given["left_m"]), given["cell_m"])


@dataclass(frozen=True)
class Unit:
    """One run.

    Attributes:
        name: of its record.
        settings: all that it depends on; ``level`` says which of the two it is of.
    """

    name: str
    settings: Mapping[str, Any]


Records = Mapping[str, Mapping[str, Any]]
"""What is known of the units that are done, by name."""


def tensor_unit(
    plan: Plan,
    role: str,
    rate: float | int,
    seed: int,
    *,
    jitter_deg: float | int = 0,
    training_samples: int | None = None,
    features: str = "fields",
    shown: bool = False,
    permuted: bool = False,
    tuning: bool = False,
) -> Unit:
    """A run of the tensor level.

    Args:
        plan: what all have in common.
        role: who is trained.
        rate: peak learning rate.
        seed: of initialisation and training samples.
        jitter_deg: standard deviation of yaw, and half as much of pitch and of roll.
        training_samples: drawn from; ``None`` for new ones in every step.
        features: random ``fields``, or those of the trained ``encoder`` of the reference.
        shown: X shows where the cameras look.
        permuted: tokens come in another, fixed order.
        tuning: for the choice of the rate, of fields measured on other samples than the rest.

    Learning curves are compared of the rivals and the told with a fixed camera; all other runs are measured at their end alone.
    """
    settings = {key: plan.tensor[key] for key in ("source", "grid", "steps", "batch", "evaluate_every")} | {
        "level": "tensor", "reshaper": plan.tensor["contenders"][role],
        "calibration": "exact" if role in TOLD else "shown" if shown else "none", "rate": rate, "seed": seed,
        "jitter_deg": jitter_deg, "training_samples": training_samples, "features": features, "permuted": permuted,
        "tuning": tuning,
    }  # fmt: skip
    if tuning or jitter_deg or training_samples is not None or permuted or role in VARIANTS:
        settings["evaluate_every"] = plan.tensor["steps"]
    if features == "encoder":
        reference = task_unit(plan, "ipm", plan.seeds[0])
        settings["encoder"] = {
            "run": reference.name, "arguments": reference.settings["arguments"], "samples": plan.tensor["encoder_samples"],
            "split": "val" if tuning else "test",
            "part": [0, 1] if tuning else [plan.seeds.index(seed), len(plan.seeds)],  # the seeds share the test split
        }  # fmt: skip
    name = f"{role}-{features}-jitter{jitter_deg:g}-samples_{training_samples or 'all'}-rate{rate:g}-seed{seed}"
    marks = "-shown" * shown + "-permuted" * permuted + "-tuning" * tuning
    return Unit(f"tensor-{name}{marks}", settings)


def tuning_unit(plan: Plan, role: str, rate: float | int, seed: int, camera: str) -> Unit:
    """A run in which a learning rate is tried; cameras that move do so by the plan's ``told_jitter_deg``."""
    jitter_deg = 0 if camera in ("fixed", "encoder") else plan.tensor["told_jitter_deg"]
    features = "encoder" if camera == "encoder" else "fields"
    return tensor_unit(
        plan, role, rate, seed, jitter_deg=jitter_deg, shown=camera == "shown", features=features, tuning=True
    )


Rates = Mapping[tuple[str, str], float]
"""Learning rates of :data:`TUNED`."""


def tuned_unit(
    plan: Plan, rates: Rates, role: str, seed: int, *, jitter_deg: float | int = 0, shown: bool = False, **given: Any
) -> Unit:
    """A run of the tensor level as :func:`tensor_unit`, at the rate of the contender for such a camera."""
    if jitter_deg or role in TOLD:
        camera = "shown" if shown else "moving"
    else:
        camera = "encoder" if given.get("features") == "encoder" else "fixed"
    rate = rates[role, camera]
    return tensor_unit(plan, role, rate, seed, jitter_deg=jitter_deg, shown=shown, **given)


def task_unit(plan: Plan, role: str, seed: int, jitter_deg: float | int = 0, scenes: int | None = None) -> Unit:
    """A run of the task level, of all scenes that the plan has where none are named; claims are about the diagnosis of
    the rivals with all scenes and a fixed camera."""
    scenes = plan.task["scenes"][-1] if scenes is None else scenes
    jitter = {"yaw_deg": jitter_deg, "pitch_deg": jitter_deg / 2, "roll_deg": jitter_deg / 2}
    arguments = [
        *plan.task["arguments"], *plan.task["contenders"][role], f"data.scenes.train={scenes}", f"seed={seed}",
        *(f"data.jitter.{key}={value:g}" for key, value in jitter.items()),
    ]  # fmt: skip
    judged = role in RIVALS and not jitter_deg and scenes == plan.task["scenes"][-1]
    settings = {"level": "task", "arguments": arguments, "diagnosed": judged}
    return Unit(f"task-{role}-jitter{jitter_deg:g}-scenes{scenes}-seed{seed}", settings)


def units(plan: Plan, records: Records) -> list[Unit]:
    """The runs of a plan, as far as they can be told: most depend on the learning rates that did best."""
    tensor, task, seeds = plan.tensor, plan.task, plan.seeds
    found = [
        tuning_unit(plan, role, rate, seed, camera)
        for (role, camera), rate, seed in product(TUNED, tensor["rates"], seeds)
        if camera != "encoder" or task_unit(plan, "ipm", seeds[0]).name in records  # whose features they are
    ]
    for seed, role in product(seeds, task["contenders"]):
        for jitter_deg in task["jitter_deg"] if role not in TOLD else task["jitter_deg"][1:]:
            found.append(task_unit(plan, role, seed, jitter_deg))
        if role in RIVALS:
            found += [task_unit(plan, role, seed, scenes=scenes) for scenes in task["scenes"][:-1]]
    rates = best_rates(plan, records)
    if rates is not None:
        for seed in seeds:
            found += _tuned_units(plan, rates, seed)
    return list({unit.name: unit for unit in found}.values())


def _tuned_units(plan: Plan, rates: Rates, seed: int) -> list[Unit]:
    unit, tensor = partial(tuned_unit, plan, rates, seed=seed), plan.tensor
    amounts, told_at = tensor["training_samples"], tensor["told_jitter_deg"]
    found = [unit(role) for role in VARIANTS]
    found += [unit(role, jitter_deg=sigma) for role, sigma in product((*RIVALS, *TOLD), tensor["jitter_deg"])]
    found += [unit(role, training_samples=n) for role, n in product(RIVALS, amounts)]
    found += [unit(role, training_samples=n, jitter_deg=told_at) for role, n in product(TOLD, amounts)]
    found += [unit(role, permuted=True) for role in RIVALS]
    found += [unit(role, jitter_deg=sigma, shown=True) for role, sigma in product(RIVALS, tensor["jitter_deg"][1:])]
    return found + [unit(role, features="encoder") for role in RIVALS if (role, "encoder") in rates]


def best_rates(plan: Plan, records: Records) -> Rates | None:
    """The rates of the lowest mean error over the seeds; ``None`` before all have been tried, but for an encoder's features,
    which come later."""
    rates = {}
    for role, camera in TUNED:
        errors: dict[float, float] = {}
        for rate in plan.tensor["rates"]:
            tried = [records.get(tuning_unit(plan, role, rate, seed, camera).name) for seed in plan.seeds]
            if None not in tried:
                errors[rate] = sum(map(final_error, tried))
        if len(errors) == len(plan.tensor["rates"]):
            rates[role, camera] = min(errors, key=errors.__getitem__)
        elif camera != "encoder":
            return None
    return rates


def final_error(record: Mapping[str, Any] | None) -> float:
    """Error at the end of a tensor-level run, infinite where it diverged."""
    assert record is not None
    error = record["curve"][-1]["error"]
    return math.inf if error is None else float(error)
