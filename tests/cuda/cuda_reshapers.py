"""Run every reshaper on the pretended device: ``python cuda_reshapers.py SHIM OUT.json``."""

import copy
import json
import sys
from pathlib import Path

import torch
from cuda_cases import OF_GRADIENT, PRECISIONS, TOLERANCE, check_gradients, compare, findings, moved, on_device
from pretended_cuda import move, pretend
from pretended_tensor import Machine
from torch import Tensor

import bevreshape.reshapers as package
from bevreshape.analysis.costs import ring
from bevreshape.geometry import BEVGrid, Cameras
from bevreshape.reshapers import FeatureShape, FixedRig, GeometricReshaper, Reshaper

BASES = (Reshaper, GeometricReshaper, FixedRig)
RESHAPERS: list[type[Reshaper]] = [
    member for name in package.__all__ if issubclass(member := getattr(package, name), Reshaper) and member not in BASES
]

GRID = BEVGrid((-8.0, 8.0), (-6.0, 6.0), 1.0)
SOURCE = FeatureShape(channels=8, height=4, width=6, cameras=6, stride=8, offset_px=3.5)


def build(cls: type[Reshaper]) -> Reshaper:
    """Return a reshaper with the same parameters each time."""
    torch.manual_seed(0)
    return cls(SOURCE, GRID)


def rig(batch: int) -> Cameras:
    """Return the same six cameras in every sample, the last one dropped."""
    cameras = ring(6, (32, 48), batch, torch.device("cpu"))
    present = torch.tensor([True] * 5 + [False]).expand(batch, 6).clone()
    return Cameras(cameras.intrinsics, cameras.ego_from_cam, cameras.image_size, present)


def features(batch: int) -> Tensor:
    """Return the same random features each time."""
    return torch.randn(batch, 6, 8, 4, 6, generator=torch.Generator().manual_seed(1))


def step(reshaper: Reshaper, x: Tensor, cameras: Cameras | None) -> tuple[Tensor, Tensor]:
    """Run forward and backward; return the bird's-eye view and the gradient of the features."""
    x = x.detach().requires_grad_()
    reshaper.zero_grad()
    bev, auxiliary = reshaper.forward_with_auxiliary(x, cameras)
    with torch.autocast(x.device.type, enabled=False):
        loss = sum((one.float() for one in auxiliary.values()), start=bev.float().square().sum())
    loss.backward()  # type: ignore[union-attr]
    assert x.grad is not None
    return bev, x.grad


def trained(cls: type[Reshaper], dtype: torch.dtype | None) -> None:
    """Run a training step with the cameras of a batch."""
    reshaper = build(cls).train()
    bev, grad = step(copy.deepcopy(reshaper), features(2), rig(2))
    move(reshaper)
    x, cameras = moved(features(2)), moved(rig(2))
    own_bev, own_grad = on_device(lambda: step(reshaper, x, cameras), dtype)
    compare("bird's-eye view", own_bev, bev, TOLERANCE[dtype])
    compare("gradient of the features", own_grad, grad, OF_GRADIENT[dtype])
    check_gradients(reshaper)


@torch.no_grad()
def fixed(cls: type[Reshaper], dtype: torch.dtype | None) -> None:
    """Infer on a fixed rig."""
    reshaper = build(cls).eval()
    expected = FixedRig(copy.deepcopy(reshaper), rig(1))(features(2))
    move(reshaper)
    x, cameras = moved(features(2)), moved(rig(1))
    with Machine():
        with_rig = FixedRig(reshaper, cameras)
    compare("bird's-eye view", on_device(lambda: with_rig(x), dtype), expected, TOLERANCE[dtype])


def main(shim: str, out: str) -> None:
    """Run all cases and write their findings."""
    pretend(Path(shim))
    found = {}
    for cls in RESHAPERS:
        for precision, dtype in PRECISIONS.items():
            for run in (trained, fixed):
                found[f"{cls.__name__} {run.__name__} {precision}"] = findings(lambda: run(cls, dtype))  # noqa: B023
    Path(out).write_text(json.dumps(found, indent=1), encoding="utf-8")


if __name__ == "__main__":
    main(*sys.argv[1:])
