"""Costs of view transformers: parameters, floating-point operations, time and memory, measured in turn."""

import math
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn

from bevreshape.errors import InputError
from bevreshape.geometry import Cameras
from bevreshape.model import Outputs
from bevreshape.ops.compiled import any_number_of_models, compile_alone
from bevreshape.ops.flops import count_flops
from bevreshape.ops.linear import linear
from bevreshape.ops.memory import peak_bytes
from bevreshape.reshapers import Reshaper

AT_LEAST_S = 0.02
"""Shortest measurement; faster calls are repeated, so that the clock's resolution does not matter."""

PRODUCT_SIZE = {"cpu": 1536, "cuda": 8192}
"""Rows and columns of the matrices of the reference product, by kind of device; GPUs and others need larger ones."""

COPIED_BYTES = {"cpu": 2**26, "cuda": 2**30}
"""Size of the reference copy, beyond the caches."""

Form = Literal["eager", "compiled", "cuda_graphs"]
"""How a module is called: as it is, by ``torch.compile``, or compiled and replayed as CUDA graphs."""


@dataclass(frozen=True)
class Cost:
    """Costs of one module on one input.

    Attributes:
        parameters: number of trainable parameters.
        flops: operations of a forward pass, a multiply-add counted as two, without additions, norms and activations.
        forward_s: median time of a forward pass, in seconds.
        forward_spread_s: half the interquartile range.
        step_s: median time of forward and backward together; NaN if not measured.
        step_spread_s: half its interquartile range.
        forward_bytes: peak memory beyond module and input, in a forward pass without gradients.
        step_bytes: the same, forward and backward; NaN if not measured.
        step_flops: operations of a forward and backward pass; NaN if not measured.
        matmul_flops_per_s: rate of this machine's product of two square matrices, by the reshapers' own product, timed
            in the rounds of the forward pass.
        of_matmul: operations per second of the forward pass relative to it.
        step_of_matmul: those of forward and backward, relative to products timed in its rounds; NaN if not measured.
        least_bytes: input, parameters and output, each read or written once.
        copy_bytes_per_s: rate of this machine's copy of a large tensor, bytes read and written.
        floor_s: the longer of both: ``flops`` at the rate of products, ``least_bytes`` at that of copies. A forward
            pass of these shapes through main memory takes no less (the roofline, Williams et al. 2009).
    """

    parameters: int
    flops: int
    forward_s: float
    forward_spread_s: float
    step_s: float
    step_spread_s: float
    forward_bytes: float
    step_bytes: float
    step_flops: float
    matmul_flops_per_s: float
    of_matmul: float
    step_of_matmul: float
    least_bytes: int
    copy_bytes_per_s: float
    floor_s: float


@dataclass(frozen=True)
class Workload:
    """A module and its arguments, on their device.

    Attributes:
        module: a reshaper or a whole model.
        arguments: arguments of its forward.
        autocast: dtype of autocast, if any.
        into_input: whether the arguments need gradients: features do, images do not.
        form: how the module is called.
    """

    module: nn.Module
    arguments: tuple[Any, ...]
    autocast: torch.dtype | None = None
    into_input: bool = True
    form: Form = "eager"

    @property
    def eager(self) -> "Workload":
        """Return the same workload, not compiled, whose operations can be counted."""
        return replace(self, form="eager")

    @property
    def device(self) -> torch.device:
        """Return the device."""
        return _tensors(self.arguments)[0].device

    def forward(self) -> object:
        """Infer."""
        with torch.no_grad():
            return self._call()

    def step(self) -> None:
        """Run forward and backward, to all parameters, including the reshaper's own loss."""
        inputs = _tensors(self.arguments) if self.into_input else []
        for x in inputs:
            x.requires_grad_()
        with torch.autocast(self.device.type, self.autocast, enabled=self.autocast is not None):
            if isinstance(self.module, Reshaper):
                bev, auxiliary = self._with_auxiliary(*self.arguments)
                loss = sum(auxiliary.values(), start=bev.sum())
            else:
                made = self._function(*self.arguments)
                loss = made.total() if isinstance(made, Outputs) else made.sum()
        loss.backward()
        for x in (*inputs, *self.module.parameters()):
            x.grad = None
        for x in inputs:
            x.requires_grad_(False)

    def _call(self) -> Any:
        with torch.autocast(self.device.type, self.autocast, enabled=self.autocast is not None):
            return self._function(*self.arguments)

    @cached_property
    def _function(self) -> Callable[..., Any]:
        return in_form(self.module, self.form)

    @cached_property
    def _with_auxiliary(self) -> Callable[..., Any]:
        assert isinstance(self.module, Reshaper)
        return in_form(self.module.forward_with_auxiliary, self.form)


