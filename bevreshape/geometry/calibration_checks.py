"""Diagnosis of valid but implausible calibrations. Every check returns a clause for a message, or ``None``.

:func:`~bevreshape.geometry.check_calibration` refuses invalid calibrations.
"""

import math
from collections.abc import Iterator
from dataclasses import replace

import torch
from torch import Tensor

from bevreshape.geometry.calibration import length_unit, size_meant
from bevreshape.geometry.cameras import Cameras, compose, invert_rigid
from bevreshape.geometry.distortion import DistortionModel, pinhole_intrinsics
from bevreshape.geometry.grid import BEVGrid
from bevreshape.geometry.ipm import ground_pixels

HEIGHTS_M = (0.05, 5.0)
"""Plausible heights of a camera above the ground, including those of model vehicles."""
ROLL_DEG, UP_DEG, DISTANCE_M = 20.0, 30.0, 20.0
"""Largest plausible roll, upward pitch, and distance from the ego origin."""
ASPECT, SKEW, TANGENTIAL = 1.5, 0.02, 0.05
"""Largest plausible ratio of focal lengths, skew relative to them, and tangential coefficient."""
LOWEST_AXIS_Z = -0.9
"""Smallest z component of the optical axis of a corrected pose. A camera pointing straight down fits any axes."""
MAGNIFIED = 1.3
"""Largest plausible magnification of the image's corners by a distortion."""
NARROWEST_DEG = 4.0
"""Smallest plausible field of view; only telescopes have less."""

WRONG_WAY = "ego_from_cam looks given the wrong way round, as cam_from_ego; "
"""Beginning of the clause about an inverse pose."""

AXES = {
    "x forward, y left, z up": [[0.0, 0.0, 1.0], [-1.0, 0.0, 0.0], [0.0, -1.0, 0.0]],
    "x right, y up, z back": [[1.0, 0.0, 0.0], [0.0, -1.0, 0.0], [0.0, 0.0, -1.0]],
}
"""Camera frames of other conventions, each as ``other_from_cam``."""


def diagnose_pose(camera: Cameras, grid: BEVGrid) -> str | None:
    """Return what was probably written instead of ``ego_from_cam``.

    Candidates are millimetres, the inverse, a transposed rotation, other camera axes, and pairs of these. A pose is
    plausible if the camera is mounted within ``HEIGHTS_M`` above the ground, is about level, and sees cells of the
    grid. Among plausible candidates, fewer changes win, then the more level pose, then the one nearer to the vehicle's
    middle.

    Args:
        camera: a single camera, with b = n = 1.
        grid: the cells that it should see.
    """
    readings = () if _plausible(camera, grid) else _other_readings(camera.ego_from_cam)
    for changes in readings:
        right = {
            change: other
            for change, other in changes.items()
            if other[0, 0, 2, 2] > LOWEST_AXIS_Z and _plausible(_posed(camera, other), grid)
        }
        if right:
            change, pose = min(right.items(), key=lambda reading: reading[1][0, 0, [2, 1], [0, 3]].abs().tolist())
            share = ground_pixels(_posed(camera, pose), grid)[1].float().mean().item()
            height = pose[0, 0, 2, 3].item()
            return f"{change}: then it is {height:.2f} m above the ground and sees {share:.1%} of the grid"
    height, down = camera.ego_from_cam[0, 0, 2, 3].item(), -camera.ego_from_cam[0, 0, 2, 1].item()
    if not HEIGHTS_M[0] <= height <= HEIGHTS_M[1]:
        return f"it is {height:.2f} m above the ground, where no vehicle has a camera"
    if down < 0:
        return "its y axis points up, so its image would be upside down; y must point down"
    if abs(tilt := camera.ego_from_cam[0, 0, 2, 0].item()) > math.sin(math.radians(ROLL_DEG)):
        return (
            f"its x axis points {abs(math.degrees(math.asin(max(-1.0, min(1.0, tilt))))):.0f}° "
            f"{'up' if tilt > 0 else 'down'}, so it would be rolled by that; x must point to the right of the stored "
            "image"
        )
    if (up := math.degrees(math.asin(max(-1.0, min(1.0, camera.ego_from_cam[0, 0, 2, 2].item()))))) > UP_DEG:
        return f"it is pitched up by {up:.0f}°, away from the ground"
    if (away := camera.ego_from_cam[0, 0, :2, 3].norm().item()) > DISTANCE_M:
        return f"it is {away:.1f} m from the ego origin, farther than vehicles are long"
    return None


