"""``python -m bevreshape.export``: a trained model as ONNX or as a program of torch.export, compared before it is kept."""

import logging
import tempfile
import time
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from shutil import copyfileobj
from statistics import median
from typing import Any

import torch
from omegaconf import DictConfig
from rich.console import Console
from torch import Tensor, nn

from bevreshape import cli
from bevreshape.build import Frame, load_model, plain_config
from bevreshape.costs import ring
from bevreshape.data.batch import match_cameras
from bevreshape.data.calibration import read_calibration
from bevreshape.data.pictures import fit_intrinsics
from bevreshape.errors import InputError, suggest
from bevreshape.files import write_atomic
from bevreshape.geometry import Cameras, ground_pixels
from bevreshape.model import BEVModel
from bevreshape.reshapers import GeometricReshaper

FORMATS = ("onnx", "pt2")
OPSET = 18
TOLERANCE = 1e-4
"""By how much a probability may differ from the model's."""

Program = Callable[..., Tensor]


class Inference(nn.Module):
    """Pictures and calibration to probabilities, in tensors alone.

    Args:
        model: trained.
        image_size: (H, W) of the pictures.
    """

    def __init__(self, model: BEVModel, image_size: tuple[int, int]) -> None:
        super().__init__()
        self.model = model
        self.image_size = image_size

    def forward(self, image: Tensor, intrinsics: Tensor, ego_from_cam: Tensor) -> Tensor:
        """(b, n, 3, H, W) in 0..1, (b, n, 3, 3), (b, n, 4, 4) → (b, k, rows, cols)."""
        return self.model(image, Cameras(intrinsics, ego_from_cam, self.image_size)).sigmoid()


class FixedInference(Inference):
    """Pictures of one rig to probabilities: its geometry is computed once, here.

    Args:
        model: trained.
        rig: its cameras, b = 1.
    """

    intrinsics: Tensor
    ego_from_cam: Tensor

    def __init__(self, model: BEVModel, rig: Cameras) -> None:
        super().__init__(model, rig.image_size)
        self.located = isinstance(model.reshaper, GeometricReshaper)
        if isinstance(model.reshaper, GeometricReshaper):
            model.reshaper.precompute(rig)
        self.register_buffer("intrinsics", rig.intrinsics)
        self.register_buffer("ego_from_cam", rig.ego_from_cam)

    def forward(self, image: Tensor) -> Tensor:  # type: ignore[override]  # the rig is known
        """(b, n, 3, H, W) in 0..1 → (b, k, rows, cols)."""
        if self.located:
            features = self.model.encoder(image)
            return self.model.head(self.model.reshaper(features)).sigmoid()
        b = image.shape[0]
        return super().forward(image, self.intrinsics.expand(b, -1, -1, -1), self.ego_from_cam.expand(b, -1, -1, -1))


def main(cfg: DictConfig) -> None:
    """Export, compare, write; with a fixed rig also say what fixing it gains."""
    plain = plain_config(cfg)
    if plain["format"] not in FORMATS:
        raise InputError(f"format={plain['format']} is unknown; {suggest(str(plain['format']), FORMATS)}")
    out = Path(plain["out"] or Path(plain["checkpoint"]).with_suffix(f".{plain['format']}"))
    model, frame, _ = load_model(plain["checkpoint"], plain["trust"])
    console = Console()
    if plain["calibration"] is None:
        error = export(Inference(model, frame.image_size), example(frame), out, plain["format"])
        console.print(
            f"{out} · image, intrinsics, ego_from_cam → probabilities; within {error:.1e} of the model", soft_wrap=True
        )
        return
    rig = fixed_rig(Path(plain["calibration"]), frame)
    image = example(frame)[:1]
    fixed = FixedInference(load_model(plain["checkpoint"], plain["trust"])[0], rig)
    error = export(fixed, image, out, plain["format"])
    console.print(f"{out} · image → probabilities; within {error:.1e} of the model", soft_wrap=True)
    with tempfile.TemporaryDirectory() as folder:
        free = Path(folder) / f"free.{plain['format']}"
        export(Inference(model, frame.image_size), example(frame), free, plain["format"])
        rigs = (image[0][:1], rig.intrinsics, rig.ego_from_cam)
        given, folded = frame_times(
            [(open_program(free, plain["format"]), rigs), (open_program(out, plain["format"]), rigs[:1])],
            plain["rounds"],
        )
    console.print(
        f"{folded * 1e3:.1f} ms a frame, {given * 1e3:.1f} ms with the calibration as an input", soft_wrap=True
    )


