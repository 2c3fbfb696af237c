"""What is probably wrong with a calibration that can be read: a clause that says so, or ``None``.

What cannot be a calibration at all is refused by :func:`~bevreshape.geometry.check_calibration`.
"""

from collections.abc import Iterator
from dataclasses import replace

import torch
from torch import Tensor

from bevreshape.geometry.cameras import Cameras, compose, invert_rigid, length_unit, size_meant
from bevreshape.geometry.grid import BEVGrid
from bevreshape.geometry.ipm import ground_pixels

HEIGHTS_M = (0.1, 5.0)
"""Above the ground, where cameras are mounted."""

AXES = {
    "x forward, y left, z up": [[0.0, 0.0, 1.0], [-1.0, 0.0, 0.0], [0.0, -1.0, 0.0]],
    "x right, y up, z back": [[1.0, 0.0, 0.0], [0.0, -1.0, 0.0], [0.0, 0.0, -1.0]],
}
"""Camera frames of other conventions, each as ``other_from_cam``."""


def pose_mistake(camera: Cameras, grid: BEVGrid) -> str | None:
    """What was probably written in place of ``ego_from_cam``: millimetres, its inverse, other camera axes, or two of these.

    A pose is taken for right where the camera is mounted in ``HEIGHTS_M`` above the ground, about level, and sees cells
    of the grid. Of others that would be right in this sense, the one with the fewest changes, and of these the most level, is
    named.

    Args:
        camera: one.
        grid: of the cells that it should see.
    """
    if _plausible(camera, grid):
        return None
    for readings in _other_readings(camera.ego_from_cam):
        right = {change: other for change, other in readings.items() if _plausible(_posed(camera, other), grid)}
        if right:
            change, pose = min(right.items(), key=lambda reading: reading[1][0, 0, 2, 0].abs().item())
            share = ground_pixels(_posed(camera, pose), grid)[1].float().mean().item()
            height = pose[0, 0, 2, 3].item()
            return f"{change}: then it stands {height:.2f} m above the ground and sees {share:.1%} of the grid"
    height, down = camera.ego_from_cam[0, 0, 2, 3].item(), -camera.ego_from_cam[0, 0, 2, 1].item()
    if not HEIGHTS_M[0] <= height <= HEIGHTS_M[1]:
        return f"it stands {height:.2f} m above the ground, where no vehicle has a camera"
    if down < 0:
        return "its y axis points up, so its picture would be upside down; y must point down"
    return None


def size_mistake(camera: Cameras) -> str | None:
    """Whether the principal point says that the intrinsics are for another picture size than they are given for."""
    height, width = camera.image_size
    cx, cy = camera.intrinsics[0, 0, :2, 2].tolist()
    meant = size_meant(cx, cy, width, height)
    if meant is None:
        return None
    return (
        f"its principal point ({cx:g}, {cy:g}) is far from the middle of a picture of {width}×{height} pixels: {meant}"
    )


def _plausible(camera: Cameras, grid: BEVGrid) -> bool:
    pose = camera.ego_from_cam[0, 0]
    mounted = HEIGHTS_M[0] <= pose[2, 3].item() <= HEIGHTS_M[1]
    level = abs(pose[2, 0].item()) < 0.5 and pose[2, 1].item() < 0.2  # x within 30 degrees, y not up
    return mounted and level and bool(ground_pixels(camera, grid)[1].any())


def _other_readings(given: Tensor) -> Iterator[dict[str, Tensor]]:
    """Poses by what was changed: one thing first, then two."""
    inverse = invert_rigid(given)
    once = {"ego_from_cam looks given the wrong way round, as cam_from_ego; invert it": inverse}
    unit = length_unit(given[0, 0])
    if unit is not None:
        once[f"its last column looks like {unit[0]}, divide it by {unit[1]}"] = _scaled(given, 1 / unit[1])
    twice = {}
    for axes, other_from_cam in AXES.items():
        turn = torch.eye(4, dtype=given.dtype)
        turn[:3, :3] = torch.tensor(other_from_cam, dtype=given.dtype)
        mended = (
            f"its camera axes look like {axes}, not x right, y down, z forward; multiply ego_from_cam from the right by "
            f"{[[int(value) for value in row] for row in other_from_cam]}"
        )
        once[mended] = compose(given, turn)
        wrong_way = "ego_from_cam looks given the wrong way round, as cam_from_ego; "
        twice[f"{wrong_way}{mended}, after inverting it"] = compose(inverse, turn)
    yield from (once, twice)


def _posed(camera: Cameras, ego_from_cam: Tensor) -> Cameras:
    return replace(camera, ego_from_cam=ego_from_cam)


def _scaled(pose: Tensor, factor: float) -> Tensor:
    scaled = pose.clone()
    scaled[..., :3, 3] *= factor
    return scaled
