"""Validation of calibrations: values that no camera on a vehicle can have are refused."""

import math

import torch
from torch import Tensor

from bevreshape.errors import InputError

FOCAL_LENGTHS = (0.05, 1000.0)
"""Relative to an image's side: fields of view from 169 degrees down to a few arc minutes. Others are in other units."""


def check_calibration(
    intrinsics: Tensor,
    ego_from_cam: Tensor,
    image_size: tuple[int, int],
    where: str,
    extent_m: float | int = 100.0,
    *,
    cropped: bool = False,
) -> None:
    """Raise on an impossible calibration, camera by camera. The tensors are on the CPU, as they were read.

    Args:
        intrinsics: ``pixel_from_cam``, (n, 3, 3) or (3, 3).
        ego_from_cam: (n, 4, 4) or (4, 4), in metres.
        image_size: (H, W) of the images that the calibration is for.
        where: file, frame and camera; the message begins with it.
        extent_m: a camera farther than this from the ego origin is refused; its pose is probably in millimetres.
        cropped: the images may be crops, which need not hold the principal point.

    Raises:
        InputError: if the calibration has another shape, is singular, non-finite, mirrored, not rigid, transposed, in
            millimetres, or for another image size.
    """
    height, width = image_size
    if intrinsics.shape[-2:] != (3, 3) or (*intrinsics.shape[:-2], 4, 4) != tuple(ego_from_cam.shape):
        raise InputError(
            f"{where}: intrinsics {tuple(intrinsics.shape)} and ego_from_cam {tuple(ego_from_cam.shape)} must be (n, "
            "3, 3) and (n, 4, 4) with the same n"
        )
    rig = zip(intrinsics.reshape(-1, 3, 3).double(), ego_from_cam.reshape(-1, 4, 4).double(), strict=True)
    for number, (k, pose) in enumerate(rig):
        at = f"{where}, camera {number}" if intrinsics.ndim == 3 and len(intrinsics) > 1 else where
        if not (torch.isfinite(k).all() and torch.isfinite(pose).all()):
            raise InputError(f"{at}: the calibration holds NaN or infinity; write finite numbers")
        _check_focal_lengths(k, height, width, at)
        if not cropped:
            _check_principal_point(k, height, width, at)
        _check_pose(pose, at, extent_m)


def _check_focal_lengths(k: Tensor, height: int, width: int, at: str) -> None:
    fx, fy, cx, cy = k[0, 0].item(), k[1, 1].item(), k[0, 2].item(), k[1, 2].item()
    if k[1, 0].abs() + k[2, 0].abs() + k[2, 1].abs() > 1e-6 or (k[2, 2] - 1).abs() > 1e-6:
        raise InputError(
            f"{at}: intrinsics {_rows(k)} must be [[fx, skew, cx], [0, fy, cy], [0, 0, 1]] (is it transposed?)"
        )
    if fx == 0 or fy == 0:
        raise InputError(
            f"{at}: the intrinsics are singular (fx={fx:g}, fy={fy:g}); both focal lengths must be positive pixels"
        )
    if fx < 0 or fy < 0:
        raise InputError(
            f"{at}: the intrinsics mirror the image (fx={fx:g}, fy={fy:g}); both must be positive, x right and y down"
        )
    if max(fx, fy) < 0.1 * max(width, height):
        raise InputError(
            f"{at}: focal lengths fx={fx:g}, fy={fy:g} are tiny for an image of {width}×{height}; they must be in "
            "pixels, "
            + (
                f"and look normalised: multiply the first row by {width} and the second by {height}"
                if max(abs(cx), abs(cy)) <= 1
                else "not millimetres or normalised"
            )
        )
    for name, focal, side, what in (("fx", fx, width, "across"), ("fy", fy, height, "from top to bottom")):
        if not FOCAL_LENGTHS[0] <= focal / side <= FOCAL_LENGTHS[1]:
            raise InputError(
                f"{at}: {name}={focal:g} makes an image of {width}×{height} pixels show "
                f"{math.degrees(2 * math.atan(side / 2 / focal)):.3g}° {what}, which no pinhole camera does; focal "
                "lengths must be in pixels"
            )


