"""Conversion between metres on the ground plane and cells of a bird's-eye view."""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from bevreshape.config.options import Edges, Length, checked
from bevreshape.errors import InputError

MOST_CELLS = 4096
"""Largest number of cells along a side of a grid; more would fill the memory."""


@checked
@dataclass(frozen=True)
class BEVGrid:
    """A rectangle of the ground plane, divided into square cells and seen from above.

    The ego frame is x forward, y left, z up, in metres. Row 0 is farthest ahead and column 0 farthest left, so a BEV
    tensor shown as an image has the vehicle's heading up and its left on the left. A cell's integer index is its
    centre: cell (row, col) covers ``row ± ½`` and ``col ± ½``.

    Args:
        forward_m: nearest and farthest edge of the grid along x, in metres.
        left_m: rightmost and leftmost edge of the grid along y, in metres; the right is negative.
        cell_m: length of a cell's side, in metres.

    Raises:
        InputError: if the bounds do not ascend, or a side is not an integer multiple of ``cell_m``.
    """

    forward_m: Edges = (0.0, 40.0)
    left_m: Edges = (-20.0, 20.0)
    cell_m: Length = 0.5

    def __post_init__(self) -> None:
        object.__setattr__(self, "forward_m", tuple(self.forward_m))
        object.__setattr__(self, "left_m", tuple(self.left_m))
        for key, (low, high) in (("forward_m", self.forward_m), ("left_m", self.left_m)):
            if not low < high:
                raise InputError(f"grid: {key}=({low}, {high}) must ascend; write the smaller bound first")
            cells = (high - low) / self.cell_m
            if abs(cells - round(cells)) > 1e-6:
                raise InputError(
                    f"grid: {key}=({low}, {high}) is {high - low:g} m, which is {cells:.3f} cells of "
                    f"cell_m={self.cell_m}; choose bounds that are an integer number of cells apart"
                )
            if cells > MOST_CELLS:
                raise InputError(
                    f"grid: {key}=({low}, {high}) is {cells:.0f} cells of cell_m={self.cell_m}, more than "
                    f"{MOST_CELLS}; choose larger cells or closer bounds"
                )

    @property
    def rows(self) -> int:
        """Number of cells along x."""
        return round((self.forward_m[1] - self.forward_m[0]) / self.cell_m)

    @property
    def cols(self) -> int:
        """Number of cells along y."""
        return round((self.left_m[1] - self.left_m[0]) / self.cell_m)

    @property
    def shape(self) -> tuple[int, int]:
        """(rows, cols)."""
        return self.rows, self.cols

    def coarsen(self, factor: int) -> "BEVGrid":
        """Return the same rectangle in cells ``factor`` times as long.

        Raises:
            InputError: if rows or columns are not divisible by ``factor``.
        """
        if factor < 1 or self.rows % factor or self.cols % factor:
            raise InputError(
                f"grid: {self.rows}×{self.cols} cells cannot be coarsened by {factor}; choose a factor that divides "
                "both, or other bounds"
            )
        return BEVGrid(self.forward_m, self.left_m, self.cell_m * factor)

    def centers(
        self, device: torch.device | str | None = None, dtype: torch.dtype = torch.float32
    ) -> Float[Tensor, "R C 2"]:
        """Return the ground position (x forward, y left) of every cell's centre, in metres."""
        row = torch.arange(self.rows, device=device, dtype=torch.float64)
        col = torch.arange(self.cols, device=device, dtype=torch.float64)
        x = self.forward_m[1] - (row + 0.5) * self.cell_m
        y = self.left_m[1] - (col + 0.5) * self.cell_m
        return torch.stack(torch.meshgrid(x, y, indexing="ij"), dim=-1).to(dtype)

    def metric_to_cell(self, ground: Float[Tensor, "*p 2"]) -> Float[Tensor, "*p 2"]:
        """Return fractional (col, row) of ground points (x, y) in metres; integers are cell centres.

        The order is that of pixels, (x, y) of the BEV image, so that it can be used for sampling.
        """
        col = (self.left_m[1] - ground[..., 1]) / self.cell_m - 0.5
        row = (self.forward_m[1] - ground[..., 0]) / self.cell_m - 0.5
        return torch.stack([col, row], dim=-1)

    def metric_to_cell_edges(self, ground: Float[Tensor, "*p 2"]) -> Float[Tensor, "*p 2"]:
        """Return fractional (ahead, left) of ground points (x, y) in metres, in cells from the near and the right edge.

        Integers are cell edges. Rounded down, the result is the cell that contains the point; a point on an edge
        belongs to the cell ahead of it or left of it.
        """
        ahead = (ground[..., 0] - self.forward_m[0]) / self.cell_m
        left = (ground[..., 1] - self.left_m[0]) / self.cell_m
        return torch.stack([ahead, left], dim=-1)
