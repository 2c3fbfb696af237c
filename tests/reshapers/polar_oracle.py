"""Polar maps sampled at ground cells, by loops over cells and cameras."""

import math
from collections.abc import Sequence
from fractions import Fraction
from itertools import pairwise
from typing import NamedTuple

import numpy as np

from bevreshape.geometry import Cameras
from bevreshape.reshapers import ColumnAttention, ColumnMLP


class Depths(NamedTuple):
    """The range of depths that a scale covers, in metres, and its bins."""

    near_m: float
    far_m: float
    bins: int


def depths_by_scale(strides: Sequence[int], borders_m: Sequence[float], bin_m: float) -> list[Depths]:
    """Return the bands: the coarsest scale covers the nearest depths, the finest the farthest."""
    found = {}
    for stride, (near, far) in zip(sorted(strides, reverse=True), pairwise(borders_m), strict=True):
        length = Fraction(str(far)) - Fraction(str(near))  # in decimals, as they are written
        found[stride] = Depths(near, far, math.ceil(length / Fraction(str(bin_m))))
    return [found[stride] for stride in strides]


def bilinear(polar: np.ndarray, i: float, j: float) -> np.ndarray:
    """Sample (d, bins, w) at bin i and column j, with the border repeated outside."""
    i, j = np.clip(i, 0, polar.shape[1] - 1), np.clip(j, 0, polar.shape[2] - 1)
    i0, j0 = int(i), int(j)
    i1, j1 = min(i0 + 1, polar.shape[1] - 1), min(j0 + 1, polar.shape[2] - 1)
    near = (1 - (j - j0)) * polar[:, i0, j0] + (j - j0) * polar[:, i0, j1]
    far = (1 - (j - j0)) * polar[:, i1, j0] + (j - j0) * polar[:, i1, j1]
    return (1 - (i - i0)) * near + (i - i0) * far


def read_maps(
    reshaper: ColumnMLP | ColumnAttention, depths: Sequence[Depths], maps: list[list[np.ndarray]], cameras: Cameras
) -> tuple[np.ndarray, np.ndarray, set[int]]:
    """Return the bird's-eye view of one sample, (d, R, C), the number of cameras per cell, and the scales read.

    Args:
        reshaper: knows sources and grid.
        depths: of every scale.
        maps: (d, bins, w) of every scale and camera.
        cameras: of one sample.
    """
    poses, intrinsics = cameras.ego_from_cam[0].double().numpy(), cameras.intrinsics[0].double().numpy()
    present, grid, width = cameras.full_mask[0].tolist(), reshaper.grid, cameras.image_size[1]
    bev = np.zeros((maps[0][0].shape[0], *grid.shape))
    counts, used = np.zeros(grid.shape, dtype=int), set()
    for row in range(grid.rows):
        for col in range(grid.cols):
            x = grid.forward_m[1] - (row + 0.5) * grid.cell_m
            y = grid.left_m[1] - (col + 0.5) * grid.cell_m
            for n in range(len(poses)):
                point = poses[n][:3, :3].T @ (np.array([x, y, 0.0]) - poses[n][:3, 3])
                ahead = poses[n][:2, 2] / np.linalg.norm(poses[n][:2, 2])
                depth = ahead @ (np.array([x, y]) - poses[n][:2, 3])
                u = (intrinsics[n] @ point / point[2])[0]
                for s, (source, band) in enumerate(zip(reshaper.sources, depths, strict=True)):
                    if present[n] and point[2] > 0 and -0.5 <= u < width - 0.5 and band.near_m <= depth < band.far_m:
                        z = (depth - band.near_m) / (band.far_m - band.near_m) * band.bins - 0.5
                        bev[:, row, col] += bilinear(maps[s][n], z, (u - source.offset_px) / source.stride)
                        counts[row, col] += 1
                        used.add(s)
    return bev / np.maximum(counts, 1), counts, used
