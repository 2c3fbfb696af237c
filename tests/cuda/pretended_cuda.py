"""Make torch believe that there is a CUDA device. This alters torch for the whole process."""

import ctypes
from pathlib import Path

import torch
from cuda_findings import note
from pretended_tensor import PretendedTensor, on_cuda
from torch import nn
from torchmetrics import Metric

ANSWERS = {
    "_lazy_init": None, "is_available": True, "device_count": 1, "current_device": 0, "is_bf16_supported": True,
    "synchronize": None, "current_stream": None, "set_device": None, "empty_cache": None,
    "get_device_capability": (9, 0), "get_device_name": "pretended", "memory_allocated": 0,
}  # fmt: skip
"""What functions of ``torch.cuda`` return."""


class Event:
    """An event of the device. To wait for the newest one is to wait for all work."""

    newest: "Event | None" = None

    def __init__(self, *_: object, **__: object) -> None:
        pass

    def record(self, stream: object = None) -> None:
        """Note the work so far."""
        Event.newest = self

    def query(self) -> bool:
        """The device is never done at once."""
        return False

    def synchronize(self) -> None:
        """Wait for the work before the event."""
        if Event.newest is self:
            note("wait", "for the latest event")


class Generator(torch._C.Generator):
    """A generator of any device that draws on the CPU."""

    def __new__(cls, device: object = "cpu") -> "Generator":
        return torch._C.Generator.__new__(cls, device="cpu")


def pretend(shim: Path) -> None:
    """Replace what asks for a real device.

    Args:
        shim: the library made of ``shim.cpp``.
    """
    torch._C._ensureCUDADeviceGuardSet()  # a guard that does nothing, where there is no device
    torch._C._set_only_lift_cpu_tensors(True)  # torch.tensor(…, device="cuda"): made on the CPU, then copied
    ctypes.CDLL(str(shim)).pretend()
    torch.backends.cudnn.enabled = False
    torch.Generator = Generator  # type: ignore[misc]
    torch.manual_seed = lambda seed: torch.default_generator.manual_seed(seed)
    torch.cuda.Event = Event  # type: ignore[misc,assignment]
    torch.Tensor.pin_memory = lambda tensor, *_: tensor  # type: ignore[method-assign]
    for name, answer in ANSWERS.items():
        setattr(torch.cuda, name, lambda *_, answer=answer, **__: answer)
    torch.cuda.amp.common.amp_definitely_not_available = lambda: False


def move(module: nn.Module) -> nn.Module:
    """Move parameters, buffers and the states of metrics to the pretended device, in place."""
    for part in module.modules():
        for name, parameter in part._parameters.items():
            if parameter is not None:
                moved = nn.Parameter(PretendedTensor(parameter.detach()), requires_grad=parameter.requires_grad)
                part._parameters[name] = moved
        for name, buffer in part._buffers.items():
            part._buffers[name] = on_cuda(buffer)
        if isinstance(part, Metric):
            for state in part._defaults:
                setattr(part, state, on_cuda(getattr(part, state)))
    return module
