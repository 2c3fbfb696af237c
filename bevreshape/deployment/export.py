"""Export a checkpoint's model, for any rig or for a fixed one."""

import logging
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from bevreshape.bev_spec import BEVSpec
from bevreshape.config.load_model import load_model
from bevreshape.data.batch import SEGMENTATION
from bevreshape.deployment.inference import FixedInference, Inference, check_segmentation
from bevreshape.deployment.metadata import describe_program
from bevreshape.deployment.program import FORMATS, export, frame_times, open_program
from bevreshape.deployment.rigs import check_visibility, example, example_rig, fitted_rig, stored_rig
from bevreshape.errors import InputError
from bevreshape.geometry import Cameras
from bevreshape.pretrained import CARD, PretrainedBEVModel
from bevreshape.reshapers import Reshaper
from bevreshape.storage.plain_values import read_json
from bevreshape.storage.pretrained import CONFIG, WEIGHTS

HUB = "hub"
"""The format of a folder for the Hugging Face hub."""

log = logging.getLogger(__name__)


def export_checkpoint(settings: Mapping[str, Any]) -> list[str]:
    """Export a model, compare it, and write it; measure the time that a fixed rig saves.

    Args:
        settings: of the command, see :class:`~bevreshape.config.settings.Export`.

    Returns:
        Lines on what was written: the file, its difference from the model, its inputs and its speed.

    Raises:
        InputError: when ``out`` would replace an input file, or the program differs from the model.
    """
    checkpoint, format = settings["checkpoint"], settings["format"]
    out = Path(settings["out"] or Path(checkpoint).with_suffix(f".{format}"))
    _check_out(out, settings)
    if format == HUB:
        return _export_folder(settings, out)
    model, spec, _ = load_model(checkpoint, settings["trust"])
    check_segmentation(model, checkpoint)
    if others := [name for name in model.heads if name != SEGMENTATION]:
        log.warning("leaves out the heads %s; only probabilities are exported", ", ".join(others))
    free = Inference(model, spec.image_size)
    if settings["calibration"] is None:
        inputs = example(spec, example_rig(spec))
        if isinstance(model.reshaper, Reshaper) and model.reshaper.needs_cameras:
            check_visibility(Cameras(*inputs[1:], spec.image_size), spec.grid)
        error = export(free, inputs, out, format, spec)
        taken = "image, intrinsics, ego_from_cam"
        return [f"{out} · {taken} → probabilities; within {error:.1e} of the model", describe_program(spec)]
    stored = stored_rig(Path(settings["calibration"]), spec)
    rig = fitted_rig(stored, spec)
    inputs = example(spec, rig)
    fixed = FixedInference(load_model(checkpoint, settings["trust"])[0], rig)
    error = export(fixed, inputs[:1], out, format, spec, stored)
    times = _frame_times(free, out, inputs, rig, format, spec, settings["repeats"])
    return [f"{out} · image → probabilities; within {error:.1e} of the model", describe_program(spec), times]


def _export_folder(settings: Mapping[str, Any], out: Path) -> list[str]:
    """Write the model itself as a folder, with the metrics of its run in the card, and read it back."""
    if settings["calibration"] is not None:
        raise InputError(
            f"calibration={settings['calibration']} is folded into programs alone; format={HUB} keeps the calibration "
            "an input, so leave it out"
        )
    if out.exists() and not out.is_dir():
        raise InputError(f"out={out} is a file, but format={HUB} writes a folder; name a folder")
    checkpoint = Path(settings["checkpoint"]).resolve()
    model = PretrainedBEVModel.from_pretrained(checkpoint, trust=settings["trust"])
    measured = checkpoint.parent.parent / "metrics.json"  # of the best checkpoint
    metrics = read_json(measured) if checkpoint.name == "best.ckpt" and measured.is_file() else {}
    model.write(out, metrics)
    written = load_model(str(out), settings["trust"])[0].state_dict()
    if any(not torch.equal(value, written[key]) for key, value in model.state_dict().items()):
        raise InputError(f"{out}: its weights differ from those of {checkpoint}; the disk may be faulty")
    return [f"{out} · {CONFIG}, {WEIGHTS}, {CARD}"]


def _frame_times(
    free: Inference, fixed: Path, inputs: Sequence[Tensor], rig: Cameras, format: str, spec: BEVSpec, repeats: int
) -> str:
    """Measure the time of a frame with the rig fixed, and with the calibration as an input."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / f"free.{format}"
        export(free, inputs, path, format, spec)
        rigs = (inputs[0][:1], rig.intrinsics, rig.ego_from_cam)
        given, folded = frame_times(
            [(open_program(path, format), rigs), (open_program(fixed, format), rigs[:1])], repeats
        )
    return f"{folded * 1e3:.1f} ms a frame, {given * 1e3:.1f} ms with the calibration as an input"


def _check_out(out: Path, settings: Mapping[str, Any]) -> None:
    """Refuse to overwrite an input file, or to use the suffix of the other format."""
    for key in ("checkpoint", "calibration"):
        if settings[key] and out.exists() and out.samefile(settings[key]):
            raise InputError(f"out={out} is the {key} itself, which would be lost; name another file")
    if out.suffix.lower().lstrip(".") in {*FORMATS} - {settings["format"]}:
        raise InputError(
            f"out={out} has the suffix of another format than format={settings['format']}; change one of them"
        )
