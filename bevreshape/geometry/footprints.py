"""Boxes seen from above, as cells."""

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from bevreshape.geometry.grid import BEVGrid


def footprints(boxes: Float[Tensor, "k 5"], grid: BEVGrid) -> Bool[Tensor, "k rows cols"]:
    """The cells whose centre lies in a box's footprint, one map a box; its edge belongs to it.

    Computed in float64, exact up to its rounding; nothing is inflated, so a box between the centres has no cell.

    Args:
        boxes: x, y (of the middle), yaw, length, width: metres, and radians counter-clockwise as seen from above. Yaw 0
            lays the length along x.
        grid: the cells.
    """
    result = torch.zeros(len(boxes), *grid.shape, dtype=torch.bool, device=boxes.device)
    if not len(boxes):
        return result
    x, y, yaw, length, width = (value[:, None, None] for value in boxes.double().unbind(-1))  # k 1 1
    # Only a window around every box is asked, as large as the largest of them needs: most are a few cells of many.
    reach = (torch.hypot(length, width) / (2 * grid.cell_m)).flatten()  # in cells
    col, row = grid.cells_of(torch.cat([x, y], dim=-1)).squeeze(1).unbind(-1)  # of the middle
    side = int(min(2 * reach.max().item() + 3, max(grid.shape)))
    window = torch.arange(side, device=boxes.device)
    rows, cols = ((start - reach).floor().clamp(0, 1e9).long()[:, None] + window for start in (row, col))  # k side
    centers = grid.centers(boxes.device, torch.float64)  # R C 2
    ahead = centers[rows.clamp(max=grid.rows - 1), 0, 0][:, :, None] - x  # k side 1
    left = centers[0, cols.clamp(max=grid.cols - 1), 1][:, None, :] - y  # k 1 side
    cos, sin = yaw.cos(), yaw.sin()
    along, across = ahead * cos + left * sin, left * cos - ahead * sin  # k side side
    inside = (along.abs() <= length / 2) & (across.abs() <= width / 2)
    inside &= (rows < grid.rows)[:, :, None] & (cols < grid.cols)[:, None, :]
    box, i, j = inside.nonzero().unbind(-1)
    result[box, rows[box, i], cols[box, j]] = True
    return result
