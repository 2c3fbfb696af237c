"""Write programs of torch.export and ONNX, read them back, and compare them with the model."""

import json
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
from torch import Tensor, nn

from bevreshape.bev_spec import BEVSpec
from bevreshape.data.sources.folder.rig import Rig
from bevreshape.deployment.metadata import metadata
from bevreshape.errors import InputError
from bevreshape.storage.files import write_atomic

FORMATS = ("onnx", "pt2")
OPSET = 18
OUTPUT = "probabilities"
TOLERANCE = 1e-4
"""Largest allowed difference of a probability from the model's."""

Program = Callable[..., Tensor]


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
        out: the file, written only if the comparison succeeds.
        format: ``onnx`` or ``pt2``.
        spec: of the model; its :func:`metadata` are stored inside as JSON, under ``bevreshape`` in the metadata of an
            ONNX file, as ``bevreshape.json`` in a pt2.
        rig: a fixed one, stored likewise.

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
    except Exception as refusal:  # a custom reshaper may do anything that a graph cannot hold
        raise InputError(
            f"torch {torch.__version__} cannot export this model ({_reason(refusal)}); change that operation in the "
            "model's forward"
        ) from refusal
    with tempfile.TemporaryDirectory() as folder:
        written = Path(folder) / f"program.{format}"
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of the exporters; the result is compared below
            about = json.dumps(None if spec is None else metadata(spec, rig), ensure_ascii=False)
            if format == "pt2":
                torch.export.save(program, written, extra_files={"bevreshape.json": about})
            else:
                _save_onnx(program, written, about)
        reread = open_program(written, format)
        with torch.no_grad():
            cuts = [[x[:size] for x in inputs] for size in (1, 3)]
            error = torch.stack([(reread(*cut) - module(*cut)).abs().max() for cut in cuts]).max().item()
        if not error <= TOLERANCE:  # true for NaN too
            raise InputError(
                f"the exported program differs from the model by {error:.2g}, more than {TOLERANCE:g}; nothing was "
                f"written, try format={'pt2' if format == 'onnx' else 'onnx'}"
            )
        with written.open("rb") as source:
            write_atomic(out, lambda file: copyfileobj(source, file))
    return error


def open_program(path: Path, format: str) -> Program:
    """Open a written program: tensors to probabilities, on the CPU."""
    if format == "pt2":
        return torch.export.load(path).module()
    onnxruntime = _imported("onnxruntime")
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()  # by default one for every core, whatever torch was given
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    names = [entry.name for entry in session.get_inputs()]

    def run(*inputs: Tensor) -> Tensor:
        return torch.from_numpy(session.run(None, {n: x.numpy() for n, x in zip(names, inputs, strict=True)})[0])

    return run


def frame_times(programs: Sequence[tuple[Program, Sequence[Tensor]]], repeats: int) -> list[float]:
    """Measure median seconds of a call, programs in turn."""
    times: list[list[float]] = [[] for _ in programs]
    for number in range(repeats + 1):
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
    except torch.onnx.OnnxExporterError as error:  # such as of torch 2.6, which lacks some operations
        raise InputError(
            f"torch {torch.__version__} cannot write this model as ONNX ({_reason(error)}); install a newer torch, or "
            "set format=pt2"
        ) from error
    assert made is not None  # dynamo returns a program
    made.model.graph.outputs[0].name = OUTPUT
    _name_batch(made.model)
    made.model.metadata_props["bevreshape"] = about
    made.save(path)


def _name_batch(model: Any) -> None:
    """Name the first axis of inputs and outputs ``batch`` in every shape; torch numbers it."""
    symbols = {str(model.graph.inputs[0].shape[0])}
    for value in (*model.graph.inputs, *model.graph.outputs, *(of for node in model.graph for of in node.outputs)):
        for axis, size in enumerate(value.shape or ()):
            if str(size) in symbols:
                value.shape[axis] = "batch"


def _reason(error: BaseException) -> str:
    """Return the first line of the root error of the chain."""
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
