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
    centers = grid.centers(boxes.device, torch.float64)  # R C 2
    x, y, yaw, length, width = (value[:, None, None] for value in boxes.double().unbind(-1))  # k 1 1
    ahead, left = centers[None, :, :1, 0] - x, centers[None, :1, :, 1] - y  # k R 1, k 1 C
    cos, sin = yaw.cos(), yaw.sin()
    along, across = ahead * cos + left * sin, left * cos - ahead * sin  # k R C
    return (along.abs() <= length / 2) & (across.abs() <= width / 2)
