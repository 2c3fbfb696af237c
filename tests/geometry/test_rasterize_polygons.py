"""Rasterized polygons against a test of one point at a time."""

import numpy as np
import pytest
import torch
from matplotlib.path import Path as Outline

from bevreshape.geometry import BEVGrid
from bevreshape.geometry.rasterize import corners, rasterize_boxes, rasterize_polygons, winding_numbers

GRID = BEVGrid((-10.0, 10.0), (-12.0, 8.0), 0.5)
CENTERS = GRID.centers().double().numpy()  # rows cols 2


def star(rng: np.random.Generator, x: float, y: float, size: float, points: int = 23) -> np.ndarray:
    """Return a jagged counter-clockwise ring with parts on both sides of the grid's edges."""
    angle = np.sort(rng.uniform(-np.pi, np.pi, points))
    radius = rng.uniform(0.3, 1.0, points) * size
    ring = np.stack([x + radius * np.cos(angle), y + radius * np.sin(angle)], axis=1)
    return np.vstack([ring, ring[:1]])


def inside(ring: np.ndarray) -> np.ndarray:
    return Outline(ring).contains_points(CENTERS.reshape(-1, 2)).reshape(GRID.shape)


@pytest.mark.parametrize("seed", range(8))
def test_areas_with_holes_that_overlap(seed: int) -> None:
    rng = np.random.default_rng(seed)
    outer = star(rng, rng.uniform(-9, 9), rng.uniform(-9, 9), 12.0, 200)
    hole = outer.mean(0) + 0.2 * (outer - outer.mean(0))
    other = star(rng, rng.uniform(-12, 12), rng.uniform(-12, 12), 6.0)
    expected = (inside(outer) & ~inside(hole)) | inside(other)
    np.testing.assert_array_equal(rasterize_polygons([outer, hole[::-1], other], GRID), expected)


def test_box_rings_cover_the_cells_of_rasterize_boxes() -> None:
    rng = np.random.default_rng(0)
    boxes = np.column_stack([rng.uniform(-13, 13, (60, 2)), rng.uniform(-4, 4, 60), rng.uniform(0.5, 9, (60, 2))])
    rings = list(corners(boxes))
    found = winding_numbers(rings, np.arange(60), 60, GRID)
    for (x, y, yaw, length, width), plane in zip(boxes, found, strict=True):
        dx, dy = CENTERS[..., 0] - x, CENTERS[..., 1] - y
        along, across = np.cos(yaw) * dx + np.sin(yaw) * dy, np.cos(yaw) * dy - np.sin(yaw) * dx
        np.testing.assert_array_equal(plane, (np.abs(along) <= length / 2) & (np.abs(across) <= width / 2))
    assert (found.sum(0) > 1).any()  # some overlap
    np.testing.assert_array_equal(rasterize_polygons(rings, GRID), found.any(0))
    np.testing.assert_array_equal(rasterize_boxes(torch.from_numpy(boxes), GRID).numpy(), found > 0)


def test_adjacent_areas_share_no_cell_and_leave_none_out() -> None:
    """Their common edge runs through cells' centres."""
    halves = [
        np.array([[-5.25, -5.25], [5.25, -5.25], [5.25, 0.25], [-5.25, 0.25], [-5.25, -5.25]]),
        np.array([[-5.25, 0.25], [5.25, 0.25], [5.25, 5.25], [-5.25, 5.25], [-5.25, 0.25]]),
    ]
    first, second = (rasterize_polygons([half], GRID) for half in halves)
    assert not (first & second).any()
    assert (first | second).sum() == 21 * 21


def test_no_rings_cover_no_cell() -> None:
    assert not rasterize_polygons([], GRID).any()
    assert not rasterize_polygons([5 * np.array([[9.0, 9], [10, 9], [10, 10], [9, 9]])], GRID).any()
