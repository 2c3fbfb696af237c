"""Cells of boxes against their corners, one cell at a time."""

import numpy as np
import torch

from bevreshape.geometry import BEVGrid
from bevreshape.geometry.footprints import footprints

GRID = BEVGrid((0, 12), (-6, 6), 0.5)


def oracle(box: list[float], grid: BEVGrid) -> np.ndarray:
    """A point lies in a convex polygon when it is on the left of every edge, corners counter-clockwise from above."""
    x, y, yaw, length, width = box
    ahead, left = np.array([np.cos(yaw), np.sin(yaw)]), np.array([-np.sin(yaw), np.cos(yaw)])
    signs = [(1, 1), (-1, 1), (-1, -1), (1, -1)]
    corners = [np.array([x, y]) + a * length / 2 * ahead + b * width / 2 * left for a, b in signs]
    cells = np.zeros(grid.shape, bool)
    for row, col in np.ndindex(grid.shape):
        point = np.array([grid.forward_m[1] - (row + 0.5) * grid.cell_m, grid.left_m[1] - (col + 0.5) * grid.cell_m])
        edges = [(b - a, point - a) for a, b in zip(corners, corners[1:] + corners[:1], strict=True)]
        cells[row, col] = all(e[0] * p[1] - e[1] * p[0] >= -1e-12 for e, p in edges)
    return cells


def test_cells_equal_a_polygon_test() -> None:
    random = np.random.default_rng(0)
    boxes = [
        [*random.uniform((-1, -7), (13, 7)), random.uniform(-7, 7), random.uniform(0.3, 8), random.uniform(0.3, 3)]
        for _ in range(40)
    ]
    found = footprints(torch.tensor(boxes, dtype=torch.float64), GRID).numpy()
    for box, cells in zip(boxes, found, strict=True):
        np.testing.assert_array_equal(cells, oracle(box, GRID))
    assert found.any(0).mean() > 0.3


def test_convention_yaw_is_counter_clockwise_and_length_runs_along_it() -> None:
    """A quarter turn and a bit to the left: the far end of a long box lies left of its near end."""
    cells = footprints(torch.tensor([[6.0, 0.0, np.pi / 6, 8.0, 1.0]]), GRID)[0]
    rows, cols = cells.nonzero().T
    assert cols[rows == rows.min()].float().mean() < cols[rows == rows.max()].float().mean() - 4


def test_the_edge_counts_and_no_box_is_no_cell() -> None:
    exact = footprints(torch.tensor([[6.25, 0.25, 0.0, 1.0, 0.5]], dtype=torch.float64), GRID)
    assert exact.sum() == 3
    assert footprints(torch.zeros(0, 5), GRID).shape == (0, *GRID.shape)
