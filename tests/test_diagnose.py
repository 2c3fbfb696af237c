"""The instruments on a trained model by the command line, and on models with known answers."""

import json
import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from batches import batch_of
from PIL import Image
from torch import nn

from bevreshape.analysis.costs import ring
from bevreshape.analysis.diagnosis import Plan, diagnose
from bevreshape.data.batch import BEVBatch
from bevreshape.errors import InputError
from bevreshape.geometry import BEVGrid
from bevreshape.metrics.iou import BEVIoU
from bevreshape.model import BEVModel
from bevreshape.reporting.diagnosis import summary_table
from bevreshape.reshapers import IPM, MLP, ColumnMLP, FeatureShape, Pool

pytestmark = pytest.mark.slow

GRID = BEVGrid((3.0, 11.0), (-4.0, 4.0), 1.0)
SIZE = (64, 128)
PLAN = Plan(
    samples=3,
    cells=4,
    probes=None,
    errors={"yaw_deg": [2]},
    corruptions={"darkness": [0.5, 1.0]},
    rigs={"yaw_deg": [3]},
)


def batch(cameras: int = 1) -> BEVBatch:
    torch.manual_seed(0)
    rig = ring(cameras, SIZE, 4, torch.device("cpu"), reach_m=8.0)
    coarse = torch.rand(4 * cameras, 3, 8, 16)
    image = nn.functional.interpolate(coarse, size=SIZE, mode="bilinear").unflatten(0, (4, cameras))
    return batch_of(image, rig, torch.rand(4, 1, 8, 8) > 0.5)


def model(reshaper_class: type, cameras: int = 1) -> BEVModel:
    torch.manual_seed(0)
    source = FeatureShape(3, *SIZE, cameras)
    return BEVModel(nn.Identity(), reshaper_class(source, GRID), {"segmentation": nn.Conv2d(3, 1, 1)})


def test_ipm_weights_are_geometric_and_fixed() -> None:
    found = diagnose(model(IPM), lambda: [batch()], BEVIoU(("white",), GRID), ("front",), PLAN)
    numbers = found.numbers
    assert numbers["samples"] == 3
    assert numbers["data_dependence"] == 0.0
    assert numbers["agreement"]["whole"]["centroid"]["p90"] < 1e-3
    assert numbers["agreement"]["whole"]["uniform"]["median"] > 5
    assert "offers no attention matrix" in numbers["attention"]["not_measured"]
    assert numbers["order"]["iou"]["intact"] == numbers["iou"]["iou/mean"]
    assert list(numbers["robustness"]["yaw_deg"]) == ["-2", "+2"]
    assert list(numbers["robustness"]) == ["yaw_deg", "rig turned, yaw_deg", "darkness"]
    json.dumps(numbers)
    assert set(found.figures) == {"weights", "robustness"}


def test_pool_weights_ignore_geometry_and_calibration() -> None:
    numbers = diagnose(model(Pool), lambda: [batch()], BEVIoU(("white",), GRID), ("front",), PLAN).numbers
    assert numbers["agreement"]["whole"]["centroid"]["median"] > 3
    assert all(value == numbers["iou"] for value in numbers["robustness"]["yaw_deg"].values())
    assert numbers["robustness"]["darkness"]["1"] != numbers["iou"]


def test_every_camera_of_a_rig_is_dropped_in_turn() -> None:
    names = ("a", "b", "c")
    numbers = diagnose(model(IPM, 3), lambda: [batch(3)], BEVIoU(("white",), GRID), names, PLAN).numbers
    assert list(numbers["robustness"]["without"]) == list(names)


def test_inapplicable_instruments_report_a_reason() -> None:
    torch.manual_seed(0)
    sources = (FeatureShape(3, *SIZE), FeatureShape(3, *SIZE))
    two = BEVModel(Twice(), ColumnMLP(sources, GRID, dim=4, depth_m=(3, 6, 12)), {"segmentation": nn.Conv2d(4, 1, 1)})
    numbers = diagnose(two, lambda: [batch()], BEVIoU(("white",), GRID), ("front",), PLAN).numbers
    assert "takes 2 scales" in numbers["order"]["not_measured"]
    other = BEVModel(nn.Identity(), nn.Identity(), {"segmentation": nn.Identity()})
    with pytest.raises(InputError, match="derive it from Reshaper"):
        diagnose(other, lambda: [batch()], BEVIoU(("white",), GRID), ("front",), PLAN)