def in_form(function: Callable[..., Any], form: Form) -> Callable[..., Any]:
    """Return a function that is called in a form; it is compiled at its first call."""
    if form == "eager":
        return function
    if form == "compiled":
        return compile_alone(function)
    graphs = compile_alone(function, mode="reduce-overhead")

    def replay(*arguments: Any) -> Any:
        torch.compiler.cudagraph_mark_step_begin()  # results of the last call may be overwritten
        return graphs(*arguments)

    return replay


def measure(
    workloads: Sequence[Workload], rounds: int, backward: bool, each_round: Callable[[], object] | None = None
) -> list[Cost]:
    """Return the cost of every workload.

    Each round times all of them and a product of two matrices in turn, so that disturbances of the machine affect all.

    Args:
        workloads: workloads on one device, of one precision.
        rounds: number of measurements of each; the result is their median.
        backward: measure forward and backward too.
        each_round: called after every round, to show progress.
    """
    for workload in workloads:
        workload.module.eval()
    device = workloads[0].device
    product = _product(device, workloads[0].autocast or torch.float32)
    compiling = any_number_of_models if any(workload.form != "eager" for workload in workloads) else nullcontext
    with compiling():
        *forward, (product_s, _), (copy_s, _) = time_in_turn(
            [*(workload.forward for workload in workloads), product, _copy(device)], device, rounds, each_round
        )
    flops = [forward_flops(workload.module, workload.eager.forward) for workload in workloads]
    least_bytes = [bytes_once(workload) for workload in workloads]
    forward_bytes = [peak_bytes(workload.forward, device) for workload in workloads]
    nothing = [math.nan] * len(workloads)
    step, step_product_s, step_bytes, step_flops = [(math.nan, math.nan)] * len(workloads), math.nan, nothing, nothing
    if backward:
        for workload in workloads:
            workload.module.train()
        with compiling():
            *step, (step_product_s, _) = time_in_turn(
                [*(workload.step for workload in workloads), product], device, rounds, each_round
            )
        step_bytes = [peak_bytes(workload.step, device) for workload in workloads]
        step_flops = [float(count_flops(workload.eager.step)) for workload in workloads]
    rate, step_rate = (2 * _sized(PRODUCT_SIZE, device) ** 3 / seconds for seconds in (product_s, step_product_s))
    copied = 2 * _sized(COPIED_BYTES, device) / copy_s
    return [
        Cost(
            sum(p.numel() for p in workload.module.parameters()), flops[i], *forward[i], *step[i], forward_bytes[i],
            step_bytes[i], step_flops[i], rate, flops[i] / forward[i][0] / rate, step_flops[i] / step[i][0] / step_rate,
            least_bytes[i], copied, max(flops[i] / rate, least_bytes[i] / copied),
        )
        for i, workload in enumerate(workloads)
    ]  # fmt: skip


def time_in_turn(
    calls: Sequence[Callable[[], object]],
    device: torch.device,
    rounds: int,
    each_round: Callable[[], object] | None = None,
) -> list[tuple[float, float]]:
    """Return median and half the interquartile range of seconds per call, after a warm-up.

    Not by ``torch.utils.benchmark``: its ``Timer.timeit`` runs two untimed calls before every turn, which triples the
    time of long calls and finds caches warm, although the other calls of a round have just used them.

    Args:
        calls: functions, timed in turn in every round, so that disturbances of the machine affect all.
        device: on which they work.
        rounds: number of measurements of each.
        each_round: called after every round, to show progress.
    """
    repeats = []
    for call in calls:
        call()
        repeats.append(max(1, math.ceil(AT_LEAST_S / max(_seconds(call, 1, device), 1e-9))))
    times: list[list[float]] = [[] for _ in calls]
    for _ in range(rounds):
        for call, repeat, found in zip(calls, repeats, times, strict=True):
            found.append(_seconds(call, repeat, device) / repeat)
        if each_round is not None:
            each_round()
    spread = [np.subtract(*np.percentile(found, [75, 25])) / 2 for found in times]
    return [(statistics.median(found), float(half)) for found, half in zip(times, spread, strict=True)]


