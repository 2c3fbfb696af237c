"""``python -m bevreshape.export``: a trained model as ONNX or as a program of torch.export, compared before it is kept."""

if __name__ == "__main__":  # before anything loads torch
    from bevreshape.environment import prepare_process

    prepare_process()

import json
import logging
import math
import tempfile
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from shutil import copyfileobj
from statistics import median
from typing import Any

import torch
from omegaconf import DictConfig
from rich.console import Console
from torch import Tensor, nn

from bevreshape import __version__
from bevreshape.analysis.costs import ring
from bevreshape.bev_spec import BEVSpec
from bevreshape.config import cli, settings
from bevreshape.config.compose import plain_config
from bevreshape.config.load_model import load_model
from bevreshape.config.options import read_settings
from bevreshape.data.batch import SEGMENTATION, match_cameras
from bevreshape.data.image_io import resize_and_crop_intrinsics
from bevreshape.data.sources.folder.calibration import read_calibration
from bevreshape.data.sources.folder.rig import Rig
from bevreshape.deployment import preprocess as deploy
from bevreshape.errors import InputError
from bevreshape.geometry import BEVGrid, Cameras, ground_pixels
from bevreshape.model import BEVModel
from bevreshape.reshapers import FixedRig, Reshaper
from bevreshape.storage.files import write_atomic

FORMATS = ("onnx", "pt2")
OPSET = 18
OUTPUT = "probabilities"
TOLERANCE = 1e-4
"""By how much a probability may differ from the model's."""

Program = Callable[..., Tensor]


class Inference(nn.Module):
    """Images and calibration to probabilities, in tensors alone.

    Args:
        model: trained.
        image_size: (H, W) of the images.
    """

    def __init__(self, model: BEVModel, image_size: tuple[int, int]) -> None:
        super().__init__()
        self.model = model
        self.image_size = image_size

    def forward(self, image: Tensor, intrinsics: Tensor, ego_from_cam: Tensor) -> Tensor:
        """(b, n, 3, H, W) in 0..1, (b, n, 3, 3), (b, n, 4, 4) → (b, k, rows, cols)."""
        return self.model(image, Cameras(intrinsics, ego_from_cam, self.image_size)).heads[SEGMENTATION].sigmoid()


class FixedInference(Inference):
    """Images of one rig to probabilities: its geometry is computed once, here.

    Args:
        model: trained.
        rig: its cameras, b = 1.
    """

    def __init__(self, model: BEVModel, rig: Cameras) -> None:
        assert isinstance(model.reshaper, Reshaper)
        super().__init__(BEVModel(model.encoder, FixedRig(model.reshaper, rig), model.heads), rig.image_size)

    def forward(self, image: Tensor) -> Tensor:  # type: ignore[override]  # the rig is known
        """(b, n, 3, H, W) in 0..1 → (b, k, rows, cols)."""
        return self.model(image).heads[SEGMENTATION].sigmoid()


def main(cfg: DictConfig) -> None:
    """Export, compare, write; with a fixed rig also say what fixing it gains."""
    plain = read_settings(settings.Export, plain_config(cfg))
    out = Path(plain["out"] or Path(plain["checkpoint"]).with_suffix(f".{plain['format']}"))
    _check_out(out, plain)
    model, spec, _ = load_model(plain["checkpoint"], plain["trust"])
    console = Console()
    if plain["calibration"] is None:
        inputs = example(spec, example_rig(spec))
        if isinstance(model.reshaper, Reshaper) and model.reshaper.needs_cameras:
            check_sees(Cameras(*inputs[1:], spec.image_size), spec.grid)
        error = export(Inference(model, spec.image_size), inputs, out, plain["format"], spec)
        console.print(
            f"{out} · image, intrinsics, ego_from_cam → probabilities; within {error:.1e} of the model", soft_wrap=True
        )
        console.print(described(spec), highlight=False, soft_wrap=True)
        return
    stored = stored_rig(Path(plain["calibration"]), spec)
    rig = fitted_rig(stored, spec)
    inputs = example(spec, rig)
    fixed = FixedInference(load_model(plain["checkpoint"], plain["trust"])[0], rig)
    error = export(fixed, inputs[:1], out, plain["format"], spec, stored)
    console.print(f"{out} · image → probabilities; within {error:.1e} of the model", soft_wrap=True)
    console.print(described(spec), highlight=False, soft_wrap=True)
    with tempfile.TemporaryDirectory() as folder:
        free = Path(folder) / f"free.{plain['format']}"
        export(Inference(model, spec.image_size), inputs, free, plain["format"], spec)
        rigs = (inputs[0][:1], rig.intrinsics, rig.ego_from_cam)
        given, folded = frame_times(
            [(open_program(free, plain["format"]), rigs), (open_program(out, plain["format"]), rigs[:1])],
            plain["rounds"],
        )
    console.print(
        f"{folded * 1e3:.1f} ms a frame, {given * 1e3:.1f} ms with the calibration as an input", soft_wrap=True
    )


