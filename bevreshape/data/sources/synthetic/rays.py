"""The rays of a camera, as functions that are linear in the pixel."""

from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.floating]
Window = tuple[slice, slice]
"""Rows and columns of an image."""


@dataclass(frozen=True, eq=False)
class Rays:
    """One ray a pixel: ``center + depth · direction`` in the ego frame, with depth along the optical axis.

    Attributes:
        pixel_from_cam: (3, 3).
        ego_from_cam: (4, 4), in metres.
        shape: (h, w).
        stagger: rows by which a ray lies above its pixel's centre in even columns and below it in odd ones.
    """

    pixel_from_cam: Array
    ego_from_cam: Array
    shape: tuple[int, int]
    stagger: float = 0.0

    @cached_property
    def center(self) -> Array:
        """(3,) where the camera stands, in metres."""
        return self.ego_from_cam[:3, 3]

    @cached_property
    def ego_from_pixel(self) -> Array:
        """(3, 3) from (u, v, 1) to the direction, per metre of depth."""
        return self.ego_from_cam[:3, :3] @ np.linalg.inv(self.pixel_from_cam)

    @cached_property
    def pixel_from_ego(self) -> Array:
        """(3, 4)."""
        return self.pixel_from_cam @ np.linalg.inv(self.ego_from_cam)[:3]

    @cached_property
    def _columns(self) -> Array:
        """(3, w): what the columns bring to (u, v, 1)."""
        u = np.arange(self.shape[1], dtype=np.float32)
        return np.stack([u, np.float32(self.stagger) * (2 * (u % 2) - 1), np.ones_like(u)])

    @cached_property
    def _rows(self) -> Array:
        """(h,): what the rows bring to v."""
        return np.arange(self.shape[0], dtype=np.float32)

    def evaluate(self, functions: Array, window: Window) -> Array:
        """Values (k, h, w) in a window of linear functions (k, 3) of (u, v, 1)."""
        rows, columns = window
        across = functions @ self._columns[:, columns]  # k w
        down = functions[:, 1:2] * self._rows[rows]  # k h
        return across[:, None] + down[:, :, None]

    def points(self, pixels: NDArray[np.intp], depth: Array) -> Array:
        """(3, p) in metres at depths (p,) of the rays of pixels (p,), which are counted row by row."""
        row, column = np.divmod(pixels, self.shape[1])
        direction = self.ego_from_pixel.astype(np.float32)
        across = direction @ self._columns  # 3 w
        down = direction[:, 1:2] * self._rows  # 3 h
        moved = (np.take(across, column, axis=1) + np.take(down, row, axis=1)) * depth
        return moved + self.center.astype(np.float32)[:, None]
