"""Rasterization of boxes and polygons on the ground: a cell is set exactly if its centre is inside."""

from collections.abc import Sequence

import numpy as np
import torch
from jaxtyping import Bool, Float
from numpy.typing import NDArray
from torch import Tensor

from bevreshape.geometry.grid import BEVGrid

Floats = NDArray[np.floating]
Ring = Floats
"""A closed line (p, 2) of ground points in metres; the last point equals the first.

Seen from above it is counter-clockwise around an area and clockwise around a hole.
"""


def rasterize_boxes(boxes: Float[Tensor, "k 5"], grid: BEVGrid) -> Bool[Tensor, "k rows cols"]:
    """Return the cells whose centre is inside a box's footprint or on its edge, one map per box.

    The computation is in float64 and exact up to its rounding. Boxes are not inflated: one between the centres has no
    cell.

    Args:
        boxes: x, y (of the middle), yaw, length, width: metres, and radians counter-clockwise as seen from above. At
            yaw 0 the length is along x.
        grid: the cells.
    """
    result = torch.zeros(len(boxes), *grid.shape, dtype=torch.bool, device=boxes.device)
    if not len(boxes):
        return result
    x, y, yaw, length, width = (value[:, None, None] for value in boxes.double().unbind(-1))  # k 1 1
    # Only a window around every box is tested, as large as the largest box needs: most boxes cover few cells.
    reach = (torch.hypot(length, width) / (2 * grid.cell_m)).flatten()  # in cells
    col, row = grid.metric_to_cell(torch.cat([x, y], dim=-1)).squeeze(1).unbind(-1)  # of the middle
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


def rasterize_polygons(rings: Sequence[Ring], grid: BEVGrid) -> NDArray[np.bool_]:
    """Return the cells (rows, cols) whose centres are inside the union of areas.

    A centre is inside if the rings wind around it. The winding number is summed along a row of cells from the edges
    that the row crosses; the cost grows with the edges, not with edges times cells. A centre on an edge belongs to one
    of the two areas that meet there.

    Args:
        rings: rings of any number of areas, which may overlap; a hole counts for its own area only.
        grid: the cells.
    """
    return winding_numbers(rings, np.zeros(len(rings), np.intp), 1, grid)[0] != 0


def winding_numbers(rings: Sequence[Ring], planes: NDArray[np.intp], count: int, grid: BEVGrid) -> NDArray[np.intp]:
    """Return the winding numbers of rings around the cells' centres, (count, rows, cols).

    Args:
        rings: see :data:`Ring`.
        planes: for every ring, the plane (< ``count``) that it is drawn into.
        count: number of planes.
        grid: the cells.
    """
    rows, cols = grid.shape
    if not len(rings):
        return np.zeros((count, rows, cols), np.intp)
    ground = torch.from_numpy(np.concatenate(list(rings)))
    points = grid.metric_to_cell(ground).numpy()  # p (col, row)
    lengths = np.array([len(ring) for ring in rings])
    closing = np.cumsum(lengths) - 1
    start, end = np.delete(points, closing, 0), points[np.setdiff1d(np.arange(len(points)), closing - lengths + 1)]
    plane = np.repeat(planes, lengths - 1)
    # An edge meets the rows from its upper end up to, not including, its lower one.
    low, high = np.minimum(start[:, 1], end[:, 1]), np.maximum(start[:, 1], end[:, 1])
    first, stop = (np.clip(np.ceil(bound), 0, rows).astype(np.intp) for bound in (low, high))
    met = np.flatnonzero(stop > first)
    times = (stop - first)[met]
    edge = np.repeat(met, times)
    row = np.arange(len(edge)) - np.repeat(np.cumsum(times) - times, times) + first[edge]
    (x0, y0), (x1, y1) = start[edge].T, end[edge].T
    crossed = x0 + (row - y0) / (y1 - y0) * (x1 - x0)
    col = np.clip(np.ceil(crossed), 0, cols).astype(np.intp)  # the first cell right of it; ``cols`` if there is none
    turns = np.where(y1 > y0, 1.0, -1.0)  # rows count backwards and columns to the right
    at = (plane[edge] * rows + row) * (cols + 1) + col
    steps = np.bincount(at, turns, count * rows * (cols + 1)).reshape(count, rows, cols + 1)
    return np.rint(steps[..., :-1].cumsum(-1)).astype(np.intp)


def corners(boxes: Floats) -> Floats:
    """Return the rings (k, 5, 2) of box footprints.

    Args:
        boxes: (k, 5), as :func:`rasterize_boxes` takes them.
    """
    ahead = np.stack([np.cos(boxes[:, 2]), np.sin(boxes[:, 2])], axis=1)
    left = np.stack([-ahead[:, 1], ahead[:, 0]], axis=1)
    along = np.array([0.5, -0.5, -0.5, 0.5, 0.5])[:, None] * boxes[:, None, 3:4]
    across = np.array([0.5, 0.5, -0.5, -0.5, 0.5])[:, None] * boxes[:, None, 4:5]
    return boxes[:, None, :2] + along * ahead[:, None] + across * left[:, None]
