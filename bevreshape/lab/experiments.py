"""The runs of a study: which there are, what each leaves behind, and who does which.

A run's record is a JSON file that takes its name when the run is over, so a study goes on where it was stopped; a file
lock, which the system frees when a process ends, keeps two processes off the same run.
"""

import json
import math
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock, Timeout
from torch import Tensor
from torch.nn import functional as F

from bevreshape.build import build_data, build_reshaper, load_model
from bevreshape.costs import ring
from bevreshape.data.batch import cameras_of, seeded
from bevreshape.data.synthetic.rig import Spread
from bevreshape.errors import InputError
from bevreshape.files import write_atomic, write_text
from bevreshape.geometry import BEVGrid, Cameras
from bevreshape.lab import order, tensor_level
from bevreshape.lab.agreement import geometry_agreement
from bevreshape.lab.dependence import relative_spread
from bevreshape.lab.runs import Run, read_runs
from bevreshape.lab.tensor_level import Settings, sampling_distance, sampling_matrix, smooth_fields
from bevreshape.lab.weights import cell_raster, jacobian_norm
from bevreshape.optimizer import AdamWOneCycle
from bevreshape.reshapers import FeatureShape, Reshaper

TOLD = ("mlp_told", "attention_told")
RIVALS = ("mlp", "attention")
ROLES = (*RIVALS, *TOLD, "attention_unplaced", "self_attention")
"""Who takes part at tensor level."""

PLAN_FILE = "plan.yaml"
"""In a study's folder, what was done there."""

INSTRUMENTS = 0x494E5354
"""Word of the random key of what trained reshapers are examined with."""

