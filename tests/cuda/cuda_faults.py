"""Make every fault that the pretended device must notice: ``python cuda_faults.py SHIM OUT.json``."""

import json
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch
from cuda_cases import check_gradients, compare, findings, on_device
from pretended_cuda import move, pretend
from pretended_tensor import PretendedTensor
from torch import Tensor, nn

from bevreshape.ops.readback import Readback

WAITS: dict[str, Callable[[Tensor], object]] = {
    "item": lambda x: x.sum().item(),
    "bool": lambda x: bool(x.sum() > 0),
    "int": lambda x: int(x.sum()),
    "tolist": lambda x: x.tolist(),
    "nonzero": lambda x: x.nonzero(),
    "mask": lambda x: x[x > 0],
    "list as index": lambda x: x[[0, 1]],
    "indices of the CPU": lambda x: x[torch.tensor([0, 1])],
    "copy to the host": lambda x: x.cpu(),
    "copy to the device": lambda x: x + torch.ones(3).to(x.device),
    "new tensor": lambda x: x.new_tensor([1.0, 2.0]),
    "copy_": lambda x: x.copy_(torch.ones(2, 3)),
    "repeat_interleave": lambda x: x.repeat_interleave((x[0] > 0).long(), dim=1),
    "latest event": lambda x: Readback(x.sum()).read(),
}
"""What waits for the device."""

FREE: dict[str, Callable[[Tensor], object]] = {
    "index on the device": lambda x: x[torch.zeros(2, dtype=torch.long).to(x.device, non_blocking=True)],
    "copy behind": lambda x: x + torch.ones(3).to(x.device, non_blocking=True),
    "slice": lambda x: x[:1, 1:] * 2,
    "older event": lambda x: (Readback(x.sum()), Readback(x.sum()))[0].read(),
}
"""What does not."""


def value(_: Tensor) -> None:
    """Compare two different values."""
    compare("x", PretendedTensor(torch.ones(2)), torch.zeros(2) + 0.5, 0.1)


def gradient(_: Tensor) -> None:
    """Leave a parameter without a gradient."""
    check_gradients(move(nn.Linear(2, 2)))


OTHERS: dict[str, Callable[[Tensor], object]] = {
    "mixed": lambda x: x + torch.ones(2, 3),
    "error": lambda x: x @ x,
    "value": value,
    "gradient": gradient,
}
"""Faults by the kind of their finding."""


def main(shim: str, out: str) -> None:
    """Make all faults and write what was noticed."""
    pretend(Path(shim))
    found = {}
    for group in (WAITS, FREE, OTHERS):
        for name, fault in group.items():
            x = PretendedTensor(torch.arange(6.0).view(2, 3))
            found[name] = findings(partial(on_device, partial(fault, x)))
    Path(out).write_text(json.dumps(found, indent=1), encoding="utf-8")


if __name__ == "__main__":
    main(*sys.argv[1:])