def _check_out(out: Path, plain: Mapping[str, Any]) -> None:
    """Refuse to write over what is read, or under the name of the other format."""
    for key in ("checkpoint", "calibration"):
        if plain[key] and out.exists() and out.samefile(plain[key]):
            raise InputError(f"out={out} is the {key} itself, which would be lost; name another file")
    if out.suffix.lower().lstrip(".") in {*FORMATS} - {plain["format"]}:
        raise InputError(f"out={out} is called like another format than format={plain['format']}; change one of them")


def described(spec: BEVSpec) -> str:
    """What an exported program must be given, and what comes out, for people."""
    height, width = spec.image_size
    return (
        f"image: {', '.join(spec.camera_names)}, in this order, {'grey in each channel' if spec.image_mode == 'grey' else 'RGB'} in 0..1, {height}×{width}, as predict makes them: resized to "
        "cover it, then cut at the top and evenly at the sides, intrinsics moved along\n"
        f"probabilities: {', '.join(spec.classes)} on {spec.grid.rows}×{spec.grid.cols} cells, row 0 farthest ahead, column 0 "
        "farthest left"
    )


def metadata(spec: BEVSpec, rig: Rig | None = None) -> dict[str, Any]:
    """All that a program's user must know, as plain values; :mod:`bevreshape.deployment.preprocess` reads them.

    Args:
        spec: what the model is for.
        rig: of a fixed one the cameras of the images as they are stored, in the model's order.
    """
    (height, width), n, (rows, cols) = spec.image_size, len(spec.camera_names), spec.grid.shape
    pixels = {
        "shape": ["batch", n, 3, height, width],
        "channels": ["grey"] * 3 if spec.image_mode == "grey" else ["R", "G", "B"],
        "range": [0, 1],
    }
    inputs: dict[str, Any] = {"image": {**pixels, "dtype": "float32"}}
    if rig is None:
        inputs["intrinsics"] = {"shape": ["batch", n, 3, 3], "dtype": "float32"}
        inputs["ego_from_cam"] = {"shape": ["batch", n, 4, 4], "dtype": "float32"}
    probabilities = {"shape": ["batch", len(spec.classes), rows, cols], "range": [0, 1], "dtype": "float32"}
    return {
        "format": deploy.FORMAT,
        "version": __version__,
        **spec.to_plain(),
        "inputs": inputs,
        "outputs": {"probabilities": probabilities},
        "cameras": None if rig is None else [_described_camera(spec, rig, i) for i in range(n)],
        "conventions": CONVENTIONS,
    }


CONVENTIONS = {
    "resize": "bilinear, antialiased, by the larger of the two ratios, so that image_size is covered; then rows are cut at the "
    "top and columns evenly at both sides",
    "distortion": "undone on the way, bilinear; coefficients are in OpenCV's order",
    "pixels": "integers are pixel centres, u to the right, v down",
    "intrinsics": "pixel_from_cam of the image as the program takes it; camera axes x right, y down, z forward",
    "ego_from_cam": "metres; ego axes x forward, y left, z up, the ground at z = 0",
    "cameras": "in the order of camera_names",
    "classes": "in the order of classes, each a probability of its own",
    "grid": "row 0 farthest ahead, column 0 farthest left; forward_m and left_m are the outer edges",
}
"""What the numbers in the metadata and in the program's inputs mean."""


