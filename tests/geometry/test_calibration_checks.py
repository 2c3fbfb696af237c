"""Calibration checks name each usual mistake and accept correct calibrations."""

import math
import re
from dataclasses import replace

import numpy as np
import pytest
import torch
from oracle import intrinsics, pose, rig

from bevreshape.geometry import BEVGrid, DistortionModel
from bevreshape.geometry.calibration_checks import (
    diagnose_intrinsics,
    diagnose_magnification,
    diagnose_pose,
    diagnose_tangential,
)

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


def diagnosed(given: np.ndarray, grid: BEVGrid) -> str | None:
    return diagnose_pose(rig((K, given), image_size=SIZE), grid)


@pytest.mark.parametrize(("right", "grid"), CAMERAS.values(), ids=CAMERAS)
def test_correct_poses_are_accepted(right: np.ndarray, grid: BEVGrid) -> None:
    assert diagnosed(right, grid) is None


@pytest.mark.parametrize(("right", "grid"), [CAMERAS[n] for n in ("front", "phone", "left", "back")])
def test_the_inverse_is_named(right: np.ndarray, grid: BEVGrid) -> None:
    found = diagnosed(np.linalg.inv(right), grid)
    assert found is not None
    assert found.startswith("ego_from_cam looks given the wrong way round, as cam_from_ego; invert it: then it is")
    assert f"{right[2, 3]:.2f} m above the ground" in found


@pytest.mark.parametrize(("right", "grid"), [CAMERAS[n] for n in ("front", "phone", "left", "back")])
def test_other_camera_axes_are_named_with_their_correction(right: np.ndarray, grid: BEVGrid) -> None:
    for name, other_from_cam in (("x forward, y left, z up", ROBOT), ("x right, y up, z back", GRAPHICS)):
        found = diagnosed(right @ np.linalg.inv(other_from_cam), grid)
        assert found is not None
        assert found.startswith(f"its camera axes look like {name}, not x right, y down, z forward")
        assert str(other_from_cam[:3, :3].astype(int).tolist()) in found


@pytest.mark.parametrize(("right", "grid"), [CAMERAS[n] for n in ("front", "left", "back")])
def test_two_mistakes_at_once(right: np.ndarray, grid: BEVGrid) -> None:
    found = diagnosed(np.linalg.inv(right @ np.linalg.inv(ROBOT)), grid)
    assert found is not None
    assert "wrong way round" in found
    assert "x forward, y left, z up" in found
    assert "after inverting it" in found


@pytest.mark.parametrize(("unit", "factor"), [("millimetres", 1000), ("centimetres", 100)])
def test_other_units_are_named(unit: str, factor: float) -> None:
    given = CAMERAS["front"][0].copy()
    given[:3, 3] *= factor
    found = diagnosed(given, BEVGrid((0, 2000), (-1000, 1000), 50))
    assert found is None or found.startswith(f"its last column looks like {unit}, divide it by {factor:g}")
    found = diagnosed(given, AHEAD)
    assert found is not None
    assert found.startswith(f"its last column looks like {unit}, divide it by {factor:g}: then it is 1.40 m above")


def test_poses_without_a_plausible_correction() -> None:
    assert "is -1.40 m above the ground" in str(diagnosed(pose(0, 0, [1.5, 0, -1.4]), AHEAD))
    upside_down = pose(0, 10, [1.5, 0, 1.4], 180)
    assert "upside down" in str(diagnosed(upside_down, BEVGrid((0, 1), (-1, 1), 0.5)))
    assert diagnosed(pose(180, 5, [0, 0, 1.4]), BEVGrid((1, 40), (-3, 3), 0.5)) is None, "it faces backwards"


@pytest.mark.parametrize(
    ("factor", "expected"),
    [
        (2.0, "one of about 1280×960; multiply their first two rows by 0.5"),
        (1.5, "one of about 960×720; multiply their first two rows by 0.667"),
        (0.75, "one of about 480×360; multiply their first two rows by 1.33"),
        (0.5, "one of about 320×240; multiply their first two rows by 2"),
        (1.0, None),
        (1.1, None),
    ],
)
def test_intrinsics_of_another_image_size(factor: float, expected: str | None) -> None:
    found = diagnose_intrinsics(torch.from_numpy(K * [[factor], [factor], [1]]), SIZE)
    if expected is None:
        assert found == []
    else:
        (clause,) = found
        assert expected in clause


def test_intrinsics_of_a_cropped_image_are_accepted() -> None:
    cropped = rig((K, CAMERAS["front"][0]), image_size=SIZE).cropped(top=150, left=0, image_size=(330, 640))
    assert diagnose_intrinsics(cropped.intrinsics[0, 0], (330, 640)) == []


