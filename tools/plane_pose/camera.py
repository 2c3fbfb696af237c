"""A camera whose pose is wanted, and marks in its image."""

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
"""How exactly marks are placed, where nobody says so: the standard deviation of a pixel's u, and of its v."""


@dataclass(frozen=True)
class Marks:
    """Marked pixels.

    Attributes:
        stored: (p, 2), of the stored image.
        straight: (p, 2), where a camera with the same intrinsics and no distortion would have them.
        straight_from_stored: (p, 2, 2), how a small step in the one moves the other.
    """

    stored: Array
    straight: Array
    straight_from_stored: Array


@dataclass(frozen=True)
class Camera:
    """What is known of a camera.

    Attributes:
        intrinsics: (3, 3), of the stored image.
        image_size: (H, W).
        lens: its distortion; ``None`` for a pinhole.
        mark_px: how exactly its pixels are marked.
    """

    intrinsics: Array
    image_size: tuple[int, int]
    lens: DistortionModel | None = None
    mark_px: float = MARK_PX

    def marks(self, pixels: Array) -> Marks:
        """Marks at stored pixels (p, 2).

        Raises:
            InputError: outside the image, or where the distortion cannot be undone.
        """
        height, width = self.image_size
        for u, v in pixels:
            if not (-0.5 <= u <= width - 0.5 and -0.5 <= v <= height - 0.5):
                raise InputError(
                    f"mark ({u:g}, {v:g}) lies outside the image of {width}×{height} pixels; u, the column, comes first"
                )
        if self.lens is None:
            return Marks(pixels, pixels, np.broadcast_to(np.eye(2), (len(pixels), 2, 2)))
        steps = np.array([[0, 0], [0.5, 0], [-0.5, 0], [0, 0.5], [0, -0.5]])
        points, found = self.lens.undistort(torch.from_numpy((steps[:, None] + pixels).reshape(-1, 2)))
        complete = found.reshape(5, -1).all(0).numpy()
        if not complete.all():
            u, v = pixels[~complete][0]
            raise InputError(
                f"mark ({u:g}, {v:g}): the distortion cannot be undone there; choose one nearer to the middle"
            )
        straight = points.numpy() @ self.intrinsics[:2, :2].T + self.intrinsics[:2, 2]
        middle, right, left, down, up = straight.reshape(5, -1, 2)
        return Marks(pixels, middle, np.stack([right - left, down - up], axis=-1))


def pose(yaw: float, pitch: float, roll: float, position: Sequence[float]) -> Array:
    """``ego_from_cam`` of a camera that looks to the left by yaw, down by pitch, turned clockwise by roll: radians."""
    forward = np.array([math.cos(yaw) * math.cos(pitch), math.sin(yaw) * math.cos(pitch), -math.sin(pitch)])
    level = np.array([math.sin(yaw), -math.cos(yaw), 0.0])
    right = math.cos(roll) * level + math.sin(roll) * np.cross(forward, level)
    result = np.eye(4)
    result[:3, :3] = np.stack([right, np.cross(forward, right), forward], axis=1)
    result[:3, 3] = position
    return result


def pixel_from_ground(intrinsics: Array, ego_from_cam: Array) -> Array:
    """Homography (3, 3) from ground points (x, y, 1) to pixels; its third coordinate is depth."""
    return intrinsics @ np.linalg.inv(ego_from_cam)[:3, [0, 1, 3]]


def angles_of(ego_from_cam: Array) -> tuple[float, float, float]:
    """Yaw to the left, pitch downwards, roll clockwise, in radians: the inverse of :func:`pose`."""
    right, _, forward = ego_from_cam[:3, :3].T
    yaw, pitch = math.atan2(forward[1], forward[0]), -math.asin(max(-1.0, min(1.0, forward[2])))
    level = np.array([math.sin(yaw), -math.cos(yaw), 0.0])
    return yaw, pitch, math.atan2(right @ np.cross(forward, level), right @ level)
