"""Colors of classes; later classes cover earlier ones."""

import colorsys
from collections.abc import Sequence

import numpy as np
import torch
from jaxtyping import Bool, UInt8
from torch import Tensor

RGBImage = UInt8[np.ndarray, "height width 3"]

# after Okabe and Ito (2008), whose colors the color-blind can tell apart; the usual first class, road, is large and
# calm
COLORS = (
    (92, 106, 158),
    (240, 228, 66),
    (86, 180, 233),
    (213, 94, 0),
    (0, 158, 115),
    (204, 121, 167),
    (230, 159, 0),
)


def class_palette(classes: Sequence[str]) -> dict[str, tuple[int, int, int]]:
    """Return a color for every class, by its position."""
    more = (colorsys.hsv_to_rgb(number * 0.618034 % 1, 0.55, 0.9) for number in range(len(classes) - len(COLORS)))
    colors = [*COLORS, *((round(255 * r), round(255 * g), round(255 * b)) for r, g, b in more)]
    return dict(zip(classes, colors, strict=False))


def topmost(there: Bool[Tensor, "k rows cols"], classes: Sequence[str]) -> tuple[Tensor, Tensor]:
    """Return the colors (rows, cols, 3) of the topmost class, and where there is any."""
    layer = torch.zeros(*there.shape[1:], 3, dtype=torch.uint8, device=there.device)
    for plane, color in zip(there, class_palette(classes).values(), strict=True):
        layer[plane] = color_like(color, there)
    return layer, there.any(0)


def color_like(color: tuple[int, int, int], like: Tensor) -> Tensor:
    """Return a color as bytes on the device of a tensor."""
    return torch.tensor(color, dtype=torch.uint8, device=like.device)