def _described_camera(spec: BEVSpec, rig: Rig, number: int) -> dict[str, Any]:
    stored, lens = rig.sizes[number], rig.lenses[number]
    resized, top, left = deploy.fitting(stored, spec.image_size)
    return {
        "name": spec.camera_names[number],
        "image_size": list(stored),
        "intrinsics": rig.stored_intrinsics(number).tolist(),
        "distortion": None
        if lens is None
        else {
            "model": lens.model,
            "coefficients": list(lens.coefficients),
            "intrinsics": rig.intrinsics[number].tolist(),
        },
        "resized_size": list(resized),
        "crop_top_left": [top, left],
        "fitted_intrinsics": resize_and_crop_intrinsics(rig.intrinsics[number], stored, spec.image_size).tolist(),
        "ego_from_cam": rig.ego_from_cam[number].tolist(),
    }


def export(
    module: nn.Module,
    inputs: Sequence[Tensor],
    out: Path,
    format: str,
    spec: BEVSpec | None = None,
    rig: Rig | None = None,
) -> float:
    """Write a program for any batch, read it back, and compare it with the module on batches of 1 and 3.

    Args:
        module: in evaluation mode.
        inputs: a batch of 3 of each.
        out: the file, which appears only if the comparison succeeds.
        format: ``onnx`` or ``pt2``.
        spec: what it is for; :func:`metadata` of it are kept inside as JSON, under ``bevreshape`` in the metadata of an
            ONNX file, as ``bevreshape.json`` in a pt2.
        rig: of a fixed one, likewise.

    Returns:
        The largest difference of a probability.

    Raises:
        InputError: when the program differs from the module, onnx is not installed, or this torch cannot write it, with
            torch's reason.
    """
    module.eval()
    inputs = tuple(inputs)
    batch = {0: torch.export.Dim("batch", min=1, max=1024)}
    try:
        program = torch.export.export(module, inputs, dynamic_shapes=(batch,) * len(inputs), strict=False)
    except Exception as refusal:  # whatever a reshaper of one's own does that no graph can hold
        raise InputError(
            f"torch {torch.__version__} cannot export this model ({_reason(refusal)}); change what it names in the model's forward"
        ) from refusal
    with tempfile.TemporaryDirectory() as folder:
        written = Path(folder) / f"program.{format}"
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of the exporters about themselves; what they wrote is compared
            about = json.dumps(None if spec is None else metadata(spec, rig), ensure_ascii=False)
            if format == "pt2":
                torch.export.save(program, written, extra_files={"bevreshape.json": about})
            else:
                _save_onnx(program, written, about)
        reread = open_program(written, format)
        with torch.no_grad():
            cuts = [[x[:size] for x in inputs] for size in (1, 3)]
            error = torch.stack([(reread(*cut) - module(*cut)).abs().max() for cut in cuts]).max().item()
        if not error <= TOLERANCE:  # nor if it is NaN
            raise InputError(
                f"the exported program differs from the model by {error:.2g}, more than {TOLERANCE:g}; nothing was written, "
                f"try format={'pt2' if format == 'onnx' else 'onnx'}"
            )
        with written.open("rb") as source:
            write_atomic(out, lambda file: copyfileobj(source, file))
    return error


def open_program(path: Path, format: str) -> Program:
    """A written program: tensors in, probabilities out, on the CPU."""
    if format == "pt2":
        return torch.export.load(path).module()
    onnxruntime = _imported("onnxruntime")
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    names = [entry.name for entry in session.get_inputs()]

    def run(*inputs: Tensor) -> Tensor:
        return torch.from_numpy(session.run(None, {n: x.numpy() for n, x in zip(names, inputs, strict=True)})[0])

    return run


def example(spec: BEVSpec, rig: Cameras) -> tuple[Tensor, Tensor, Tensor]:
    """Random images and a rig, b = 1, as a batch of 3, each sample's cameras a little higher."""
    images = torch.rand(3, len(spec.camera_names), 3, *spec.image_size, generator=torch.Generator().manual_seed(0))
    poses = rig.ego_from_cam.repeat(3, 1, 1, 1)
    poses[:, :, 2, 3] *= torch.tensor([1.0, 1.1, 1.2])[:, None]
    return images, rig.intrinsics.repeat(3, 1, 1, 1), poses


def example_rig(spec: BEVSpec) -> Cameras:
    """A ring of as many cameras as the model has, as high as suits the grid, the first one looking towards its middle."""
    grid = spec.grid
    rig = ring(
        len(spec.camera_names),
        spec.image_size,
        1,
        torch.device("cpu"),
        max(map(abs, (*grid.forward_m, *grid.left_m))),
    )
    azimuth = math.atan2(sum(grid.left_m), sum(grid.forward_m))
    turn = torch.eye(4)
    turn[:2, :2] = torch.tensor([[math.cos(azimuth), -math.sin(azimuth)], [math.sin(azimuth), math.cos(azimuth)]])
    return Cameras(rig.intrinsics, turn @ rig.ego_from_cam, rig.image_size)


