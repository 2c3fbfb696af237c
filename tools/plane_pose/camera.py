"""Describe a camera with unknown pose, and marks in its image."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from bevreshape.errors import InputError
from bevreshape.geometry import DistortionModel

Array = NDArray[np.float64]
MARK_PX = 1.0
"""Default error of marks: the standard deviation of a pixel's u, and of its v."""


@dataclass(frozen=True)
class Marks:
    """Hold marked pixels.

    Attributes:
        stored: (p, 2), of the stored image.
        straight: (p, 2), their positions for a camera of the same intrinsics without distortion.
        straight_from_stored: (p, 2, 2), the derivative of ``straight`` by ``stored``.
    """

    stored: Array
    straight: Array
    straight_from_stored: Array


@dataclass(frozen=True)
class Camera:
    """Describe the known part of a camera.

    Attributes:
        intrinsics: (3, 3), of the stored image.
        image_size: (H, W).
        distortion: of the stored image; ``None`` for a pinhole.
        mark_px: standard error of its marked pixels.
    """

    intrinsics: Array
    image_size: tuple[int, int]
    distortion: DistortionModel | None = None
    mark_px: float = MARK_PX

    def marks(self, pixels: Array) -> Marks:
        """Return marks at stored pixels (p, 2).

        Raises:
            InputError: when a pixel is outside the image, or its distortion cannot be inverted.
        """
        height, width = self.image_size
        for u, v in pixels:
            if not (-0.5 <= u <= width - 0.5 and -0.5 <= v <= height - 0.5):
                raise InputError(
                    f"mark ({u:g}, {v:g}) is outside the image of {width}×{height} pixels; u, the column, comes first"
                )
        if self.distortion is None:
            return Marks(pixels, pixels, np.broadcast_to(np.eye(2), (len(pixels), 2, 2)))
        steps = np.array([[0, 0], [0.5, 0], [-0.5, 0], [0, 0.5], [0, -0.5]])
        points, found = self.distortion.undistort(torch.from_numpy((steps[:, None] + pixels).reshape(-1, 2)))
        complete = found.reshape(5, -1).all(0).numpy()
        if not complete.all():
            u, v = pixels[~complete][0]
            raise InputError(
                f"mark ({u:g}, {v:g}): the distortion cannot be inverted there; choose one nearer to the middle"
            )
        straight = points.numpy() @ self.intrinsics[:2, :2].T + self.intrinsics[:2, 2]
        middle, right, left, down, up = straight.reshape(5, -1, 2)
        return Marks(pixels, middle, np.stack([right - left, down - up], axis=-1))


def pose(yaw: float, pitch: float, roll: float, position: Sequence[float]) -> Array:
    """Return ``ego_from_cam`` for a yaw to the left, a pitch downwards and a clockwise roll, radians."""
    forward = np.array([math.cos(yaw) * math.cos(pitch), math.sin(yaw) * math.cos(pitch), -math.sin(pitch)])
    level = np.array([math.sin(yaw), -math.cos(yaw), 0.0])
    right = math.cos(roll) * level + math.sin(roll) * np.cross(forward, level)
    result = np.eye(4)
    result[:3, :3] = np.stack([right, np.cross(forward, right), forward], axis=1)
    result[:3, 3] = position
    return result


def pixel_from_ground(intrinsics: Array, ego_from_cam: Array) -> Array:
    """Return the homography (3, 3) from ground points (x, y, 1) to pixels; its third coordinate is depth."""
    return intrinsics @ np.linalg.inv(ego_from_cam)[:3, [0, 1, 3]]


def angles_of(ego_from_cam: Array) -> tuple[float, float, float]:
    """Return yaw to the left, pitch downwards and clockwise roll, radians, the inverse of :func:`pose`."""
    right, _, forward = ego_from_cam[:3, :3].T
    yaw, pitch = math.atan2(forward[1], forward[0]), -math.asin(max(-1.0, min(1.0, forward[2])))
    level = np.array([math.sin(yaw), -math.cos(yaw), 0.0])
    return yaw, pitch, math.atan2(right @ np.cross(forward, level), right @ level)