class Twice(nn.Module):
    """The image as two scales of features."""

    def forward(self, images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return images, images


def test_command(command, trained: Path, tmp_path: Path) -> None:
    few = ("samples=2", "cells=3", "probes=1", "errors.pitch_deg=[]", "corruptions.noise=[]", "device=cpu")
    ended = command("diagnose", f"checkpoint={trained}/checkpoints/best.ckpt", "logger=csv", "hydra.run.dir=out", *few)
    assert ended.code == 0, ended.err
    numbers = json.loads((tmp_path / "out" / "diagnosis.json").read_text())
    test = json.loads((trained / "metrics.json").read_text())
    assert numbers["iou"]["iou/mean"] == pytest.approx(test["test/iou/mean"])
    for name in ("weights", "robustness"):
        with Image.open(tmp_path / "out" / f"{name}.png") as image:
            assert image.size[0] > 500
    assert "tokens permuted" in ended.out
    assert "data_dependence" in next((tmp_path / "out" / "csv").rglob("metrics.csv")).read_text()


@pytest.mark.parametrize(
    ("argument", "words"),
    [
        ("split=tset", ("split='tset'", "did you mean test")),
        ("samples=1", ("samples=1", "an integer from 2")),
        ("+errors.yaw=[1]", ("errors.yaw is unknown", "yaw_deg")),
        ("+rigs.height_m=[1]", ("rigs.height_m is unknown", "yaw_deg")),
        ("rigs.roll_deg=[50]", ("rigs.roll_deg=-50 must stay below 45",)),
        ("errors.yaw_deg=2", ("errors.yaw_deg=2", "list of numbers")),
        ("+corruptions.fog=[1]", ("corruptions.fog is unknown",)),
        ("corruptions.blur=[much]", ("corruptions.blur", "list of numbers")),
        ("data.scenes={train: 24, val: 7, test: 7, dev: 1}", ("dev",)),
    ],
)
def test_error_message(command, trained: Path, argument: str, words: tuple[str, ...]) -> None:
    few = ("samples=2", "cells=1", "probes=1", "logger=none", "device=cpu")
    ended = command("diagnose", f"checkpoint={trained}/checkpoints/best.ckpt", *few, argument)
    assert ended.code == 1
    assert "Traceback" not in ended.err
    for word in words:
        assert word in ended.err


def test_moving_camera_is_not_image_dependence() -> None:
    moved = batch()
    turn = torch.eye(4).repeat(4, 1, 1, 1)
    for i, angle in enumerate((0.0, 0.1, -0.1, 0.2)):
        turn[i, 0, :2, :2] = torch.tensor([[math.cos(angle), -math.sin(angle)], [math.sin(angle), math.cos(angle)]])
    moved = replace(moved, cameras=replace(moved.cameras, ego_from_cam=turn @ moved.cameras.ego_from_cam))
    found = diagnose(model(IPM), lambda: [moved], BEVIoU(("white",), GRID), ("front",), PLAN).numbers
    assert found["data_dependence"] == 0.0
    assert found["agreement"]["whole"]["centroid"]["p90"] < 1e-3


def test_alignment_uses_the_true_calibration() -> None:
    true = batch().cameras[:3]
    aside = batch().cameras.intrinsics + torch.tensor([[0.0, 0, 6], [0, 0, 0], [0, 0, 0]])  # points 6 pixels aside
    lied = replace(batch(), cameras=replace(batch().cameras, intrinsics=aside))
    found = diagnose(model(IPM), lambda: [lied], BEVIoU(("white",), GRID), ("front",), PLAN, true).numbers
    assert found["agreement"]["whole"]["centroid"]["median"] == pytest.approx(6, abs=0.3)


def test_zero_weights_report_a_reason() -> None:
    dead = model(MLP)
    with torch.no_grad():
        dead.reshaper.layers[0].weight.zero_()
        dead.reshaper.layers[0].bias.fill_(-1)
    found = diagnose(dead, lambda: [batch()], BEVIoU(("white",), GRID), ("front",), PLAN).numbers
    assert "all weights are 0" in found["agreement"]["not_measured"]
    summary_table(found)
