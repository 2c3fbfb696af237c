"""How one run of a study is done, and what is measured of it."""

import json
import math
import os
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from bevreshape.build import build_data, build_reshaper, load_model
from bevreshape.costs import ring
from bevreshape.data.batch import cameras_of, seeded
from bevreshape.data.synthetic.rig import Spread
from bevreshape.errors import Divergence, InputError
from bevreshape.files import write_text
from bevreshape.geometry import BEVGrid, Cameras
from bevreshape.lab import order, tensor_level
from bevreshape.lab.dependence import relative_spread
from bevreshape.lab.plan import Plan, Unit
from bevreshape.lab.runs import Run, read_runs
from bevreshape.lab.shown import stored_data
from bevreshape.lab.tensor_level import Settings, sampling_distance, sampling_matrix, smooth_fields
from bevreshape.lab.weights import cell_raster, jacobian_norm, mlp_weights
from bevreshape.optimizer import AdamWOneCycle
from bevreshape.reshapers import MLP, FeatureShape, Reshaper
from bevreshape.stored import read_json

INSTRUMENTS = 0x494E5354
"""Word of the random key of what trained reshapers are examined with."""

HELD_OUT_BATCHES = 8
"""Of random samples that errors are measured on, other ones for every seed, so that intervals over the seeds include their
draw; an encoder's features are those of a part of the test pictures for each."""

EXAMINED = 6
"""Samples that a trained reshaper is examined with, and cells along a side."""


@dataclass(frozen=True)
class Place:
    """Where a study's runs happen.

    Attributes:
        folder: of the study; the task level's runs are in its ``runs``.
        device: of all runs.
        trust: packages whose classes a checkpoint may call, beside bevreshape and the installed entry points.
    """

    folder: Path
    device: torch.device
    trust: Sequence[str] = ()

    def run_folder(self, name: str) -> Path:
        """Of a run of the task level."""
        return self.folder / "runs" / name


def tensor_result(plan: Plan, settings: Mapping[str, Any], place: Place) -> dict[str, Any]:
    """Do a run of the tensor level.

    Returns:
        Its learning ``curve``, ``parameters``, ``flops`` of a forward pass of one sample, and of new random fields of a
        fixed camera what :func:`examine` finds.
    """
    source, grid = plan.source, plan.grid
    features = cameras = None
    if settings["features"] == "encoder":
        given = settings["encoder"]
        (train, measured), cameras, source = encoder_features(
            (source.height, source.width), place, given["run"], given["samples"], given["split"]
        )
        first, step = given["part"]
        features = train, measured[first::step]
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
        evaluate_every=settings["evaluate_every"], held_out=HELD_OUT_BATCHES * settings["batch"], seed=settings["seed"],
        data_seed=settings["seed"], held_out_seed=2 * settings["seed"] + settings["tuning"],
    )  # fmt: skip
    result = tensor_level.run(build, experiment, cameras=cameras, features=features, device=place.device)
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


