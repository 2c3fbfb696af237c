"""Each usual mistake is named, and what is right is left alone."""

import numpy as np
import pytest
import torch
from oracle import intrinsics, pose, rig

from bevreshape.geometry import BEVGrid
from bevreshape.geometry.mistakes import pose_mistake, size_mistake

SIZE = (480, 640)
K = intrinsics(500, 500, 321, 238)
AHEAD = BEVGrid((0, 40), (-20, 20), 0.5)
AROUND = BEVGrid((-30, 30), (-30, 30), 0.5)
# camera frame "x forward, y left, z up" from x right, y down, z forward, and "x right, y up, z back"
ROBOT = np.array([[0, 0, 1, 0], [-1, 0, 0, 0], [0, -1, 0, 0], [0, 0, 0, 1.0]])
GRAPHICS = np.diag([1.0, -1.0, -1.0, 1.0])
MILLIMETRES = np.diag([1000.0, 1000.0, 1000.0, 1.0])

CAMERAS = {
    "front": (pose(0, 4, [1.5, 0.02, 1.4], 0.5), AHEAD),
    "phone": (pose(3, 12, [0, 0, 1.2], -2), AHEAD),
    "left": (pose(80, 3, [0.9, 0.5, 1.6]), AROUND),
    "back": (pose(178, 8, [-0.6, 0, 1.0]), AROUND),
    "down": (pose(0, 89, [1.0, 0, 2.0]), AROUND),
}


def said(given: np.ndarray, grid: BEVGrid) -> str | None:
    return pose_mistake(rig((K, given), image_size=SIZE), grid)


@pytest.mark.parametrize(("right", "grid"), CAMERAS.values(), ids=CAMERAS)
def test_what_is_right_is_left_alone(right: np.ndarray, grid: BEVGrid) -> None:
    assert said(right, grid) is None


@pytest.mark.parametrize(("right", "grid"), [CAMERAS[n] for n in ("front", "phone", "left", "back")])
def test_the_inverse_is_named(right: np.ndarray, grid: BEVGrid) -> None:
    found = said(np.linalg.inv(right), grid)
    assert found is not None
    assert found.startswith("ego_from_cam looks given the wrong way round, as cam_from_ego; invert it: then it stands")
    assert f"{right[2, 3]:.2f} m above the ground" in found


@pytest.mark.parametrize(("right", "grid"), [CAMERAS[n] for n in ("front", "phone", "left", "back")])
def test_other_camera_axes_are_named_with_the_matrix_that_mends_them(right: np.ndarray, grid: BEVGrid) -> None:
    for name, other_from_cam in (("x forward, y left, z up", ROBOT), ("x right, y up, z back", GRAPHICS)):
        found = said(right @ np.linalg.inv(other_from_cam), grid)
        assert found is not None
        assert found.startswith(f"its camera axes look like {name}, not x right, y down, z forward")
        assert str(other_from_cam[:3, :3].astype(int).tolist()) in found


@pytest.mark.parametrize(("right", "grid"), [CAMERAS[n] for n in ("front", "left", "back")])
def test_two_mistakes_at_once(right: np.ndarray, grid: BEVGrid) -> None:
    found = said(np.linalg.inv(right @ np.linalg.inv(ROBOT)), grid)
    assert found is not None
    assert "wrong way round" in found
    assert "x forward, y left, z up" in found
    assert "after inverting it" in found


@pytest.mark.parametrize(("unit", "factor"), [("millimetres", 1000), ("centimetres", 100)])
def test_other_units_are_named(unit: str, factor: float) -> None:
    given = CAMERAS["front"][0].copy()
    given[:3, 3] *= factor
    found = said(given, BEVGrid((0, 2000), (-1000, 1000), 50))
    assert found is None or found.startswith(f"its last column looks like {unit}, divide it by {factor:g}")
    found = said(given, AHEAD)
    assert found is not None
    assert found.startswith(f"its last column looks like {unit}, divide it by {factor:g}: then it stands 1.40 m above")


def test_what_no_reading_explains() -> None:
    assert "stands -1.40 m above the ground" in str(said(pose(0, 0, [1.5, 0, -1.4]), AHEAD))
    upside_down = pose(0, 10, [1.5, 0, 1.4], 180)
    assert "upside down" in str(said(upside_down, BEVGrid((0, 1), (-1, 1), 0.5)))
    assert said(pose(180, 5, [0, 0, 1.4]), BEVGrid((1, 40), (-3, 3), 0.5)) is None, "it just looks the other way"


@pytest.mark.parametrize(
    ("factor", "says"),
    [
        (2.0, "one of about 1280×960; multiply their first two rows by 0.5"),
        (1.5, "one of about 960×720; multiply their first two rows by 0.667"),
        (0.75, "one of about 480×360; multiply their first two rows by 1.33"),
        (0.5, "one of about 320×240; multiply their first two rows by 2"),
        (1.0, None),
        (1.1, None),
    ],
)
def test_intrinsics_of_another_picture_size(factor: float, says: str | None) -> None:
    found = size_mistake(rig((K * [[factor], [factor], [1]], CAMERAS["front"][0]), image_size=SIZE))
    if says is None:
        assert found is None
    else:
        assert says in str(found)


def test_a_cropped_picture_is_no_mistake() -> None:
    cropped = rig((K, CAMERAS["front"][0]), image_size=SIZE).cropped(top=150, left=0, image_size=(330, 640))
    assert size_mistake(cropped) is None
    assert torch.equal(cropped.ego_from_cam, rig((K, CAMERAS["front"][0]), image_size=SIZE).ego_from_cam)