def check_sees(cameras: Cameras, grid: BEVGrid) -> None:
    """Refuse example cameras that see less than a tenth of the cells, for then a comparison would show little.

    Raises:
        InputError: saying how much they see.
    """
    seen = ground_pixels(cameras, grid)[1].any(1).float().mean()
    if seen < 0.1:
        raise InputError(
            f"export: example cameras see {seen:.0%} of the grid, forward {grid.forward_m}, left {grid.left_m}; fold in the "
            "rig that it is for, with calibration=FILE"
        )


def stored_rig(path: Path, spec: BEVSpec) -> Rig:
    """The one rig of a ``calibration.json``, its cameras in the model's order.

    Raises:
        InputError: when frames have rigs of their own, or the cameras are not the model's.
    """
    calibration = read_calibration(path)
    if calibration.shared is None or calibration.frames:
        raise InputError(f"{path}: its frames have rigs of their own; a fixed rig needs one for all")
    calibration.check_views(spec.grid)
    order = match_cameras(spec.camera_names, calibration.cameras, str(path))
    rig = calibration.only([calibration.cameras[i] for i in order]).shared
    assert rig is not None
    return rig


def fitted_rig(rig: Rig, spec: BEVSpec) -> Cameras:
    """The same for images brought to the model's size as a camera folder's are."""
    fitted = [
        resize_and_crop_intrinsics(rig.intrinsics[i], rig.sizes[i], spec.image_size) for i in range(len(rig.sizes))
    ]
    return Cameras(torch.stack(fitted)[None].float(), rig.ego_from_cam[None].float(), spec.image_size)


def frame_times(programs: Sequence[tuple[Program, Sequence[Tensor]]], rounds: int) -> list[float]:
    """Median seconds of a call, each program in turn."""
    times: list[list[float]] = [[] for _ in programs]
    for number in range(rounds + 1):
        for (program, inputs), found in zip(programs, times, strict=True):
            start = time.perf_counter()
            with torch.no_grad():
                program(*inputs)
            if number:  # the first call warms up
                found.append(time.perf_counter() - start)
    return [median(found) for found in times]


def _save_onnx(program: torch.export.ExportedProgram, path: Path, about: str) -> None:
    _imported("onnxscript")
    for name in ("torch.onnx", "onnxscript", "onnx_ir"):
        logging.getLogger(name).setLevel(logging.ERROR)
    try:
        made = torch.onnx.export(program, opset_version=OPSET, verbose=False, dynamo=True)
    except torch.onnx.OnnxExporterError as error:  # of torch 2.6, for one, to which parts of the models are unknown
        raise InputError(
            f"torch {torch.__version__} cannot write this model as ONNX ({_reason(error)}); install a newer torch, or set format=pt2"
        ) from error
    assert made is not None  # dynamo returns a program
    made.model.graph.outputs[0].name = OUTPUT
    _name_batch(made.model)
    made.model.metadata_props["bevreshape"] = about
    made.save(path)


def _name_batch(model: Any) -> None:
    """Call the first axis of inputs and outputs ``batch``, which torch numbers, in every shape that has it."""
    symbols = {str(model.graph.inputs[0].shape[0])}
    for value in (*model.graph.inputs, *model.graph.outputs, *(of for node in model.graph for of in node.outputs)):
        for axis, size in enumerate(value.shape or ()):
            if str(size) in symbols:
                value.shape[axis] = "batch"


def _reason(error: BaseException) -> str:
    """What torch says first of all: the first line of the error at the bottom of the chain."""
    first = error
    while (deeper := first.__cause__ or first.__context__) is not None:
        first = deeper
    lines = [line.strip() for line in str(first).splitlines() if line.strip()]
    return f"{type(first).__name__}: {lines[0]:.200}" if lines else type(first).__name__


def _imported(name: str) -> Any:
    try:
        return __import__(name)
    except ModuleNotFoundError as error:
        raise InputError(
            f"format=onnx needs {error.name}; pip install 'bevreshape[onnx]', or set format=pt2"
        ) from error


if __name__ == "__main__":
    cli.run(main, "export")