def export(module: nn.Module, inputs: Sequence[Tensor], out: Path, format: str) -> float:
    """Write a program for any batch, read it back, and compare it with the module on batches of 1 and 3.

    Args:
        module: in evaluation mode.
        inputs: a batch of 3 of each.
        out: the file, which appears only if the comparison succeeds.
        format: ``onnx`` or ``pt2``.

    Returns:
        The largest difference of a probability.

    Raises:
        InputError: when the program differs from the module, or onnx is not installed.
    """
    module.eval()
    inputs = tuple(inputs)
    batch = {0: torch.export.Dim("batch", min=1, max=1024)}
    program = torch.export.export(module, inputs, dynamic_shapes=(batch,) * len(inputs), strict=False)
    with tempfile.TemporaryDirectory() as folder:
        written = Path(folder) / f"program.{format}"
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of the exporters about themselves; what they wrote is compared
            (torch.export.save if format == "pt2" else _save_onnx)(program, written)
        reread = open_program(written, format)
        with torch.no_grad():
            error = max(
                (reread(*cut) - module(*cut)).abs().max().item()
                for cut in ([x[:size] for x in inputs] for size in (1, 3))
            )
        if not error <= TOLERANCE:
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


def example(frame: Frame) -> tuple[Tensor, Tensor, Tensor]:
    """Random pictures of a ring of cameras that sees the grid, a batch of 3, each sample's a little higher.

    Raises:
        InputError: when the ring sees less than a tenth of the cells, for then a comparison would show little.
    """
    generator = torch.Generator().manual_seed(0)
    n = len(frame.camera_names)
    reach_m = max(map(abs, (*frame.grid.forward_m, *frame.grid.left_m)))
    cameras = ring(n, frame.image_size, 3, torch.device("cpu"), reach_m)
    poses = cameras.ego_from_cam.clone()
    poses[:, :, 2, 3] *= torch.tensor([1.0, 1.1, 1.2])[:, None]
    seen = ground_pixels(Cameras(cameras.intrinsics, poses, frame.image_size), frame.grid)[1].any(1).float().mean()
    if seen < 0.1:
        raise InputError(
            f"export: example cameras see {seen:.0%} of the grid, forward {frame.grid.forward_m}, left {frame.grid.left_m}; "
            "fold in the rig that it is for, with calibration=FILE"
        )
    return torch.rand(3, n, 3, *frame.image_size, generator=generator), cameras.intrinsics, poses


def fixed_rig(path: Path, frame: Frame) -> Cameras:
    """The one rig of a ``calibration.json``, for pictures brought to the model's size as a camera folder's are.

    Raises:
        InputError: when frames have rigs of their own, or the cameras are not the model's.
    """
    calibration = read_calibration(path)
    if calibration.shared is None or calibration.frames:
        raise InputError(f"{path}: its frames have rigs of their own; a fixed rig needs one for all")
    calibration.check_views(frame.grid)
    order = match_cameras(frame.camera_names, calibration.cameras, str(path))
    rig = calibration.shared
    fitted = [fit_intrinsics(rig.intrinsics[i], rig.sizes[i], frame.image_size) for i in order]
    return Cameras(torch.stack(fitted)[None].float(), rig.ego_from_cam[order][None].float(), frame.image_size)


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


def _save_onnx(program: torch.export.ExportedProgram, path: Path) -> None:
    _imported("onnxscript")
    for name in ("torch.onnx", "onnxscript", "onnx_ir"):
        logging.getLogger(name).setLevel(logging.ERROR)
    torch.onnx.export(program, f=path, opset_version=OPSET, external_data=False, verbose=False, dynamo=True)


def _imported(name: str) -> Any:
    try:
        return __import__(name)
    except ModuleNotFoundError as error:
        raise InputError(
            f"format=onnx needs {error.name}; pip install 'bevreshape[onnx]', or set format=pt2"
        ) from error


if __name__ == "__main__":
    cli.run(main, "export")