EXAMINED = 6
"""Samples that a trained reshaper is examined with, and cells along a side."""


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

    def __post_init__(self) -> None:
        if len(set(self.seeds)) != len(self.seeds) or len(self.seeds) < 2:
            raise InputError(f"plan.seeds={list(self.seeds)} must be two different ones at least; one has no spread")
        if set(self.tensor["contenders"]) != set(ROLES):
            raise InputError(
                f"plan.tensor.contenders are {', '.join(self.tensor['contenders'])}; the claims are about {', '.join(ROLES)}"
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
            if not values or sorted(set(values)) != list(values) or values[0] < 0:
                raise InputError(f"plan.{key}={list(values)} must be numbers of 0 or more, in ascending order")
            if key.endswith("jitter_deg") and values[0] != 0:
                raise InputError(f"plan.{key}={list(values)} must begin with 0, the fixed camera")
        if self.grid.shape != (self.source.height, self.source.width):
            raise InputError(
                f"plan.tensor.grid has {self.grid.rows}×{self.grid.cols} cells and plan.tensor.source {self.source.height}×"
                f"{self.source.width} features; make them alike, since self-attention keeps the shape"
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
    permuted: bool = False,
) -> Unit:
    """A run of the tensor level.

    Args:
        plan: what all have in common.
        role: who is trained.
        rate: peak learning rate.
        seed: of initialisation and order.
        jitter_deg: standard deviation of yaw, and half as much of pitch and of roll.
        training_samples: drawn from; ``None`` for new ones in every step.
        features: random ``fields``, or those of the trained ``encoder`` of the reference.
        permuted: tokens come in another, fixed order.
    """
    keys = ("source", "grid", "steps", "batch", "evaluate_every", "encoder_samples")
    settings = {key: plan.tensor[key] for key in keys} | {
        "level": "tensor", "reshaper": plan.tensor["contenders"][role], "told": role in TOLD, "rate": rate, "seed": seed,
        "jitter_deg": jitter_deg, "training_samples": training_samples, "features": features, "permuted": permuted,
    }  # fmt: skip
    if features == "encoder":
        settings["encoder"] = task_unit(plan, "ipm", plan.seeds[0]).name
    amount = training_samples or "new"
    name = f"{role}-{features}-jitter{jitter_deg:g}-samples_{amount}-rate{rate:g}-seed{seed}"
    return Unit(f"tensor-{name}{'-permuted' * permuted}", settings)


def task_unit(plan: Plan, role: str, seed: int, jitter_deg: float | int = 0, scenes: int | None = None) -> Unit:
    """A run of the task level; of all scenes that the plan has where none are named."""
    scenes = plan.task["scenes"][-1] if scenes is None else scenes
    jitter = {"yaw_deg": jitter_deg, "pitch_deg": jitter_deg / 2, "roll_deg": jitter_deg / 2}
    arguments = [
        *plan.task["arguments"], *plan.task["contenders"][role], f"data.scenes.train={scenes}", f"seed={seed}",
        *(f"data.jitter.{key}={value:g}" for key, value in jitter.items()),
    ]  # fmt: skip
    return Unit(
        f"task-{role}-jitter{jitter_deg:g}-scenes{scenes}-seed{seed}", {"level": "task", "arguments": arguments}
    )


def units(plan: Plan, records: Records) -> list[Unit]:
    """The runs of a plan, as far as they can be told: most depend on the learning rates that did best."""
    tensor, task, seeds = plan.tensor, plan.task, plan.seeds
    found = [tensor_unit(plan, role, rate, seeds[0]) for role, rate in product(ROLES, tensor["rates"])]
    for seed, role in product(seeds, task["contenders"]):
        for jitter_deg in task["jitter_deg"] if role not in TOLD else task["jitter_deg"][1:]:
            found.append(task_unit(plan, role, seed, jitter_deg))
        if role in RIVALS:
            found += [task_unit(plan, role, seed, scenes=scenes) for scenes in task["scenes"][:-1]]
    rates = best_rates(plan, records)
    if rates is None:
        return found
    for seed in seeds:

        def unit(role: str, seed: int = seed, **given: Any) -> Unit:
            return tensor_unit(plan, role, rates[role], seed, **given)

        found += [unit(role) for role in ("attention_unplaced", "self_attention")]
        found += [unit(role, jitter_deg=sigma) for role, sigma in product((*RIVALS, *TOLD), tensor["jitter_deg"])]
        found += [unit(role, training_samples=n) for role, n in product(RIVALS, tensor["training_samples"])]
        told_at = tensor["told_jitter_deg"]
        found += [
            unit(role, training_samples=n, jitter_deg=told_at) for role, n in product(TOLD, tensor["training_samples"])
        ]
        found += [unit(role, permuted=True) for role in RIVALS]
        if task_unit(plan, "ipm", seeds[0]).name in records:
            found += [unit(role, features="encoder") for role in RIVALS]
    return list({unit.name: unit for unit in found}.values())


def best_rates(plan: Plan, records: Records) -> dict[str, float] | None:
    """Every contender's learning rate, that of its lowest error; ``None`` before all have been tried."""
    tried = {
        role: {rate: records.get(tensor_unit(plan, role, rate, plan.seeds[0]).name) for rate in plan.tensor["rates"]}
        for role in ROLES
    }
    if any(record is None for found in tried.values() for record in found.values()):
        return None
    return {role: min(found, key=lambda rate: final_error(found[rate])) for role, found in tried.items()}


def final_error(record: Mapping[str, Any] | None) -> float:
    """Error at the end of a tensor-level run, infinite where it diverged."""
    assert record is not None
    error = record["curve"][-1]["error"]
    return math.inf if error is None else float(error)


@dataclass(frozen=True)
class Study:
    """A plan and the folder where its runs leave their records.

    Attributes:
        folder: of ``records``, ``runs`` and what is made of them.
        plan: of the runs.
        device: where the tensor level happens.
    """

    folder: Path
    plan: Plan
    device: torch.device

    def records(self) -> dict[str, dict[str, Any]]:
        """Results of the units of this plan that are done.

        Raises:
            InputError: when a record was made with other settings.
        """
        found: dict[str, dict[str, Any]] = {}
        while True:  # what is done tells what else there is
            new = [unit for unit in units(self.plan, found) if unit.name not in found and self._path(unit).exists()]
            if not new:
                return found
            found |= {unit.name: self._read(unit) for unit in new}

    def _path(self, unit: Unit) -> Path:
        return self.folder / "records" / f"{unit.name}.json"

    def _read(self, unit: Unit) -> dict[str, Any]:
        path = self._path(unit)
        try:
            record = json.loads(path.read_text(encoding="utf-8"))
            made, result = record["settings"], dict(record["result"])
        except (OSError, ValueError, KeyError) as error:
            raise InputError(f"{path} cannot be read ({error}); delete it, and the run is made anew") from None
        wanted = json.loads(json.dumps(unit.settings))
        if made != wanted:
            key = next(key for key in {**wanted, **made} if wanted.get(key) != made.get(key))
            raise InputError(
                f"{path} was made with {key}={made.get(key)} but the plan says {wanted.get(key)}; set name= to begin another "
                "study, or delete it"
            )
        return result

    @contextmanager
    def claimed(self, unit: Unit) -> Iterator[bool]:
        """Whether a unit is still to be done and is ours; within, nobody else gets it."""
        path = self._path(unit).with_suffix(".lock")
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            with FileLock(path, timeout=0):
                yield not self._path(unit).exists()
        except Timeout:
            yield False

    def run(self, unit: Unit) -> dict[str, Any]:
        """Do a unit and keep its record."""
        make = self._tensor if unit.settings["level"] == "tensor" else partial(self._task, unit.name)
        result = make(unit.settings)
        write_text(self._path(unit), json.dumps({"settings": unit.settings, "result": result}, indent=1) + "\n")
        return result

    def _tensor(self, settings: Mapping[str, Any]) -> dict[str, Any]:
        source, grid = self.plan.source, self.plan.grid
        features = cameras = None
        if settings["features"] == "encoder":
            features, cameras, source = self._encoder_features(settings["encoder"], settings["encoder_samples"])
        moved = seeded(settings["seed"], INSTRUMENTS)

        def build(source: FeatureShape, grid: BEVGrid) -> Reshaper:
            reshaper = build_reshaper(settings["reshaper"], (source,), grid)
            if settings["permuted"]:
                return order.PermutedReshaper(reshaper, torch.randperm(source.tokens, generator=moved))
            return reshaper

        sigma = float(settings["jitter_deg"])
        experiment = Settings(
            source=source, grid=grid, jitter=Spread(sigma, sigma / 2, sigma / 2),
            calibration="exact" if settings["told"] else "none", training_samples=settings["training_samples"],
            steps=settings["steps"], batch=settings["batch"], optimizer=AdamWOneCycle(lr=settings["rate"]),
            evaluate_every=settings["evaluate_every"], held_out=4 * settings["batch"], seed=settings["seed"],
        )  # fmt: skip
        result = tensor_level.run(build, experiment, cameras=cameras, features=features, device=self.device)
        known = {
            "curve": [
                {"steps": p.steps, "samples": p.samples, "seconds": p.seconds, "error": _finite(p.error)}
                for p in result.curve
            ],
            "parameters": result.parameters,
            "flops": result.flops,
        }
        plain = settings["features"] == "fields" and not (settings["permuted"] or sigma or settings["training_samples"])
        return known | ({"examined": examine(result.network, experiment, moved)} if plain else {})

    def _encoder_features(self, reference: str, count: int) -> tuple[tuple[Tensor, Tensor], Cameras, FeatureShape]:
        """Features of the trained encoder of a task-level run, of pictures of its world, shrunk to the plan's shape."""
        run = task_run(self.folder / "runs" / reference)
        model, _, config = load_model(str(run.checkpoint))
        (own,) = model.encoder.sources  # type: ignore[misc]
        height, width = self.plan.source.height, self.plan.source.width
        if own.height % height or own.width % width or own.height // height != own.width // width:
            raise InputError(
                f"plan.tensor.source is of {height}×{width} features but the encoder's are {own.height}×{own.width}; "
                "choose one that these shrink to by a whole factor"
            )
        factor = own.height // height
        source = FeatureShape(
            own.channels, height, width, own.cameras, own.stride * factor,
            offset_px=own.offset_px + own.stride * (factor - 1) / 2,
        )  # fmt: skip
        path = self.folder / "encoder_features.pt"
        data = build_data({"data": {**config["data"], "loader_workers": 0}, "seed": 0})
        if not path.exists():
            data.source.prepare(("train", "val"))
            model.to(self.device)
            parts: list[Tensor] = []
            for split, wanted in (("train", count), ("val", math.inf)):
                data.tested_split, found = split, []
                for batch in data.test_dataloader():
                    with torch.no_grad():
                        features = model.encoder(batch["image"].to(self.device)).flatten(0, 1)
                    found.append(F.avg_pool2d(features, factor).unflatten(0, (-1, own.cameras)).cpu())
                    if sum(map(len, found)) >= wanted:
                        break
                parts.append(torch.cat(found)[:count])
            write_atomic(path, partial(torch.save, tuple(parts)))
        data.tested_split = "val"
        cameras = cameras_of(next(iter(data.test_dataloader())))
        rig = Cameras(cameras.intrinsics[:1], cameras.ego_from_cam[:1], cameras.image_size)
        train, val = torch.load(path, weights_only=True)
        return (train, val), rig, source

    def _task(self, name: str, settings: Mapping[str, Any]) -> dict[str, Any]:
        folder = self.folder / "runs" / name
        begun = (folder / "checkpoints" / "last.ckpt").exists()
        if not (folder / "metrics.json").exists():
            if begun:
                _command("train", [f"resume={folder}"], folder)
            else:
                (folder / "config.yaml").unlink(missing_ok=True)  # stopped before there was anything to go on from
                on = (
                    ["trainer.accelerator=cpu"]
                    if self.device.type == "cpu"
                    else [f"trainer.devices=[{self.device.index or 0}]"]
                )
                _command("train", [*settings["arguments"], *on, _written_to(folder)], folder)
        run = task_run(folder)
        found = folder / "diagnosis"
        if not (found / "diagnosis.json").exists():
            nothing = [f"errors.{key}=[]" for key in ("yaw_deg", "pitch_deg", "roll_deg", "height_m")]
            nothing += [f"corruptions.{key}=[]" for key in ("darkness", "noise", "blur", "occlusion")]
            arguments = [f"checkpoint={json.dumps(str(run.checkpoint), ensure_ascii=False)}", "logger=none", *nothing]
            _command("diagnose", [*arguments, f"device={self.device}", _written_to(found)], folder)
        return {
            "curve": [{"steps": step, "iou": value} for step, value in run.curve("val/iou/mean")],
            "metrics": dict(run.metrics),
            "diagnosis": json.loads((found / "diagnosis.json").read_text(encoding="utf-8")),
        }


def task_run(folder: Path) -> Run:
    """The one run of a folder."""
    (run,) = read_runs(folder)
    return run


def examine(network: tensor_level.ReadOut, settings: Settings, generator: torch.Generator) -> dict[str, float]:
    """What a trained reshaper does with the tokens of the nominal camera, see the instruments."""
    source, grid, reshaper = settings.source, settings.grid, network.reshaper
    device = next(network.parameters()).device
    features = smooth_fields(EXAMINED, source, settings.correlation_length, generator).to(device)
    rig = ring(source.cameras, (source.height * source.stride, source.width * source.stride), 1, device)
    cameras = Cameras(
        rig.intrinsics.expand(EXAMINED, -1, -1, -1), rig.ego_from_cam.expand(EXAMINED, -1, -1, -1), rig.image_size
    )
    told = cameras if settings.calibration != "none" else None
    cells = cell_raster(grid.shape, EXAMINED)
    weights = jacobian_norm(network, features, told, cells=cells)  # b q n h w
    numbers = [row * grid.cols + col for row, col in cells]
    mean = weights.mean(0).flatten(1) / math.sqrt(source.channels)
    agreement = geometry_agreement(weights, cameras, grid, source, cells=cells)
    found = {
        "data_dependence": relative_spread([weights]),
        "sampling_distance": sampling_distance(mean, sampling_matrix(rig, source, grid)[numbers]),
        "peak_distance": agreement.whole.peak.median,
        "uniform_distance": agreement.whole.uniform.median,
    }
    permutation = torch.randperm(source.tokens, generator=generator).to(device)
    found["invariance_error"] = order.invariance_error(reshaper, features, permutation, told)
    found["destruction"] = order.destruction(reshaper, features, permutation, told)
    if order.can_move(reshaper):
        found["invariance_error_moved"] = order.invariance_error(
            reshaper, features, permutation, told, move_encodings=True
        )
        found["equivariance_error_moved"] = order.equivariance_error(
            reshaper, features, permutation, told, move_encodings=True
        )
    wide = features.double()
    gram = order.gram(wide)
    change = order.gram(order.permute_tokens(wide, permutation)) - gram
    found["gram_change"] = (change.norm() / gram.norm()).item()
    return found


def _finite(value: float | int) -> float | None:
    return value if math.isfinite(value) else None


def _written_to(folder: Path) -> str:
    return f"hydra.run.dir={json.dumps(str(folder.resolve()), ensure_ascii=False)}"


def _command(name: str, arguments: Sequence[str], folder: Path) -> None:
    """Run one of the package's commands in a process of its own; what it prints goes to ``NAME.log``."""
    folder.mkdir(parents=True, exist_ok=True)
    log = folder / f"{name}.log"
    with log.open("w", encoding="utf-8") as output:
        command = [sys.executable, "-m", f"bevreshape.{name}", *arguments]
        code = subprocess.run(command, stdout=output, stderr=subprocess.STDOUT, check=False).returncode
    if code:
        lines = log.read_text(encoding="utf-8", errors="replace").strip().splitlines()
        raise InputError(
            f"python -m bevreshape.{name} {' '.join(arguments)}: {lines[-1] if lines else code}; see {log}"
        )
