"""Describe the rays of a camera by functions that are linear in the pixel."""

from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.floating]
Window = tuple[slice, slice]
"""Slices of rows and columns of an image."""


@dataclass(frozen=True, eq=False)
class Rays:
    """Describe a ray of every pixel: ``center + depth · direction`` in the ego frame; depth is along the optical axis.

    Attributes:
        pixel_from_cam: (3, 3).
        ego_from_cam: (4, 4), in metres.
        shape: (h, w).
        stagger: rows by which a ray is above its pixel's centre in even columns and below it in odd ones.
    """

    pixel_from_cam: Array
    ego_from_cam: Array
    shape: tuple[int, int]
    stagger: float = 0.0

    @cached_property
    def center(self) -> Array:
        """Return the camera's position (3,), in metres."""
        return self.ego_from_cam[:3, 3]

    @cached_property
    def ego_from_pixel(self) -> Array:
        """Return (3, 3) from (u, v, 1) to the direction, per metre of depth."""
        return self.ego_from_cam[:3, :3] @ np.linalg.inv(self.pixel_from_cam)

    @cached_property
    def pixel_from_ego(self) -> Array:
        """(3, 4)."""
        return self.pixel_from_cam @ np.linalg.inv(self.ego_from_cam)[:3]

    @cached_property
    def _columns(self) -> Array:
        """Return the columns' part of (u, v, 1), (3, w)."""
        u = np.arange(self.shape[1], dtype=np.float32)
        return np.stack([u, np.float32(self.stagger) * (2 * (u % 2) - 1), np.ones_like(u)])

    @cached_property
    def _rows(self) -> Array:
        """Return the rows' part of v, (h,)."""
        return np.arange(self.shape[0], dtype=np.float32)

    def evaluate(self, functions: Array, window: Window) -> Array:
        """Evaluate linear functions (k, 3) of (u, v, 1) in a window, (k, h, w)."""
        rows, columns = window
        across = functions @ self._columns[:, columns]  # k w
        down = functions[:, 1:2] * self._rows[rows]  # k h
        return across[:, None] + down[:, :, None]

    def points(self, pixels: NDArray[np.intp], depth: Array) -> Array:
        """Return points (3, p), metres, at depths (p,) of the rays of pixels (p,), which are counted row by row."""
        row, column = np.divmod(pixels, self.shape[1])
        direction = self.ego_from_pixel.astype(np.float32)
        across = direction @ self._columns  # 3 w
        down = direction[:, 1:2] * self._rows  # 3 h
        moved = (np.take(across, column, axis=1) + np.take(down, row, axis=1)) * depth
        return moved + self.center.astype(np.float32)[:, None]
