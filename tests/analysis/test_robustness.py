"""Calibration errors against explicit rotations, corrupt images against formulas, and their effect on IoU."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from batches import batch_of
from torch import nn

from bevreshape.analysis.costs import ring
from bevreshape.analysis.robustness import (
    CORRUPTIONS,
    corrupt_images,
    drop_camera,
    iou_under,
    perturb_calibration,
    perturb_pose,
    rotate_rig,
)
from bevreshape.data.batch import BEVBatch
from bevreshape.errors import InputError
from bevreshape.geometry import BEVGrid, Cameras
from bevreshape.metrics.iou import BEVIoU
from bevreshape.model import BEVModel
from bevreshape.reshapers import IPM, FeatureShape, FixedRig

GRID = BEVGrid((4.0, 12.0), (-4.0, 4.0), 0.5)


def level(yaw_deg: float = 0.0) -> Cameras:
    """Return a level camera, 1.5 m above the ground, yawed to the left."""
    yaw = math.radians(yaw_deg)
    right, down = [math.sin(yaw), -math.cos(yaw), 0.0], [0.0, 0.0, -1.0]
    ahead = [math.cos(yaw), math.sin(yaw), 0.0]
    pose = torch.eye(4, dtype=torch.float64)
    pose[:3, :3] = torch.tensor([right, down, ahead], dtype=torch.float64).T
    pose[2, 3] = 1.5
    intrinsics = torch.tensor([[20.0, 0.0, 15.5], [0.0, 20.0, 7.5], [0.0, 0.0, 1.0]], dtype=torch.float64)
    return Cameras(intrinsics[None, None], pose[None, None], (16, 32))


def test_convention_positive_yaw_error_turns_the_camera_left() -> None:
    torch.testing.assert_close(perturb_pose(level(), "yaw_deg", 7.0).ego_from_cam, level(7.0).ego_from_cam)


def test_convention_pitch_turns_down_roll_about_the_optical_axis_and_height_up() -> None:
    down = perturb_pose(level(), "pitch_deg", 10.0).ego_from_cam[0, 0].numpy()
    np.testing.assert_allclose(down[:3, 2], [math.cos(math.radians(10)), 0, -math.sin(math.radians(10))], atol=1e-12)
    rolled = perturb_pose(level(), "roll_deg", 10.0).ego_from_cam[0, 0].numpy()
    np.testing.assert_allclose(rolled[:3, 2], [1, 0, 0], atol=1e-12)
    # the image's right edge goes down, as seen from behind the camera
    np.testing.assert_allclose(rolled[:3, 0], [0, -math.cos(math.radians(10)), -math.sin(math.radians(10))], atol=1e-12)
    raised = perturb_pose(level(), "height_m", 0.2).ego_from_cam[0, 0]
    assert (raised - level().ego_from_cam[0, 0])[2, 3] == pytest.approx(0.2)
    assert (raised != level().ego_from_cam[0, 0]).sum() == 1


def scene(cameras: int = 1) -> tuple[BEVModel, BEVBatch]:
    """Return a model whose logits are IPM of the image, and its outputs for random images as labels."""
    torch.manual_seed(0)
    size = (64, 128)
    rig = ring(cameras, size, 3, torch.device("cpu"), reach_m=8.0)
    source = FeatureShape(3, *size, cameras)
    coarse = torch.rand(3 * cameras, 3, 16, 32)
    image = nn.functional.interpolate(coarse, size=size, mode="bilinear").unflatten(0, (3, cameras))
    grid = GRID if cameras == 1 else BEVGrid((-6.0, 6.0), (-6.0, 6.0), 0.5)
    head = nn.Conv2d(3, 1, 1)
    with torch.no_grad():
        head.weight.fill_(20.0)
        head.bias.fill_(-30.0)
    model = BEVModel(nn.Identity(), IPM(source, grid), {"segmentation": head})
    with torch.no_grad():
        return model, batch_of(image, rig, model(image, rig).heads["segmentation"] >= 0)


def test_iou_falls_with_the_calibration_error() -> None:
    model, batch = scene()
    changes = {f"{amount}": perturb_calibration("yaw_deg", amount) for amount in (0.0, 1.0, 4.0)}
    model.train()
    found = iou_under(model, [batch, batch], BEVIoU(("white",), GRID), changes)
    assert list(found) == ["unchanged", "0.0", "1.0", "4.0"]
    assert found["unchanged"] == found["0.0"]
    assert found["unchanged"]["iou/white"] == found["unchanged"]["iou/mean"] == 1.0
    assert 1.0 > found["1.0"]["iou/mean"] > found["4.0"]["iou/mean"]
    assert model.training


@pytest.mark.parametrize(
    ("turn", "amount", "expected"),
    [
        (
            "yaw_deg",
            10.0,
            (15.5 + 20 * math.tan(math.radians(10)), 7.5),
        ),  # looking to the left, what was ahead is on the right
        ("pitch_deg", 8.0, (15.5, 7.5 - 20 * math.tan(math.radians(8)))),  # looking down, it is above
        ("roll_deg", 90.0 / 3, (15.5, 7.5)),
    ],
)
def test_a_rotated_rig_moves_the_image(turn: str, amount: float, expected: tuple[float, float]) -> None:
    rig = level()
    v, u = torch.meshgrid(torch.arange(16.0), torch.arange(32.0), indexing="ij")
    spot = torch.exp(-((u - 15.5) ** 2 + (v - 7.5) ** 2) / 4).expand(1, 1, 3, 16, 32)
    turned = rotate_rig(turn, amount, GRID)(batch_of(spot, rig, torch.ones(1, 1, *GRID.shape, dtype=torch.bool)))
    light = turned.images[0, 0, 0]
    found = [float((light * place).sum() / light.sum()) for place in (u, v)]
    assert found == pytest.approx(expected, abs=0.15)
    torch.testing.assert_close(turned.cameras.ego_from_cam, perturb_pose(rig, turn, amount).ego_from_cam)


def test_a_rotated_rig_does_not_harm_ipm() -> None:
    model, batch = scene(4)
    grid = model.reshaper.grid
    rig = batch.cameras[:1]
    fixed = FixedRig(IPM(model.reshaper.source, grid).eval(), rig)

    class FixedMapping(nn.Module):
        def forward(self, features: torch.Tensor, cameras: Cameras) -> torch.Tensor:
            return fixed(features)

    without_calibration = BEVModel(nn.Identity(), FixedMapping(), model.heads)
    changes = {"turned": rotate_rig("yaw_deg", 4.0, grid)}
    calibrated, uncalibrated = (
        iou_under(m, [batch], BEVIoU(("white",), grid), changes)["turned"]["iou/mean"]
        for m in (model, without_calibration)
    )
    assert calibrated > 0.9  # images are sampled twice
    assert uncalibrated < calibrated - 0.1
    for turn, amount, message in (("height_m", 1.0, "no rig=height_m"), ("yaw_deg", 60.0, "below 45")):
        with pytest.raises(InputError, match=message):
            rotate_rig(turn, amount, grid)


def test_cells_of_a_dropped_camera_are_lost() -> None:
    model, batch = scene(4)
    grid = model.reshaper.grid
    found = iou_under(model, [batch], BEVIoU(("white",), grid), {f"{i}": drop_camera(i) for i in range(4)})
    assert all(found[f"{i}"]["iou/mean"] < found["unchanged"]["iou/mean"] == 1.0 for i in range(4))
    with pytest.raises(InputError, match="camera 4 of a rig of 4"):
        drop_camera(4)(batch)


def test_corruptions_equal_their_formulas() -> None:
    _, batch = scene()
    image = batch.images
    torch.testing.assert_close(corrupt_images("darkness", 0.3)(batch).images, image * 0.7)
    covered = corrupt_images("occlusion", 0.25)(batch).images
    assert (covered[..., :32] == 0.5).all()
    assert torch.equal(covered[..., 32:], image[..., 32:])
    grey = replace(batch, images=torch.full_like(image, 0.5))
    noise = corrupt_images("noise", 0.1)(grey).images - 0.5
    assert noise.std().item() == pytest.approx(0.1, rel=0.02)
    assert torch.equal(corrupt_images("noise", 0.1)(grey).images - 0.5, noise)
    point = torch.zeros_like(image)
    point[..., 32, 64] = 1.0
    blurred = corrupt_images("blur", 2.0)(replace(batch, images=point)).images[0, 0, 0]
    sigma = 2.0 * 128 / 100
    spread = (blurred.sum(0) * (torch.arange(128) - 64.0) ** 2).sum() / blurred.sum()
    assert spread.sqrt().item() == pytest.approx(sigma, rel=0.02)
    for kind in CORRUPTIONS:
        torch.testing.assert_close(corrupt_images(kind, 0.0)(batch).images, image)


def test_corrupt_images_are_encoded_again() -> None:
    model, batch = scene()
    found = iou_under(model, [batch], BEVIoU(("white",), GRID), {"dark": corrupt_images("darkness", 1.0)})
    assert found["dark"]["iou/mean"] == 0.0


def test_unknown_changes_are_refused() -> None:
    with pytest.raises(InputError, match=r"no error=jaw_deg; .*yaw_deg"):
        perturb_pose(level(), "jaw_deg", 1.0)
    with pytest.raises(InputError, match=r"no corruption=fog"):
        corrupt_images("fog", 0.1)
    with pytest.raises(InputError, match=r"darkness of severity=1.5 must be in 0..1"):
        corrupt_images("darkness", 1.5)
