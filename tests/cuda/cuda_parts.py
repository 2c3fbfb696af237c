"""Run heads, objectives, metrics, augmentations and optimizers, each that ``conf/`` has, on the pretended device.

``python cuda_parts.py SHIM OUT.json``
"""

import copy
import json
import sys
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from batches import batch_of
from commands import ROOT
from cuda_cases import OF_GRADIENT, PRECISIONS, TOLERANCE, check_gradients, compare, findings, moved, on_device
from cuda_findings import note
from hydra import compose, initialize_config_dir
from pretended_cuda import move, pretend
from pretended_tensor import PretendedTensor
from torch import Tensor, nn

from bevreshape.analysis.costs import ring
from bevreshape.config.compose import plain_config
from bevreshape.config.groups import build_named, build_part
from bevreshape.data.batch import BEVBatch, Meta
from bevreshape.data.sources.kitti.road import RoadMasks
from bevreshape.data.targets import ObjectCenters
from bevreshape.geometry import BEVGrid
from bevreshape.model import Outputs

CLASSES = ("road", "lane")
GRID = BEVGrid((6.0, 46.0), (-10.0, 10.0), 2.0)  # 20×10, all cells of KITTI's benchmark
IMAGE_SIZE = (32, 48)


def choices(group: str) -> list[str]:
    """Return the names of a group's files."""
    return sorted(path.stem for path in (ROOT / "conf" / group).glob("*.yaml"))


def composed(group: str, name: str) -> Any:
    """Return the composed node of a choice."""
    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        return plain_config(compose("train", [f"{group}={name}"])[group])


def random(*shape: int) -> Tensor:
    """Return the same random values each time."""
    return torch.randn(shape, generator=torch.Generator().manual_seed(1))


def batch() -> BEVBatch:
    """Return two samples of one camera with all kinds of targets and labels."""
    cameras = ring(1, IMAGE_SIZE, 2, torch.device("cpu"))
    target = random(2, len(CLASSES), *GRID.shape) > 0
    made = batch_of(random(2, 1, 3, *IMAGE_SIZE).sigmoid(), cameras, target, random(2, 2, *GRID.shape) > -1)
    centers = ObjectCenters(random(2, 1, 3, *GRID.shape).sigmoid(), target[:, :1], target[:, 1:])
    masks = (random(2, 1, *IMAGE_SIZE).abs() * 8).clamp(max=15).to(torch.uint8)
    labels = RoadMasks(masks, cameras.intrinsics.clone(), {"road": "road", "lane": "lane"})
    meta = [Meta("um_000000", 0, conditions=("day",)), Meta("umm_000001", 1, conditions=("night", "rain"))]
    return replace(made, targets={**made.targets, "centers": centers}, labels=labels, meta=meta)


def on_cuda(given: BEVBatch) -> BEVBatch:
    """Return the batch on the pretended device."""
    return given._map(PretendedTensor)


def outputs(logits: Tensor, maps: Tensor) -> Outputs:
    """Return what a model with two heads returns."""
    return Outputs({"segmentation": logits, "centers": maps}, logits, {})


def backward(loss: Callable[[Tensor], Tensor], x: Tensor) -> tuple[Tensor, Tensor]:
    """Return a result and the gradient of its input."""
    x = x.detach().requires_grad_()
    result = loss(x)
    result.float().square().sum().backward()
    assert x.grad is not None
    return result, x.grad


def head(name: str, dtype: torch.dtype | None) -> None:
    """Run a head forward and backward."""
    nodes = composed("head", f"[{name}]" if name != "centers" else "[conv,centers]")
    torch.manual_seed(0)
    heads = build_named("head", nodes, in_channels=8, out_channels=2)
    module: nn.Module = heads["centers" if name == "centers" else "segmentation"]
    x = random(2, 8, 4, 6)
    result, grad = backward(copy.deepcopy(module), x)
    move(module)
    y = moved(x)

    def run() -> tuple[Tensor, Tensor]:
        module.zero_grad()
        return backward(module, y)

    own, own_grad = on_device(run, dtype)
    compare("output", own, result, TOLERANCE[dtype])
    compare("gradient", own_grad, grad, OF_GRADIENT[dtype])
    check_gradients(module)


