"""Which cells of a bird's-eye view upright boxes stand on."""

from jaxtyping import Bool, Float
from torch import Tensor

from bevreshape.geometry.grid import BEVGrid


def footprints(boxes: Float[Tensor, "k 5"], grid: BEVGrid) -> Bool[Tensor, "k rows cols"]:
    """The cells whose centre lies in the footprint of a box, its edge included.

    Args:
        boxes: (x, y, yaw, length, width): the centre on the ground in metres, yaw in radians counter-clockwise from above,
            0 with the length along x, and both sides in metres.
        grid: the cells.
    """
    x, y, yaw, length, width = boxes[..., None, None].double().unbind(1)  # k 1 1
    ahead, left = grid.centers(boxes.device, x.dtype).unbind(-1)  # rows cols
    ahead, left = ahead - x, left - y
    along = ahead * yaw.cos() + left * yaw.sin()
    across = left * yaw.cos() - ahead * yaw.sin()
    return (along.abs() <= length / 2) & (across.abs() <= width / 2)