def _check_principal_point(k: Tensor, height: int, width: int, at: str) -> None:
    cx, cy = k[0, 2].item(), k[1, 2].item()
    if not (0 <= cx <= width - 1 and 0 <= cy <= height - 1):
        raise InputError(
            f"{at}: the principal point ({cx:g}, {cy:g}) is outside the image of {width}×{height} pixels; the "
            "intrinsics are for another image size: "
            f"{size_meant(cx, cy, width, height) or 'scale them, or state the size they were measured at'}"
        )
    # A crop moves the principal point along one axis or both, but hardly into a corner.
    across, down = cx / (width - 1), cy / (height - 1)
    if (across < 0.35 and down < 0.35) or (across > 0.9 and down > 0.9):
        raise InputError(
            f"{at}: the principal point ({cx:g}, {cy:g}) is in the {'upper left' if down < 0.5 else 'lower right'} "
            f"corner of the image of {width}×{height} pixels; the intrinsics are for another image size: "
            f"{size_meant(cx, cy, width, height) or 'scale them, or state the size they were measured at'}"
        )


def _check_pose(pose: Tensor, at: str, extent_m: float) -> None:
    rotation, translation = pose[:3, :3], pose[:3, 3]
    if (pose[3] - torch.tensor([0.0, 0.0, 0.0, 1.0], dtype=pose.dtype)).abs().max() > 1e-6:
        raise InputError(
            f"{at}: the last row of ego_from_cam is {_rows(pose[3])}; it must be [0, 0, 0, 1] (is it transposed?)"
        )
    determinant = torch.linalg.det(rotation).item()
    if abs(determinant) < 1e-3:
        raise InputError(
            f"{at}: the rotation of ego_from_cam is singular (det={determinant:.3g}); it must be a rotation, det=1"
        )
    if determinant < 0:
        raise InputError(
            f"{at}: the rotation of ego_from_cam is mirrored (det={determinant:.3f}); it must be 1: the camera frame "
            f"is x right, y down, z forward and the ego frame x forward, y left, z up; {_mirrored_axis(rotation)}"
        )
    error = (rotation @ rotation.mT - torch.eye(3, dtype=pose.dtype)).abs().max().item()
    if error > 1e-3:  # the transpose is used as the inverse: 1e-3 is half a pixel at a focal length of 1000
        raise InputError(
            f"{at}: the rotation of ego_from_cam is not orthonormal (off by {error:.3g}); remove scale and shear from "
            "it, and write it with at least five decimals"
        )
    distance = translation.norm().item()
    if distance > extent_m:
        unit = length_unit(pose)
        meant = (
            f"it looks like {unit[0]}: divide its last column by {unit[1]}"
            if unit
            else "is it in millimetres, or a pose in the world?"
        )
        raise InputError(
            f"{at}: the camera is {distance:g} from the ego origin, more than {extent_m:g} m; ego_from_cam must "
            f"be in metres ({meant})"
        )


def _mirrored_axis(rotation: Tensor) -> str:
    if rotation[2, 1] > 0.5:
        return "here the camera's y points up"
    return "here the camera's x points left, its z back, or the ego frame's y right"


def length_unit(ego_from_cam: Tensor) -> tuple[str, int] | None:
    """Guess the unit of a pose's (4, 4) translation, for a camera on a vehicle.

    Returns:
        The unit's name and how many of it make a metre; ``None`` if the unit is the metre or unknown.
    """
    height, distance = ego_from_cam[2, 3].item(), ego_from_cam[:3, 3].norm().item()
    for unit, per_metre in (("millimetres", 1000), ("centimetres", 100)):
        if 0.4 <= height / per_metre <= 5 and distance / per_metre <= 20:
            return unit, per_metre
    return None


def size_meant(cx: float, cy: float, width: int, height: int) -> str | None:
    """Describe the image size that has this principal point in its middle; ``None`` if it is probably the given one.

    Another size is likely if the point is more than a fifth from the middle, by the same factor on both axes.
    """
    ratios = (2 * cx + 1) / width, (2 * cy + 1) / height
    ratio = sum(ratios) / 2
    if min(ratios) <= 0 or max(ratios) > 1.15 * min(ratios) or 0.8 <= ratio <= 1.25:
        return None
    simple = min((1 / 4, 1 / 3, 1 / 2, 2 / 3, 3 / 4, 4 / 3, 3 / 2, 2, 3, 4), key=lambda s: abs(math.log(ratio / s)))
    size = f"{round(width * simple)}×{round(height * simple)}"
    return f"they fit one of about {size}; multiply their first two rows by {1 / simple:.3g}, or state that size"


def _rows(values: Tensor) -> str:
    return str([[round(value, 4) for value in row] for row in values.reshape(-1, values.shape[-1]).tolist()])
