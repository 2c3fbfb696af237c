"""Pooling to any size, evenly or unevenly."""

from typing import ClassVar, Literal

import numpy as np
import torch
from torch import Tensor

from bevreshape.config.options import checked
from bevreshape.geometry import BEVGrid, Cameras, FeatureShape
from bevreshape.reshapers.base import Reshaper, average_views


def bins(size: int, cells: int) -> Tensor:
    """Return the positions that every cell pools, (cells, widest); short bins repeat their last position.

    Cell i pools ``floor(i·size/cells)`` up to, not including, ``ceil((i + 1)·size/cells)``, like PyTorch's adaptive
    pooling. Bins are equal if ``cells`` divides ``size``, and overlap otherwise.
    """
    i = np.arange(cells)
    first, last = i * size // cells, -(-(i + 1) * size // cells) - 1
    widest = int((last - first).max()) + 1
    return torch.tensor(np.minimum(first[:, None] + np.arange(widest), last[:, None]))


def averaging(size: int, cells: int) -> Tensor:
    """Return the matrix (cells, size) that averages over every cell's bin."""
    member = torch.zeros(cells, size).scatter_(1, bins(size, cells), 1.0)
    return member / member.sum(1, keepdim=True)


@checked
class Pool(Reshaper):
    """Average or maximum over a rectangle of features for every cell: h×w → R×C, evenly or unevenly.

    It has no parameters and ignores perspective: the image's top becomes the far end. Averaging is two small matrix
    products and the maximum two gathers, so that every size exports. Every camera is pooled separately, and the present
    cameras are averaged.

    Can it reproduce X at a cell that observes exactly one token? Yes, if its rectangle is that token.

    Args:
        source: the shape of its features.
        grid: the cells it fills, or (R, C).
        mode: ``average`` or ``max``.

    Raises:
        InputError: an unknown mode.
    """

    worth_tuning: ClassVar = {"mode": ("max",)}

    rows: Tensor
    cols: Tensor

    def __init__(
        self, source: FeatureShape, grid: BEVGrid | tuple[int, int], *, mode: Literal["average", "max"] = "average"
    ) -> None:
        super().__init__(source, grid, source.channels)
        self.mode = mode
        rows, cols = self.target_shape
        make = averaging if mode == "average" else bins
        self.register_buffer("rows", make(source.height, rows), persistent=False)
        self.register_buffer("cols", make(source.width, cols), persistent=False)

    def reshape(self, features: Tensor, cameras: Cameras | None) -> Tensor:
        if self.mode == "average":
            views = self.rows @ features @ self.cols.mT
        else:
            views = features[..., self.rows, :].amax(-2)[..., self.cols].amax(-1)
        return average_views(views, cameras)
