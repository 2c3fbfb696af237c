"""Polygons on the ground as cells: exactly those whose centre lies inside, whatever the number of shapes and holes."""

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray

from bevreshape.geometry.grid import BEVGrid

Floats = NDArray[np.floating]
Ring = Floats
"""A closed line (p, 2) of ground points in metres whose last point is its first: counter-clockwise seen from above
around an area, clockwise around a hole."""


def fill_rings(rings: Sequence[Ring], grid: BEVGrid) -> NDArray[np.bool_]:
    """The cells (rows, cols) whose centres lie in the union of areas.

    A centre lies inside where the rings wind around it. The winding number is summed along a row of cells from the edges
    that the row crosses, so the cost is that of the edges, not of edges times cells. A centre on an edge belongs to one
    of the two areas that meet there.

    Args:
        rings: of any number of areas, which may overlap; a hole counts for its own area only.
        grid: the cells.
    """
    return wind(rings, np.zeros(len(rings), np.intp), 1, grid)[0] != 0


def wind(rings: Sequence[Ring], planes: NDArray[np.intp], count: int, grid: BEVGrid) -> NDArray[np.intp]:
    """How often rings wind around the cells' centres, (count, rows, cols).

    Args:
        rings: see :data:`Ring`.
        planes: the plane, below ``count``, that a ring is drawn into.
        count: of planes.
        grid: the cells.
    """
    rows, cols = grid.shape
    if not len(rings):
        return np.zeros((count, rows, cols), np.intp)
    ground = torch.from_numpy(np.concatenate(list(rings)))
    points = grid.cells_of(ground).numpy()  # p (col, row)
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
    col = np.clip(np.ceil(crossed), 0, cols).astype(np.intp)  # the first cell right of it, beyond the last one: none
    turns = np.where(y1 > y0, 1.0, -1.0)  # rows count backwards and columns to the right
    at = (plane[edge] * rows + row) * (cols + 1) + col
    steps = np.bincount(at, turns, count * rows * (cols + 1)).reshape(count, rows, cols + 1)
    return np.rint(steps[..., :-1].cumsum(-1)).astype(np.intp)


def corners(boxes: Floats) -> Floats:
    """Rings (k, 5, 2) of footprints.

    Args:
        boxes: (k, 5), as :func:`~bevreshape.geometry.footprints.footprints` takes them.
    """
    ahead = np.stack([np.cos(boxes[:, 2]), np.sin(boxes[:, 2])], axis=1)
    left = np.stack([-ahead[:, 1], ahead[:, 0]], axis=1)
    along = np.array([0.5, -0.5, -0.5, 0.5, 0.5])[:, None] * boxes[:, None, 3:4]
    across = np.array([0.5, 0.5, -0.5, -0.5, 0.5])[:, None] * boxes[:, None, 4:5]
    return boxes[:, None, :2] + along * ahead[:, None] + across * left[:, None]