@pytest.mark.parametrize(("right", "grid"), [CAMERAS[n] for n in ("front", "phone", "left", "back")])
def test_a_transposed_rotation_with_a_correct_translation_is_named(right: np.ndarray, grid: BEVGrid) -> None:
    given = right.copy()
    given[:3, :3] = right[:3, :3].T
    found = diagnosed(given, grid)
    assert found is not None
    assert found.startswith("its rotation looks transposed, as in cam_from_ego, its translation right; transpose")
    assert f"{right[2, 3]:.2f} m above the ground" in found


@pytest.mark.parametrize("name", ["front", "phone", "left", "back"])
@pytest.mark.parametrize(
    ("roll_deg", "expected"),
    [(90, "90° clockwise"), (-90, "90° counter-clockwise"), (24, "° down, so it would be rolled")],
)
def test_a_rolled_camera_is_implausible(name: str, roll_deg: float, expected: str) -> None:
    right, grid = CAMERAS[name]
    angle = np.radians(roll_deg)
    turn = np.eye(4)
    turn[:2, :2] = [
        [np.cos(angle), -np.sin(angle)],
        [np.sin(angle), np.cos(angle)],
    ]  # x towards y, clockwise along the viewing direction
    upright = right.copy()
    upright[:3, :3] = pose(*{"front": (0, 4), "phone": (3, 12), "left": (80, 3), "back": (178, 8)}[name], [0, 0, 0])[
        :3, :3
    ]
    assert diagnosed(upright, grid) is None
    assert expected in str(diagnosed(upright @ turn, grid))


def test_a_camera_pitched_up_or_far_away_is_implausible() -> None:
    assert "pitched up by 35°" in str(diagnosed(pose(0, -35, [1.5, 0, 1.4]), AHEAD))
    assert "is 25.0 m from the ego origin" in str(diagnosed(pose(180, 5, [25, 0, 1.4]), AHEAD))


@pytest.mark.parametrize(
    ("k", "expected"),
    [
        (K, []),
        (intrinsics(500, 470, 321, 238), []),
        (intrinsics(5000, 500, 321, 238), ["differ by a factor of 10"]),
        (intrinsics(300, 500, 321, 238), ["differ by a factor of 1.67"]),
        (intrinsics(500, 500, 321, 238, skew=100), ["skew of 100 pixels tilts the columns by 11°"]),
        (intrinsics(500, 500, 321, 238, skew=-15), ["skew of -15 pixels tilts the columns by -1.7°"]),
        (intrinsics(500, 500, 238, 321), ["(238, 321) looks given as (row, column)"]),
        (intrinsics(40000, 40000, 321, 238), ["fx=40000 means a view of only 0.92° across", "fy=40000"]),
    ],
)
def test_implausible_intrinsics_are_named(k: np.ndarray, expected: list[str]) -> None:
    found = diagnose_intrinsics(torch.from_numpy(np.asarray(k, float)), SIZE)
    assert len(found) == len(expected)
    for clause, words in zip(found, expected, strict=True):
        assert words in clause


def test_tangential_and_radial_coefficients_swapped_are_named() -> None:
    rows = tuple(map(tuple, K.tolist()))
    assert diagnose_tangential(DistortionModel("opencv", (-0.3, 0.1, 0.003, -0.002, 0.05), rows, SIZE)) is None
    assert "p1=0.1 and p2=0.003" in str(
        diagnose_tangential(DistortionModel("opencv", (-0.3, 0.1, 0.1, 0.003), rows, SIZE))
    )
    assert diagnose_tangential(DistortionModel("fisheye", (-0.3, 0.1, 0.1, 0.1), rows, SIZE)) is None


@pytest.mark.parametrize("model", ["opencv", "fisheye"])
@pytest.mark.parametrize("stretch", [0.8, 1.0, 1.2, 1.4, 3.0])
def test_implausible_magnification_is_named(model: str, stretch: float) -> None:
    middle = ((100.0, 0.0, 49.5), (0.0, 100.0, 49.5), (0.0, 0.0, 1.0))
    # the corner bounds the rectangle of an image that is stretched outwards; it must come from r
    corner = 0.495 * math.sqrt(2)
    r = corner / stretch
    distorted = math.atan(r) if model == "fisheye" else r
    lens = DistortionModel(model, ((corner / distorted - 1) / distorted**2, 0.0, 0.0, 0.0), middle, (100, 100))
    diagnosed = diagnose_magnification(lens)
    if stretch <= 1.2:
        assert diagnosed is None
    else:
        found = re.search(r"stretched the image by ([\d.]+): undistorted, fx=100 becomes", str(diagnosed))
        assert found is not None
        assert math.isclose(float(found[1]), stretch, rel_tol=0.06)  # two digits are printed
    assert diagnose_magnification(replace(lens, chosen=middle)) is None
