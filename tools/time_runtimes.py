"""Time exported programs in onnxruntime and in OpenVINO, in turn and with the same threads, and compare their results.

    pip install openvino
    OMP_NUM_THREADS=1 python tools/time_runtimes.py mlp cross_attention ipm bilinear

Each view transformer is timed alone (64×16×32 → 32×32) and in the model of the main job, for one sample. OpenVINO reads
the same ONNX file, for any batch and with the batch fixed to one, and computes in float32. A ratio below 1 means that
OpenVINO is faster. Time of the processor leaves out what other processes took.
"""

import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import median
from typing import Any

import torch
from rich.table import Table
from torch import Tensor, nn

from bevreshape.analysis.costs import ring
from bevreshape.bev_spec import BEVSpec
from bevreshape.config.arguments import Parser
from bevreshape.config.build_data import build_data
from bevreshape.config.build_model import build_model, build_reshaper
from bevreshape.config.compose import compose_training
from bevreshape.console import run_script
from bevreshape.deployment.inference import Inference
from bevreshape.deployment.program import export, open_program
from bevreshape.errors import InputError
from bevreshape.geometry import BEVGrid, Cameras
from bevreshape.reporting.tables import print_table
from bevreshape.reshapers import FeatureShape

IMAGE_SIZE = (128, 256)
SOURCE = FeatureShape(64, 16, 32, 1, 8, 3.5)
GRID = BEVGrid((0.0, 32.0), (-16.0, 16.0), 1.0)

Call = Callable[[], Tensor]


class Alone(nn.Module):
    """A view transformer whose cameras are plain tensors, as an exported program takes them."""

    def __init__(self, reshaper: nn.Module) -> None:
        super().__init__()
        self.reshaper = reshaper

    def forward(self, features: Tensor, intrinsics: Tensor, ego_from_cam: Tensor) -> Tensor:
        return self.reshaper(features, Cameras(intrinsics, ego_from_cam, IMAGE_SIZE))


def main() -> None:
    """Run the command line."""
    parser = Parser(__doc__)
    parser.add_argument("reshapers", nargs="+", help="names of view transformers")
    parser.add_argument("--rounds", type=int, default=101, help="timed calls of each; medians are printed (101)")
    given = parser.parse_args()
    headings = [
        "onnxruntime ms",
        "OpenVINO",
        "its ratio",
        "batch of 1",
        "its ratio",
        "ratio of CPU time",
        "difference",
    ]
    table = Table("", *headings, caption=f"{torch.get_num_threads()} threads, {given.rounds} rounds")
    for name in given.reshapers:
        for what, module, inputs in programs(name):
            table.add_row(f"{name}, {what}", *measured(module, inputs, given.rounds))
    print_table(table)


def programs(name: str) -> list[tuple[str, nn.Module, tuple[Tensor, ...]]]:
    """Return the view transformer alone and the whole model, with inputs for a batch of 3."""
    config = compose_training([f"reshaper={name}", "logger=none"])
    torch.manual_seed(0)
    reshaper = build_reshaper(config["reshaper"], (SOURCE,), GRID).eval()
    cameras = ring(1, IMAGE_SIZE, 3, torch.device("cpu"))
    pose = (cameras.intrinsics, cameras.ego_from_cam)
    features = torch.randn(3, 1, SOURCE.channels, SOURCE.height, SOURCE.width)
    spec = BEVSpec.of(build_data(config).source)
    model = Inference(build_model(config, spec).eval(), spec.image_size)
    return [
        ("alone", Alone(reshaper), (features, *pose)),
        ("model", model, (torch.rand(3, 1, 3, *spec.image_size), *pose)),
    ]


@torch.no_grad()
def measured(module: nn.Module, inputs: Sequence[Tensor], rounds: int) -> list[str]:
    """Return the cells of a row: medians in milliseconds, ratios, and the largest difference."""
    one = [x[:1] for x in inputs]
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "program.onnx"
        export(module, inputs, path, "onnx")
        session = open_program(path, "onnx")
        calls: list[Call] = [lambda: session(*one), openvino_call(path, one, False), openvino_call(path, one, True)]
        expected, *others = [call().clone() for call in calls]
        difference = max((other - expected).abs().max().item() for other in others)
        wall, processor = time_each(calls, rounds)
    base, *times = wall
    cells = [f"{base:.3f}"]
    for found in times:
        cells += [f"{found:.3f}", f"{found / base:.2f}"]
    return [*cells, f"{processor[1] / processor[0]:.2f}, {processor[2] / processor[0]:.2f}", f"{difference:.1e}"]


def openvino_call(path: Path, inputs: Sequence[Tensor], fixed: bool) -> Call:
    """Return a call of the program in OpenVINO; ``fixed`` sets its shapes to those of the inputs.

    Raises:
        InputError: when OpenVINO is not installed.
    """
    try:
        import openvino
    except ModuleNotFoundError as error:
        raise InputError("openvino is not installed; pip install openvino") from error
    core = openvino.Core()
    model = core.read_model(path)
    names = [entry.get_any_name() for entry in model.inputs]
    if fixed:
        model.reshape({name: list(x.shape) for name, x in zip(names, inputs, strict=True)})
    options: dict[str, Any] = {
        "INFERENCE_NUM_THREADS": torch.get_num_threads(),
        "INFERENCE_PRECISION_HINT": "f32",
        "PERFORMANCE_HINT": "LATENCY",
        "ENABLE_CPU_PINNING": False,
    }
    compiled = core.compile_model(model, "CPU", options)
    request = compiled.create_infer_request()
    arrays = {name: x.numpy() for name, x in zip(names, inputs, strict=True)}
    return lambda: torch.from_numpy(request.infer(arrays)[0])


def time_each(calls: Sequence[Call], rounds: int) -> tuple[list[float], list[float]]:
    """Return medians of wall and processor time in milliseconds of calls in turn, after five rounds to warm up."""
    wall: list[list[float]] = [[] for _ in calls]
    processor: list[list[float]] = [[] for _ in calls]
    for number in range(rounds + 5):
        for call, walls, processors in zip(calls, wall, processor, strict=True):
            began, spent = time.perf_counter(), time.process_time()
            call()
            spent, began = time.process_time() - spent, time.perf_counter() - began
            if number >= 5:
                walls.append(1e3 * began)
                processors.append(1e3 * spent)
    return [median(found) for found in wall], [median(found) for found in processor]


if __name__ == "__main__":
    run_script(main)
