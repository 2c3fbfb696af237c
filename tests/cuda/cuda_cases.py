"""Cases of the pretended device: run twice, compared with the CPU, their findings collected."""

import os
import traceback
from collections.abc import Callable, Mapping
from typing import Any

import torch
from cuda_findings import forget_waits, note, take
from pretended_tensor import Machine, PretendedTensor, on_cuda
from torch import Tensor, nn

PRECISIONS = {"float32": None, "bfloat16": torch.bfloat16, "float16": torch.float16}
TOLERANCE = {None: 1e-5, torch.bfloat16: 0.1, torch.float16: 0.02}
"""Largest difference from float32 on the CPU, relative to the largest value."""
OF_GRADIENT = {None: 3e-5, torch.bfloat16: 0.3, torch.float16: 0.15}
"""That of a gradient, which passes twice as many layers and norms over few values."""


def findings(run: Callable[[], None]) -> list[dict[str, Any]]:
    """Return the findings of a case; an error is one."""
    try:
        run()
    except Exception as error:
        note("error", f"{type(error).__name__}: {str(error).splitlines()[0][:300]}")
        if "SHOW_TRACEBACKS" in os.environ:
            traceback.print_exc()
    return take()


def on_device(run: Callable[[], Any], dtype: torch.dtype | None = None) -> Any:
    """Run twice on the pretended device, under autocast to ``dtype``; return what the first call returns.

    Waits of the first call do not count: it may fill caches.
    """
    with Machine():
        for call in range(2):
            with torch.autocast("cuda", dtype, enabled=dtype is not None):
                result = run()
            if call == 0:
                first = result
                forget_waits()
    return first


def compare(name: str, found: Tensor, expected: Tensor, tolerance: float) -> None:
    """Note a difference from the CPU's values, relative to the largest one."""
    if not isinstance(found, PretendedTensor):
        note("value", f"{name} is on {found.device}")
        return
    largest = expected.detach().abs().max().item()
    away = (found.held.detach().to(expected.dtype) - expected.detach()).abs().max().item()
    if not away <= tolerance * largest:
        note("value", f"{name}: {away:.2g} of {largest:.2g}")


def check_gradients(module: nn.Module) -> None:
    """Note parameters whose gradient is missing or has another dtype."""
    for name, parameter in module.named_parameters():
        if parameter.grad is None or parameter.grad.dtype != parameter.dtype:
            note("gradient", f"{name}: {None if parameter.grad is None else parameter.grad.dtype}")


def moved(value: Any) -> Any:
    """Return a tensor, a mapping of tensors, or an object with ``map`` on the pretended device."""
    if isinstance(value, Tensor):
        return on_cuda(value)
    if isinstance(value, Mapping):
        return {key: moved(one) for key, one in value.items()}
    return value.map(on_cuda)