def diagnose_intrinsics(intrinsics: Tensor, image_size: tuple[int, int]) -> list[str]:
    """Return what is probably wrong with intrinsics (3, 3) of a stored image of ``image_size`` (H, W), in clauses."""
    height, width = image_size
    (fx, skew, cx), (_, fy, cy) = (row.tolist() for row in intrinsics[:2])
    found = []
    meant = size_meant(cx, cy, width, height)
    if meant is not None:
        found.append(
            f"its principal point ({cx:g}, {cy:g}) is far from the middle of an image of {width}×{height} pixels: "
            f"{meant}"
        )
    elif _off_middle(cx, cy, width, height) > 0.15 and _off_middle(cy, cx, width, height) < 0.05:
        found.append(f"its principal point ({cx:g}, {cy:g}) looks given as (row, column); it must be (cx, cy)")
    ratio = max(fx / fy, fy / fx)
    if ratio > ASPECT:
        found.append(
            f"fx={fx:g} and fy={fy:g} differ by a factor of {ratio:.3g}, but sensors have nearly square pixels; was "
            "one row scaled and not the other, or the image squeezed?"
        )
    if abs(skew) > SKEW * min(fx, fy):
        found.append(
            f"its skew of {skew:g} pixels tilts the columns by {math.degrees(math.atan(skew / fy)):.2g}°, but sensors "
            "have upright ones; write 0 unless the image was sheared"
        )
    for name, focal, side, what in (("fx", fx, width, "across"), ("fy", fy, height, "from top to bottom")):
        view = math.degrees(2 * math.atan(side / 2 / focal))
        if view < NARROWEST_DEG:
            found.append(f"{name}={focal:g} means a view of only {view:.2g}° {what}; focal lengths must be in pixels")
    return found


def _off_middle(cx: float, cy: float, width: int, height: int) -> float:
    """Return the distance of a point from an image's middle, relative to its sides."""
    return max(abs((cx + 0.5) / width - 0.5), abs((cy + 0.5) / height - 0.5))


def diagnose_tangential(distortion: DistortionModel) -> str | None:
    """Return why the distortion coefficients are probably in another order than OpenCV's."""
    if distortion.model != "opencv" or max(map(abs, distortion.coefficients[2:4])) <= TANGENTIAL:
        return None
    p1, p2 = distortion.coefficients[2:4]
    return (
        f"its distortion has p1={p1:g} and p2={p2:g}, many times what lenses have; the order is k1, k2, p1, p2, k3, "
        "k4, k5, k6"
    )


def diagnose_magnification(distortion: DistortionModel) -> str | None:
    """Return why a distortion is implausible: it would stretch the image outwards by more than lenses do."""
    if distortion.chosen is not None:
        return None
    stored, pinhole = distortion.intrinsics[0][0], pinhole_intrinsics(distortion)[0, 0].item()
    if pinhole <= MAGNIFIED * stored:
        return None
    return (
        f"its distortion {[round(value, 6) for value in distortion.coefficients]} would have stretched the image by "
        f"{pinhole / stored:.2g}: undistorted, fx={stored:g} becomes {pinhole:.4g}; coefficients belong to "
        "coordinates divided by the focal length, in OpenCV's order"
    )


def _plausible(camera: Cameras, grid: BEVGrid) -> bool:
    pose = camera.ego_from_cam[0, 0]
    mounted = HEIGHTS_M[0] <= pose[2, 3].item() <= HEIGHTS_M[1]
    level = abs(pose[2, 0].item()) < 0.5 and pose[2, 1].item() < 0.2  # x within 30 degrees, y not up
    return mounted and level and bool(ground_pixels(camera, grid)[1].any())


def _other_readings(given: Tensor) -> Iterator[dict[str, Tensor]]:
    """Yield candidate poses by what was changed: a single change, then a quarter of a turn, then two changes."""
    inverse, transposed = invert_rigid(given), given.clone()
    transposed[..., :3, :3] = given[..., :3, :3].mT
    once = {
        "its rotation looks transposed, as in cam_from_ego, its translation right; transpose its 3×3": transposed,
        f"{WRONG_WAY}invert it": inverse,
    }
    unit = length_unit(given[0, 0])
    if unit is not None:
        once[f"its last column looks like {unit[0]}, divide it by {unit[1]}"] = _scaled(given, 1 / unit[1])
    rolled = {}
    for way, sign in (("clockwise", 1.0), ("counter-clockwise", -1.0)):
        turn = torch.eye(4, dtype=given.dtype)
        turn[:2, :2] = torch.tensor([[0.0, -sign], [sign, 0.0]])
        rolled[
            f"it is rolled by about 90° {way}; where the stored image is not, x must point to its right and y down it"
        ] = compose(given, turn.mT)
    twice = {}
    for axes, other_from_cam in AXES.items():
        turn = torch.eye(4, dtype=given.dtype)
        turn[:3, :3] = torch.tensor(other_from_cam, dtype=given.dtype)
        mended = (
            f"its camera axes look like {axes}, not x right, y down, z forward; multiply ego_from_cam from the right "
            f"by {[[int(value) for value in row] for row in other_from_cam]}"
        )
        once[mended] = compose(given, turn)
        twice[f"{WRONG_WAY}{mended}, after inverting it"] = compose(inverse, turn)
    yield from (once, rolled, twice)


def _posed(camera: Cameras, ego_from_cam: Tensor) -> Cameras:
    return replace(camera, ego_from_cam=ego_from_cam)


def _scaled(pose: Tensor, factor: float) -> Tensor:
    scaled = pose.clone()
    scaled[..., :3, 3] *= factor
    return scaled