def objective(name: str, dtype: torch.dtype | None) -> None:
    """Run an objective forward and backward; in 16 bits the logits are."""
    (loss,) = build_named("objective", composed("objective", f"[{name}]"), classes=CLASSES, grid=GRID).values()
    given = batch()
    maps = random(2, 3, *GRID.shape)
    width = 3 if name == "centers" else 2
    x = maps[:, :width].to(dtype or torch.float32)

    def call(module: Any, data: BEVBatch, logits: Tensor) -> Tensor:
        return module(outputs(logits, logits), data)

    result, grad = backward(partial(call, copy.deepcopy(loss), given), x)
    move(loss)
    data, y = on_cuda(given), moved(x)
    own, own_grad = on_device(lambda: backward(partial(call, loss, data), y), dtype)
    compare("loss", own, result, TOLERANCE[dtype])
    compare("gradient", own_grad, grad, OF_GRADIENT[dtype])
    if own_grad.dtype != x.dtype:
        note("gradient", f"of logits in {x.dtype}: {own_grad.dtype}")


def metric(name: str, dtype: torch.dtype | None) -> None:
    """Count a batch."""
    (measured,) = build_named("metric", composed("metric", f"[{name}]"), classes=CLASSES, grid=GRID).values()
    given, logits = batch(), random(2, 2, *GRID.shape).to(dtype or torch.float32)
    ours = move(copy.deepcopy(measured))
    data, own_logits = on_cuda(given), moved(logits)
    for _ in range(2):
        measured.update(outputs(logits, logits), given)
    on_device(lambda: ours.update(outputs(own_logits, own_logits), data), dtype)
    compare("counts", ours.counts, measured.counts.double(), 0.0)


def augment(name: str, dtype: torch.dtype | None) -> None:
    """Change a batch, always in float32."""
    node = composed("augment", name)
    if not node:
        return
    change = build_part("augment", node, grid=BEVGrid((0.0, 20.0), (-10.0, 10.0), 2.0), camera_names=("front",))
    given = batch()
    flat = replace(given, targets={key: one.map(lambda x: x[..., :10, :]) for key, one in given.targets.items()})
    expected, data = change(flat, 0, 0), on_cuda(flat)
    own = on_device(lambda: change(data, 0, 0))
    compare("images", own.images, expected.images, TOLERANCE[None])
    compare("intrinsics", own.cameras.intrinsics, expected.cameras.intrinsics, TOLERANCE[None])
    for key, target in expected.targets.items():
        compare(key, own.targets[key].value, target.value.double(), TOLERANCE[None])


def optimizer(name: str, dtype: torch.dtype | None) -> None:
    """Step twice."""
    build = build_part("optimizer", composed("optimizer", name)).build
    expected = nn.Linear(3, 4)
    ours = move(copy.deepcopy(expected))
    steps = [build(module, 10) for module in (expected, ours)]

    def step(module: nn.Module, number: int) -> None:
        for parameter in module.parameters():
            parameter.grad = parameter.detach().clone()
        for part in steps[number]:
            part.step()

    for _ in range(2):
        step(expected, 0)
    on_device(lambda: step(ours, 1))
    compare("weight", ours.weight, expected.weight, TOLERANCE[None])


GROUPS = {"head": head, "objective": objective, "metric": metric, "augment": augment, "optimizer": optimizer}


def main(shim: str, out: str) -> None:
    """Run all cases and write their findings."""
    pretend(Path(shim))
    found = {}
    for group, run in GROUPS.items():
        for name in choices(group):
            for precision, dtype in PRECISIONS.items():
                found[f"{group} {name} {precision}"] = findings(partial(run, name, dtype))
    Path(out).write_text(json.dumps(found, indent=1), encoding="utf-8")


if __name__ == "__main__":
    main(*sys.argv[1:])
