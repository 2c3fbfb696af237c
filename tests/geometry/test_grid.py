"""Conventions of the grid: which cell of the bird's-eye view is which metre of the ground."""

import numpy as np
import pytest
import torch

from bevreshape.errors import InputError
from bevreshape.geometry import BEVGrid

GRID = BEVGrid((2.0, 10.0), (-3.0, 3.0), 0.5)


def test_convention_row_0_is_farthest_ahead_and_column_0_farthest_left():
    centers = GRID.centers(dtype=torch.float64)
    assert GRID.shape == (16, 12) == (GRID.rows, GRID.cols)
    assert centers.shape == (16, 12, 2)
    corners = [centers[row, col].tolist() for row, col in ((0, 0), (0, -1), (-1, 0), (-1, -1))]
    assert corners == [[9.75, 2.75], [9.75, -2.75], [2.25, 2.75], [2.25, -2.75]]


def test_every_centre_one_by_one():
    centers = GRID.centers(dtype=torch.float64).numpy()
    for row in range(16):
        for col in range(12):
            assert centers[row, col] == pytest.approx((10 - (row + 0.5) * 0.5, 3 - (col + 0.5) * 0.5))


def test_convention_integers_are_cell_centres_and_halves_are_edges():
    col, row = torch.meshgrid(torch.arange(12.0), torch.arange(16.0), indexing="xy")
    assert torch.allclose(GRID.metric_to_cell(GRID.centers()), torch.stack([col, row], -1), atol=1e-5)
    edges = GRID.metric_to_cell(torch.tensor([[10.0, 3.0], [2.0, -3.0]]))
    assert edges.tolist() == [[-0.5, -0.5], [11.5, 15.5]]


def test_cell_edges_rounded_down_are_the_cell_of_a_point():
    points = torch.tensor([[9.75, 2.75], [2.0, -3.0], [2.49, -2.51], [2.5, -2.5], [1.99, 3.0]])
    assert GRID.metric_to_cell_edges(points).floor().tolist() == [[15, 11], [0, 0], [0, 0], [1, 1], [-1, 12]]
    ahead, left = GRID.metric_to_cell_edges(GRID.centers().flatten(0, 1)).floor().long().unbind(-1)
    cells = (15 - ahead) * 12 + 11 - left
    assert cells.tolist() == list(range(16 * 12))


@pytest.mark.parametrize("factor", [1, 2, 4])
def test_a_coarse_cell_is_the_mean_of_its_fine_ones(factor):
    coarse = GRID.coarsen(factor)
    fine = GRID.centers(dtype=torch.float64).numpy()
    blocks = fine.reshape(16 // factor, factor, 12 // factor, factor, 2).mean((1, 3))
    assert np.allclose(coarse.centers(dtype=torch.float64).numpy(), blocks)
    assert (coarse.forward_m, coarse.left_m) == (GRID.forward_m, GRID.left_m)


def test_bounds_as_lists_and_integers():
    assert BEVGrid([0, 40], [-20, 20], 1) == BEVGrid((0.0, 40.0), (-20.0, 20.0), 1.0)
    assert BEVGrid((-50, 50), (-50, 50), 0.5).shape == (200, 200)
    assert BEVGrid((0.0, 0.6), (-0.3, 0.3), 0.1).shape == (6, 6)  # 0.6 / 0.1 is not 6 in binary


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: BEVGrid((40.0, 0.0)), r"forward_m=\(40\.0, 0\.0\) must ascend"),
        (lambda: BEVGrid((0.0, 40.0), (5.0, 5.0)), r"left_m=\(5\.0, 5\.0\) must ascend"),
        (lambda: BEVGrid((0.0, 10.1)), r"is 10\.1 m, which is 20\.200 cells of cell_m=0\.5"),
        (lambda: BEVGrid(cell_m=0.0), "cell_m=0.0 must be a number from 0.001"),
        (lambda: BEVGrid((0.0, 1.0, 2.0)), "must be a list of 2 numbers"),
        (lambda: BEVGrid(cell_m=0.001), "40000 cells of cell_m=0.001, more than 4096"),
        (lambda: GRID.coarsen(3), "16×12 cells cannot be coarsened by 3"),
        (lambda: GRID.coarsen(0), "cannot be coarsened by 0"),
    ],
)
def test_impossible_grids_are_refused(build, message):
    with pytest.raises(InputError, match=message):
        build()
