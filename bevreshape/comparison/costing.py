"""Costs of whole models for one sample on one device, in all forms, timed in turn in one process."""

import logging
import math
import os
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn

from bevreshape.analysis.costs import forward_flops, time_in_turn
from bevreshape.bev_spec import BEVSpec
from bevreshape.comparison.failures import attempt
from bevreshape.comparison.outcome import ModelCost
from bevreshape.config.build_model import build_model
from bevreshape.data.batch import SEGMENTATION, BEVBatch
from bevreshape.deployment.inference import Inference
from bevreshape.deployment.program import export, open_program
from bevreshape.errors import InputError
from bevreshape.ops.compiled import any_number_of_models, compile_alone
from bevreshape.ops.memory import peak_bytes
from bevreshape.training.hardware import device_name

Call = Callable[[], object]

Key = tuple[str, str]
"""Name and form of a model."""


@dataclass(frozen=True)
class _Measured:
    """A model before its forms are timed.

    Attributes:
        parameters, flops, memory_bytes: of a forward pass.
        forms: calls by form.
        unmeasured: reasons by form that cannot be made.
    """

    parameters: int
    flops: int
    memory_bytes: float
    forms: Mapping[str, Call]
    unmeasured: Mapping[str, str]


def measure_costs(
    configs: Mapping[str, Mapping[str, Any]], sample: BEVBatch, spec: BEVSpec, device: torch.device, rounds: int
) -> dict[str, Any]:
    """Return the costs of models by name, plain for a line of JSON; a reason if one cannot be measured.

    Args:
        configs: of trainings, by name.
        sample: images and calibration of one sample.
        spec: of the data.
        device: on which they are measured.
        rounds: timed rounds; the median is returned.
    """
    batch = sample.to(device)
    found: dict[str, _Measured] = {}
    failed: dict[str, str] = {}
    with torch.no_grad():
        for name, config in configs.items():
            made, reason = attempt(lambda config=config: _prepare(config, batch, spec, device))  # type: ignore[misc]
            if made is None:
                failed[name] = str(reason)
            else:
                found[name] = made
        calls = {(name, form): call for name, one in found.items() for form, call in one.forms.items()}
        latency, reasons = _timed(calls, device, rounds)
    return {
        "device": device_name(device), "threads": torch.get_num_threads(), "load": _load(),
        "costs": {
            name: {
                "parameters": one.parameters, "flops": one.flops,
                "latency_ms": {
                    form: float(f"{latency[name, form] * 1e3:.4g}") for form in one.forms if (name, form) in latency
                },
                "unmeasured": dict(one.unmeasured)
                | {form: reasons[name, form] for form in one.forms if (name, form) in reasons},
                "memory_mb": None if math.isnan(one.memory_bytes) else float(f"{one.memory_bytes / 1e6:.4g}"),
            }
            for name, one in found.items()
        },
        "failed": failed,
    }  # fmt: skip


def _timed(calls: Mapping[Key, Call], device: torch.device, rounds: int) -> tuple[dict[Key, float], dict[Key, str]]:
    """Return median seconds of calls in turn, and the reasons of those that failed; without them, it begins again."""
    left, reasons = dict(calls), dict[Key, str]()
    while left:
        running: list[Key] = []

        def named(key: Key, call: Call, running: list[Key] = running) -> Call:
            def run() -> object:
                running[:] = [key]
                return call()

            return run

        in_turn = partial(time_in_turn, [named(key, call) for key, call in left.items()], device, rounds)
        times, reason = attempt(in_turn, machine=False)
        if times is not None:
            return {key: median for key, (median, _) in zip(left, times, strict=True)}, reasons
        del left[running[0]]
        reasons[running[0]] = str(reason)
    return {}, reasons


def read_cost(plain: Mapping[str, Any]) -> ModelCost:
    """Build the cost of one model from what :func:`measure_costs` returns for it."""
    memory = plain["memory_mb"]
    return ModelCost(
        plain["parameters"], plain["flops"], plain["latency_ms"], plain["unmeasured"],
        math.nan if memory is None else memory,
    )  # fmt: skip


def _prepare(config: Mapping[str, Any], batch: BEVBatch, spec: BEVSpec, device: torch.device) -> _Measured:
    torch.manual_seed(0)
    model = build_model(config, spec).to(device).eval()

    def forward() -> object:
        return model(batch.images, batch.cameras)

    forward()
    memory_bytes = peak_bytes(forward, device)  # before a compiler starts torch's profiler with its messages
    forms: dict[str, Call] = {"eager": forward}
    unmeasured: dict[str, str] = {}
    for form, make in (("compiled", _compiled), ("exported", _exported)):
        make_it = partial(make, model, batch, spec, device)
        made, reason = attempt(make_it, machine=False)
        if made is None:
            unmeasured[form] = str(reason)
        else:
            forms[form] = made
    parameters = sum(p.numel() for p in model.parameters() if p.requires_grad)
    return _Measured(parameters, forward_flops(model, forward), memory_bytes, forms, unmeasured)


def _compiled(model: nn.Module, batch: BEVBatch, spec: BEVSpec, device: torch.device) -> Call:
    logging.getLogger("torch.utils.cpp_extension").setLevel(logging.ERROR)  # that there is no GPU
    compiled = compile_alone(model, dynamic=False)

    def call() -> object:
        with torch.no_grad():
            return compiled(batch.images, batch.cameras)

    with any_number_of_models():
        call()
    return call


def _exported(model: nn.Module, batch: BEVBatch, spec: BEVSpec, device: torch.device) -> Call:
    """Return a call of the model's program: ONNX on a CPU, torch.export elsewhere."""
    if SEGMENTATION not in model.heads:  # type: ignore[operator]
        raise InputError(f"only the head {SEGMENTATION} is exported")
    module = Inference(model, spec.image_size)  # type: ignore[arg-type]
    inputs = (batch.images, batch.cameras.intrinsics, batch.cameras.ego_from_cam)
    if device.type != "cpu":
        program = torch.export.export(module, inputs, strict=False).module()
        return lambda: program(*inputs)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.onnx"
        export(module, tuple(one.repeat_interleave(3, 0) for one in inputs), path, "onnx")
        opened = open_program(path, "onnx")
    return lambda: opened(*inputs)


def _load() -> float | None:
    """Return the machine's load of the last minute, in busy cores."""
    return round(os.getloadavg()[0], 2) if hasattr(os, "getloadavg") else None
