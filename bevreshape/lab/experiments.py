"""The runs of a study: which there are, what each leaves behind, and who does which.

A run's record is a JSON file that takes its name when the run is over, so a study goes on where it was stopped; a file
lock, which the system frees when the last process of a run ends, keeps two studies off the same run.
"""

import fcntl
import json
import math
import os
import platform
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from bevreshape.build import build_data, build_reshaper, load_model
from bevreshape.costs import ring
from bevreshape.data.batch import cameras_of, seeded
from bevreshape.data.synthetic.rig import Spread
from bevreshape.errors import InputError
from bevreshape.files import write_text
from bevreshape.geometry import BEVGrid, Cameras
from bevreshape.lab import order, tensor_level
from bevreshape.lab.dependence import relative_spread
from bevreshape.lab.runs import Run, read_runs
from bevreshape.lab.tensor_level import Settings, sampling_distance, sampling_matrix, smooth_fields
from bevreshape.lab.weights import cell_raster, jacobian_norm, mlp_weights
from bevreshape.optimizer import AdamWOneCycle
from bevreshape.reshapers import MLP, FeatureShape, Reshaper

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


KEYS = {
    "tensor": (
        "source", "grid", "steps", "batch", "evaluate_every", "rates", "threshold", "jitter_deg", "training_samples",
        "told_jitter_deg", "encoder_samples", "contenders",
    ),
    "task": ("arguments", "share", "jitter_deg", "scenes", "contenders"),
}  # fmt: skip
"""What a plan holds."""


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
        tuning: for the choice of the rate, measured on other samples than the rest.
    """
    settings = {key: plan.tensor[key] for key in ("source", "grid", "steps", "batch", "evaluate_every")} | {
        "level": "tensor", "reshaper": plan.tensor["contenders"][role],
        "calibration": "exact" if role in TOLD else "shown" if shown else "none", "rate": rate, "seed": seed,
        "jitter_deg": jitter_deg, "training_samples": training_samples, "features": features, "permuted": permuted,
        "tuning": tuning,
    }  # fmt: skip
    if features == "encoder":
        reference = task_unit(plan, "ipm", plan.seeds[0])
        settings["encoder"] = {
            "run": reference.name, "arguments": reference.settings["arguments"], "samples": plan.tensor["encoder_samples"],
        }  # fmt: skip
    name = f"{role}-{features}-jitter{jitter_deg:g}-samples_{training_samples or 'all'}-rate{rate:g}-seed{seed}"
    marks = "-shown" * shown + "-permuted" * permuted + "-tuning" * tuning
    return Unit(f"tensor-{name}{marks}", settings)


def tuning_unit(plan: Plan, role: str, rate: float | int, seed: int) -> Unit:
    """A run in which a learning rate is tried: of a fixed camera, or with jitter for those that are told of it."""
    jitter_deg = plan.tensor["told_jitter_deg"] if role in TOLD else 0
    return tensor_unit(plan, role, rate, seed, jitter_deg=jitter_deg, tuning=True)


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
    found = [tuning_unit(plan, *tried) for tried in product((*RIVALS, *TOLD), tensor["rates"], seeds)]
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
        found += [unit(role, jitter_deg=sigma, shown=True) for role, sigma in product(RIVALS, tensor["jitter_deg"][1:])]
        if task_unit(plan, "ipm", seeds[0]).name in records:
            found += [unit(role, features="encoder") for role in RIVALS]
    return list({unit.name: unit for unit in found}.values())


def best_rates(plan: Plan, records: Records) -> dict[str, float] | None:
    """Every contender's learning rate, that of its lowest mean error over the seeds, the variants of the attention taking
    its own; ``None`` before all have been tried."""
    rates = {}
    for role in (*RIVALS, *TOLD):
        errors: dict[float, float] = {}
        for rate in plan.tensor["rates"]:
            tried = [records.get(tuning_unit(plan, role, rate, seed).name) for seed in plan.seeds]
            if None in tried:
                return None
            errors[rate] = sum(map(final_error, tried))
        rates[role] = min(errors, key=errors.__getitem__)
    return {role: rates.get(role, rates["attention"]) for role in ROLES}


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
    def claimed(self, name: str) -> Iterator[int | None]:
        """A lock of a unit, or of something else that is done once: its file descriptor, ``None`` if it is not ours.

        It lasts as long as a process that has the descriptor, so that nobody goes on with a run whose study was killed
        before the run itself has ended.
        """
        path = self.folder / "records" / f"{name}.lock"
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("w") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                yield None
            else:
                yield lock.fileno()

    def has(self, unit: Unit) -> bool:
        """Whether it is done."""
        return self._path(unit).exists()

    def run(self, unit: Unit, lock: int) -> dict[str, Any]:
        """Do a unit and keep its record.

        Args:
            unit: which.
            lock: as :meth:`claimed` gives it, handed on to the processes that do it.
        """
        settings = unit.settings
        result = self._tensor(settings) if settings["level"] == "tensor" else self._task(unit, lock)
        result["machine"] = f"{platform.node()}, {self.device}, {torch.get_num_threads()} threads"
        write_text(self._path(unit), json.dumps({"settings": settings, "result": result}, indent=1) + "\n")
        return result

    def _tensor(self, settings: Mapping[str, Any]) -> dict[str, Any]:
        source, grid = self.plan.source, self.plan.grid
        features = cameras = None
        if settings["features"] == "encoder":
            features, cameras, source = self._encoder_features(
                settings["encoder"]["run"], settings["encoder"]["samples"]
            )
        moved = seeded(settings["seed"], INSTRUMENTS)

        def build(source: FeatureShape, grid: BEVGrid) -> Reshaper:
            reshaper = build_reshaper(settings["reshaper"], (source,), grid)
            if settings["permuted"]:
                return order.PermutedReshaper(reshaper, torch.randperm(source.tokens, generator=moved))
            return reshaper

        sigma = float(settings["jitter_deg"])
        experiment = Settings(
            source=source, grid=grid, jitter=Spread(sigma, sigma / 2, sigma / 2),
            calibration=settings["calibration"], training_samples=settings["training_samples"],
            steps=settings["steps"], batch=settings["batch"], optimizer=AdamWOneCycle(lr=settings["rate"]),
            evaluate_every=settings["evaluate_every"], held_out=4 * settings["batch"], seed=settings["seed"],
            data_seed=settings["seed"], held_out_seed=int(settings["tuning"]),
        )  # fmt: skip
        result = tensor_level.run(build, experiment, cameras=cameras, features=features, device=self.device)
        known: dict[str, Any] = {
            "curve": [
                {"steps": p.steps, "samples": p.samples, "seconds": p.seconds, "error": _finite(p.error)}
                for p in result.curve
            ],
            "parameters": result.parameters,
            "flops": result.flops,
        }
        special = ("jitter_deg", "training_samples", "permuted", "tuning")
        plain = settings["features"] == "fields" and not any(settings[key] for key in special)
        if plain and math.isfinite(result.final_error):
            known["examined"] = examine(result.network, experiment, moved)
        return known

    def _encoder_features(self, run: str, samples: int) -> tuple[tuple[Tensor, Tensor], Cameras, FeatureShape]:
        """Features of the trained encoder of a task-level run, of pictures of its world, shrunk to the plan's shape, and
        standardised channel by channel by those trained on."""
        model, _, config = load_model(str(task_run(self.folder / "runs" / run).checkpoint))
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
        data = build_data({"data": {**config["data"], "loader_workers": 0}, "seed": 0})
        data.source.prepare(("train", "val"))
        model.to(self.device)
        parts: list[Tensor] = []
        for split in ("train", "val"):
            data.tested_split, found = split, []
            for batch in data.test_dataloader():
                batch = data.on_after_batch_transfer(batch, 0)  # floats in 0..1
                with torch.no_grad():
                    features = model.encoder(batch["image"].to(self.device)).flatten(0, 1)
                found.append(F.avg_pool2d(features, factor).unflatten(0, (-1, own.cameras)))
                if sum(map(len, found)) >= samples:
                    break
            parts.append(torch.cat(found)[:samples])
        cameras = cameras_of(batch)
        rig = Cameras(cameras.intrinsics[:1], cameras.ego_from_cam[:1], cameras.image_size)
        mean, spread = (of((0, 1, 3, 4), keepdim=True) for of in (parts[0].mean, parts[0].std))
        train, val = ((part - mean) / spread for part in parts)
        return (train, val), rig, source

    def _task(self, unit: Unit, lock: int) -> dict[str, Any]:
        folder = self.folder / "runs" / unit.name
        begun, arguments = folder / "unit.json", unit.settings["arguments"]
        if begun.exists() and (made := json.loads(begun.read_text(encoding="utf-8"))["arguments"]) != arguments:
            raise InputError(
                f"{folder} was begun with {' '.join(made)} but the plan says {' '.join(arguments)}; set name= to begin another "
                "study, or delete it"
            )
        write_text(begun, json.dumps(unit.settings, indent=1) + "\n")
        command = _Commands(folder, self.device, lock)
        if not (folder / "metrics.json").exists():
            if (folder / "checkpoints" / "last.ckpt").exists():
                command("train", f"resume={_quoted(folder)}", command.accelerator)
            else:
                (folder / "config.yaml").unlink(missing_ok=True)  # stopped before there was anything to go on from
                command("train", *arguments, command.accelerator, f"hydra.run.dir={_quoted(folder)}")
        run = task_run(folder)
        found = folder / "diagnosis"
        if not (found / "diagnosis.json").exists():
            nothing = [f"errors.{key}=[]" for key in ("yaw_deg", "pitch_deg", "roll_deg", "height_m")]
            nothing += [f"corruptions.{key}=[]" for key in ("darkness", "noise", "blur", "occlusion")]
            checkpoint, device = f"checkpoint={_quoted(run.checkpoint)}", f"device={self.device.type}"
            command("diagnose", checkpoint, "logger=none", *nothing, device, f"hydra.run.dir={_quoted(found)}")
        return {
            "curve": [{"steps": step, "iou": value} for step, value in run.curve("val/iou/mean")],
            "metrics": dict(run.metrics),
            "diagnosis": json.loads((found / "diagnosis.json").read_text(encoding="utf-8")),
        }


@dataclass(frozen=True)
class _Commands:
    """The package's commands, each in a process of its own that holds the lock; what they print goes to ``NAME.log``."""

    folder: Path
    device: torch.device
    lock: int

    @property
    def accelerator(self) -> str:
        """The argument of ``train``."""
        return f"trainer.accelerator={'cpu' if self.device.type == 'cpu' else 'gpu'}"

    def __call__(self, name: str, *arguments: str) -> None:
        environment = dict(os.environ)
        if self.device.type == "cuda" and self.device.index is not None:
            there = environment.get("CUDA_VISIBLE_DEVICES")
            environment["CUDA_VISIBLE_DEVICES"] = str(
                there.split(",")[self.device.index] if there else self.device.index
            )
        self.folder.mkdir(parents=True, exist_ok=True)
        log = self.folder / f"{name}.log"
        with log.open("w", encoding="utf-8") as output:
            process = subprocess.Popen(
                [sys.executable, "-m", f"bevreshape.{name}", *arguments],
                stdout=output, stderr=subprocess.STDOUT, env=environment, pass_fds=(self.lock,), start_new_session=True,
            )  # fmt: skip
            try:
                code = process.wait()
            except KeyboardInterrupt:
                process.send_signal(signal.SIGINT)  # it saves where it stands, and the next study goes on from there
                process.wait()
                raise
        if code:
            lines = log.read_text(encoding="utf-8", errors="replace").strip().splitlines()
            raise InputError(
                f"python -m bevreshape.{name} {' '.join(arguments)}: {lines[-1] if lines else f'ended with {code}'}; see {log}"
            )


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
    told = None
    if settings.calibration != "none":
        poses, intrinsics = (x.expand(EXAMINED, -1, -1, -1) for x in (rig.ego_from_cam, rig.intrinsics))
        told = Cameras(intrinsics, poses, rig.image_size)
    cells = cell_raster(grid.shape, EXAMINED)
    found = {"data_dependence": relative_spread([jacobian_norm(network, features, told, cells=cells)])}
    if isinstance(reshaper, MLP) and len(reshaper.layers) == 1 and reshaper.rectify is None:
        found["sampling_distance"] = sampling_distance(
            mlp_weights(reshaper).flatten(1), sampling_matrix(rig, source, grid)
        )
    permutation = torch.randperm(source.tokens, generator=generator).to(device)
    found["invariance_error"] = order.invariance_error(reshaper, features, permutation, told)
    found["destruction"] = order.destruction(reshaper, features, permutation, told)
    if order.can_move(reshaper):
        for measure in (order.invariance_error, order.equivariance_error):
            found[f"{measure.__name__}_moved"] = measure(reshaper, features, permutation, told, move_encodings=True)
    wide = features.double()
    gram = order.gram(wide)
    change = order.gram(order.permute_tokens(wide, permutation)) - gram
    found["gram_change"] = (change.norm() / gram.norm()).item()
    return found


def _finite(value: float | int) -> float | int | None:
    return value if math.isfinite(value) else None


def _quoted(path: Path) -> str:
    return json.dumps(str(path.resolve()), ensure_ascii=False)