def _sized(sizes: Mapping[str, int], device: torch.device) -> int:
    return sizes.get(device.type, sizes["cuda"])


def _product(device: torch.device, dtype: torch.dtype) -> Callable[[], Tensor]:
    size = _sized(PRODUCT_SIZE, device)
    a, b = (torch.randn(size, size, device=device).to(dtype) for _ in range(2))
    return lambda: linear(a, b)


def _copy(device: torch.device) -> Callable[[], Tensor]:
    source = torch.zeros(_sized(COPIED_BYTES, device), dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    return lambda: target.copy_(source)


def bytes_once(workload: Workload) -> int:
    """Return the bytes of input, parameters and output of a forward pass, each counted once."""
    result = _tensors([workload.eager.forward()])
    tensors = [*_tensors(workload.arguments), *workload.module.parameters(), *result]
    return sum(one.numel() * one.element_size() for one in tensors)


def scaling_exponent(sizes: Sequence[float | int], values: Sequence[float]) -> float:
    """Return the exponent e of ``value ∝ sizeᵉ``, by least squares on logarithms.

    Raises:
        InputError: if there are fewer than two different sizes.
    """
    if len(set(sizes)) < 2:
        raise InputError(f"scaling: sizes {list(sizes)} are fewer than two different ones; give several factors")
    return float(np.polyfit(np.log(sizes), np.log(values), 1)[0])


def forward_flops(module: nn.Module, call: Callable[[], object]) -> int:
    """Return :func:`count_flops` of a forward pass of ``module`` without gradients."""
    trained = [p for p in module.parameters() if p.requires_grad]
    for p in trained:
        p.requires_grad_(False)  # torch's counter fails on views of a parameter without gradients
    try:
        with torch.no_grad():
            return count_flops(call)
    finally:
        for p in trained:
            p.requires_grad_()


def ring(cameras: int, image_size: tuple[int, int], batch: int, device: torch.device, reach_m: float = 30.0) -> Cameras:
    """Return a ring of cameras in equal steps of yaw from straight ahead, with an overlap of a fifth.

    Their height is that of a car's cameras for a reach of 30 metres, and proportional to it otherwise.

    Args:
        cameras: n; a single one has 80° of view.
        image_size: (H, W).
        batch: b.
        device: device of the calibration.
        reach_m: visible distance, in metres.
    """
    height, width = image_size
    view = math.radians(80.0 if cameras == 1 else min(360 / cameras * 1.2, 100))
    focal = width / 2 / math.tan(view / 2)
    down = math.radians(5)
    poses = []
    for number in range(cameras):
        yaw = 2 * math.pi * number / cameras
        sin, cos = math.sin(yaw), math.cos(yaw)
        right, ahead = [sin, -cos, 0.0], [cos * math.cos(down), sin * math.cos(down), -math.sin(down)]
        below = [-cos * math.sin(down), -sin * math.sin(down), -math.cos(down)]
        pose = torch.eye(4)
        pose[:3, :3] = torch.tensor([right, below, ahead]).T
        pose[:3, 3] = torch.tensor([0.5 * cos, 0.5 * sin, 1.5]) * reach_m / 30
        poses.append(pose)
    intrinsics = torch.tensor([[focal, 0, (width - 1) / 2], [0, focal, (height - 1) / 2], [0, 0, 1]])
    return Cameras(
        intrinsics.expand(batch, cameras, 3, 3).contiguous().to(device),
        torch.stack(poses).expand(batch, cameras, 4, 4).contiguous().to(device),
        image_size,
    )


def _seconds(call: Callable[[], object], repeat: int, device: torch.device) -> float:
    _wait(device)
    start = time.perf_counter()
    for _ in range(repeat):
        call()
    _wait(device)
    return time.perf_counter() - start


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _tensors(arguments: Sequence[Any]) -> list[Tensor]:
    """Return the floating tensors among the arguments; the calibration is not a tensor but :class:`Cameras`."""
    found: list[Tensor] = []
    for argument in arguments:
        if isinstance(argument, Tensor):
            found.append(argument)
        elif isinstance(argument, tuple | list):
            found += _tensors(argument)
        elif isinstance(argument, dict):
            found += _tensors(list(argument.values()))
    return found