@lru_cache(maxsize=1)
def encoder_features(
    shape: tuple[int, int], place: Place, run: str, samples: int, split: str
) -> tuple[tuple[Tensor, Tensor], Cameras, FeatureShape]:
    """Features of a trained encoder, of pictures of its world, standardised channel by channel by those to train on.

    Args:
        shape: height and width that they are shrunk to by means.
        place: where the run is.
        run: of the task level, whose best encoder is taken.
        samples: at most, to train on and to measure with.
        split: ``val`` or ``test``, whose pictures are measured with.

    Returns:
        Features to train on and to measure with, (samples, n, c, h, w) each; their cameras, b = 1; their shape.

    Raises:
        InputError: when the encoder's features are no whole multiple of the plan's.
    """
    trained = task_run(place.run_folder(run))
    model, *_ = load_model(str(trained.checkpoint), place.trust)
    (own,) = model.encoder.sources  # type: ignore[misc]
    height, width = shape
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
    data = build_data({"data": {**stored_data(trained, place.trust), "loader_workers": 0}, "seed": 0})
    data.source.prepare(("train", split))
    model.to(place.device)
    parts: list[Tensor] = []
    for read in ("train", split):
        data.tested_split, found = read, []
        for batch in data.test_dataloader():
            batch = data.on_after_batch_transfer(batch, 0)  # floats in 0..1
            with torch.no_grad():
                features = model.encoder(batch["image"].to(place.device)).flatten(0, 1)
            found.append(F.avg_pool2d(features, factor).unflatten(0, (-1, own.cameras)))
            if sum(map(len, found)) >= samples:
                break
        parts.append(torch.cat(found)[:samples])
    cameras = cameras_of(batch)
    rig = Cameras(cameras.intrinsics[:1], cameras.ego_from_cam[:1], cameras.image_size)
    mean, spread = (of((0, 1, 3, 4), keepdim=True) for of in (parts[0].mean, parts[0].std))
    train, measured = ((features - mean) / spread for features in parts)
    return (train, measured), rig, source


def task_result(unit: Unit, place: Place, lock: int) -> dict[str, Any]:
    """Do a run of the task level, or go on with it, and diagnose its model where that is wanted.

    Args:
        unit: which.
        place: where.
        lock: descriptor of the file that says whose run it is; the processes that do it hold it too.

    Returns:
        Its ``curve`` of validation IoU, its ``metrics`` and its ``diagnosis``, empty where none is wanted or it has
        diverged.

    Raises:
        InputError: when a command failed, or the folder holds a run of other arguments.
    """
    folder = place.run_folder(unit.name)
    begun, arguments = folder / "unit.json", unit.settings["arguments"]
    if begun.exists() and (made := read_json(begun).get("arguments")) != arguments:
        raise InputError(
            f"{folder} was begun with {' '.join(map(str, made)) if isinstance(made, list) else made} but the plan says {' '.join(arguments)}; set name= to begin another "
            "study, or delete it"
        )
    write_text(begun, json.dumps(unit.settings, indent=1) + "\n")
    command = _Commands(folder, place.device, lock)
    try:
        if not (folder / "metrics.json").exists():
            if (folder / "checkpoints" / "last.ckpt").exists():
                command("train", f"resume={_quoted(folder)}", command.accelerator)
            else:
                (folder / "config.yaml").unlink(missing_ok=True)  # stopped before there was anything to go on from
                command("train", *arguments, command.accelerator, f"hydra.run.dir={_quoted(folder)}")
    except Divergence:
        curve = Run(folder, unit.name, {}, {}).curve("val/iou/mean") or [(0, 0.0)]
        return {"curve": [{"steps": step, "iou": value} for step, value in curve], "metrics": {}, "diagnosis": {}}
    run = task_run(folder)
    return {
        "curve": [{"steps": step, "iou": value} for step, value in run.curve("val/iou/mean")],
        "metrics": dict(run.metrics),
        "diagnosis": _diagnosis(run, place, command) if unit.settings["diagnosed"] else {},
    }


def _diagnosis(run: Run, place: Place, command: "_Commands") -> dict[str, Any]:
    found = run.folder / "diagnosis"
    if not (found / "diagnosis.json").exists():
        nothing = [f"errors.{key}=[]" for key in ("yaw_deg", "pitch_deg", "roll_deg", "height_m")]
        nothing += [f"rigs.{key}=[]" for key in ("yaw_deg", "pitch_deg", "roll_deg")]
        nothing += [f"corruptions.{key}=[]" for key in ("darkness", "noise", "blur", "occlusion")]
        given = [f"checkpoint={_quoted(run.checkpoint)}", f"trust={json.dumps(list(place.trust))}", "logger=none"]
        command("diagnose", *given, *nothing, f"device={place.device.type}", f"hydra.run.dir={_quoted(found)}")
    return read_json(found / "diagnosis.json")


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
            raise (Divergence if code == Divergence.exit_code else InputError)(
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
