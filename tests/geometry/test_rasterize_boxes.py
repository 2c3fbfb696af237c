import numpy as np
import pytest
import torch

from bevreshape.geometry import BEVGrid, rasterize_boxes

GRID = BEVGrid((-6.0, 10.0), (-8.0, 4.0), 0.5)


def by_hand(box: np.ndarray, x: float, y: float) -> float:
    """Return metres from a point to a box's outline, negative inside; sides are half planes between its corners."""
    cx, cy, yaw, length, width = box
    turn = np.array([[np.cos(yaw), -np.sin(yaw)], [np.sin(yaw), np.cos(yaw)]])
    corners = [turn @ [a * length / 2, b * width / 2] + [cx, cy] for a, b in ((1, 1), (-1, 1), (-1, -1), (1, -1))]
    outside = []
    for start, end in zip(corners, corners[1:] + corners[:1], strict=True):
        along = (end - start) / np.linalg.norm(end - start)
        outside.append(along[1] * (x - start[0]) - along[0] * (y - start[1]))  # right of a side that runs to the left
    return max(outside)


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("longest_m", [1.0, 8.0, 60.0])
def test_cells_are_those_with_their_centre_inside(seed: int, longest_m: float) -> None:
    random = np.random.default_rng(seed)
    boxes = random.uniform([-12, -14, -7, 0.2, 0.2], [16, 10, 7, longest_m, longest_m / 2], (12, 5))
    found = rasterize_boxes(torch.from_numpy(boxes), GRID).numpy()
    for number, box in enumerate(boxes):
        for row, col in np.ndindex(GRID.shape):
            outside = by_hand(box, 10 - (row + 0.5) * 0.5, 4 - (col + 0.5) * 0.5)
            if abs(outside) > 1e-9:
                assert found[number, row, col] == (outside < 0)


def test_convention_yaw_turns_the_length_from_ahead_to_the_left() -> None:
    ahead, left, between = rasterize_boxes(
        torch.tensor([[2.0, -2.0, yaw, 6.0, 1.0] for yaw in (0.0, torch.pi / 2, torch.pi / 4)]), GRID
    )
    assert ahead.sum(0).max() == 12
    assert ahead.sum(1).max() == 2
    assert torch.equal(left.sum(0).max(), torch.tensor(2))
    row, col = between.nonzero().float().mean(0).tolist()  # of the middle
    farther_left = between[:, : int(col)].nonzero()
    assert (farther_left[:, 0] <= row + 1).all(), "its left end is ahead"


def test_box_edges_are_inside_and_boxes_are_not_inflated() -> None:
    touching = torch.tensor([[0.25, 0.25, 0.0, 1.0, 1.0]])  # from centre to centre, three by three
    between = torch.tensor([[0.0, 0.0, 0.0, 0.4, 0.4]])
    assert rasterize_boxes(touching, GRID).sum() == 9
    assert not rasterize_boxes(between, GRID).any()


def test_no_boxes_and_boxes_outside_the_grid() -> None:
    assert rasterize_boxes(torch.zeros(0, 5), GRID).shape == (0, *GRID.shape)
    assert not rasterize_boxes(
        torch.tensor([[50.0, 0.0, 0.3, 4.0, 2.0], [-1e8, 0, 0, 1, 1], [1e8, 1e8, 0, 1, 1]]), GRID
    ).any()
    assert rasterize_boxes(torch.tensor([[50.0, 0.0, 0.3, 1e6, 1e6]]), GRID).all()
